"""What flows through the traced graph on real texts: rows of the values that weights are multiplied by, and peaks.

The graph is run as it is, in fp32, with the wanted values as its outputs, one text or image at a time. Rows go to files
that are mapped, not held: for a large parent they are a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.export.graph.edit import Floats, add_constant, append_node, write_graph
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.inputs.modality import Inputs, Row
from matexport.spec.profile import Point

Run = Callable[[Sequence[Row]], list[Floats]]

#: Rows (tokens) kept of each value: enough for second moments of 4096 channels, and for a 99.99th percentile.
MAX_ROWS = 4096

#: Places of maps that are kept, of all images together: of each, 64 to 2048 channels.
MAX_PLACES = 2048


@dataclass(frozen=True)
class Sample:
    """What graphs are run on to see what flows through them.

    Attributes:
        rows: the calibration items, as the runtime prepares them.
        inputs: how rows become a graph's inputs.
        folder: where the graphs' weights lie; a graph that is run is put beside them for a moment.
    """

    rows: Sequence[Row]
    inputs: Inputs
    folder: Path


def observe_rows(
    model: ir.Model,
    names: Sequence[str],
    sample: Sample,
    scratch: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Floats]:
    """Rows of some of the graph's values.

    Args:
        model: a traced graph whose weights lie in the sample's folder, or inline.
        names: (B, T, K) float32 values.
        sample: the calibration texts.
        scratch: where the rows are kept, for as long as they are used.
        progress: called with (done, total) texts.

    Returns:
        name -> (n, K) float32 rows, one per token, evenly spread over the texts; the same tokens for every name.
    """
    run = open_values(model, names, sample)
    first = run(sample.rows[:1])
    # An item of one size may have many tokens: the patches of an image.
    each = first[0].size // first[0].shape[-1] // sample.inputs.size(sample.rows[0])
    keep = _spread([each * sample.inputs.size(row) for row in sample.rows], MAX_ROWS)
    files: dict[str, Floats] = {}
    at = 0
    for done, (row, chosen) in enumerate(zip(sample.rows, keep, strict=True)):
        if progress:
            progress(done, len(sample.rows))
        values = run([row]) if done else first
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            if name not in files:
                total = sum(len(part) for part in keep)
                files[name] = np.memmap(
                    scratch / f"rows-{index}", dtype=np.float32, mode="w+", shape=(total, value.shape[-1])
                )
            files[name][at : at + len(chosen)] = value.reshape(-1, value.shape[-1])[chosen]
        at += len(chosen)
    return files


def observe_maps(
    model: ir.Model,
    names: Sequence[str],
    sample: Sample,
    scratch: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Floats]:
    """Channels of some of the graph's maps, at places of every calibration image that are evenly spread.

    Args:
        model: a traced graph whose weights lie in the sample's folder, or inline.
        names: (B, C, H, W) float32 values.
        scratch: where the rows are kept, for as long as they are used.
        progress: called with (done, total) images.

    Returns:
        name -> (n, C) float32 rows, one per place: as many of every image.
    """
    run = open_values(model, names, sample)
    files: dict[str, Floats] = {}
    for done, row in enumerate(sample.rows):
        if progress:
            progress(done, len(sample.rows))
        for index, (name, value) in enumerate(zip(names, run([row]), strict=True)):
            places = value[0].reshape(value.shape[1], -1)
            count = min(places.shape[1], max(1, MAX_PLACES // len(sample.rows)))
            if name not in files:
                shape = (count * len(sample.rows), len(places))
                files[name] = np.memmap(scratch / f"maps-{index}", dtype=np.float32, mode="w+", shape=shape)
            chosen = np.linspace(0, places.shape[1] - 1, count).round().astype(np.int64)
            files[name][done * count : (done + 1) * count] = places[:, chosen].T
    return files


def observe_peaks(model: ir.Model, sample: Sample) -> dict[str, float]:
    """The largest absolute value that every float32 value of a graph took, by name.

    Values of `MASK_LEVEL` and more are what masks are made of; they are left out.

    Args:
        model: a traced graph whose weights lie in the sample's folder, or inline; it is left as it is.
        sample: the texts, each run alone.
    """
    probed = model.clone()
    graph = probed.graph
    level = add_constant(graph, "mask_level", np.array(MASK_LEVEL, dtype=np.float32))
    nothing = add_constant(graph, "nothing", np.array(0, dtype=np.float32))
    names, peaks = [], []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype is not ir.DataType.FLOAT:
                continue
            size = append_node(graph, "Abs", [value])
            finite = append_node(graph, "Where", [append_node(graph, "Less", [size, level]), size, nothing])
            peaks.append(append_node(graph, "ReduceMax", [finite], {"keepdims": 0}))
            names.append(str(value.name))
    for index, value in enumerate(peaks):
        value.name = f"peak_{index}"
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([])
    graph.outputs[:] = peaks
    run = _open(probed, [str(value.name) for value in peaks], sample)
    found = np.zeros(len(peaks))
    for row in sample.rows:
        found = np.maximum(found, np.array(run([row]), dtype=np.float64))
    return dict(zip(names, found.tolist(), strict=True))


#: Masks hold the least float32 (-3.4e38) or half of it; no activation comes near.
MASK_LEVEL = 1e30


def open_values(model: ir.Model, names: Sequence[str], sample: Sample) -> Run:
    """A function that runs rows of tokens, padded on the right into one batch, and gives values of the graph.

    Args:
        model: its weights lie in the sample's folder, or inline; it is left as it is.
        names: of the values, in the order in which they are given.
        sample: its texts are not run: rows are given to the function.
    """
    probed = model.clone()
    values = {value.name: value for node in probed.graph for value in node.outputs}
    probed.graph.outputs[:] = [values[name] for name in names]
    return _open(probed, names, sample)


def run_points(model: ir.Model, points: Sequence[Point], sample: Sample) -> dict[Point, Floats]:
    """A graph's vectors of the sample's texts, each run alone: point -> (n, dim) float32."""
    run = open_values(model, [point.name for point in points], sample)
    vectors: dict[Point, list[Floats]] = {point: [] for point in points}
    for row in sample.rows:
        for point, value in zip(points, run([row]), strict=True):
            vectors[point].append(value)
    return {point: np.concatenate(parts) for point, parts in vectors.items()}


def _open(model: ir.Model, names: Sequence[str], sample: Sample) -> Run:
    path = sample.folder / "observed.onnx"
    write_graph(model, path)
    session = open_session(path)
    path.unlink()

    def run(rows: Sequence[Row]) -> list[Floats]:
        values: list[Floats] = session.run(list(names), sample.inputs.feed(rows))
        return values

    return run


def _spread(lengths: Sequence[int], most: int) -> list[NDArray[np.int64]]:
    """Which tokens of each text to keep: all, or every n-th."""
    every = -(-sum(lengths) // most)
    starts = np.cumsum([0, *lengths[:-1]])
    return [
        np.flatnonzero((np.arange(length) + start) % every == 0) for length, start in zip(lengths, starts, strict=True)
    ]
