// transformers.js in Node: its pipeline, which pools, and AutoModel, whose outputs are read by name.
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { run, versionOf } from "./harness.mjs";

const require = createRequire(join(process.env.CONSUMERS_NODE, "package.json"));
const { AutoModel, AutoTokenizer, env, pipeline } = await import(
  pathToFileURL(require.resolve("@huggingface/transformers"))
);
env.allowRemoteModels = false;

// Its q8 is onnx/model_quantized.onnx, its fp32 onnx/model.onnx.
const dtypeOf = (profile) => (profile.endsWith("-int8") ? "q8" : "fp32");
const versions = { "@huggingface/transformers": versionOf("@huggingface/transformers") };
const onnxruntime = versionOf("onnxruntime-node");

for (const pooling of ["mean", "cls"]) {
  await run(`transformers.js pipeline ${pooling}`, {
    how: `pipeline("feature-extraction"), pooling: "${pooling}", normalize: true`,
    versions,
    onnxruntime,
    closes: false,
    load: async (folder, profile) => {
      const extractor = await pipeline("feature-extraction", folder, { dtype: dtypeOf(profile) });
      return async (texts) => (await extractor(texts, { pooling, normalize: true })).tolist();
    },
  });
}

await run("transformers.js AutoModel", {
  how: "AutoModel.from_pretrained(folder), sentence_embedding",
  versions,
  onnxruntime,
  closes: false,
  load: async (folder, profile) => {
    const tokenizer = await AutoTokenizer.from_pretrained(folder);
    const model = await AutoModel.from_pretrained(folder, { dtype: dtypeOf(profile) });
    return async (texts) => {
      const given = await tokenizer(texts, { padding: true, truncation: true });
      return (await model(given)).sentence_embedding.tolist();
    };
  },
});
