// A file of which a prefix is here and the rest is fetched when it is needed, never a byte twice.
//
// The nested weights are ordered by the depth at which a model needs them, and offsets in graphs count from the start of
// the file. So the prefix for a deeper profile is this one's and what comes behind: one buffer, filled from the left.

export class GrowingFile {
  /**
   * @param {string} url of the file
   * @param {number} capacity bytes of the longest prefix that will be asked for
   * @param {(bytes: number) => void} count is told how many bytes have arrived
   * @param {typeof fetch} get
   */
  constructor(url, capacity, count = () => {}, get = (...given) => fetch(...given)) {
    this.url = url;
    this.have = 0;
    this.count = count;
    this.get = get;
    this.sound = new Set([0]); // lengths of prefixes whose digest was compared
    this.content = new Uint8Array(capacity); // its pages take memory when they are written
    this.last = Promise.resolve();
  }

  /**
   * The first `end` bytes. One call goes after the other, so that no two ask for the same bytes; what has arrived when
   * a connection breaks is kept.
   *
   * @param {number} end
   * @param {string | null} sha256 of them, where the family says it. If they are others, only those that were compared
   *   before are kept.
   * @returns {Promise<Uint8Array>}
   */
  growTo(end, sha256 = null) {
    const grown = this.last.then(() => this.#fetchTo(end)).then((prefix) => this.#check(prefix, sha256));
    this.last = grown.then(
      () => {},
      () => {},
    );
    return grown;
  }

  async #fetchTo(end) {
    if (end > this.content.length) throw new Error(`${this.url}: ${end} bytes are more than the family says`);
    if (end > this.have) {
      const first = this.have;
      const answer = await this.get(this.url, { headers: { Range: `bytes=${first}-${end - 1}` } });
      await refuseOthers(answer, this.url, 206);
      const said = answer.headers.get("Content-Range") ?? "";
      if (!said.startsWith(`bytes ${first}-${end - 1}/`)) {
        throw new Error(`${this.url}: bytes ${first}-${end - 1} were asked for; ${said || "no range"} came`);
      }
      const reader = answer.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        if (this.have + part.value.length > end) throw new Error(`${this.url}: more came than was asked for`);
        this.content.set(part.value, this.have);
        this.have += part.value.length;
        this.count(part.value.length);
      }
      if (this.have !== end) throw new Error(`${this.url}: the connection broke at byte ${this.have} of ${end}`);
    }
    return this.content.subarray(0, end);
  }

  async #check(prefix, sha256) {
    if (!sha256 || this.sound.has(prefix.length) || !canDigest()) return prefix;
    if ((await digest(prefix)) !== sha256) {
      this.have = Math.max(...[...this.sound].filter((length) => length < prefix.length));
      throw new Error(`${this.url}: the first ${prefix.length} bytes have another sha256 than the family says; try again`);
    }
    this.sound.add(prefix.length);
    return prefix;
  }
}

/** Whether this browser digests: only for pages that came over https, or from this machine. */
export const canDigest = () => globalThis.crypto?.subtle !== undefined;

async function digest(content) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A whole file's bytes. */
export async function fetchWhole(url, count = () => {}, get = (...given) => fetch(...given)) {
  const answer = await get(url);
  await refuseOthers(answer, url, 200);
  const content = new Uint8Array(await answer.arrayBuffer());
  count(content.length);
  return content;
}

async function refuseOthers(answer, url, status) {
  if (answer.status === status) return;
  let why = `status ${answer.status}`;
  try {
    why = (await answer.json()).error.message;
  } catch {
    // not in the server's own words
  }
  throw new Error(`${url} cannot be had: ${why}`);
}
