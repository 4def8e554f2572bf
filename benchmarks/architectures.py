"""How many of transformers' text encoders can be exported, and are right.

    python benchmarks/architectures.py [--only TYPE ...] [--sample N --seed S] [--resume]

Every type of `tests/zoo.py`, tiny and random, is exported at three points, and the vectors of a few texts, batched and
one by one, are compared with an oracle in plain torch that shares nothing with the package. Types run one after the
other in a process that is given up when one of them takes too long or takes it down; it is forked from one that has
imported torch and transformers. The limit counts the seconds of CPU time that one thread takes, which is what a clock
shows on a machine with nothing else to do.

What each type gave is appended to a file beside the result as it comes; `--resume` goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import common

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

LIMIT_S = 60
#: A machine with other work to do gets so many times longer on the clock.
PATIENCE = 6
#: Types that share a process, and so what it takes to import.
CHUNK = 20
MAX_ABS = 2e-6
MIN_EXPORTED = 180
BARS = (
    common.Bar("text encoders exported and right", MIN_EXPORTED, at_least=True),
    common.Bar("worst max_abs against the oracle", MAX_ABS),
    common.Bar("slowest type, export and comparison", LIMIT_S, " s"),
    common.Bar("types that neither export nor are refused in one line", 0),
)
#: Short, longer than the limit, framed nothing, one token, foreign scripts.
TEXTS = ("the cat sits on the mat", "snow and a big red house " * 20, "", "dog", "money, river bank! 42", "Käse 猫")
PRELOADED = ["torch", "transformers", "sentence_transformers", "onnxruntime", "matexport.export"]


class TooLongError(BaseException):
    """Not an Exception: what runs would catch those."""


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Export one type and compare it. Runs in the child."""
    import torch
    import transformers
    from zoo import has_other_inputs, make_zoo_parent

    from matexport.errors import MatexportError, ParityError
    from matexport.export.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    about: dict[str, Any] = {"type": kind, "group": "text half" if has_other_inputs(kind) else "text"}
    try:
        make_zoo_parent(kind, folder / "parent")
    except Exception as error:
        return about | {"outcome": "not made", "reason": _last_line(error)}
    started = time.process_time()
    try:
        family, norm = export(kind, folder)
    except ParityError as error:
        found: dict[str, Any] = {"outcome": "off its floor", "reason": _flatten(error)}
    except MatexportError as error:
        one_line = "\n" not in str(error)
        found = {"outcome": "refused" if one_line else "crashed", "reason": _flatten(error)}
    except Exception as error:
        found = {"outcome": "crashed", "reason": _last_line(error), "traceback": traceback.format_exc()[-3000:]}
    else:
        found = {"final_norm": norm} | compare(kind, folder / "parent", family, norm)
    return about | found | {"seconds": round(time.process_time() - started, 2)}


def export(kind: str, folder: Path) -> tuple[Path, bool]:
    """Export a type's folder, its final norm kept where it has one.

    Returns:
        the family, and whether there is a final norm.
    """
    from zoo import count_blocks

    from matexport.errors import RequestError
    from matexport.export import export_family
    from matexport.spec.job import ExportJob, ParentSource
    from matexport.spec.profile import Point
    from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

    blocks = max(count_blocks(kind, folder / "parent"), 1)
    points = tuple(dict.fromkeys((Point(1, 32), Point(max(blocks - 1, 1), 8), Point(blocks, 32))))
    for norm in (None, FinalNorm.KEEP):
        readout = ReadoutRequest(pooling=PoolingMode.MEAN, final_norm=norm)
        try:
            export_family(ExportJob(ParentSource(str(folder / "parent")), points, readout), folder / "family")
        except RequestError as error:
            if norm is None and "final_norm" in str(error):
                continue
            raise
        break
    return folder / "family", norm is not None


def compare(kind: str, parent: Path, family: Path, norm: bool) -> dict[str, Any]:
    """The largest difference of any coordinate of any text at any point, batched and alone."""
    import numpy as np
    from zoo import ZooOracle

    from matexport import Embedder, load_family

    try:
        oracle = ZooOracle(parent, kind, norm=norm)
        worst, where = 0.0, ""
        loaded = load_family(family)
        for name, facts in loaded.facts.profiles.items():
            embedder = Embedder(loaded, name, threads=1)
            expected = np.stack([oracle.vectors(text, [(facts.layers, facts.dim)])[0] for text in TEXTS])
            alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
            for way, vectors in (("batched", embedder.embed(TEXTS)), ("alone", alone)):
                off = float(np.abs(vectors - expected).max())
                if not off <= worst:
                    worst, where = off, f"{name} {way}"
    except Exception as error:
        return {"outcome": "crashed", "reason": f"oracle: {_last_line(error)}"}
    trace = loaded.facts.trace
    found = {"outcome": "exported" if worst <= MAX_ABS else "wrong", "max_abs": worst, "where": where}
    return found | {"exporter": trace.exporter, "fallback": trace.fallback}


def run_types(kinds: Sequence[str], limit: int) -> Iterator[dict[str, Any]]:
    """Measure types, in a process that is replaced when it is lost."""
    context = multiprocessing.get_context("forkserver")
    waiting = list(kinds)
    while waiting:
        chunk = waiting[:CHUNK]
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure_types, args=(chunk, limit, sender))
        process.start()
        sender.close()
        for kind in chunk:
            try:
                answered = receiver.poll(limit * (PATIENCE + 1))
                found = receiver.recv() if answered else None
            except EOFError:
                found = {"type": kind, "outcome": "crashed", "reason": "its process ended"}
                answered = False
            waiting.pop(0)
            yield found or {"type": kind, "outcome": "timeout", "reason": f"more than {limit} s", "seconds": limit}
            if not answered:
                break
        process.kill()
        process.join()


def _measure_types(kinds: Sequence[str], limit: int, sender: Any) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    with Path(os.devnull).open("wb") as silent:  # exporters print from C++, too
        for stream in (1, 2):
            os.dup2(silent.fileno(), stream)

    def stop(*_signal: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, stop)
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            signal.setitimer(signal.ITIMER_REAL, limit * PATIENCE)
            try:
                found = measure(kind, Path(folder))
            except TooLongError:
                found = {"type": kind, "outcome": "timeout", "reason": f"more than {limit} s", "seconds": limit}
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        sender.send(json.loads(json.dumps(found).replace(folder, "DIR")))


def choose_types(options: argparse.Namespace) -> list[str]:
    """The types that are asked for."""
    from zoo import has_other_inputs, list_types

    kinds: Sequence[str] = options.only or [
        kind for kind in list_types() if options.halves or not has_other_inputs(kind)
    ]
    if options.sample:
        kinds = sorted(random.Random(options.seed).sample(list(kinds), min(options.sample, len(kinds))))
    return list(kinds)


def summarize(found: Sequence[dict[str, Any]]) -> str:
    """Counts, the worst differences, and what was refused by kind."""
    counts = Counter(entry["outcome"] for entry in found)
    lines = [f"{len(found)} types: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())]
    exported = sorted((entry for entry in found if "max_abs" in entry), key=lambda entry: -entry["max_abs"])
    lines += [f"  {entry['max_abs']:.1e}  {entry['type']}  {entry['where']}" for entry in exported[:8]]
    slowest = sorted(found, key=lambda entry: -entry.get("seconds", 0))[:5]
    lines.append("slowest: " + ", ".join(f"{entry['type']} {entry.get('seconds', 0)} s" for entry in slowest))
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in found:
        if entry["outcome"] != "exported":
            reason = entry.get("reason", f"max_abs {entry.get('max_abs', 0):.1e}")
            groups[entry["outcome"], _generalize(reason, entry["type"])].append(entry["type"])
    for (outcome, reason), kinds in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines += [f"{outcome}: {reason}", f"    {len(kinds)}: {' '.join(kinds)}"]
    return "\n".join(lines)


def main() -> int:
    parser = common.make_parser("architectures", __doc__, repeats=1)
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="these types alone")
    parser.add_argument("--sample", type=int, help="so many types, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--halves", action="store_true", help="text halves of multimodal types, too")
    parser.add_argument("--resume", action="store_true", help="leave out types that an interrupted run has done")
    parser.add_argument("--limit", type=int, default=LIMIT_S, help=f"CPU seconds for each type (default: {LIMIT_S})")
    options = parser.parse_args()
    common.print_bars(BARS)
    multiprocessing.set_forkserver_preload(PRELOADED)
    kinds = choose_types(options)

    journal = options.out.with_suffix(".jsonl")
    done = _read_journal(journal) if options.resume else {}
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in done.values()), encoding="utf-8")

    found = list(done.values())
    for entry in run_types([kind for kind in kinds if kind not in done], options.limit):
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        detail = f"{entry['max_abs']:.1e}" if "max_abs" in entry else entry.get("reason", "")
        common.say(f"{entry['type']}: {entry['outcome']} {detail[:160]} ({entry.get('seconds', 0)} s)")
        found.append(entry)
    print(summarize(found))
    from zoo import find_reason

    left_out = Counter(reason for kind in _all_types() if (reason := find_reason(kind)))
    exported = [entry for entry in found if entry["outcome"] == "exported"]
    bad = [entry for entry in found if entry["outcome"] not in ("exported", "refused")]
    report = common.Report(
        held=[
            (BARS[0], len(exported)),
            (BARS[1], max((entry["max_abs"] for entry in found if "max_abs" in entry), default=0.0)),
            (BARS[2], max((entry.get("seconds", 0.0) for entry in found), default=0.0)),
            (BARS[3], len(bad)),
        ],
        measured={
            "types": len(found),
            "outcomes": Counter(entry["outcome"] for entry in found),
            "left out": left_out,
            "runs": found,
        },
        settings={"only": options.only, "sample": options.sample, "seed": options.seed, "texts": len(TEXTS)},
    )
    journal.unlink()
    return common.finish("architectures", options, report)


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {entry["type"]: entry for entry in map(json.loads, lines)}


def _all_types() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return list(CONFIG_MAPPING)


def _generalize(reason: str, kind: str) -> str:
    """A reason without what is different for every type, so that those of one kind stand together."""
    reason = reason.replace(kind, "TYPE")
    return re.sub(r"\b[A-Z][A-Za-z0-9_]*(Model|Encoder)\b", "MODEL", reason)[:300]


def _flatten(error: BaseException) -> str:
    return " ".join(str(error).split())


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno}, {frame.name})"


if __name__ == "__main__":
    raise SystemExit(main())
