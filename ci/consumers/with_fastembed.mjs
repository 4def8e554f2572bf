// npm's fastembed, with the folder as a custom model. It takes the first token's state, always.
import { createRequire } from "node:module";
import { join } from "node:path";
import { run, versionOf } from "./harness.mjs";

const require = createRequire(join(process.env.CONSUMERS_NODE, "package.json"));
const { EmbeddingModel, FlagEmbedding } = require("fastembed");

await run("fastembed npm", {
  how: "EmbeddingModel.CUSTOM, modelName, cls as always",
  versions: { fastembed: versionOf("fastembed") },
  onnxruntime: versionOf("fastembed/node_modules/onnxruntime-node"),
  load: async (folder) => {
    const model = await FlagEmbedding.init({
      model: EmbeddingModel.CUSTOM,
      modelAbsoluteDirPath: folder,
      modelName: "onnx/model.onnx",
    });
    return async (texts) => {
      const vectors = [];
      for await (const batch of model.embed(texts)) vectors.push(...batch.map((vector) => Array.from(vector)));
      return vectors;
    };
  },
});
