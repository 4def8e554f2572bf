"""Drift: what an index may be queried with, and what it must not be, though it looks much alike. Numbers are worked out
here in plain numpy, from the vectors that the profiles give."""

from __future__ import annotations

import math
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import places
import pytest
from commandline import Run
from conftest import POINTS, write_texts
from forge import edit_manifest, flip_byte, overwrite_values, reseal
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from matexport import Embedder, compare_families, load_family, pack_profile
from matexport.errors import FamilyError, RequestError
from matexport.family.manifest import RANGES
from matexport.family.modality import PROBES
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Profile
from matexport.spec.tolerance import Tolerance
from matexport.verify.bounds import combine_tolerances
from matexport.verify.drift import Drift, ProfileDrift

GOLDEN = places.GOLDEN / "schema2"
CODES = ("", "-int8", "-ubinary")
NAMES = [f"L01-D020-{precision}{encoding}" for precision in ("fp32", "int8") for encoding in CODES]
WEIGHTS = "weights.fp32.safetensors"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A family of fp32 and int8, each with every encoding, that a test may spoil."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "old"))


def by_name(drift: Drift) -> dict[str, ProfileDrift]:
    return {profile.profile: profile for profile in drift.profiles}


def rejected(drift: Drift) -> list[str]:
    names = [profile.profile for profile in drift.profiles if not profile.compatible]
    assert drift.compatible == (not names)
    return names


def end_with(graph: Path, *operations: tuple[str, NDArray[Any], dict[str, int]]) -> None:
    """Let a graph do more with its output; the family's digests agree again afterwards."""
    model = onnx.load(graph, load_external_data=False)
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[list(last.output).index(output.name)] = value = "before"
    for index, (operator, array, attributes) in enumerate(operations):
        name = output.name if index == len(operations) - 1 else f"after_{index}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"added_{index}"))
        model.graph.node.append(onnx.helper.make_node(operator, [value, f"added_{index}"], [name], **attributes))
        value = name
    graph.write_bytes(model.SerializeToString())
    reseal(graph.parent)


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embed(family: Path, name: str, drift: Drift) -> NDArray[Any]:
    """The vectors of all texts that were compared, each alone."""
    embedder = Embedder(family, name)
    return np.concatenate([embedder.embed([probe.text], prompt=probe.prompt or "") for probe in drift.texts])


# --- what may be queried


def test_the_same_family_is_compatible(old: Path) -> None:
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == []
    assert [profile.profile for profile in drift.profiles] == NAMES
    assert (drift.same_parent, drift.only_new, drift.only_old, drift.notes) == (True, (), (), ())
    for profile in drift.profiles:
        assert profile.cosine_min == pytest.approx(1)
        assert profile.search is not None
        assert (profile.search.top_1, profile.search.top_10) == (1, 1)
        assert profile.search.margin == profile.search.old_margin
        assert profile.equal == (None if Profile.parse(profile.profile).encoding == "float32" else 1)


def test_the_probes_of_both_are_compared(exported: Path, parent: Path, tmp_path: Path, quick_traces: None) -> None:
    """Of a parent that was exported again, with other probes and points."""
    from matexport.export import export_family

    probes = tmp_path / "probes.jsonl"
    probes.write_text('{"text": "a big red house"}\n{"text": "the river is blue"}\n')
    export_family(ExportJob(ParentSource(str(parent)), POINTS[1:3], probes=probes), tmp_path / "new")
    drift = compare_families(tmp_path / "new", exported, threads=1)
    assert rejected(drift) == []
    assert drift.same_parent
    assert [profile.profile for profile in drift.profiles] == ["L01-D032-fp32", "L02-D008-fp32"]
    assert drift.only_old == ("L01-D008-fp32", "L02-D032-fp32", "L03-D008-fp32", "L03-D032-fp32")
    assert [probe.text for probe in drift.texts[:2]] == ["a big red house", "the river is blue"]
    own = len((exported / PROBES).read_text(encoding="utf-8").splitlines())
    assert len(drift.texts) == own + 2
    assert {profile.texts for profile in drift.profiles} == {own + 2}


@pytest.mark.parametrize(("difference", "expected"), [(1.7e-5, []), (2.3e-5, NAMES[:3])])
def test_two_floors_of_coordinates_may_add_up(difference: float, expected: list[str], old: Path) -> None:
    shift = np.zeros(20, np.float32)
    shift[7] = difference
    end_with(old / "L01-D020.fp32.onnx", ("Add", shift, {}))
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == expected
    profile = by_name(drift)["L01-D020-fp32"]
    assert profile.allowed == Tolerance(max_abs=2e-5)
    assert profile.max_abs == pytest.approx(difference, rel=0.01)


# arccos(0.972) is 0.2372: every vector is turned by the same angle, so its cosine is the mean and the least.
@pytest.mark.parametrize(("angle", "expected"), [(0.22, []), (0.25, NAMES[3:])])
def test_two_floors_of_angles_may_add_up(angle: float, expected: list[str], old: Path) -> None:
    turn = np.kron(np.eye(10), [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    end_with(old / "L01-D020.int8.onnx", ("MatMul", turn.astype(np.float32), {}))
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == expected
    profile = by_name(drift)["L01-D020-int8"]
    assert profile.allowed.cosine_mean == pytest.approx(1 - 4 * (1 - 0.993))
    assert profile.allowed.cosine_min == pytest.approx(2 * 0.975**2 - 1)
    assert (profile.cosine_mean, profile.cosine_min) == pytest.approx((math.cos(angle), math.cos(angle)), abs=1e-5)


# --- what may not


def test_a_parent_that_was_tuned_a_little(old: Path) -> None:
    """One matrix by one part in a hundred. The numbers are the vectors' own."""
    name, values = max(load_file(old / WEIGHTS).items(), key=lambda item: item[1].size if item[1].ndim == 2 else 0)
    noise = np.random.default_rng(0).standard_normal(values.shape) * values.std() * 0.01
    overwrite_values(old / WEIGHTS, name, (values + noise).astype(np.float32))
    edit_manifest(old, lambda data: data["parent"].update(weights={"model.safetensors": "0" * 64}))
    reseal(old)
    drift = compare_families(GOLDEN, old)
    assert not drift.same_parent
    assert rejected(drift) == NAMES[:3], "and int8 has weights of its own, which did not move"
    profile = by_name(drift)["L01-D020-fp32"]
    ours, theirs = (embed(family, "L01-D020-fp32", drift) for family in (GOLDEN, old))
    cosines = (unit(ours) * unit(theirs)).sum(axis=1)
    assert profile.max_abs == pytest.approx(np.abs(ours.astype(np.float64) - theirs).max(), rel=0.01)
    assert profile.max_abs is not None
    assert 2e-5 < profile.max_abs < 0.1, "subtle"
    assert (profile.cosine_mean, profile.cosine_min) == pytest.approx((cosines.mean(), cosines.min()), abs=1e-6)
    assert profile.worst == cosines.argmin()
    assert profile.reasons[0].startswith(f"max abs difference {profile.max_abs:.2g}, allowed 2e-05; worst on '")
    bits = [embed(family, "L01-D020-fp32-ubinary", drift) for family in (GOLDEN, old)]
    unpacked = [np.unpackbits(codes, axis=1, count=20) for codes in bits]
    assert by_name(drift)["L01-D020-fp32-ubinary"].equal == pytest.approx((unpacked[0] == unpacked[1]).mean())
    assert (unpacked[0] == unpacked[1]).all(), "no bit shows it"
    assert by_name(drift)["L01-D020-fp32-ubinary"].reasons == (f"as float32: {profile.reasons[0]}",)
    codes = [embed(family, "L01-D020-fp32-int8", drift) for family in (GOLDEN, old)]
    assert by_name(drift)["L01-D020-fp32-int8"].equal == pytest.approx((codes[0] == codes[1]).mean())


@pytest.mark.parametrize("name", ["L01-D020-fp32", "L01-D020-int8"])
def test_permuted_dimensions(name: str, old: Path) -> None:
    """Each family alone finds the same neighbours; an index of one says nothing to the other."""
    order = np.random.default_rng(1).permutation(20).astype(np.int64)
    end_with(old / load_family(old).profile_facts(name).graph, ("Gather", order, {"axis": 1}))
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == [name, f"{name}-int8", f"{name}-ubinary"], "codes are held to the vectors they are of"
    new_vectors, old_vectors = (unit(embed(family, name, drift)) for family in (GOLDEN, old))
    np.testing.assert_allclose(new_vectors @ new_vectors.T, old_vectors @ old_vectors.T, atol=1e-6)
    first, overlap, margins = [], [], {"new": [], "old": []}
    for place in range(len(drift.texts)):
        asked = {"new": old_vectors @ new_vectors[place], "old": old_vectors @ old_vectors[place]}
        others = [index for index in range(len(drift.texts)) if index != place]
        ranked = {who: sorted(others, key=lambda index: -scores[index]) for who, scores in asked.items()}
        first.append(ranked["new"][0] == ranked["old"][0])
        overlap.append(len(set(ranked["new"][:10]) & set(ranked["old"][:10])) / min(10, len(others)))
        best = ranked["old"][0]
        for who, scores in asked.items():
            margins[who].append(scores[best] - max(scores[index] for index in others if index != best))
    search = by_name(drift)[name].search
    assert search is not None
    assert search.top_1 == pytest.approx(np.mean(first))
    assert search.top_10 == pytest.approx(np.mean(overlap))
    assert search.margin == pytest.approx(np.mean(margins["new"]), abs=1e-6)
    assert search.old_margin == pytest.approx(np.mean(margins["old"]), abs=1e-6)
    assert search.margin < 0 < search.old_margin


def test_one_bit(old: Path) -> None:
    path = old / "L01-D020.fp32.ubinary.onnx"
    model = onnx.load(path, load_external_data=False)
    place, above = next((place, node) for place, node in enumerate(model.graph.node) if node.op_type == "Greater")
    signs = np.ones(20, np.float32)
    signs[11] = -1
    model.graph.initializer.append(onnx.numpy_helper.from_array(signs, "signs"))
    model.graph.node.insert(place, onnx.helper.make_node("Mul", [above.input[0], "signs"], ["turned"]))
    model.graph.node[place + 1].input[0] = "turned"
    path.write_bytes(model.SerializeToString())
    reseal(old)
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == ["L01-D020-fp32-ubinary"]
    assert by_name(drift)["L01-D020-fp32-ubinary"].equal == pytest.approx(19 / 20)


def test_one_step_of_one_coordinate(old: Path) -> None:
    """What the cosine would not see."""
    shift = np.zeros(20, np.float32)
    least, greatest = load_file(old / RANGES)["L01-D020"]
    shift[3] = (greatest[3] - least[3]) / 255
    path = old / "L01-D020.fp32.int8.onnx"
    model = onnx.load(path, load_external_data=False)
    plain = onnx.load(old / "L01-D020.fp32.onnx", load_external_data=False)
    last = plain.graph.node[-1].output[0]
    assert last == "sentence_embedding"
    codes = Embedder(old, "L01-D020-fp32-int8").embed(["a dog"])
    moved = next(node for node in model.graph.node if node.op_type in ("Sub", "Div", "Mul") and _is_range(model, node))
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift, "shift"))
    value = moved.input[0]
    model.graph.node.insert(list(model.graph.node).index(moved), onnx.helper.make_node("Add", [value, "shift"], ["up"]))
    moved.input[0] = "up"
    path.write_bytes(model.SerializeToString())
    reseal(old)
    assert np.abs(Embedder(old, "L01-D020-fp32-int8").embed(["a dog"]).astype(int) - codes).sum() == 1
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == ["L01-D020-fp32-int8"]
    profile = by_name(drift)["L01-D020-fp32-int8"]
    assert profile.cosine_min is not None
    assert profile.cosine_min > 0.999


def _is_range(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a node takes the least values of the int8 ranges from what comes in."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return node.op_type == "Sub" and sizes.get(node.input[1]) in ((20,), (1, 20))


def test_int8_ranges_that_differ(old: Path) -> None:
    arrays = load_file(old / RANGES)
    arrays["L01-D020"][1, 4] *= np.float32(1.0001)
    save_file(arrays, old / RANGES)
    reseal(old)
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == ["L01-D020-fp32-int8", "L01-D020-int8-int8"]
    for name in rejected(drift):
        assert by_name(drift)[name].reasons == (
            "int8 ranges differ in 1 of 20 coordinates: a code stands for another value in OLD",
        )


def test_a_vocabulary_that_was_cut(exported: Path, parent: Path, tmp_path: Path, quick_traces: None) -> None:
    from matexport.export import export_family

    corpus = write_texts(tmp_path / "corpus.txt")
    export_family(ExportJob(ParentSource(str(parent)), POINTS[:1], vocabulary=str(corpus)), tmp_path / "cut")
    drift = compare_families(tmp_path / "cut", exported)
    assert rejected(drift) == ["L01-D008-fp32"]
    (profile,) = drift.profiles
    assert profile.reasons[0].startswith("tokens differ: ")
    assert "other token ids" in profile.reasons[0]
    assert any(note.startswith("vocabulary: ") and note.endswith("in OLD not cut") for note in drift.notes)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda data: data["text"].update(max_tokens=11), "texts are cut at 48 tokens, in OLD at 11"),
        (
            lambda data: data["text"].update(prompts={"query": "a red house "}, default_prompt="query"),
            "the default prompt is '', in OLD 'a red house '",
        ),
        (lambda data: data["readout"].update(normalize=False), "vectors of NEW are scaled to unit length"),
    ],
    ids=["length", "default prompt", "scaling"],
)
def test_what_the_probes_need_not_show(edit: Callable[[dict[str, Any]], None], reason: str, old: Path) -> None:
    edit_manifest(old, edit)
    limit = load_family(GOLDEN).facts.text.max_tokens
    drift = compare_families(GOLDEN, old)
    assert rejected(drift) == NAMES
    assert reason.replace("48", str(limit)) in "; ".join(drift.profiles[0].reasons)


def test_a_prompt_with_another_text(left_exported: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(left_exported, tmp_path / "left"))
    edit_manifest(old, lambda data: data["text"].update(prompts={"query": "a blue house "}))
    drift = compare_families(left_exported, old)
    assert not drift.compatible
    assert "tokens differ: the prompts query have another text" in drift.profiles[0].reasons


def test_a_prompt_that_one_family_lacks_is_said(left_exported: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(left_exported, tmp_path / "left"))
    edit_manifest(new, lambda data: data["text"]["prompts"].update(passage="the cat "))
    with (new / PROBES).open("a", encoding="utf-8") as file:
        file.write('{"text": "a dog", "prompt": "passage"}\n')
    from matexport.family.manifest import REFERENCE

    arrays = load_file(new / REFERENCE)
    longer = {name: np.concatenate([rows, rows[:1]]) for name, rows in arrays.items() if not name.startswith("token_")}
    save_file(longer, new / REFERENCE)
    reseal(new)
    drift = compare_families(new, left_exported)
    assert drift.compatible
    assert drift.notes == ("1 probes have a prompt that one family lacks; they are not compared",)
    assert {profile.texts for profile in drift.profiles} == {len(drift.texts) - 1}


def test_families_without_a_common_profile(tmp_path: Path) -> None:
    for name in ("L01-D020-fp32", "L01-D020-int8"):
        pack_profile(GOLDEN, name, tmp_path / name)
    with pytest.raises(RequestError, match=r"fp32 has L01-D020-fp32; .*int8 has L01-D020-int8$"):
        compare_families(tmp_path / "L01-D020-fp32", tmp_path / "L01-D020-int8")


# --- the bounds


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0, 1.2), st.floats(0, 1.2))
def test_what_is_within_both_floors_is_compatible(seed: int, dim: int, first: float, second: float) -> None:
    """Vectors at random angles of at most so much from their parent's."""
    draw = np.random.default_rng(seed)
    parent = unit(draw.standard_normal((6, dim)))

    def turn(most: float) -> NDArray[np.float64]:
        aside = draw.standard_normal(parent.shape)
        aside = unit(aside - (aside * parent).sum(axis=1, keepdims=True) * parent + 1e-12)
        angles = draw.uniform(0, most, (6, 1))
        return np.cos(angles) * parent + np.sin(angles) * aside

    moved = [turn(first), turn(second)]
    cosines = [(unit(rows) * parent).sum(axis=1) for rows in moved]
    floors = [Tolerance(cosine_mean=float(it.mean()), cosine_min=float(it.min())) for it in cosines]
    allowed = combine_tolerances(*floors)
    between = (unit(moved[0]) * unit(moved[1])).sum(axis=1)
    assert allowed.max_abs is None
    assert allowed.cosine_min is not None
    assert allowed.cosine_mean is not None
    assert between.min() >= allowed.cosine_min - 1e-9
    assert between.mean() >= allowed.cosine_mean - 1e-9


def test_the_bounds_are_reached() -> None:
    """On either side of the parent, in one plane: nothing tighter would be true."""
    one, other = 0.3, 0.2
    floors = [Tolerance(cosine_min=math.cos(angle)) for angle in (one, other)]
    assert combine_tolerances(*floors).cosine_min == pytest.approx(math.cos(one + other))
    assert combine_tolerances(Tolerance(max_abs=1e-5), Tolerance(max_abs=2e-6)).max_abs == pytest.approx(1.2e-5)
    assert combine_tolerances(Tolerance(max_abs=1e-5), Tolerance()) == Tolerance()
    assert combine_tolerances(*[Tolerance(cosine_min=-0.5)] * 2).cosine_min == pytest.approx(-1)


# --- the command line


def test_verify_with_a_baseline(run: Run, old: Path, tmp_path: Path) -> None:
    result = run("verify", GOLDEN, "--baseline", old, "--junit", tmp_path / "r.xml", "--threads", "1")
    assert (result.code, result.err) == (0, "")
    assert f"NEW {GOLDEN} against OLD {old}: the same parent" in result.out
    assert result.out.count("compatible\n") == len(NAMES)
    assert "an index that was built with OLD may be queried with NEW" in result.out
    last = result.out.splitlines()[-1]
    assert last.startswith("passed: 6 profiles are the parent at their points on this machine (worst ")
    assert last.endswith(f"; compatible with {old}")
    cases = ElementTree.parse(tmp_path / "r.xml").getroot().findall("testsuite/testcase[@name='drift']")
    assert [case.attrib["classname"] for case in cases] == NAMES
    document = run("verify", GOLDEN, "--baseline", old, "--json").json
    assert document["passed"] is True
    drift = document["drift"]
    assert isinstance(drift, dict)
    assert drift["compatible"] is True
    assert [profile["compatible"] for profile in drift["profiles"]] == [True] * len(NAMES)


def test_verify_with_a_baseline_that_drifted(run: Run, old: Path, tmp_path: Path) -> None:
    end_with(old / "L01-D020.fp32.onnx", ("Gather", np.arange(20)[::-1].copy(), {"axis": 1}))
    result = run("verify", GOLDEN, "--baseline", old, "--junit", tmp_path / "r.xml")
    assert result.code == 1
    assert result.out.count("not compatible: rebuild it") == 3
    assert "may be queried" not in result.out
    assert result.out.endswith(f"\n\nfailed: 3 of 6 profiles are not compatible with {old}\n")
    line, *codes = result.err.splitlines()
    assert len(codes) == 2
    assert line.startswith(f"matexport: L01-D020-fp32 is not compatible with {old}: max abs difference ")
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()
    failed = suite.findall("testsuite/testcase/failure/..")
    assert [(case.attrib["classname"], case.attrib["name"]) for case in failed] == [
        (name, "drift") for name in NAMES[:3]
    ]
    document = run("verify", GOLDEN, "--baseline", old, "--json").json
    assert document["passed"] is True, "the family itself is sound"
    assert document["drift"]["compatible"] is False  # type: ignore[index]


@pytest.mark.usefixtures("no_session")
class TestBeforeAnySession:
    def test_a_baseline_whose_files_changed(self, run: Run, old: Path) -> None:
        flip_byte(old / "L01-D020.fp32.onnx")
        result = run("verify", GOLDEN, "--baseline", old)
        assert (result.code, result.out) == (1, "")
        assert result.err == (
            f"matexport: baseline {old}: changed: L01-D020.fp32.onnx has another sha256 than the manifest says\n"
        )
        with pytest.raises(FamilyError, match="another sha256"):
            compare_families(GOLDEN, old)
        with pytest.raises(FamilyError, match="another sha256"):
            compare_families(old, GOLDEN)

    def test_a_baseline_that_is_no_family(self, run: Run, tmp_path: Path) -> None:
        run("verify", GOLDEN, "--baseline", tmp_path / "nothing").complains("nothing is not a directory")

    def test_no_common_profile(self, run: Run, exported: Path) -> None:
        run("verify", exported, "--baseline", GOLDEN).complains("no profile is in both families", "L03-D032-fp32")
