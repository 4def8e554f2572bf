// The same as harness.py for consumers that run in Node: embed all texts both ways and write down what came.
// Nothing is judged here: judge.py does that, so that there is one comparison for all.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

// The version of a package as it lies in the folder that holds node_modules.
export function versionOf(name, root = process.env.CONSUMERS_NODE) {
  return JSON.parse(readFileSync(join(root, "node_modules", name, "package.json"), "utf-8")).version;
}

// closes: whether a text that is cut ends in the closing token.
// load: (folder, profile) -> async (texts) -> array of arrays of numbers.
export async function run(consumer, { how, versions, onnxruntime, load, layout = "all", closes = true }) {
  const [cases, out] = process.argv.slice(2).map((path) => resolve(path));
  const { texts, dims } = JSON.parse(readFileSync(join(cases, "cases.json"), "utf-8"));
  const started = Date.now();
  const profiles = {};
  for (const profile of Object.keys(dims)) {
    try {
      const embed = await load(join(cases, layout, profile), profile);
      const batched = await embed(texts);
      const single = [];
      for (const text of texts) single.push(...(await embed([text])));
      profiles[profile] = { batched, single };
    } catch (error) {
      console.error(error);
      profiles[profile] = { error: `${error.name}: ${error.message}`.split("\n")[0].slice(0, 300) };
    }
  }
  const seconds = Math.round((Date.now() - started) / 100) / 10;
  mkdirSync(out, { recursive: true });
  const name = consumer.toLowerCase().replace(/[^a-z0-9.]+/g, "-");
  writeFileSync(
    join(out, `${name}.json`),
    JSON.stringify({ consumer, layout, how, versions, onnxruntime, closes, seconds, profiles }),
  );
}
