"""Texts from files: probes, calibration texts, and any file with one text per line.

Sizes are bounded before anything is kept, and a message names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources
from itertools import islice
from pathlib import Path

from matexport.errors import RequestError
from matexport.spec.probe import Probe
from matexport.spec.record import read_record

#: A probe file is read whole; this is far above what a gate in CI can use.
MAX_PROBES = 10_000

#: Ranges measured on fewer texts say more about the texts than about the parent.
MIN_CALIBRATION_TEXTS = 64

#: More do not move a percentile; the first of a longer file are taken.
MAX_CALIBRATION_TEXTS = 1024

#: Of a mix of texts that throughput is measured on.
MAX_MIX_TEXTS = 1024

#: A longer line is a file without line breaks.
MAX_TEXT_CHARACTERS = 1 << 20


def load_probes(path: Path | None) -> tuple[Probe, ...]:
    """The probes of a job: JSON Lines, one ``{"text": ..., "prompt": ...}`` each; the shipped ones for None.

    Raises:
        RequestError: the file cannot be read, is empty, too long, or a line is no probe.
    """
    if path is None:
        lines = resources.files("matexport.io").joinpath("data/probes.jsonl").read_text(encoding="utf-8")
        return parse_probes(lines, "the shipped probes")
    try:
        return parse_probes(path.read_text(encoding="utf-8"), str(path))
    except OSError as problem:
        raise RequestError(f"cannot read the probes {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"the probes {path} are not UTF-8 text") from None


def parse_probes(lines: str, where: str) -> tuple[Probe, ...]:
    """Read JSON Lines of probes. `where` names the source in messages."""
    probes = []
    # Not str.splitlines: it also cuts at U+2028 and others, which JSON leaves unescaped inside strings.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as problem:  # ValueError: also more digits than Python reads
            raise RequestError(f"{where}, line {number}: not JSON ({problem})") from None
        probes.append(read_record(data, Probe, f"{where}, line {number}", RequestError))
    if len(probes) < 2:
        raise RequestError(f"{where}: {len(probes)} probes; parity needs at least 2, to compare neighbours")
    if len(probes) > MAX_PROBES:
        raise RequestError(f"{where}: {len(probes)} probes; at most {MAX_PROBES} are taken")
    return tuple(probes)


def format_probes(probes: Iterable[Probe]) -> str:
    """Probes as JSON Lines, as `parse_probes` reads them; what is None is left out."""
    told = ({key: value for key, value in _to_dict(probe).items() if value is not None} for probe in probes)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)


def _to_dict(probe: Probe) -> dict[str, str | None]:
    return {"text": probe.text, "prompt": probe.prompt, "task": probe.task}


def load_shipped_calibration() -> tuple[str, ...]:
    """The texts that precisions are measured on where a job gives none. None of them is a probe."""
    with resources.as_file(resources.files("matexport.io").joinpath("data/calibration.txt")) as path:
        return load_calibration(path)


def load_calibration(path: Path) -> tuple[str, ...]:
    """The different texts of a calibration file, one per line; of a longer one, the first 1024.

    Raises:
        RequestError: the file cannot be read, or has fewer than 64 different texts.
    """
    texts = read_texts(path, MAX_CALIBRATION_TEXTS, "the calibration texts")
    if len(texts) < MIN_CALIBRATION_TEXTS:
        raise RequestError(
            f"{path} has {len(texts)} different texts; ranges need at least {MIN_CALIBRATION_TEXTS}, one per line, "
            "of the kind that will be embedded"
        )
    return texts


def read_texts(path: Path, most: int, what: str) -> tuple[str, ...]:
    """The first different texts of a file with one per line; blank lines are skipped.

    Args:
        what: names the texts in messages.

    Raises:
        RequestError: the file cannot be read, or a text is longer than any tokenizer's limit.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = (line.strip() for line in iter(lambda: file.readline(MAX_TEXT_CHARACTERS + 1), ""))
            texts = tuple(islice(_drop_repeated(lines), most))
    except OSError as problem:
        raise RequestError(f"cannot read {what} {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{what} {path} are not UTF-8 text") from None
    if any(len(text) >= MAX_TEXT_CHARACTERS for text in texts):
        raise RequestError(f"{what} {path} hold a line of {MAX_TEXT_CHARACTERS} characters; one text per line is taken")
    return texts


def _drop_repeated(lines: Iterable[str]) -> Iterator[str]:
    seen = {""}
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line
