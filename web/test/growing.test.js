import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { fetchWhole, GrowingFile } from "../src/growing.js";

const CONTENT = Uint8Array.from({ length: 1000 }, (_, place) => (place * 7) % 256);

/** A server of ranges, in place of `fetch`; it notes what was asked, and may be made to lie. */
function makeServer({ shift = 0, more = 0, status = 206 } = {}) {
  const asked = [];
  const get = async (_url, { headers }) => {
    const [first, last] = headers.Range.slice(6).split("-").map(Number);
    asked.push([first, last + 1]);
    const parts = new ReadableStream({
      start(stream) {
        for (let place = first; place <= last + more; place += 100) {
          stream.enqueue(CONTENT.slice(place, Math.min(place + 100, last + 1 + more)));
        }
        stream.close();
      },
    });
    const range = `bytes ${first + shift}-${last}/${CONTENT.length}`;
    return new Response(parts, { status, headers: { "Content-Range": range } });
  };
  return { asked, get };
}

test("a prefix grows, and no byte is asked for twice", async () => {
  const server = makeServer();
  let counted = 0;
  const file = new GrowingFile("weights", 1000, (bytes) => (counted += bytes), server.get);
  assert.deepEqual(await file.growTo(300), CONTENT.slice(0, 300));
  const views = await Promise.all([file.growTo(700), file.growTo(500), file.growTo(1000), file.growTo(10)]);
  assert.deepEqual(views.map((view) => view.length), [700, 500, 1000, 10]);
  assert.deepEqual(views[2], CONTENT);
  assert.deepEqual(server.asked, [[0, 300], [300, 700], [700, 1000]]);
  assert.equal(counted, 1000);
  assert.equal(views[0].buffer, views[2].buffer, "one buffer for all depths");
});

const digest = (content) => createHash("sha256").update(content).digest("hex");

test("a prefix is compared with what the family says of it", async () => {
  const server = makeServer();
  const file = new GrowingFile("weights", 1000, undefined, server.get);
  const [short, long] = [300, 700].map((end) => digest(CONTENT.slice(0, end)));
  assert.deepEqual(await file.growTo(300, short), CONTENT.slice(0, 300));
  CONTENT[650] ^= 1; // on the way
  await assert.rejects(file.growTo(700, long), /the first 700 bytes have another sha256 than the family says/);
  CONTENT[650] ^= 1;
  assert.deepEqual(await file.growTo(300, short), CONTENT.slice(0, 300));
  assert.deepEqual(await file.growTo(700, long), CONTENT.slice(0, 700));
  assert.deepEqual(await file.growTo(700, long), CONTENT.slice(0, 700));
  assert.deepEqual(server.asked, [[0, 300], [300, 700], [300, 700]], "what was sound is not fetched again");
});

test("a family that says no digest is taken as it comes", async () => {
  const file = new GrowingFile("weights", 1000, undefined, makeServer().get);
  for (const said of [undefined, null]) assert.equal((await file.growTo(300, said)).length, 300);
});

test("what arrived before a connection broke is kept", async () => {
  const body = (first, breakAt) =>
    new ReadableStream({
      pull(stream) {
        if (first >= breakAt) return stream.error(new Error("network"));
        if (first >= 600) return stream.close();
        stream.enqueue(CONTENT.slice(first, first + 100));
        first += 100;
      },
    }, { highWaterMark: 0 });
  const asked = [];
  const get = async (_url, { headers }) => {
    asked.push(headers.Range);
    const first = Number(headers.Range.slice(6).split("-")[0]);
    return new Response(body(first, asked.length === 1 ? 400 : 1000), {
      status: 206,
      headers: { "Content-Range": `bytes ${first}-599/1000` },
    });
  };
  const file = new GrowingFile("weights", 1000, undefined, get);
  await assert.rejects(file.growTo(600), /network/);
  assert.deepEqual(await file.growTo(600), CONTENT.slice(0, 600));
  assert.deepEqual(asked, ["bytes=0-599", "bytes=400-599"]);
});

test("an answer that is not the range is refused", async () => {
  for (const [wrong, words] of [
    [{ shift: 1 }, /bytes 0-299 were asked for/],
    [{ status: 200 }, /status 200/],
    [{ more: 100 }, /more came/],
  ]) {
    const file = new GrowingFile("weights", 1000, undefined, makeServer(wrong).get);
    await assert.rejects(file.growTo(300), words);
  }
  const file = new GrowingFile("weights", 1000, undefined, makeServer().get);
  await assert.rejects(file.growTo(1001), /more than the family says/);
});

test("the server's own words are passed on", async () => {
  const answer = () => Response.json({ error: { message: "another sha256" } }, { status: 404 });
  await assert.rejects(fetchWhole("graph", undefined, async () => answer()), /another sha256/);
  await assert.rejects(fetchWhole("graph", undefined, async () => new Response("", { status: 502 })), /status 502/);
});
