"""Job files and probe files: what is asked for is what is read; the rest is refused with what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import ROOT

from matexport.errors import RequestError
from matexport.io.jobs import change_precisions, check_points, load_job
from matexport.io.texts import (
    MAX_CALIBRATION_TEXTS,
    MAX_PROBES,
    MIN_CALIBRATION_TEXTS,
    load_calibration,
    load_probes,
    parse_probes,
)
from matexport.spec.job import ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest
from matexport.spec.tolerance import FLOORS, Tolerance, tighten

SHIPPED = sorted((ROOT / "profiles").glob("*.toml"))
SMALL = """
[parent]
source = "some/parent"
[points]
layers = [2, 1]
dims = [8]
"""


def write_profile(folder: Path, text: str) -> Path:
    """With the files that it may name."""
    write_calibration(folder, b"\n".join(LINES))
    (folder / "mine.jsonl").write_text('{"text": "a dog"}\n{"text": "a cat"}\n', encoding="utf-8")
    path = folder / "profile.toml"
    path.write_text(text, encoding="utf-8")
    return path


def points_of(folder: Path, points: str) -> tuple[Point, ...]:
    return load_job(write_profile(folder, f'[parent]\nsource = "p"\n[points]\n{points}')).points


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_profile_loads(path: Path) -> None:
    job = load_job(path)
    assert job.points == tuple(sorted(set(job.points)))
    assert set(job.precisions) <= set(Precision)


def test_shipped_profiles_are_found() -> None:
    assert "minilm" in [path.stem for path in SHIPPED]


def test_minilm_pins_the_published_weights() -> None:
    (minilm,) = (path for path in SHIPPED if path.stem == "minilm")
    job = load_job(minilm)
    assert job.parent.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert len(job.points) == 30


def test_defaults(tmp_path: Path) -> None:
    job = load_job(write_profile(tmp_path, SMALL))
    assert job.parent == ParentSource("some/parent")
    assert job.points == (Point(1, 8), Point(2, 8))
    assert job.readout == ReadoutRequest()
    assert job.precisions == (Precision.FP32,)
    assert (job.probes, job.tolerances, job.base) == (None, {}, tmp_path)


def test_every_key(tmp_path: Path) -> None:
    text = """
    precisions = ["fp32"]
    [parent]
    source = "p"
    revision = "main"
    sha256 = {"a.safetensors" = "00"}
    allow_pickle = true
    trust_remote_code = true
    [readout]
    pooling = ["cls", "mean"]
    final_norm = "drop"
    normalize = false
    max_tokens = 32
    [points]
    pairs = [[2, 16], [1, 8]]
    [probes]
    file = "mine.jsonl"
    [tolerances.fp32]
    max_abs = 1e-6
    """
    job = load_job(write_profile(tmp_path, text))
    assert job.parent == ParentSource("p", "main", {"a.safetensors": "00"}, True, True)
    assert job.readout == ReadoutRequest((PoolingMode.CLS, PoolingMode.MEAN), FinalNorm.DROP, False, 32)
    assert job.points == (Point(1, 8), Point(2, 16))
    assert job.probes == tmp_path / "mine.jsonl"
    assert job.tolerances == {Precision.FP32: Tolerance(1e-6)}


@pytest.mark.parametrize(
    ("table", "key", "known"),
    [
        (
            "",
            "point",
            "parent, points, precisions, encodings, vocabulary, preprocess_in_graph, calibration, export, readout, "
            "probes, trained, tolerances",
        ),
        ("[parent]", "parent.sha", "source, revision, sha256, allow_pickle, trust_remote_code, route, kind"),
        ("[readout]", "readout.normalise", "pooling, final_norm, normalize, max_tokens, image_size, features"),
        ("[points]", "points.dim", "layers, dims, pairs, tokens, text_layers"),
        ("[probes]", "probes.path", "file"),
        ("[tolerances.fp32]", "tolerances.fp32.cosine", "max_abs, cosine_mean, cosine_min, spread"),
        ("[calibration]", "calibration.path", "file"),
        ("[export]", "export.taget", "target"),
    ],
)
def test_unknown_key_lists_the_known_ones(table: str, key: str, known: str, tmp_path: Path) -> None:
    line = f"{key.rpartition('.')[2]} = 1\n"
    text = SMALL.replace(table, f"{table}\n{line}") if table in SMALL else f"{SMALL}{table}\n{line}"
    with pytest.raises(RequestError) as refusal:
        load_job(write_profile(tmp_path, line + SMALL if not table else text))
    close = {"sha": "sha256", "normalise": "normalize", "dim": "dims", "cosine": "cosine_min", "point": "points"}
    close["taget"] = "target"
    asked = key.rpartition(".")[2]
    meant = f"; did you mean {close[asked]!r}?" if asked in close else ""
    assert str(refusal.value) == f"{tmp_path / 'profile.toml'}: unknown key {key!r}; known here: {known}{meant}"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("", "takes either layers and dims"),
        ("layers = [1]", "takes either layers and dims"),
        ("dims = [8]", "takes either layers and dims"),
        ("layers = [1]\ndims = [8]\npairs = [[1, 8]]", "takes either layers and dims"),
        ("layers = [1]\npairs = [[1, 8]]", "takes either layers and dims"),
        ("layers = []\ndims = [8]", "no point at all"),
        ("layers = [1]\ndims = []", "no point at all"),
        ("pairs = []", "no point at all"),
        ("layers = [-1]\ndims = [8]", r"\(layers=-1, dim=8\)"),
        ("pairs = [[1, 8], [1, 0]]", r"\(layers=1, dim=0\)"),
        ("pairs = [[1, -8]]", r"\(layers=1, dim=-8\)"),
        ("pairs = [[2, 8], [1, 8], [2, 8]]", r"\(layers=2, dim=8\) is asked for twice"),
        ("layers = [1, 2, 1]\ndims = [8]", r"\(layers=1, dim=8\) is asked for twice"),
        ("pairs = [[1, 2, 3]]", r"points\.pairs\[0\]"),
        ("layers = [1.5]\ndims = [8]", r"points\.layers\[0\]"),
        ("layers = [true]\ndims = [8]", r"points\.layers\[0\]"),
        ('layers = ["1"]\ndims = [8]', r"points\.layers\[0\]"),
    ],
)
def test_points_that_no_parent_has_are_refused(points: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words):
        points_of(tmp_path, points)


def test_a_grid_is_every_pair_sorted(tmp_path: Path) -> None:
    grid = points_of(tmp_path, "layers = [3, 1]\ndims = [16, 8]")
    pairs = points_of(tmp_path, "pairs = [[1, 16], [3, 8], [1, 8], [3, 16]]")
    assert grid == pairs == (Point(1, 8), Point(1, 16), Point(3, 8), Point(3, 16))


@pytest.mark.parametrize("max_abs", ["1e-5", "1e-9"])
def test_a_tolerance_may_be_tightened(max_abs: str, tmp_path: Path) -> None:
    job = load_job(write_profile(tmp_path, f"{SMALL}[tolerances.fp32]\nmax_abs = {max_abs}"))
    assert job.tolerances[Precision.FP32].max_abs <= FLOORS[Precision.FP32].max_abs


@pytest.mark.parametrize("max_abs", ["1.1e-5", "1", "0", "0.0", "-1e-6", "nan", "inf", "-inf"])
def test_a_tolerance_is_never_loosened(max_abs: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tolerances\.fp32\.max_abs = .* (the floor is 1e-05|cannot be held)"):
        load_job(write_profile(tmp_path, f"{SMALL}[tolerances.fp32]\nmax_abs = {max_abs}"))


#: Precision, field, what is tighter than its floor, and what is looser.
HELD = [
    (precision, name, tighter, looser)
    for precision, floor in FLOORS.items()
    for name, tighter, looser in (
        ("max_abs", 0.5, 1.01),
        ("cosine_mean", 1.00001, 0.999),
        ("cosine_min", 1.0001, 0.999),
        ("spread", 0.5, 1.01),
    )
    if getattr(floor, name) is not None
]


def write_tolerance(folder: Path, precision: str, name: str, value: object) -> Path:
    calibration = '[calibration]\nfile = "texts.txt"\n'
    return write_profile(folder, f"{SMALL}{calibration}[tolerances.{precision}]\n{name} = {value}")


def test_every_precision_has_a_floor_that_holds_something() -> None:
    assert set(FLOORS) == set(Precision)
    assert len(HELD) == 1 + 2 + 3 * 5
    cosines = [FLOORS[kind].cosine_mean for kind in (Precision.FP16, Precision.Q8, Precision.Q4_MIXED, Precision.Q4)]
    assert cosines == sorted(cosines, reverse=True)  # type: ignore[type-var]


@pytest.mark.parametrize(("precision", "name", "tighter", "looser"), HELD)
def test_each_number_may_be_tightened_and_not_loosened(
    precision: Precision, name: str, tighter: float, looser: float, tmp_path: Path
) -> None:
    floor = getattr(FLOORS[precision], name)
    for value in (floor, floor * tighter):
        job = load_job(write_tolerance(tmp_path, precision, name, value))
        assert job.tolerances == {precision: Tolerance(**{name: value})}
    with pytest.raises(RequestError, match=rf"tolerances\.{precision}\.{name} = .* may tighten it, not loosen it"):
        load_job(write_tolerance(tmp_path, precision, name, floor * looser))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("max_abs", "spread") for value in ("0", "-1e-9", "nan", "inf", "-inf")),
        *((name, value) for name in ("cosine_mean", "cosine_min") for value in ("1.01", "-2", "nan", "inf", "-inf")),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_no_vectors_keep_is_refused_with_a_floor_or_without(
    precision: str, name: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=rf"tolerances\.{precision}\.{name} = .* cannot be held"):
        load_job(write_tolerance(tmp_path, precision, name, value))


def test_a_number_that_has_no_floor_may_be_asked_for(tmp_path: Path) -> None:
    job = load_job(write_tolerance(tmp_path, "fp32", "cosine_min", 0.5))
    assert tighten(job.tolerances[Precision.FP32], FLOORS[Precision.FP32]) == Tolerance(1e-5, cosine_min=0.5)


def test_tightening_takes_the_tighter_of_each_number() -> None:
    floor = Tolerance(1e-5, 0.99, 0.97, 1e-6)
    assert tighten(Tolerance(), floor) == floor
    assert tighten(Tolerance(1e-6, 0.999, 0.98, 1e-7), floor) == Tolerance(1e-6, 0.999, 0.98, 1e-7)
    assert tighten(Tolerance(1e-4, 0.9, 0.9, 1e-5), floor) == floor
    assert tighten(Tolerance(1e-6, 0.9, 0.98, 1e-5), floor) == Tolerance(1e-6, 0.99, 0.98, 1e-6)
    nan = float("nan")
    assert tighten(Tolerance(nan, nan, nan, nan), floor) == floor
    assert tighten(Tolerance(cosine_mean=0.5), Tolerance(max_abs=1e-5)) == Tolerance(1e-5, cosine_mean=0.5)


def test_precisions_encodings_and_a_vocabulary(tmp_path: Path) -> None:
    text = f"""precisions = ["fp32", "int8", "q4-mixed"]
encodings = ["ubinary", "float32"]
vocabulary = "script:Latin"
{SMALL}
[calibration]
file = "texts.txt"
"""
    job = load_job(write_profile(tmp_path, text))
    assert job.precisions == (Precision.FP32, Precision.INT8, Precision.Q4_MIXED)
    assert job.encodings == (Encoding.UBINARY, Encoding.FLOAT32)
    assert (job.vocabulary, job.calibration) == ("script:Latin", tmp_path / "texts.txt")
    assert len(job.profiles) == 2 * 3 * 2
    assert Profile(Point(2, 8), Precision.INT8, Encoding.UBINARY) in job.profiles


@pytest.mark.parametrize("encodings", ["[]", '["int8", "int8"]', '["binary"]', '"int8"'])
def test_encodings_are_known_and_named_once(encodings: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="encodings"):
        load_job(write_profile(tmp_path, f"encodings = {encodings}\n{SMALL}"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('precisions = ["fp32", "int8-static"]', "the precision int8-static needs ranges"),
        ('encodings = ["int8"]', "the encoding int8 needs ranges"),
        (
            'precisions = ["int8-static"]\nencodings = ["float32", "int8"]',
            "the precision int8-static and the encoding int8 need ranges",
        ),
    ],
)
def test_what_needs_calibration_texts_is_refused_without(line: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"{what}.* \[calibration\] file = .*, at least 64 of them"):
        load_job(write_profile(tmp_path, f"{line}\n{SMALL}"))
    load_job(write_profile(tmp_path, f'{line}\n{SMALL}[calibration]\nfile = "texts.txt"'))


def test_images_are_asked_for_where_a_parent_takes_images(tmp_path: Path) -> None:
    file = write_profile(
        tmp_path, 'precisions = ["int8-static"]\n' + SMALL.replace("[parent]", '[parent]\nkind = "image"')
    )
    with pytest.raises(
        RequestError, match=r"measured on your images: give \[calibration\] file = .*, a folder of at least 32 of them"
    ):
        load_job(file)


def test_what_needs_none_is_not(tmp_path: Path) -> None:
    others = [precision for precision in Precision if precision is not Precision.INT8_STATIC]
    line = f"precisions = {[str(precision) for precision in others]}\nencodings = ['float32', 'ubinary']"
    assert load_job(write_profile(tmp_path, f"{line}\n{SMALL}")).calibration is None


def test_other_precisions_than_the_files(tmp_path: Path) -> None:
    path = write_profile(tmp_path, SMALL)
    job = load_job(path)
    changed = change_precisions(job, [Precision.INT8, Precision.FP32, Precision.INT8])
    assert changed.precisions == (Precision.INT8, Precision.FP32)
    with pytest.raises(RequestError, match="int8-static needs ranges"):
        change_precisions(job, [Precision.INT8_STATIC])


LINES = [b"text %d" % number for number in range(MIN_CALIBRATION_TEXTS)]


def write_calibration(folder: Path, content: bytes) -> Path:
    path = folder / "texts.txt"
    path.write_bytes(content)
    return path


def test_calibration_texts_are_lines(tmp_path: Path) -> None:
    """At newlines only, blank ones left out; what stands around a text does not belong to it."""
    lines = [f"text {number}\u2028more" for number in range(MIN_CALIBRATION_TEXTS)]
    content = "\n\n".join(lines).replace("text 3\u2028", "  text 3\u2028") + "\r\n   \n\t\n"
    assert load_calibration(write_calibration(tmp_path, content.encode())) == tuple(lines)


def test_of_a_long_calibration_file_the_first_texts_are_taken(tmp_path: Path) -> None:
    lines = [f"text {number}" for number in range(MAX_CALIBRATION_TEXTS + 50)]
    assert load_calibration(write_calibration(tmp_path, "\n".join(lines).encode())) == tuple(
        lines[:MAX_CALIBRATION_TEXTS]
    )


def test_a_profile_whose_texts_are_missing_is_refused_as_it_is_read(tmp_path: Path) -> None:
    """Before anything that takes long is imported."""
    named = SMALL + '[calibration]\nfile = "texts.txt"\n[probes]\nfile = "mine.jsonl"\n'
    path = write_profile(tmp_path, named)
    assert load_job(path).calibration == tmp_path / "texts.txt"
    (tmp_path / "texts.txt").write_text("too\nfew\n")
    with pytest.raises(RequestError, match=r"texts\.txt has 2 different texts"):
        load_job(path)
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(RequestError, match=r"cannot read the probes .*mine\.jsonl: No such file"):
        load_job(path)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0),
        (b"\n \n\t\r\n", 0),
        (b"\n".join(LINES[:-1]), 63),
        (b"\n\n".join(LINES[:-1]) + b" \n", 63),
        (b"a\n" * 1000 + b"b", 2),
    ],
    ids=["empty", "blank", "63", "63 and blanks", "the same"],
)
def test_too_few_calibration_texts(content: bytes, count: int, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"texts\.txt has {count} different texts; ranges need at least 64, one "):
        load_calibration(write_calibration(tmp_path, content))
    assert len(load_calibration(write_calibration(tmp_path, b"\n".join([*LINES, *LINES])))) == 64


def test_calibration_texts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the calibration texts .*absent\.txt: No such file"):
        load_calibration(tmp_path / "absent.txt")
    with pytest.raises(RequestError, match="Is a directory"):
        load_calibration(tmp_path)
    with pytest.raises(RequestError, match=r"texts\.txt, line 101: not UTF-8 text"):
        load_calibration(write_calibration(tmp_path, b"a\n" * 100 + b"caf\xe9\n"))


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("L02-D064-fp32", Profile(Point(2, 64), Precision.FP32)),
        ("L02-D064-int8", Profile(Point(2, 64), Precision.INT8)),
        ("L02-D064-int8-int8", Profile(Point(2, 64), Precision.INT8, Encoding.INT8)),
        ("L02-D064-int8-static", Profile(Point(2, 64), Precision.INT8_STATIC)),
        ("L02-D064-int8-static-ubinary", Profile(Point(2, 64), Precision.INT8_STATIC, Encoding.UBINARY)),
        ("L12-D1024-q4-mixed-int8", Profile(Point(12, 1024), Precision.Q4_MIXED, Encoding.INT8)),
    ],
)
def test_profile_names_are_read_back(name: str, profile: Profile) -> None:
    assert Profile.parse(name) == profile
    assert profile.name == name


def test_every_profile_has_a_name_and_a_file_of_its_own() -> None:
    profiles = [Profile(Point(1, 8), precision, encoding) for precision in Precision for encoding in Encoding]
    assert [Profile.parse(profile.name) for profile in profiles] == profiles
    assert len({profile.graph_file for profile in profiles}) == len(profiles) == 21


@pytest.mark.parametrize(
    "name",
    ["L02-D064-fp32-float32", "L02-D064-int8-binary", "L02-D064-ubinary", "L02-D064-mixed", "L02-D064-q4-mixed-q4"],
)
def test_what_is_no_profile_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a profile name"):
        Profile.parse(name)


@pytest.mark.parametrize("precisions", ["[]", '["fp32", "fp32"]', '["fp33"]', '"fp32"'])
def test_precisions_are_known_and_named_once(precisions: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="precisions"):
        load_job(write_profile(tmp_path, f"precisions = {precisions}\n{SMALL}"))


def test_no_profile(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the job .*absent\.toml: No such file"):
        load_job(tmp_path / "absent.toml")
    with pytest.raises(RequestError, match="Is a directory"):
        load_job(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"parent = ", r"p\.toml is not a TOML file"),
        (b"{}", r"p\.toml is not a TOML file"),
        (b"\xff\xfe", r"p\.toml, line 1: not UTF-8 text \(it begins with the byte order mark of UTF-16"),
        (b"x = 1\ny = '\xe9'", r"p\.toml, line 2: not UTF-8 text \(byte 6 is 0xe9\)"),
        (b" " * ((4 << 20) + 1), r"p\.toml has more than 4194304 bytes"),
    ],
)
def test_what_is_not_toml(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=words):
        load_job(path)


# tomllib raises RecursionError and a plain ValueError for these, no TOMLDecodeError.
@pytest.mark.parametrize("value", ["[" * 10_000, "1" * 5000], ids=["too deep", "too many digits"])
def test_toml_that_python_gives_up_on(value: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"profile\.toml is not a TOML file"):
        load_job(write_profile(tmp_path, f"x = {value}"))


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="missing required field `parent`"):
        load_job(write_profile(tmp_path, "[points]\npairs = [[1, 8]]"))


def test_check_points_says_what_was_asked_and_what_is_allowed() -> None:
    check_points([Point(1, 1), Point(6, 384)], 6, 384, "minilm")
    with pytest.raises(RequestError) as layers:
        check_points([Point(6, 384), Point(7, 384)], 6, 384, "minilm")
    assert str(layers.value) == "layers=7 was asked; minilm has 6 blocks: ask for 1 to 6"
    with pytest.raises(RequestError) as dims:
        check_points([Point(6, 385)], 6, 384, "minilm")
    assert str(dims.value) == "dim=385 was asked; the vectors of minilm have 384 coordinates: ask for 1 to 384"


def test_shipped_probes_cover_what_the_issue_names() -> None:
    texts = [probe.text for probe in load_probes(None)]
    assert "" in texts
    assert any(len(text) > 2000 for text in texts), "longer than the usual maximum length"
    assert any("\u4e00" <= letter <= "\u9fff" for text in texts for letter in text), "Chinese or Japanese"
    assert any("\u0600" <= letter <= "\u06ff" for text in texts for letter in text), "Arabic"
    assert any("\u0900" <= letter <= "\u097f" for text in texts for letter in text), "Hindi"
    assert any(ord(letter) >= 0x1F300 for text in texts for letter in text), "emoji"
    assert len({len(text) for text in texts}) > 20, "mixed lengths"


def test_a_users_probes_replace_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "prompt": "query"}\r\n', encoding="utf-8")
    assert load_probes(path) == (Probe("a"), Probe("b", "query"))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_text_may_hold_what_splitlines_cuts_at(separator: str) -> None:
    text = f"one{separator}probe"
    if ord(separator) > 0x1F:  # JSON escapes control characters
        assert parse_probes(f'{{"text": "{text}"}}\n{{"text": "two"}}', "here")[0].text == text
    assert parse_probes(f'{json.dumps({"text": text})}\n{{"text": "two"}}', "here")[0].text == text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "here: 0 probes; parity needs at least 2"),
        ("\n  \n", "here: 0 probes; parity needs at least 2"),
        ('{"text": "a"}', "here: 1 probes; parity needs at least 2"),
        ('{"text": "a"}\nhello', r"here, line 2: not JSON \(.*\): 'hello'; a probe is {\"text\": \.\.\.}"),
        ('{"text": "a"}\n\n{"text": "b"', "here, line 3: not JSON"),
        ('{"text": "a"}\n{"txt": "b"}', "here, line 2: unknown key 'txt'; known here: text, prompt"),
        ('{"text": "a"}\n{"prompt": "b"}', "here, line 2: .*missing required field `text`"),
        ('{"text": "a"}\n{"text": 2}', r"here, line 2: Expected `str`, got `int` - at `\$\.text`"),
        ('{"text": "a"}\n["b"]', "here, line 2: Expected `object`, got `array`"),
        ('{"text": "a"}\n"b"', "here, line 2: Expected `object`, got `str`"),
        ('{"text": "a"}\n' * (MAX_PROBES + 1), f"here: {MAX_PROBES + 1} probes; at most {MAX_PROBES}"),
    ],
)
def test_what_is_no_probe_file(lines: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_probes(lines, "here")


# json raises RecursionError and a plain ValueError for these, no JSONDecodeError.
@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000], ids=["too deep", "too many digits"])
def test_json_that_python_gives_up_on(value: str) -> None:
    with pytest.raises(RequestError, match="here, line 1"):
        parse_probes(f'{{"text": {value}', "here")


def test_probe_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the probes .*absent\.jsonl: No such file"):
        load_probes(tmp_path / "absent.jsonl")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"binary\.jsonl, line 1: not UTF-8 text"):
        load_probes(binary)
