"""One process of `runtime.py`: one way of embedding the same sentences. Runs in matexport's environment or in a peer's.

Takes one JSON object as its argument: ``side``, ``model`` (a pack's folder, or the parent's), ``task`` and the texts'
file. Prints one JSON line.

* ``throughput``: sentences per second of embedding all texts, after a run over some of them.
* ``first``: monotonic time at which the first vector was there, and the peak of this process's memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: About so many vectors are given back, spread over the texts, so that another order or another model is noticed.
SHOWN = 100
Embed = Callable[[Sequence[str]], Any]


def open_matexport(spec: dict[str, Any]) -> Embed:
    from matexport import Embedder

    return Embedder(spec["model"], threads=spec["threads"]).embed


def open_sentence_transformers(spec: dict[str, Any]) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(spec["threads"])
    model = SentenceTransformer(spec["model"], device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=32, normalize_embeddings=True)


def open_fastembed(spec: dict[str, Any]) -> Embed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = Path(spec["model"])
    (graph,) = folder.glob("*.onnx")
    TextEmbedding.add_custom_model(
        model="local/parent",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="local/parent"),
        dim=384,
        model_file=graph.name,
        output_name="sentence_embedding",
        additional_files=[path.name for path in folder.glob("*.safetensors")],
    )
    model = TextEmbedding("local/parent", specific_model_path=str(folder), threads=spec["threads"])
    return lambda texts: list(model.embed(list(texts)))


SIDES = {
    "matexport": open_matexport,
    "sentence-transformers": open_sentence_transformers,
    "fastembed": open_fastembed,
}


def main() -> int:
    spec = json.loads(sys.argv[1])
    embed = SIDES[spec["side"]](spec)
    texts = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    if spec["task"] == "first":
        embed(texts[:1])
        at = time.monotonic_ns()
        print(json.dumps({"at_ns": at, "peak_bytes": read_peak_bytes()}))
        return 0
    embed(texts[:256])
    start = time.perf_counter()
    vectors = embed(texts)
    seconds = time.perf_counter() - start
    shown = range(0, len(texts), max(1, len(texts) // SHOWN))
    rows = [[float(number) for number in vectors[index]] for index in shown]
    print(json.dumps({"texts_per_s": len(texts) / seconds, "rows": rows, "pid": os.getpid()}))
    return 0


def read_peak_bytes() -> int:
    """Peak since this program was started; `getrusage` also covers the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    raise SystemExit(main())
