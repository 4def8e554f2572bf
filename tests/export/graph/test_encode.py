"""Output encodings: on the same vectors, exactly what sentence-transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import TEXTS, Precise, read_texts
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from properties import given, settings, st
from safetensors.numpy import load_file
from sentence_transformers.util.quantization import quantize_embeddings
from toys import Floats, run_model

from matexport import Embedder, load_family
from matexport.export.graph.encode import encode_output, find_ranges
from matexport.io.texts import load_probes
from matexport.spec.profile import Encoding

#: One byte and less, whole bytes, a bit more, a bit less.
DIMS = [1, 7, 8, 9, 16, 20, 33, 100]
EDGES = [0.0, -0.0, 1e-45, -1e-45, 1e-9, -1e-9, 0.5, -0.5, 1.0, -1.0, 3e38, -3e38]


def encode(vectors: Floats, encoding: Encoding, ranges: Floats | None = None) -> NDArray[np.generic]:
    """What a graph that gives these vectors gives when its output is encoded."""
    dim = vectors.shape[1]
    given = ir.Value(name="given", shape=ir.Shape(["batch_size", dim]), type=ir.TensorType(ir.DataType.FLOAT))
    same = ir.node("Identity", [given])
    out = same.outputs[0]
    out.name, out.shape, out.type = "sentence_embedding", given.shape, given.type
    graph = ir.Graph([given], [out], nodes=[same], opset_imports={"": 20}, name="same")
    model = ir.Model(graph, ir_version=10)
    encode_output(model, encoding, ranges)
    assert [value.name for value in model.graph.outputs] == ["sentence_embedding"]
    return run_model(model, {"given": vectors})[0]


def draw_vectors(count: int, dim: int, seed: int = 0) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("dim", DIMS)
def test_ubinary_is_theirs(dim: int) -> None:
    vectors = np.vstack([draw_vectors(50, dim), np.resize(np.float32(EDGES), (12, dim))])
    codes = encode(vectors, Encoding.UBINARY)
    assert codes.dtype == np.uint8
    assert codes.shape == (62, Encoding.UBINARY.width(dim)) == (62, -(-dim // 8))
    np.testing.assert_array_equal(codes, quantize_embeddings(vectors, "ubinary"))


@pytest.mark.parametrize("dim", DIMS)
def test_int8_is_theirs(dim: int) -> None:
    """Texts that come later lie outside of the ranges, too."""
    ranges = find_ranges(draw_vectors(40, dim, seed=1))
    vectors = np.vstack([draw_vectors(500, dim) * np.float32(1.5), np.resize(np.float32(EDGES[:-2]), (10, dim))])
    codes = encode(vectors, Encoding.INT8, ranges)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, quantize_embeddings(vectors, "int8", ranges=ranges))
    assert {-128, 127} <= set(codes.reshape(-1).tolist()), "clipped on both sides"


@settings(max_examples=150)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.just(5)), elements=st.floats(-2, 2, width=32)),
    arrays(np.float32, (4, 5), elements=st.floats(-1, 1, width=32)),
)
def test_any_vectors_and_ranges(vectors: Floats, seen: Floats) -> None:
    """Also where a coordinate never varied: its range has no width."""
    seen[:, 2] = seen[0, 2]
    ranges = find_ranges(seen)
    np.testing.assert_array_equal(encode(vectors, Encoding.UBINARY), quantize_embeddings(vectors, "ubinary"))
    with np.errstate(over="ignore"):  # a range as narrow as numbers get, and a vector far outside of it
        expected = quantize_embeddings(vectors, "int8", ranges=ranges)
    np.testing.assert_array_equal(encode(vectors, Encoding.INT8, ranges), expected)


def test_on_the_edges_of_every_step() -> None:
    """Where a rounding in place of the floor, or a step more, would show."""
    ranges = np.array([[-1.0], [1.0]], dtype=np.float32)
    edges = np.linspace(-1, 1, 256, dtype=np.float32)
    near = np.concatenate([np.nextafter(edges, np.float32(-2)), edges, np.nextafter(edges, np.float32(2)), [1.5]])
    near = near.astype(np.float32)[:, None]
    codes = encode(near, Encoding.INT8, ranges)
    np.testing.assert_array_equal(codes, quantize_embeddings(near, "int8", ranges=ranges))
    assert len(np.unique(codes)) == 256
    rounded = np.clip(np.rint((near + 1) / (2 / 255)), 0, 255) - 128
    assert np.mean(codes != rounded) > 0.3


def test_ranges_are_least_and_greatest() -> None:
    vectors = draw_vectors(30, 6)
    np.testing.assert_array_equal(find_ranges(vectors), [vectors.min(axis=0), vectors.max(axis=0)])


def test_float32_is_left_alone() -> None:
    vectors = draw_vectors(3, 5)
    np.testing.assert_array_equal(encode(vectors, Encoding.FLOAT32), vectors)


POINTS = ["L01-D064", "L02-D020", "L02-D064"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("precision", ["fp32", "int8", "q4"])
def test_a_familys_codes_are_theirs_of_its_own_vectors(
    point: str, precision: str, precise: Callable[[str], Precise]
) -> None:
    made = precise("bert")
    texts = [*TEXTS, *read_texts(made.texts)]
    vectors = Embedder(made.family, f"{point}-{precision}").embed(texts)
    ranges = load_file(made.family / "ranges.safetensors")[point]
    bits = Embedder(made.family, f"{point}-{precision}-ubinary").embed(texts)
    np.testing.assert_array_equal(bits, quantize_embeddings(vectors, "ubinary"))
    codes = Embedder(made.family, f"{point}-{precision}-int8").embed(texts)
    np.testing.assert_array_equal(codes, quantize_embeddings(vectors, "int8", ranges=ranges))


def test_ranges_are_those_of_the_calibration_texts(precise: Callable[[str], Precise]) -> None:
    """In fp32 and at each point, one text at a time."""
    made = precise("bert")
    stored = load_file(made.family / "ranges.safetensors")
    assert sorted(stored) == POINTS
    for point, ranges in stored.items():
        probes = [probe.text for probe in load_probes(made.job.probes)]
        texts = [text for text in read_texts(made.texts) if text not in probes]
        assert len(texts) == 71
        vectors = Embedder(made.family, f"{point}-fp32").embed(texts, batch_budget=1)
        np.testing.assert_allclose(ranges, find_ranges(vectors), atol=1e-6)


def test_encoded_profiles_share_their_precisions_weights(precise: Callable[[str], Precise]) -> None:
    family = load_family(precise("bert").family)
    assert len(family.profiles) == 7 * 3 * 3
    for profile in family.profiles:
        facts = family.profile_facts(profile.name)
        assert facts.encoding is profile.encoding
        assert facts.weights == f"weights.{profile.precision}.safetensors"
        plain = family.profile_facts(f"{profile.point.name}-{profile.precision}")
        assert facts.weights_prefix_bytes == plain.weights_prefix_bytes
    outputs = ir.load(Path(family.path, "L02-D020.q8.ubinary.onnx")).graph.outputs
    assert [(value.name, value.dtype, value.shape) for value in outputs] == [
        ("sentence_embedding", ir.DataType.UINT8, ir.Shape(["batch_size", 3]))
    ]
