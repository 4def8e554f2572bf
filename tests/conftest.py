"""Fixtures that several test modules share. One small family is exported per test session, for all of its processes;
tests that change a family work on a copy."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch: the cores are given to test processes

import pytest
from commandline import Run
from filelock import FileLock

from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import FinalNorm, ReadoutRequest

TEXTS = ["the cat sits on the mat", "a big red house", "dog", "money, river bank! 42", "snow " * 70, "Käse 猫 🙂"]
POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 32))
#: Modules that take longest, the longest first. A module is given to one test process as a whole: a long one that began
#: last would leave the other processes idle. What is not named here follows.
LONGEST = (
    "test_cases.py",
    "test_pipeline.py",
    "test_architectures.py",
    "test_minilm.py",
    "kinds/test_image.py",
    "test_reuse.py",
    "test_fuzz_families.py",
    "test_classifier.py",
    "test_franca.py",
    "test_visual_tokens.py",
    "measure/test_images.py",
    "test_parents.py",
    "test_corpus.py",
    "export/judge/test_judge.py",
    "runtime/native/test_families.py",
    "test_in_torch.py",
    "test_precisions.py",
    "serve/test_page.py",
    "test_module.py",
    "test_narrow.py",
    "test_pytest_plugin.py",
    "test_outline.py",
    "export/parents/test_text.py",
    "test_guard.py",
    "test_shapes.py",
    "test_fuzz_parents.py",
    "test_commands.py",
    "test_bench.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}

    def rank_item(item: pytest.Item) -> int:
        return min((rank for name, rank in ranks.items() if item.path.as_posix().endswith(f"/{name}")), default=99)

    items.sort(key=rank_item)


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once and read by all processes of this test session."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "shared"
    folder.mkdir(exist_ok=True)
    os.environ["MATEXPORT_TEST_TRACES"] = str(folder)  # read by `memory`
    return folder


_frozen = 0


@pytest.fixture(scope="module", autouse=True)
def _freeze_libraries() -> None:
    """Every export collects garbage, which takes half a second where torch and transformers are looked through."""
    global _frozen
    if len(sys.modules) > _frozen + 300:
        import hypothesis  # noqa: F401 - when it is imported, it asks the collector, which does not see what is frozen

        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


def make_once(path: Path, make: Callable[[], object]) -> Path:
    """Make what `path` names, unless another process has; it is waited for."""
    path.parent.mkdir(exist_ok=True)
    done = path.with_name(f"{path.name}.done")
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not done.exists():
            make()
            done.touch()
    return path


@pytest.fixture(scope="session", autouse=True)
def _warm_judges() -> Iterator[None]:
    """Judges start at once; as users start them where a test runs a process of its own."""
    from warm import patch_judge

    with pytest.MonkeyPatch.context() as patch:
        patch_judge(patch)
        yield


@pytest.fixture(scope="session")
def parent(shared: Path) -> Path:
    """A small random BERT with mean pooling."""

    def make() -> None:
        from parents import make_parent

        make_parent(path, "bert")

    path = shared / "parent" / "bert"
    return make_once(path, make)


@pytest.fixture(scope="session")
def exported(parent: Path, shared: Path) -> Path:
    """Its family. Not to be changed: copy it with the fixture `family`."""

    def make() -> None:
        from memory import trace_once

        from matexport.export import export_family
        from matexport.export import pipeline as export

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "trace_exits", trace_once)
            export_family(ExportJob(ParentSource(str(parent)), POINTS), out)

    out = shared / "family" / "small"
    return make_once(out, make)


@pytest.fixture
def family(exported: Path, tmp_path: Path) -> Path:
    """A copy of the family that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "family"))


@pytest.fixture(scope="session")
def left_parent(shared: Path) -> Path:
    """A small random decoder that pads on the left, reads the last token and has a prompt; its final norm is kept."""

    def make() -> None:
        from parents import make_parent

        make_parent(path, "qwen3", pooling="lasttoken", prompts={"query": "a red house "})

    path = shared / "left" / "qwen3"
    return make_once(path, make)


@pytest.fixture(scope="session")
def left_exported(left_parent: Path, shared: Path) -> Path:
    """Its family. Not to be changed: copy it."""

    def make() -> None:
        from memory import trace_once

        from matexport.export import export_family
        from matexport.export import pipeline as export

        points = (Point(1, 16), Point(3, 32))
        job = ExportJob(ParentSource(str(left_parent)), points, ReadoutRequest(final_norm=FinalNorm.KEEP))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "trace_exits", trace_once)
            export_family(job, out)

    out = shared / "left-family" / "left"
    return make_once(out, make)


@dataclass(frozen=True)
class Precise:
    """A parent, the texts it was calibrated on, and its family in every precision. Not to be changed: copy them."""

    parent: Path
    texts: Path
    job: ExportJob
    family: Path


#: Kind of parent -> its shape, its pooling, how its weights are drawn (see `parents`), and what its outputs hold.
PRECISE = {
    "bert": ("bert", "mean", "calm", tuple(Encoding)),
    "rough": ("bert", "cls", "roughen", (Encoding.FLOAT32,)),
    "modernbert": ("modernbert", "mean", "calm", (Encoding.FLOAT32,)),
    "qwen3": ("qwen3", "lasttoken", "soothe", (Encoding.FLOAT32,)),
}
#: Two blocks of 64, so that embedding tables are worth quantizing (64 KiB) and 32 rows are a part of a matrix; a dim
#: that fills no whole bytes.
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1024}
PRECISE_POINTS = (Point(1, 64), Point(2, 20), Point(2, 64))


@pytest.fixture(scope="session")
def precise(shared: Path) -> Callable[[str], Precise]:
    """A kind of parent -> its family in every precision, exported once."""
    made: dict[str, Precise] = {}

    def make(kind: str) -> Precise:
        if kind not in made:
            made[kind] = export_precise(kind, shared / kind)
        return made[kind]

    return make


def export_precise(kind: str, folder: Path) -> Precise:
    import parents

    shape, pooling, change, encodings = PRECISE[kind]
    prenorm, decoder = parents.SHAPES[shape].prenorm, parents.SHAPES[shape].decoder
    parent, family = folder / "parent", folder / "family"
    texts, probes = folder / "texts.txt", folder / "probes.jsonl"
    job = ExportJob(
        ParentSource(str(parent)),
        PRECISE_POINTS,
        ReadoutRequest(final_norm=FinalNorm.KEEP if prenorm else None),
        precisions=tuple(Precision),
        encodings=encodings,
        probes=probes,
        calibration=texts,
    )

    def make() -> None:
        from memory import trace_once

        from matexport.export import export_family
        from matexport.export import pipeline as export

        parents.make_parent(
            parent,
            shape,
            pooling=pooling,
            config=SMALL | ({"head_dim": 16} if decoder else {}),
            change=getattr(parents, change),
        )
        write_texts(texts)
        lines = [json.dumps({"text": text}) for text in [*TEXTS, "", *read_texts(texts)[:9]]]
        probes.write_text("\n".join(lines), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "trace_exits", trace_once)
            export_family(job, family)

    make_once(family, make)
    return Precise(parent, texts, job, family)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line: `run("verify", family)`."""
    capsys.readouterr()
    return Run(capsys, monkeypatch)


@pytest.fixture
def quick_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of a parent at the same depths are traced once for all tests."""
    from memory import trace_once

    from matexport.export import pipeline as export

    monkeypatch.setattr(export, "trace_exits", trace_once)


def write_texts(path: Path, count: int = 80, seed: int = 0) -> Path:
    """Lines of words that the small tokenizers know, the same for the same seed."""
    words = [
        "the", "a", "cat", "dog", "sits", "on", "mat", "runs", "in", "snow", "of", "and", "house", "red", "blue",
        "small", "big", "river", "bank", "money", "city", "is", "42", "!",
    ]  # fmt: skip
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(words, k=draw.randint(2, 30))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_texts(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a session is created. What pytest.fail raises is no Exception, so no handler swallows it."""

    def refuse(*_args: object, **_options: object) -> None:
        pytest.fail("a session was created")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    monkeypatch.setattr("matexport.runtime.engines.onnxruntime._create", refuse)
    monkeypatch.setattr("matexport.runtime.embedder.open_checked", refuse)
    monkeypatch.setattr("matexport.runtime.all_points.open_checked", refuse)
