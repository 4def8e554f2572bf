"""What every consumer's script does: embed all texts of a family's cases, and be judged on each vector.

Runs in the consumer's own environment: the standard library and numpy, nothing of matexport. `prepare.py` wrote the
cases where matexport is: the folders to load, the texts, and the vectors that they should have. A script hands over one
function, folder -> (texts -> vectors), and ends with exit code 1 when a vector is off, wherever it is.

Nothing is averaged, and nothing that a consumer gives is reshaped, cut or scaled before it is judged. transformers.js
drops the closing token of a text that it cuts: it is held to the vectors of exactly those tokens, and how far these are
from what the text should have stands in its verdict.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: texts -> (len(texts), dim) of whatever type the consumer gives: an array, a list of arrays, a list of lists. One that
#: has `close` is closed when all texts were embedded.
Embed = Callable[[Sequence[str]], Any]

#: Where both sides do the same arithmetic: rounding alone. It is matexport's own floor of fp32.
SAME = 1e-5
#: int8 with an onnxruntime before 1.30, whose kernels round otherwise: 6.3e-3 was seen, with 1.22.0 and with 1.24.4.
OLD_INT8, INT8_SINCE = 6.5e-3, (1, 30)


@dataclass(frozen=True)
class Cases:
    """What `prepare.py` wrote.

    Attributes:
        texts: the probes of the family and others at and past its limit.
        cut: for each text, whether it has more tokens than the parent takes.
        dims: profile -> dim.
    """

    folder: Path
    texts: tuple[str, ...]
    cut: tuple[bool, ...]
    dims: Mapping[str, int]

    def vectors(self, profile: str) -> np.ndarray:
        """(len(texts), dim) float32, that the profile should give."""
        return self._read(f"{profile}.f32", profile)

    def without_closing(self, profile: str) -> np.ndarray:
        """The same, but of texts that are cut, what their first tokens give, the closing one not put back."""
        return self._read(f"{profile}.unclosed.f32", profile)

    def _read(self, name: str, profile: str) -> np.ndarray:
        return np.fromfile(self.folder / "vectors" / name, "<f4").reshape(len(self.texts), self.dims[profile])

    def find(self, layout: str, profile: str) -> Path:
        """The folder of a profile that was packed for a kind of consumer."""
        return self.folder / layout / profile


@dataclass
class Verdict:
    """How one consumer did with one profile.

    Attributes:
        loads: whether vectors came at all; `error` says why not.
        batched, single: the largest absolute difference of texts that were given together, and one by one.
        cut: of a consumer that drops the closing token of texts that it cuts, how far those are from what they should
            be; not judged, since `batched` and `single` are then of exactly the tokens that are left.
        limit: what is allowed.
    """

    loads: bool = False
    batched: float | None = None
    single: float | None = None
    cut: float | None = None
    limit: float = SAME
    passed: bool = False
    error: str = ""


@dataclass
class Outcome:
    """What one consumer's run leaves behind, as JSON."""

    consumer: str
    layout: str
    how: str
    versions: Mapping[str, str]
    onnxruntime: str
    seconds: float = 0.0
    profiles: dict[str, Verdict] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.profiles) and all(verdict.passed for verdict in self.profiles.values())


@dataclass(frozen=True)
class Limits:
    """What a consumer is allowed, where it is not `SAME`; each with a reason that the table gives."""

    fp32: float = SAME
    int8: float = SAME

    def of(self, profile: str) -> float:
        return self.int8 if profile.endswith("-int8") else self.fp32


def limit_for(onnxruntime: str) -> Limits:
    """What a consumer's version of onnxruntime allows, such as ``1.22.0``; ``""`` where it brings none."""
    if not onnxruntime:
        return Limits()
    major, minor = (int(part) for part in onnxruntime.split(".")[:2])
    return Limits(int8=SAME if (major, minor) >= INT8_SINCE else OLD_INT8)


def load_cases(folder: Path) -> Cases:
    said = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return Cases(folder, tuple(said["texts"]), tuple(said["cut"]), said["dims"])


def judge(cases: Cases, profile: str, batched: Any, single: Any, limits: Limits, *, closes: bool = True) -> Verdict:
    """Compare what a consumer gave, both ways, with what it should have given.

    Args:
        batched: of all texts in one call.
        single: of each text in a call of its own, in the order of the texts.
        closes: whether the consumer ends a text that it cuts in the closing token, as the parent does.
    """
    verdict = Verdict(loads=True, limit=limits.of(profile))
    try:
        wanted = cases.vectors(profile) if closes else cases.without_closing(profile)
        verdict.batched, verdict.single = (float(measure_distance(x, wanted).max()) for x in (batched, single))
        if not closes:
            verdict.cut = float(measure_distance(batched, cases.vectors(profile))[list(cases.cut)].max())
    except ValueError as error:
        verdict.error = str(error)
        return verdict
    verdict.passed = max(verdict.batched, verdict.single) <= verdict.limit
    return verdict


def measure_distance(given: Any, wanted: np.ndarray) -> np.ndarray:
    """(n,): the largest absolute difference of each text's vector.

    Raises:
        ValueError: the vectors are not as many, not as wide, or not all finite. A NaN compares as within any limit.
    """
    vectors = np.asarray([np.asarray(row) for row in given], dtype=np.float64)
    if vectors.shape != wanted.shape:
        raise ValueError(f"gave vectors of the shape {vectors.shape}, and they should have {wanted.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("gave values that are not finite")
    distances: np.ndarray = np.abs(vectors - wanted).max(axis=1)
    return distances


def try_profile(cases: Cases, profile: str, folder: Path, load: Callable[[Path], Embed], limits: Limits) -> Verdict:
    """One profile through one consumer; what it raises is its verdict."""
    try:
        embed = load(folder)
        together = embed(cases.texts)
        single = [row for text in cases.texts for row in embed([text])]
        getattr(embed, "close", lambda: None)()
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Verdict(limit=limits.of(profile), error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
    return judge(cases, profile, together, single, limits)


def find_runtime() -> str:
    """The version of onnxruntime that is installed beside the consumer; ``""`` where there is none."""
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return ""


def list_versions(packages: Sequence[str]) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def run(
    consumer: str, packages: Sequence[str], load: Callable[[Path], Embed], *, how: str, layout: str = "all",
    limits: Limits | None = None,
) -> None:  # fmt: skip
    """The whole of a consumer's script: read the cases, embed, judge, write JSON, and end the process.

    Args:
        consumer: its name in the table.
        packages: whose versions the table gives; the first is the consumer.
        load: folder of a pack -> a function that embeds texts.
        how: the call that was made, in a few words.
        layout: what the folders were packed for.
        limits: by the installed onnxruntime when left out.
    """
    parser = argparse.ArgumentParser(description=f"embeds the cases with {consumer}")
    parser.add_argument("cases", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, help="write the JSON document to this folder as well")
    parser.add_argument("--layout", default=layout, help="take folders that were packed for this")
    options = parser.parse_args()
    cases, started = load_cases(options.cases.resolve()), time.monotonic()
    runtime = find_runtime()
    outcome = Outcome(consumer, options.layout, how, list_versions(packages), runtime)
    for profile in cases.dims:
        if options.layout == "torch" and not profile.endswith("-fp32"):
            continue  # the parent's own weights: no precision but theirs
        allowed = limits or limit_for(runtime)
        outcome.profiles[profile] = try_profile(cases, profile, cases.find(options.layout, profile), load, allowed)
    outcome.seconds = round(time.monotonic() - started, 1)
    finish(outcome, options.out)


def finish(outcome: Outcome, out: Path | None) -> None:
    """Print what came out, keep it, and say by the exit code whether all is well."""
    print(keep(outcome, out))
    sys.exit(0 if outcome.passed else 1)


def keep(outcome: Outcome, out: Path | None) -> str:
    """What came out as JSON, which is written to a folder, too, where there is one."""
    text = json.dumps({**asdict(outcome), "passed": outcome.passed}, indent=1, ensure_ascii=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        name = "-".join("".join(c if c.isalnum() or c == "." else " " for c in outcome.consumer.lower()).split())
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return text
