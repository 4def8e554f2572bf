"""Golden graphs, what they are fed, and what onnxruntime gives of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from places import GOLDEN

from matexport.family.graph_file import parse_graph
from matexport.runtime.engines.native import steps
from matexport.runtime.engines.native.recognize import recognize
from matexport.runtime.engines.native.tensors import make_reader

CHANGED = "schema3/L02-D020.int8.onnx"

#: Batches: (start, end) of each text in its padded row.
ALONE, RIGHT = [(0, 9)], [(0, 14), (0, 1), (0, 6)]
LEFT, BOTH = [(0, 14), (13, 14), (5, 14)], [(3, 12), (1, 9)]

Array = NDArray[Any]


def load(path: str) -> tuple[Any, dict[str, bytes]]:
    """A golden graph, and the weights beside it."""
    folder = (GOLDEN / path).parent
    weights = {file.name: file.read_bytes() for file in folder.glob("weights.*")}
    return parse_graph(path, (GOLDEN / path).read_bytes()), weights


def make_feeds(model: Any, ranges: list[tuple[int, int]], vocabulary: int = 100) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    length = max(14 if len(ranges) > 1 else 0, *(end for _, end in ranges))
    mask = np.array([[start <= place < end for place in range(length)] for start, end in ranges], dtype=np.int64)
    ids = np.where(mask, rng.integers(5, vocabulary, mask.shape), 0)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": rng.integers(0, 2, mask.shape) * mask}
    return {value.name: feeds[value.name] for value in model.graph.input}


def run_graph(model: Any, weights: Mapping[str, bytes], feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_external_initializers_from_files_in_memory(
        list(weights), list(weights.values()), [len(content) for content in weights.values()]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def read_plan(model: Any, weights: Mapping[str, bytes]) -> steps.Plan:
    return recognize(model, make_reader("graph", weights))
