"""A kind of parent that is no text encoder, registered here in a dozen lines: what the package does, it does with it.

The parent is a small MLP over float vectors, read after one, two or three of its blocks, with nested dims. No line of
the package knows it.
"""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from commandline import Run
from forge import flip_byte, reseal
from numpy.typing import NDArray
from torch import nn

import matexport
from matexport.errors import FamilyError, ParityError, RequestError
from matexport.export import export_family
from matexport.export.kinds.kind import KINDS, Kind, find_kind
from matexport.export.parents.plan import Calibration, Example, Plan, Reference
from matexport.family.manifest import load_family
from matexport.runtime.inputs.array import ArrayInputs
from matexport.spec.facts import BATCH_AXIS, ParentFacts
from matexport.spec.inputs import ArrayFacts
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.probe import ArrayProbe, Dtype
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import FinalNorm, Readout

FEATURES, WIDTH = 24, 32
POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 32))

Floats = NDArray[np.float32]


def draw(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, FEATURES), dtype=np.float32)


def pack_probes(arrays: Floats) -> tuple[ArrayProbe, ...]:
    return tuple(ArrayProbe(array.tobytes(), Dtype.FLOAT32, (FEATURES,)) for array in arrays)


PROBES, ITEMS = draw(9, seed=1), draw(40, seed=2)


class Mlp(nn.Module):
    """Three blocks, a head that all depths share."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [FEATURES, WIDTH, WIDTH, WIDTH]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()) for before, after in pairwise(sizes)
        )
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = [features]
        for block in self.blocks:
            states.append(block(states[-1]))
        return (*(self.head(state) for state in states[1:]), *states)


def make_mlp(seed: int = 0) -> Mlp:
    """Its LayerNorms are perturbed: a wrong depth would pass otherwise."""
    torch.manual_seed(seed)
    mlp = Mlp().eval()
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, 0.1, 0.4)
    return mlp


# The dozen lines. ----------------------------------------------------------------------------------------------------
def plan(job: ExportJob, _begun: object) -> Plan:
    facts = ParentFacts("mlp", "Mlp", 3, WIDTH, WIDTH, "float32", {}, judge=None)
    readout, inputs = Readout(FinalNorm.ABSENT, (), (), normalize=True), ArrayFacts("features", (FEATURES,))
    calibration = Calibration(pack_probes(draw(100, seed=3)), "100 arrays")
    return Plan(job, facts, readout, inputs, pack_probes(PROBES), calibration, "embedding", details=make_mlp())


def reference(plan: Plan, mlp: Mlp, _report: object) -> Reference:
    return Reference({point: compute(mlp, PROBES, point) for point in plan.job.points})


def module(_plan: Plan, mlp: Mlp, reads: list[Point]) -> nn.Module:
    return mlp if [read.layers for read in reads] == [1, 2, 3] else pytest.fail(f"reads {reads}")


def example(_plan: Plan) -> Example:
    return Example({"features": torch.ones(3, FEATURES)}, {0: BATCH_AXIS})


MLP = Kind(plan, lambda plan, _report: plan.details, lambda _plan: {}, reference, module, example)
# ----------------------------------------------------------------------------------------------------------------------


def compute(mlp: Mlp, features: Floats, point: Point) -> Floats:
    """The oracle, in numpy and apart from the module: (n, dim) float32 at length 1."""
    state = features.astype(np.float64)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in mlp.state_dict().items()}
    erf = np.vectorize(math.erf)
    for block in range(point.layers):
        state = state @ weights[f"blocks.{block}.0.weight"].T + weights[f"blocks.{block}.0.bias"]
        centred = state - state.mean(1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        state = normed * weights[f"blocks.{block}.1.weight"] + weights[f"blocks.{block}.1.bias"]
        state = state * 0.5 * (1 + erf(state / np.sqrt(2)))
    vectors = (state @ weights["head.weight"].T + weights["head.bias"])[:, : point.dim]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


JOB = ExportJob(ParentSource("mlp", kind="mlp"), POINTS, name="mlp")


@pytest.fixture(scope="module")
def mlp_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlp") / "family"
    job = msgspec.structs.replace(
        JOB, encodings=(Encoding.FLOAT32, Encoding.INT8, Encoding.UBINARY), calibration=Path("named-by-the-plan")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "mlp", MLP)
        export_family(job, out)
    return out


def test_it_is_exported_and_proven(mlp_family: Path) -> None:
    family = load_family(mlp_family)
    facts = family.facts
    assert (facts.text, facts.array, facts.output) == (None, ArrayFacts("features", (FEATURES,)), "embedding")
    assert len(family.profiles) == len(POINTS) * 3
    assert not (mlp_family / "tokenizer.json").exists()
    verification = matexport.verify_family(mlp_family)
    assert verification.passed
    assert verification.token_ids is None
    assert {way for verdict in verification.verdicts for way in verdict.parity} == {"batched", "single", "together"}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_its_vectors_are_the_parents(point: Point, mlp_family: Path) -> None:
    mlp = make_mlp()
    with matexport.Embedder(mlp_family, f"{point.name}-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(ITEMS), compute(mlp, ITEMS, point), atol=2e-6)
        np.testing.assert_allclose(
            embedder.embed(ITEMS.tolist(), batch_budget=7), compute(mlp, ITEMS, point), atol=2e-6
        )
        streamed = list(embedder.embed_iter(iter(ITEMS[:3])))
        np.testing.assert_allclose(streamed, compute(mlp, ITEMS[:3], point), atol=2e-6)
        assert embedder.embed([]).shape == (0, point.dim)


def test_a_graph_holds_its_own_blocks_alone(mlp_family: Path) -> None:
    session = onnxruntime.InferenceSession(mlp_family / "L01-D008.fp32.onnx")
    (vectors,) = session.run(["embedding"], {"features": ITEMS})
    np.testing.assert_allclose(vectors, compute(make_mlp(), ITEMS, Point(1, 8)), atol=2e-6)
    family = load_family(mlp_family)
    prefixes = [family.profile_facts(f"L0{layers}-D032-fp32").weights_prefix_bytes for layers in (1, 2, 3)]
    assert prefixes == sorted(set(prefixes))


@pytest.mark.parametrize(
    ("items", "asked", "words"),
    [
        ([np.zeros(5, np.float32)], {}, r"array 0 is float32 of shape \(5,\); float32 of shape \(24\) is taken"),
        ([np.zeros(24, np.complex64)], {}, r"array 0 is complex64"),
        (["a text"], {}, "array 0 is <U6"),
        ("a text", {}, "embed takes a list of arrays; one string was given"),
        ([np.zeros(24, np.float32)], {"prompt": "query"}, "prompt 'query' was asked; this family takes arrays"),
        ([np.zeros(24, np.float32)], {"task": "query"}, "task 'query' was asked; this family takes arrays"),
        ([[1, [2]]], {}, "array 0 is no array"),
    ],
)
def test_what_is_no_array_of_its(items: object, asked: dict[str, str], words: str, mlp_family: Path) -> None:
    with matexport.Embedder(mlp_family, "L01-D008-fp32") as embedder, pytest.raises(RequestError, match=words):
        embedder.embed(items, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "given", "words"),
    [
        (Dtype.UINT8, np.array([1, 300], np.uint16), "array 0 holds 300, which uint8 does not"),
        (Dtype.UINT8, np.array([1, -1]), "array 0 holds -1, which uint8 does not"),
        (Dtype.INT64, np.array([1, 1.5]), "array 0 holds 1.5, which int64 does not"),
        (Dtype.FLOAT32, np.array([1, 1e300]), "array 0 holds 1e.300, which float32 does not"),
    ],
)
def test_numbers_that_the_type_does_not_hold(dtype: Dtype, given: NDArray[Any], words: str) -> None:
    inputs = ArrayInputs(ArrayFacts("features", (2,), dtype))
    with pytest.raises(RequestError, match=words):
        inputs.prepare([given])
    (row,) = inputs.prepare([[3, 4]])
    assert (row.dtype, row.tolist()) == (np.dtype(dtype), [3, 4])


def test_an_embedder_that_was_closed_says_so(mlp_family: Path) -> None:
    embedder = matexport.Embedder(mlp_family, "L01-D008-fp32")
    embedder.close()
    for items in (ITEMS[:1], ITEMS):
        with pytest.raises(RequestError, match="the embedder of L01-D008-fp32 was closed"):
            embedder.embed(items)


def test_its_commands(mlp_family: Path, tmp_path: Path, run: Run) -> None:
    """show, bench, pick, report, verify, pack and embed, as a user types them."""
    assert "array     float32 of shape (24)" in run("show", mlp_family).out
    assert "passed: 18 profiles" in run("verify", mlp_family, "--record").out
    run("bench", mlp_family, "--profile", "L01-D008-fp32", "--profile", "L03-D032-fp32", "--runs", 2, "--threads", 1)
    picked = run("pick", mlp_family, "--max-disk-mb", 1, "--json").json
    assert picked["chosen"]["profile"] == "L03-D032-fp32"
    run("report", mlp_family)
    assert "float32 of shape (24)" in (mlp_family / "report.html").read_text(encoding="utf-8")
    pack = tmp_path / "pack"
    run("pack", mlp_family, "L02-D008-fp32", pack)
    arrays, out = tmp_path / "arrays.npy", tmp_path / "vectors.npy"
    np.save(arrays, ITEMS)
    run("embed", pack, "--input", arrays, "--output", out)
    np.testing.assert_allclose(np.load(out), compute(make_mlp(), ITEMS, Point(2, 8)), atol=2e-6)
    lines = [json.loads(line) for line in run("embed", pack, "--input", arrays).out.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(ITEMS)))
    assert "passed" in run("verify", pack, "--baseline", mlp_family).out
    run("embed", pack, "a text").complains("takes arrays (float32 of shape (24)): give them with --input FILE.npy")
    run("embed", pack, "--input", tmp_path / "none.npy").complains("cannot read", "none.npy")
    arrays.write_bytes(b"no array")
    run("embed", pack, "--input", arrays).complains("cannot read", "arrays.npy")
    run("evaluate", mlp_family).complains("takes arrays, and this is done with texts")
    run("bench", pack, "--shape", "1x16").complains("takes arrays of one size: ask for 1x1")


def test_a_family_of_texts_is_not_compared_with_one_of_arrays(mlp_family: Path, exported: Path, run: Run) -> None:
    run("verify", mlp_family, "--baseline", exported).complains("nothing can be compared")


def test_a_changed_probe_is_found(mlp_family: Path, tmp_path: Path) -> None:
    """By its digest; and by its vector, where the manifest was signed again."""
    copy = Path(shutil.copytree(mlp_family, tmp_path / "copy"))
    flip_byte(copy / "probes.safetensors", -3)
    with pytest.raises(FamilyError, match=r"changed: probes\.safetensors has another sha256"):
        matexport.verify_family(copy)
    reseal(copy)
    verification = matexport.verify_family(copy)
    assert not verification.passed


def test_a_reference_that_is_not_the_modules_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight off by 0.1 % in what is traced."""
    wrong = make_mlp()
    with torch.no_grad():
        wrong.blocks[1][0].weight *= 1.001
    changed = Kind(plan, lambda plan, _report: plan.details, lambda _: {}, reference, lambda *_: wrong, example)
    monkeypatch.setitem(KINDS, "mlp", changed)
    with pytest.raises(ParityError, match="read-out: in torch, L02-D008 is not the parent's"):
        export_family(JOB, tmp_path / "family")
    assert not (tmp_path / "family").exists()


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.Q4])
def test_a_precision_that_needs_another_form_is_refused(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "mlp", MLP)
    with pytest.raises(RequestError, match=f"{precision} was asked; nothing in the parent's blocks multiplies"):
        export_family(msgspec.structs.replace(JOB, precisions=(precision,)), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def test_a_kind_that_is_not_there() -> None:
    kinds = "classifier, franca, image, text, text-tower, two-towers, visual-tokens"
    with pytest.raises(
        RequestError, match=rf"parent.kind = 'txt' was asked; it is one of: {kinds}; did you mean 'text'"
    ):
        find_kind(ExportJob(ParentSource("p", kind="txt"), POINTS))
