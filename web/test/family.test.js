import assert from "node:assert/strict";
import { test } from "node:test";
import { locateWeights } from "../src/family.js";

test("weights lie where the graph looks for them, from its own folder on", () => {
  const cases = [
    ["L02-D064.fp32.onnx", "weights.fp32.safetensors", "weights.fp32.safetensors"],
    ["model.onnx", "onnx/model.onnx_data", "onnx/model.onnx_data"],
    ["onnx/model_quantized.onnx", "onnx/model_quantized.onnx_data", "model_quantized.onnx_data"],
  ];
  for (const [graph, weights, expected] of cases) assert.equal(locateWeights({ graph, weights }), expected);
});
