// One session of onnxruntime-web: a profile's graph on the prefix of the weights that it needs.

import { locateWeights } from "./family.js";

/** Each build of the runtime is loaded when it is first asked for: the one with WebGPU has twice the bytes. */
const BUILDS = {
  wasm: () => import("onnxruntime-web/wasm"),
  webgpu: () => import("onnxruntime-web/webgpu"),
};

/** Begin to load a build; whoever opens a session waits for it. */
export function preload(kind) {
  BUILDS[kind]().catch(() => {}); // said when it is needed
}

export class Engine {
  #session = null;
  #key = "";
  #runtime = null;

  /**
   * Open a profile, and release the one before.
   *
   * @param {string} kind wasm or webgpu
   * @param {{name: string, graph: string, weights: string}} profile
   * @param {Uint8Array} graph
   * @param {Uint8Array} weights the prefix; a graph's offsets count from its start
   */
  async open(kind, profile, graph, weights) {
    const key = `${kind} ${profile.name}`;
    if (key === this.#key) return;
    this.#runtime = await BUILDS[kind]();
    this.#runtime.env.wasm.numThreads = 1;
    this.#runtime.env.logLevel = "error";
    this.#key = "";
    await this.#session?.release();
    this.#session = null;
    this.#session = await this.#runtime.InferenceSession.create(graph, {
      executionProviders: [kind],
      externalData: [{ path: locateWeights(profile), data: weights }],
      logSeverityLevel: 3,
    });
    this.#key = key;
  }

  /**
   * A vector.
   *
   * @param {Record<string, BigInt64Array>} feeds of one row
   * @param {string} output
   * @returns {Promise<Float32Array>}
   */
  async run(feeds, output) {
    const { Tensor } = this.#runtime;
    const tensors = Object.entries(feeds).map(([name, data]) => [name, new Tensor("int64", data, [1, data.length])]);
    const found = await this.#session.run(Object.fromEntries(tensors), [output]);
    return (await found[output].getData()).slice();
  }
}

/** Bytes of the runtime as it was sent to this page, now or for an earlier one. */
export function measureRuntime() {
  return performance
    .getEntriesByType("resource")
    .filter((entry) => entry.name.endsWith(".wasm"))
    .reduce((sum, entry) => sum + entry.encodedBodySize, 0);
}
