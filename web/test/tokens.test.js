import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Tokenizer } from "@huggingface/tokenizers";
import { findFirst, findNearest, listDims, readFamily } from "../src/family.js";
import { findWrapping, makeFeeds, tokenize } from "../src/tokens.js";

const GOLDEN = new URL("../../tests/golden/", import.meta.url);
const read = (name) => JSON.parse(readFileSync(new URL(name, GOLDEN), "utf-8"));
const tokenizer = new Tokenizer(read("schema4/tokenizer.json"), read("schema4/tokenizer_config.json"));
const facts = { ...readFamily(read("schema4/family.json")).text };
const LONG = "the cat sits on the mat and the dog runs in the snow";
// [CLS] the cat sits on the mat and the dog runs in the snow [SEP]
const IDS = [2, 5, 7, 9, 10, 5, 11, 16, 5, 8, 12, 13, 5, 14, 3];

test("a text that is too long loses tokens on the parent's side, special ones stay", () => {
  assert.deepEqual(tokenize(tokenizer, facts, LONG).ids, IDS);
  const left = tokenize(tokenizer, { ...facts, max_tokens: 6 }, LONG);
  assert.deepEqual(left.ids, [2, 12, 13, 5, 14, 3]);
  const right = tokenize(tokenizer, { ...facts, max_tokens: 6, cuts: "right" }, LONG);
  assert.deepEqual(right.ids, [2, 5, 7, 9, 10, 3]);
  assert.equal(right.types.length, 6);
  const bare = tokenize(tokenizer, { ...facts, max_tokens: 3, cuts: "right", special_tokens: false }, LONG);
  assert.deepEqual(bare.ids, [5, 7, 9]);
  assert.deepEqual(tokenize(tokenizer, { ...facts, max_tokens: 15 }, LONG).ids, IDS, "as long as is taken");
  assert.throws(() => tokenize(tokenizer, { ...facts, max_tokens: 1 }, LONG), /less than the special ones/);
});

test("a prompt stands before the text, and is not pooled where the parent does not", () => {
  const row = tokenize(tokenizer, facts, "dog", "query");
  assert.deepEqual(row.ids.slice(0, 3), [2, 63, 7]);
  const feeds = makeFeeds(facts, row);
  assert.deepEqual(Object.keys(feeds), facts.inputs);
  assert.deepEqual([...feeds.pooling_mask.slice(0, 5)], [0n, 0n, 0n, 0n, 1n]);
  assert.ok(feeds.attention_mask.every((item) => item === 1n));
  assert.equal(findWrapping({ ...facts, default_prompt: "query" }, null).around("dog"), "a cat: dog");
  assert.equal(findWrapping({ ...facts, default_prompt: "query" }, "").around("dog"), "dog");
  assert.throws(() => findWrapping(facts, "passage"), /no prompt passage/);
});

test("a chat template is written around the text, and one that was cut ends in it again", () => {
  const chat = { frames: { "": { before: "the ", after: " mat", ending: [11, 3] } }, strips: "both" };
  const wrapped = { ...facts, chat, cuts: "right" };
  assert.equal(findWrapping(wrapped, null).around(" \u0085dog\u2003"), "the dog mat");
  assert.deepEqual(tokenize(tokenizer, { ...wrapped, max_tokens: 6 }, LONG).ids, [2, 5, 5, 7, 11, 3]);
  assert.deepEqual(tokenize(tokenizer, wrapped, "dog").ids, [2, 5, 8, 11, 3]);
});

test("rows of a parent that attends to padding have one length", () => {
  const row = tokenize(tokenizer, { ...facts, full: true, max_tokens: 5 }, "dog");
  assert.deepEqual(row.ids, [2, 8, 3, 0, 0]);
  assert.equal(makeFeeds(facts, row).input_ids.length, 5);
});

test("a text without tokens is said", () => {
  assert.throws(() => tokenize(tokenizer, { ...facts, special_tokens: false }, ""), /has no tokens/);
});

test("the first profile is the one that needs the fewest bytes", () => {
  const family = readFamily(read("schema3/family.json"));
  assert.equal(findFirst(family.profiles).name, "L01-D020-int8");
  assert.deepEqual(listDims(family.profiles, "fp32", 1), [12, 20]);
  assert.equal(findNearest([12, 20], 17), 1);
  const codes = readFamily(read("schema2/family.json"));
  assert.ok(codes.profiles.every((profile) => profile.encoding === "float32"));
  assert.throws(() => readFamily({ ...read("schema2/family.json"), text: null }), /takes no texts/);
});
