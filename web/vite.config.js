import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { defineConfig } from "vite";

// The page is put where `matexport serve` finds it, and where a wheel takes it from. Nothing is inlined: the page's
// policy lets it load its own files alone, and no data: URL runs.
const PAGE = join(import.meta.dirname, "../matexport/serve/page");

/** The runtimes are kept compressed, as they are sent: a quarter of the bytes on disk and on the way. */
const compressRuntimes = {
  name: "compress-runtimes",
  async closeBundle() {
    for (const path of await readdir(PAGE, { recursive: true })) {
      if (!path.endsWith(".wasm")) continue;
      const file = join(PAGE, path);
      await writeFile(`${file}.gz`, await promisify(gzip)(await readFile(file), { level: 9 }));
      await rm(file);
    }
  },
};

export default defineConfig({
  base: "./",
  plugins: [compressRuntimes],
  build: {
    outDir: PAGE,
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    target: "es2022",
    license: { fileName: "licenses.md" },
  },
});
