// Texts -> the graph's inputs, as the family's `text` facts say: prompt or chat template around the text, special
// tokens, cut at the parent's length on the parent's side. The tokenizer itself is Hugging Face's, which does not cut.

/** What Python calls white space, which a chat template strips. */
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const STRIPS = {
  "": [],
  left: [new RegExp(`^${SPACE}`, "u")],
  right: [new RegExp(`${SPACE}$`, "u")],
  both: [new RegExp(`^${SPACE}`, "u"), new RegExp(`${SPACE}$`, "u")],
};

/**
 * What is done to a text with a prompt; null asks for the parent's default, "" for none.
 *
 * @returns {{around: (text: string) => string, ending: number[], unpooled: number}}
 */
export function findWrapping(facts, prompt) {
  const name = prompt ?? facts.default_prompt ?? "";
  if (name && !(name in facts.prompts)) throw new Error(`This family has no prompt ${name}.`);
  const unpooled = facts.unpooled?.[name] ?? 0;
  if (facts.chat) {
    const { before, after, ending } = { ending: [], ...facts.chat.frames[name] };
    const strip = (text) => STRIPS[facts.chat.strips ?? ""].reduce((left, what) => left.replace(what, ""), text);
    return { around: (text) => before + strip(text) + after, ending, unpooled };
  }
  const before = name ? facts.prompts[name] : "";
  return { around: (text) => before + text, ending: [], unpooled };
}

/**
 * Token ids of a text, not longer than the parent takes.
 *
 * @param {{encode: Function}} tokenizer
 * @returns {{ids: number[], types: number[], unpooled: number}}
 */
export function tokenize(tokenizer, facts, text, prompt = null) {
  const wrapping = findWrapping(facts, prompt);
  const row = cut(tokenizer, facts, wrapping.around(text));
  if (wrapping.ending.length && row.ids.length >= facts.max_tokens) {
    const kept = wrapping.ending.slice(-row.ids.length);
    row.ids = [...row.ids.slice(0, row.ids.length - kept.length), ...kept];
  }
  while (facts.full && row.ids.length < facts.max_tokens) {
    row.ids.push(facts.pad_token_id);
    row.types.push(0);
  }
  if (!row.ids.length) throw new Error(`“${text.slice(0, 40)}” has no tokens, so there is no vector for it.`);
  return { ...row, unpooled: wrapping.unpooled };
}

function cut(tokenizer, facts, text) {
  const encode = (special) => {
    const found = tokenizer.encode(text, { add_special_tokens: special, return_token_type_ids: true });
    return { ids: found.ids, types: found.token_type_ids ?? found.ids.map(() => 0) };
  };
  const whole = encode(facts.special_tokens);
  const over = whole.ids.length - facts.max_tokens;
  if (over <= 0) return whole;
  // What is cut is the text's own tokens, and special ones stand around what is left.
  const own = facts.special_tokens ? encode(false).ids : whole.ids;
  const before = findRun(whole.ids, own);
  if (over > own.length) throw new Error(`${facts.max_tokens} tokens hold less than the special ones.`);
  const start = facts.cuts === "left" ? before : before + own.length - over;
  const drop = (list) => [...list.slice(0, start), ...list.slice(start + over)];
  return { ids: drop(whole.ids), types: drop(whole.types) };
}

/** Where a list stands in another one, which begins and ends with some more. */
function findRun(list, run) {
  for (let start = 0; start <= list.length - run.length; start++) {
    if (run.every((item, index) => list[start + index] === item)) return start;
  }
  throw new Error("The tokenizer gives other tokens without its special ones.");
}

/** The graph's inputs of one row, by name: (1, tokens) whole numbers. */
export function makeFeeds(facts, row) {
  const all = {
    input_ids: row.ids,
    attention_mask: row.ids.map(() => 1),
    token_type_ids: row.types,
    pooling_mask: row.ids.map((_, place) => (place < row.unpooled ? 0 : 1)),
  };
  return Object.fromEntries(facts.inputs.map((name) => [name, BigInt64Array.from(all[name], BigInt)]));
}
