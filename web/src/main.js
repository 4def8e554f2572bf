// The page: controls -> a profile -> the bytes that it lacks -> vectors of the sentences -> their cosines.
//
// One round goes after the other; what is changed while one runs is done in the next, and what is passed on the way is
// left out.

import { Tokenizer } from "@huggingface/tokenizers";
import { Engine, measureRuntime, preload } from "./engine.js";
import { findFirst, findNearest, listDims, listLayers, listPrecisions, readFamily } from "./family.js";
import { canDigest, fetchWhole, GrowingFile } from "./growing.js";
import { compareAll, drawMatrix, fillTable } from "./similarity.js";
import { makeFeeds, tokenize } from "./tokens.js";

const MOST_TEXTS = 64;
const UNCHECKED = "Its weights were not checked: browsers digest for pages from https or from this machine alone.";
/** Milliseconds that a hand on a control may rest. */
const REST = 200;

const find = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e5 ? 3 : 1)} MB`;

const fetched = { weights: 0, tokenizer: 0, graphs: 0, manifest: 0 };
const count = (what) => (bytes) => {
  fetched[what] += bytes;
  showFetched();
};
const engine = new Engine();
const files = {};
const graphs = {};
let family, tokenizer, drawn, timer;
let [running, wanted] = [false, false];

async function start() {
  preload("wasm");
  const manifest = await fetchWhole("family/family.json", count("manifest"));
  family = readFamily(JSON.parse(new TextDecoder().decode(manifest)));
  find("about").textContent = `${family.parent}: sub-models that share one weights file, computed in this browser.`;
  offerChoices(findFirst(family.profiles));
  await offerGpu();
  const read = async (name) => JSON.parse(new TextDecoder().decode(await fetchWhole(family.url(name), count("tokenizer"))));
  const settings = family.has("tokenizer_config.json") ? await read("tokenizer_config.json") : {};
  tokenizer = new Tokenizer(await read("tokenizer.json"), settings);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["layers", "dim", "precision", "runtime", "prompt", "texts"]) {
    find(id).addEventListener("input", () => {
      refreshChoices();
      clearTimeout(timer);
      timer = setTimeout(update, REST);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn && drawMatrix(find("matrix"), drawn));
  await update();
}

/** Fill the controls with what the family has, set to a profile. */
function offerChoices(first) {
  fillSelect(find("precision"), listPrecisions(family.profiles).map((precision) => [precision, precision]));
  find("precision").value = first.precision;
  const depths = listLayers(family.profiles, first.precision);
  find("layers").dataset.wanted = first.layers;
  find("dim").dataset.wanted = first.dim;
  setSlider("layers", depths, findNearest(depths, first.layers));
  refreshChoices(false);
  const names = Object.keys(family.text.prompts);
  const standing = family.text.default_prompt;
  fillSelect(find("prompt"), [
    ...(standing ? [["default", `default (${standing})`]] : []),
    ["", "none"],
    ...names.filter((name) => name !== standing).map((name) => [`=${name}`, name]),
  ]);
  find("prompt-control").hidden = !names.length;
}

/** A browser may know WebGPU and have no GPU for it, as one on a server. */
async function offerGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) return;
  const option = find("runtime").querySelector("[value=webgpu]");
  option.disabled = true;
  option.textContent = navigator.gpu ? "GPU: none that WebGPU may use" : "GPU: this browser has no WebGPU";
}

/** Depths and dims that there are for what is chosen; a slider that has to move goes to the nearest. */
function refreshChoices(moved = true) {
  const depths = listLayers(family.profiles, find("precision").value);
  const layers = moved ? readSlider("layers", depths) : depths[Number(find("layers").value)];
  const place = findNearest(depths, layers);
  setSlider("layers", depths, place);
  const dims = listDims(family.profiles, find("precision").value, depths[place]);
  const dim = moved ? readSlider("dim", dims) : Number(find("dim").dataset.wanted);
  setSlider("dim", dims, findNearest(dims, dim));
}

/** What a slider stands for: by the numbers that it had when it was set last. */
function readSlider(id, numbers) {
  const had = find(id).dataset.numbers?.split(" ").map(Number) ?? numbers;
  return had[Number(find(id).value)];
}

function setSlider(id, numbers, place) {
  const slider = find(id);
  slider.max = numbers.length - 1;
  slider.value = place;
  slider.disabled = numbers.length < 2;
  slider.dataset.numbers = numbers.join(" ");
  slider.setAttribute("aria-valuetext", `${numbers[place]}`);
  find(`${id}-value`).textContent = numbers[place];
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

function readChoice() {
  const [precision, layers, dim] = [find("precision").value, ...["layers", "dim"].map((id) => readSlider(id, []))];
  const prompt = find("prompt").value;
  return {
    profile: family.profiles.find(
      (one) => one.precision === precision && one.layers === layers && one.dim === dim,
    ),
    runtime: find("runtime").value,
    prompt: prompt === "default" ? null : prompt.replace(/^=/, ""),
    texts: find("texts")
      .value.split("\n")
      .filter((line) => line.trim()),
  };
}

async function update() {
  wanted = true;
  if (running) return;
  running = true;
  while (wanted) {
    wanted = false;
    setState("busy");
    try {
      await compute(readChoice());
      find("error").hidden = true;
      if (!wanted) setState("ready");
    } catch (error) {
      fail(error);
    }
  }
  running = false;
}

async function compute({ profile, runtime, prompt, texts }) {
  if (!texts.length) throw new Error("There is no sentence: write some, one per line.");
  if (texts.length > MOST_TEXTS) throw new Error(`${texts.length} sentences are too many; ${MOST_TEXTS} are the most.`);
  const rows = texts.map((text) => tokenize(tokenizer, family.text, text, prompt));
  say(`Fetching what ${profile.name} needs…`);
  const capacity = family.capacity[profile.weights];
  const weights = (files[profile.weights] ??= new GrowingFile(family.url(profile.weights), capacity, count("weights")));
  const prefix = await weights.growTo(profile.weights_prefix_bytes, profile.weights_prefix_sha256);
  graphs[profile.graph] ??= await fetchWhole(family.url(profile.graph), count("graphs"));
  say(`Opening ${profile.name}…`);
  await engine.open(runtime, profile, graphs[profile.graph], prefix);
  await engine.run(makeFeeds(family.text, rows[0]), family.output); // the first run of a session takes longer
  const [vectors, times] = [[], []];
  for (const row of rows) {
    const begun = performance.now();
    vectors.push(await engine.run(makeFeeds(family.text, row), family.output));
    times.push(performance.now() - begun);
  }
  show(profile, texts, compareAll(vectors), times, rows);
}

function show(profile, texts, cosines, times, rows) {
  drawn = cosines;
  drawMatrix(find("matrix"), cosines);
  fillTable(find("numbers"), texts, cosines);
  const mean = times.reduce((sum, time) => sum + time, 0) / times.length;
  const tokens = rows.reduce((sum, row) => sum + row.ids.length, 0) / rows.length;
  find("profile").textContent = profile.name;
  find("time").textContent = `${mean.toFixed(1)} ms (${tokens.toFixed(0)} tokens on average)`;
  find("runtime-bytes").textContent = megabytes(measureRuntime());
  showFetched();
  const checked = !profile.weights_prefix_sha256 || canDigest();
  say(`${texts.length} sentences compared with ${profile.name}.${checked ? "" : ` ${UNCHECKED}`}`);
}

function showFetched() {
  const sum = Object.values(fetched).reduce((total, bytes) => total + bytes, 0);
  const parts = Object.entries(fetched).map(([what, bytes]) => `${what} ${megabytes(bytes)}`);
  find("fetched").textContent = `${megabytes(sum)}: ${parts.join(", ")}`;
  find("fetched").dataset.bytes = sum;
}

function fail(error) {
  find("error").textContent = error.message || `${error}`;
  find("error").hidden = false;
  say("");
  setState("failed");
}

const say = (text) => {
  find("status").textContent = text;
};
const setState = (state) => {
  find("page").dataset.state = state;
};

start().catch(fail);
