"""Every precision through the whole pipeline: exported, verified, packed, embedded; and what becomes of a profile that
does not keep its floor."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from commandline import Run, read_lines
from conftest import PRECISE, PRECISE_POINTS, TEXTS, Precise, read_texts, write_texts
from folders import hidden_beside, read_all
from forge import reseal
from memory import trace_once
from msgspec.structs import replace
from oracle import Oracle
from safetensors.numpy import save_file

from matexport import Embedder, load_family, pack_profile, verify_family
from matexport.consumers.layouts import NATIVE
from matexport.errors import DestinationError, FamilyError, ParityError, RequestError
from matexport.export import export_family, profiles
from matexport.export import pipeline as export
from matexport.export.graph.traced import Traced
from matexport.export.quantize import support as runtime
from matexport.export.quantize.support import check_runtime
from matexport.family.integrity import check_family
from matexport.family.measurements.records import load_measurement
from matexport.host import read_host
from matexport.io.texts import MIN_CALIBRATION_TEXTS, load_probes, load_shipped_calibration
from matexport.runtime.all_points import ExitsEmbedder
from matexport.spec.facts import TraceFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.tolerance import FLOORS, Tolerance
from matexport.verify.verdict import record_measurement

PRECISIONS = [str(precision) for precision in Precision]
NORMS = {"modernbert": "final_norm", "qwen3": "norm"}


def embed_parent(kind: str, made: Precise, texts: list[str], *points: Point) -> list[np.ndarray]:
    """The parent's vectors at some points, by the oracle."""
    oracle, pooling = Oracle(made.parent, NORMS.get(kind)), PRECISE[kind][1]
    return [np.stack([oracle.vector(text, point.layers, point.dim, pooling) for text in texts]) for point in points]


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize("kind", PRECISE)
def test_every_precision_keeps_its_floor(kind: str, precise: Callable[[str], Precise]) -> None:
    made = precise(kind)
    family = load_family(made.family)
    assert family.facts.refused == {}
    assert {profile.name for profile in family.profiles} == {profile.name for profile in made.job.profiles}
    assert set(family.facts.precisions) == set(Precision)
    verification = verify_family(family.path)
    assert verification.passed
    ways = ["batched", "single", *(["left"] if kind == "qwen3" else []), "together"]
    for verdict in verification.verdicts:
        assert list(verdict.parity) == ways
        assert (verdict.ranges is not None) == (Profile.parse(verdict.profile).encoding is Encoding.INT8)


@pytest.mark.parametrize("kind", PRECISE)
def test_every_precision_is_near_the_oracle_and_none_is_another(kind: str, precise: Callable[[str], Precise]) -> None:
    """On texts that are no probes. A precision that quietly stayed fp32 would be too near."""
    made = precise(kind)
    texts, points = read_texts(made.texts)[40:60], (Point(1, 64), Point(2, 20))
    for point, expected in zip(points, embed_parent(kind, made, texts, *points), strict=True):
        for precision in Precision:
            vectors = Embedder(made.family, f"{point.name}-{precision}").embed(texts)
            assert vectors.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            floor, difference = FLOORS[precision], np.abs(vectors - expected).max()
            assert cosines(vectors, expected).min() >= (floor.cosine_min or 0.99999)
            assert (difference < 1e-5) == (precision is Precision.FP32), (point, precision)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pack_of_every_precision(
    precision: str, kind: str, precise: Callable[[str], Precise], tmp_path: Path
) -> None:
    family = precise(kind).family
    name = f"L01-D064-{precision}"
    pack = pack_profile(family, name, tmp_path / "pack", layout=NATIVE)
    check_family(pack)
    assert verify_family(pack.path).passed
    np.testing.assert_array_equal(Embedder(pack).embed(TEXTS), Embedder(family, name).embed(TEXTS))
    weights = f"weights.{precision}.safetensors"
    assert (pack.path / weights).stat().st_size < (family / weights).stat().st_size
    assert [path.name for path in pack.path.glob("*.safetensors") if path.name.startswith("weights.")] == [weights]


def test_weights_become_smaller(precise: Callable[[str], Precise]) -> None:
    family = precise("bert").family
    sizes = {precision: (family / f"weights.{precision}.safetensors").stat().st_size for precision in Precision}
    whole = sizes[Precision.FP32]
    assert sizes[Precision.FP16] < 0.55 * whole
    assert sizes[Precision.INT8] < 0.33 * whole, "a quarter, but for the position table of 32 KiB and alignment"
    assert sizes[Precision.INT8_STATIC] < 0.33 * whole
    assert sizes[Precision.Q4] < 0.23 * whole
    assert sizes[Precision.Q4] < sizes[Precision.Q8] < 0.33 * whole


def shapes_inside(graph: Path, batch: int, tokens: int) -> dict[str, list[tuple[int, ...]]]:
    """Run a graph with its values as outputs: operator -> the shapes of what it gave."""
    import onnxruntime

    model = onnx.load(graph, load_external_data=False)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    path = graph.with_name("all_outputs.onnx")
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    path.unlink()
    ids = np.full((batch, tokens), 7, dtype=np.int64)
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    feeds = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, value in zip(made, session.run(list(made), feeds), strict=True):
        found.setdefault(made[name], []).append(np.shape(value))
    return found


PRODUCTS = {"int8": "MatMulIntegerToFloat", "q8": "MatMulNBits", "q4": "MatMulNBits", "q4-mixed": "MatMulNBits"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cls_parent_is_narrowed_in_every_precision(
    precision: str, precise: Callable[[str], Precise], tmp_path: Path
) -> None:
    """After the first token's query nothing of the last block is computed for others: as much as in fp32."""
    family = load_family(precise("rough").family)
    narrowed = {
        (profile.point.layers, str(profile.precision)): family.profile_facts(profile.name).narrowed_nodes
        for profile in family.profiles
    }
    assert narrowed[1, precision] >= narrowed[1, "fp32"] > 8
    assert narrowed[2, precision] >= narrowed[2, "fp32"] > 8
    path = Path(shutil.copytree(family.path, tmp_path / "family"))
    found = shapes_inside(path / f"L02-D064.{precision}.onnx", 3, 11)
    assert sorted(shape[1] for shape in found["Gelu"]) == [1, 11]
    products = [shape for shape in found[PRODUCTS.get(precision, "MatMul")] if len(shape) == 3]
    assert sum(shape[1] == 1 for shape in products) == 4, "query, attention output and both of the feed-forward"
    if precision.startswith("int8"):
        assert sorted({shape[1] for shape in found["QuantizeLinear"]}) == [1, 11]


def test_mean_pooling_is_narrowed_in_no_precision(precise: Callable[[str], Precise]) -> None:
    facts = load_family(precise("bert").family).facts
    assert {profile.narrowed_nodes for profile in facts.profiles.values()} == {0}


def test_graphs_say_what_they_need(precise: Callable[[str], Precise]) -> None:
    """fp32, fp16 and int8-static are of standard operators; the others import onnxruntime's own."""
    for kind in PRECISE:
        for precision in Precision:
            path = precise(kind).family / f"L02-D064.{precision}.onnx"
            model = onnx.load(path, load_external_data=False)
            standard = precision in (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)
            assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}
            assert ("com.microsoft" in {item.domain for item in model.opset_import}) != standard
            assert [item.version for item in model.opset_import if not item.domain] == [20]
            assert [item.name for item in model.graph.output] == ["sentence_embedding"]
            assert b"site-packages" not in path.read_bytes()
            if standard:
                onnx.checker.check_model(path)


def test_left_padding_is_not_held_to_the_last_digit(precise: Callable[[str], Precise], tmp_path: Path) -> None:
    """Positions of a rotary encoder move with left padding, and float32 itself differs by 3e-7: enough for one code in
    a million to be rounded the other way. More probes than the family has, as a user may bring."""
    made = precise("qwen3")
    texts, point = read_texts(made.texts), PRECISE_POINTS[-1]
    (expected,) = embed_parent("qwen3", made, texts, point)
    breaches = {}
    for precision in (Precision.INT8, Precision.INT8_STATIC, Precision.Q8, Precision.Q4):
        pack = pack_profile(made.family, f"{point.name}-{precision}", tmp_path / precision, layout=NATIVE).path
        (pack / "probes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        save_file({point.name: expected}, pack / "reference.safetensors")
        reseal(pack)
        breaches[str(precision)] = verify_family(pack).verdicts[0].find_breach()
    assert {precision: breach for precision, breach in breaches.items() if breach} == {}


# --- floors


def write_job(folder: Path, made: Precise, lines: str = "", tail: str = "") -> Path:
    """A job file for the BERT that all precisions are made of."""
    path = folder / "job.toml"
    path.write_text(
        f'{lines}\n[parent]\nsource = "{made.parent}"\n[points]\npairs = [[1, 64], [2, 20], [2, 64]]\n'
        f'[probes]\nfile = "{made.job.probes}"\n[calibration]\nfile = "{made.texts}"\n{tail}',
        encoding="utf-8",
    )
    return path


TIGHT = "[tolerances.int8]\ncosine_min = 0.99999999\n[tolerances.q4]\ncosine_min = 0.99999999\n"


@pytest.fixture
def made(precise: Callable[[str], Precise], quick_traces: None) -> Precise:
    return precise("bert")


def test_profiles_off_their_floor_are_dropped_and_a_rerun_says_so_again(
    made: Precise, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path, made, 'precisions = ["fp32", "int8"]', TIGHT)
    out = tmp_path / "family"
    result = run("export", job, "--out", out)
    assert result.code == 1
    family = load_family(out)
    check_family(family)
    points = [point.name for point in PRECISE_POINTS]
    assert [profile.name for profile in family.profiles] == [f"{point}-fp32" for point in points]
    assert list(family.facts.refused) == [f"{point}-int8" for point in points]
    probes = [json.loads(line)["text"] for line in (out / "probes.jsonl").read_text().splitlines()]
    for name, reason in family.facts.refused.items():
        assert reason.startswith(f"{name}: least cosine 0.999")
        number, text = reason.partition(", worst on probe ")[2].split(" ", 1)
        assert text == f"({probes[int(number)][:40]!r})"
        assert f"matexport: not in the family: {reason}\n" in result.err
    assert result.err.count("\n") == 3
    assert not list(out.glob("*int8*")), "neither graphs nor weights"
    assert hidden_beside(out) == []

    before = read_all(out)
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    again = run("export", job, "--out", out)
    assert (again.code, again.err) == (1, result.err)
    assert f"{out}: up to date, 3 profiles" in again.out
    assert read_all(out) == before
    document = run("export", job, "--out", out, "--json").json
    assert document["up_to_date"] is True
    assert list(document["refused"]) == [f"{point}-int8" for point in points]  # type: ignore[call-overload]
    assert "not in the family: L02-D064-int8: least cosine" in run("show", out).out
    assert run("verify", out).code == 0, "the family is what was exported"


def test_some_profiles_of_a_precision_may_stay(made: Precise, tmp_path: Path) -> None:
    """A floor between the farthest of them and the others."""
    recorded = load_measurement(load_family(made.family), read_host())
    assert recorded is not None
    least = {name: min(parity.cosine_min for parity in ways.values()) for name, ways in recorded.parity.items()}
    found = sorted((least[f"{point.name}-int8"], point.name) for point in PRECISE_POINTS)
    between = (found[0][0] + found[1][0]) / 2
    job = replace(
        made.job,
        precisions=(Precision.INT8,),
        encodings=(Encoding.FLOAT32,),
        tolerances={Precision.INT8: Tolerance(cosine_min=between)},
    )
    family = export_family(job, tmp_path / "family").family
    assert list(family.facts.refused) == [f"{found[0][1]}-int8"]
    assert {profile.point.name for profile in family.profiles} == {found[1][1], found[2][1]}
    check_family(family)
    assert family.facts.tolerances == {Precision.INT8: Tolerance(cosine_min=between)}
    assert not (family.path / Profile.parse(f"{found[0][1]}-int8").graph_file).exists()
    assert (family.path / "weights.int8.safetensors").exists()
    with ExitsEmbedder(family, Precision.INT8) as exits:  # made again, without the one that is not there
        assert {point.name for point in exits.points} == {found[1][1], found[2][1]}
        assert {output.name for output in exits._session.get_outputs()} == {found[1][1], found[2][1]}


def test_when_every_profile_is_off_nothing_is_written(made: Precise, run: Run, tmp_path: Path) -> None:
    job = write_job(tmp_path, made, 'precisions = ["int8", "q4"]', TIGHT)
    run("export", job, "--out", tmp_path / "family").complains(
        "quantize: 6 of 6 profiles are off their floor", "least cosine", "worst on probe", "nothing was written", code=1
    )
    assert not (tmp_path / "family").exists()
    assert hidden_beside(tmp_path / "family") == []


def spoil(*arguments: Any, **options: Any) -> tuple[Traced, TraceFacts]:
    """A trace that is off by 0.1 % in the last block."""
    traced, facts = trace_once(*arguments, **options)
    name = "encoder.layer.1.output.LayerNorm.weight"
    weight = traced.model.graph.initializers[name]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.05), name=name)  # type: ignore[union-attr]
    return traced, facts


def test_when_fp32_is_off_nothing_is_written_whatever_else_passes(
    made: Precise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 keeps its own, wider floor on such a graph."""
    monkeypatch.setattr(export, "trace_exits", spoil)
    job = replace(made.job, precisions=(Precision.INT8, Precision.FP32), encodings=(Encoding.FLOAT32,))
    with pytest.raises(ParityError, match=r"^trace: 2 of 6 profiles are off .*; nothing was written") as caught:
        export_family(job, tmp_path / "family")
    assert caught.value.stage == "trace"
    assert not (tmp_path / "family").exists()
    only = export_family(replace(job, precisions=(Precision.INT8,)), tmp_path / "family")
    assert only.verification.passed


ENCODE = profiles.encode_output


def encode_wrongly(model: ir.Model, encoding: Encoding, ranges: Any = None) -> None:
    """With ranges that moved."""
    ENCODE(model, encoding, None if ranges is None else ranges + np.float32(0.05))


def test_an_encoded_profile_off_its_floor_is_dropped_alone(
    made: Precise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "encode_output", encode_wrongly)
    job = replace(made.job, precisions=(Precision.INT8,), tolerances={Precision.INT8: Tolerance(max_abs=0.02)})
    family = export_family(job, tmp_path / "family").family
    assert list(family.facts.refused) == [f"{point.name}-int8-int8" for point in PRECISE_POINTS]
    assert {profile.encoding for profile in family.profiles} == {Encoding.FLOAT32, Encoding.UBINARY}
    check_family(family)


def test_a_wrong_encoding_of_fp32_leaves_fp32_as_it_is(
    made: Precise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "encode_output", encode_wrongly)
    job = replace(made.job, precisions=(Precision.FP32,), encodings=(Encoding.FLOAT32, Encoding.INT8))
    family = export_family(job, tmp_path / "family").family
    assert list(family.facts.refused) == [f"{point.name}-fp32-int8" for point in PRECISE_POINTS]
    assert all("max abs difference" in reason for reason in family.facts.refused.values())


def test_a_family_with_refusals_can_be_recorded_and_packed(made: Precise, tmp_path: Path) -> None:
    job = replace(
        made.job,
        precisions=(Precision.FP32, Precision.Q4),
        encodings=(Encoding.FLOAT32,),
        tolerances={Precision.Q4: Tolerance(cosine_min=0.99999999)},
    )
    family = export_family(job, tmp_path / "family").family
    assert len(family.facts.refused) == 3
    record_measurement(family, verify_family(family.path))
    assert verify_family(family.path).passed
    pack = pack_profile(family, "L02-D064-fp32", tmp_path / "pack")
    assert pack.facts.refused == {}


# --- what is asked on the command line


def test_export_verify_pack_and_embed_as_a_user_does(made: Precise, run: Run, tmp_path: Path) -> None:
    job = write_job(tmp_path, made, 'encodings = ["float32", "ubinary"]')
    out, pack = tmp_path / "family", tmp_path / "pack"
    result = run("export", job, "--out", out, "--precision", "int8", "--precision", "fp16")
    assert (result.code, result.err) == (0, "")
    assert f"{out}: written, 12 profiles" in result.out
    assert run("verify", out).code == 0
    assert run("pack", out, "L02-D064-int8-ubinary", pack).code == 0
    assert run("verify", pack).code == 0
    texts, codes = read_lines(run("embed", pack, *TEXTS).out)
    assert texts == TEXTS
    np.testing.assert_array_equal(codes, Embedder(out, "L02-D064-int8-ubinary").embed(TEXTS))


def test_decisions_are_printed(precise: Callable[[str], Precise], run: Run) -> None:
    out = run("show", precise("rough").family).out
    assert "fp16: keeps block 1 in fp32" in out
    assert "q4-mixed: keeps block 2 in q8" in out


@pytest.mark.parametrize(
    ("lines", "tail", "words"),
    [
        ('precisions = ["int4"]', "", "precisions"),
        ('precisions = ["int8"]', "[tolerances.int8]\ncosine_mean = 0.98\n", "the floor is 0.99"),
        ('precisions = ["int8"]', "[tolerances.int8]\nspread = 1e-3\n", "the floor is 1e-06"),
        ('encodings = ["binary"]', "", "encodings"),
    ],
)
def test_export_refuses_before_any_work(
    lines: str, tail: str, words: str, made: Precise, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    run("export", write_job(tmp_path, made, lines, tail), "--out", tmp_path / "out").complains(words)
    assert not (tmp_path / "out").exists()


CALIBRATIONS: Mapping[str, tuple[bytes | None, str]] = {
    "missing": (None, "cannot read the calibration texts"),
    "empty": (b"", "has 0 different texts; ranges need at least 64"),
    "63 texts": (b"".join(b"dog %d\n" % n for n in range(63)) * 9, "has 63 different texts; ranges need at least 64"),
    "not UTF-8": (b"a dog\n" * 70 + b"\xff\n", "line 71: not UTF-8 text"),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
@pytest.mark.parametrize("precisions", ['["int8-static"]', '["int8"]'])
def test_calibration_files_are_refused_before_any_work(
    precisions: str, case: str, made: Precise, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    content, words = CALIBRATIONS[case]
    texts = tmp_path / "mine.txt"
    if content is not None:
        texts.write_bytes(content)
    job = write_job(tmp_path, dataclasses.replace(made, texts=texts), f"precisions = {precisions}")
    run("export", job, "--out", tmp_path / "out").complains(words, "mine.txt")
    assert not (tmp_path / "out").exists()


def test_a_precision_that_needs_calibration_is_refused_without_from_python_too(made: Precise, tmp_path: Path) -> None:
    """Ranges belong to the texts that will be embedded; those that come with matexport are anybody's."""
    for precisions, encodings in (
        ((Precision.INT8_STATIC,), (Encoding.FLOAT32,)),
        ((Precision.FP32,), (Encoding.INT8,)),
    ):
        job: ExportJob = replace(made.job, precisions=precisions, encodings=encodings, calibration=None)
        with pytest.raises(RequestError, match="calibration"):
            export_family(job, tmp_path / "family")
        assert not (tmp_path / "family").exists()


def test_probes_are_no_calibration_texts(made: Precise, tmp_path: Path) -> None:
    """A precision is not judged by the texts that it was fitted on, even where the user names them."""
    facts = load_family(made.family).facts.precisions[Precision.INT8]
    assert facts.calibration == "71 texts: texts.txt (9 are probes)"
    probes = tmp_path / "probes.jsonl"
    probes.write_text("".join(json.dumps({"text": text}) + "\n" for text in read_texts(made.texts)[:20]))
    with pytest.raises(RequestError, match=r"of the 80 calibration texts .*, 20 are probes, and 60 are left"):
        export_family(replace(made.job, probes=probes), tmp_path / "family")
    shipped = {probe.text for probe in load_probes(None)}
    assert not shipped & set(load_shipped_calibration())
    assert len(load_shipped_calibration()) >= 2 * MIN_CALIBRATION_TEXTS - 1


def test_a_corpus_is_calibrated_on_beside_its_probes(made: Precise, tmp_path: Path) -> None:
    """A pruned vocabulary leaves few of the shipped texts as they are; its corpus it leaves all."""
    job = replace(
        made.job, precisions=(Precision.INT8,), encodings=(Encoding.FLOAT32,), probes=None, calibration=None,
        vocabulary="corpus.txt", base=tmp_path, points=(Point(1, 64),),
    )  # fmt: skip
    write_texts(tmp_path / "corpus.txt", 100)
    family = export_family(job, tmp_path / "family").family
    assert family.facts.precisions[Precision.INT8].calibration == "84 texts: corpus.txt (16 are probes)"
    assert family.facts.vocabulary is not None
    write_texts(tmp_path / "corpus.txt", 79)
    with pytest.raises(RequestError, match=r"of the 127 calibration texts \(shipped\), \d+ lose tokens"):
        export_family(job, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_ranges_of_texts_that_are_all_alike_are_refused(made: Precise, tmp_path: Path) -> None:
    """Codes would be those that the parent's vectors have in such ranges, and say next to nothing of the vectors."""
    alike = tmp_path / "alike.txt"
    alike.write_text("".join(f"a dog {number}\n" for number in range(80)))
    job = replace(
        made.job, precisions=(Precision.FP32,), encodings=(Encoding.FLOAT32, Encoding.INT8), calibration=alike
    )
    family = export_family(job, tmp_path / "family").family
    assert {profile.encoding for profile in family.profiles} == {Encoding.FLOAT32}
    assert set(family.facts.refused) == {f"{point.name}-fp32-int8" for point in PRECISE_POINTS}
    for reason in family.facts.refused.values():
        assert re.search(r"(mean|least) cosine 0\.\d+, allowed 0\.\d+ \(ranges\), worst on probe \d+ \('", reason)


def test_a_coordinate_that_never_varies_has_no_steps(made: Precise) -> None:
    vectors = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    vectors[:, 3] = 0.25
    with pytest.raises(RequestError, match=r"coordinate 3 of L01-D005 has one value .* of the 70 .*, and 0 others"):
        profiles._find_point_ranges(Point(1, 5), vectors, "text")


def test_other_calibration_texts_make_another_family(made: Precise, tmp_path: Path) -> None:
    """So that a family of the old ones is not called up to date."""
    job = replace(made.job, precisions=(Precision.INT8,), encodings=(Encoding.FLOAT32,))
    export_family(job, tmp_path / "family")
    texts = Path(shutil.copy(made.texts, tmp_path))
    assert export_family(replace(job, calibration=texts), tmp_path / "family").up_to_date
    texts.write_text(texts.read_text() + "one more dog\n")
    with pytest.raises(DestinationError, match="pass --overwrite to replace it"):
        export_family(replace(job, calibration=texts), tmp_path / "family")


def test_another_export_gives_the_same_bytes_in_whichever_order(made: Precise, tmp_path: Path) -> None:
    """q4-mixed takes over what q4 rounded, where that was made before."""
    precisions = (Precision.Q4_MIXED, Precision.INT8, Precision.FP16)
    again = export_family(
        replace(made.job, precisions=precisions, encodings=(Encoding.FLOAT32,)), tmp_path / "family"
    ).family
    first = load_family(made.family).facts
    assert {name: facts for name, facts in again.facts.files.items() if first.files[name] != facts} == {}
    assert dict(again.facts.precisions) == {precision: first.precisions[precision] for precision in precisions}


# --- the runtime


@pytest.mark.parametrize("precision", PRECISIONS)
def test_this_runtime_runs_every_precision(precision: str) -> None:
    check_runtime(Precision(precision))


def test_a_precision_that_the_runtime_cannot_load_is_refused_before_any_work(
    made: Precise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = runtime.open_session

    def open_without_contrib(graph: Path, **options: Any) -> Any:
        if any(node.domain for node in onnx.load(graph, load_external_data=False).graph.node):
            raise FamilyError(f"onnxruntime 0.0 cannot load {graph.name}: no such operator\nand more")
        return opened(graph, **options)

    monkeypatch.setattr(runtime, "open_session", open_without_contrib)
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8_STATIC):
        check_runtime(precision)
    for precision in (Precision.INT8, Precision.Q8, Precision.Q4, Precision.Q4_MIXED):
        with pytest.raises(RequestError) as refusal:
            export_family(replace(made.job, precisions=(Precision.FP32, precision)), tmp_path / "family")
        assert f"the precision {precision} was asked; the installed onnxruntime" in str(refusal.value)
        assert "cannot run it (no such operator): install a newer one, or ask for another" in str(refusal.value)
    assert not (tmp_path / "family").exists()


def test_a_precision_that_the_runtime_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def run(self, *_arguments: object) -> None:
            raise RuntimeError("this CPU has no such instruction")

    monkeypatch.setattr(runtime, "open_session", lambda graph, **options: Broken())
    with pytest.raises(RequestError, match=r"int8 was asked; .* cannot run it \(this CPU has no such instruction\)"):
        check_runtime(Precision.INT8)
