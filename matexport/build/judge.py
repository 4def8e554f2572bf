"""What the parent's own library says: asked in a process that shares no code with this one, and held to what we read.

The reference (`reference`) is made from our reading of a parent's folder; so is what is traced. Both would share a
misreading, and agree. So the user's own library is asked, on the same probes, as the user would ask it (`judge_child`),
and what was read must be that, before anything is traced: the whole parent's vectors, and those of the parent with its
blocks cut. The process is started while torch is imported here, takes the same few seconds to import it, and is kept
for the next export; one that ran code of a parent's own is not.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from matexport.build.parents.layout import uses_safetensors
from matexport.build.preflight import Located
from matexport.errors import ParentError
from matexport.host import count_cpus
from matexport.spec.job import ExportJob
from matexport.spec.profile import Probe

if TYPE_CHECKING:
    from matexport.build.parents.text import TextPlan
    from matexport.build.reference import Reference

Vectors = NDArray[np.float32]
Outputs = Mapping[str, NDArray[Any]]

#: Between our reading and the parent's own library, in any coordinate of vectors at length 1: the floor of fp32. One
#: text at a time both compute the same operators, so what is left is the order of sums (2e-7 on all-MiniLM-L6-v2).
TOLERANCE = 1e-5
#: Between a text alone and in a batch, in the parent's own library: padding rounds otherwise, but changes nothing.
BATCH_TOLERANCE = 1e-4
#: Probes that the cut parent is asked for, at each depth, and that share a batch: among them the longest.
SOME_PROBES = 8
#: Weights of a parent above which the judge's copy is given back before ours is loaded.
SIDE_BY_SIDE_BYTES = 1 << 30

_CHILD = Path(__file__).with_name("judge_child.py")


class Judge:
    """The process, with one parent open in it.

    Args:
        job: of the parent.
        located: where it lies.

    Opening the parent is not waited for: what is asked of it first does that.
    """

    def __init__(self, job: ExportJob, located: Located) -> None:
        layout = located.layout
        self._fresh = job.parent.trust_remote_code
        self._process: subprocess.Popen[str] | None = None
        pooling = job.readout.pooling
        safe = None
        if layout.kind == "Transformer" and located.weights is not None:
            safe = uses_safetensors(layout)
        self._request = {
            "do": "open",
            "folder": str(layout.root),
            "plain": layout.is_plain,
            "trust": job.parent.trust_remote_code,
            "safetensors": safe,
            "route": layout.route,
            "pooling": None if pooling is None else list(pooling if isinstance(pooling, tuple) else (pooling,)),
            "max_tokens": job.readout.max_tokens,
        }
        self._source = job.parent.source
        self._open = False
        self._asked_to_open = False
        self._waiting = False

    def start(self) -> None:
        """Begin to open the parent; returns at once."""
        self._send(self._request)
        self._asked_to_open = True

    def limit(self, max_tokens: int) -> None:
        """Of a plain folder, where no library says where texts are cut."""
        self._request["max_tokens"] = max_tokens

    def encode(self, probes: Sequence[Probe], together: Sequence[int] = ()) -> tuple[Vectors, Vectors]:
        """Vectors of the whole parent, (n, W), one text at a time, and of some of the texts in one batch.

        Args:
            together: places of the texts that share a batch.

        Raises:
            ParentError: the library cannot do it.
        """
        items = [_describe(probe) for probe in probes]
        found = self._ask({"do": "encode", "items": items, "together": list(together)})
        return found["alone"], found["together"]

    def encode_cut(self, probes: Sequence[Probe], layers: int, blocks: str | None, dropped: Sequence[str]) -> Vectors:
        """Vectors of the parent with its first blocks alone; cuts of one judge go from deep to shallow.

        Args:
            blocks: where its list of blocks is.
            dropped: the final norm, if it is taken away as well.

        Raises:
            ParentError: the library cannot run the cut parent.
        """
        request = {"do": "cut", "layers": layers, "blocks": blocks, "dropped": list(dropped)}
        return self._ask({**request, "items": [_describe(probe) for probe in probes]})["alone"]

    def describe(self, probe: Probe) -> dict[str, NDArray[Any]]:
        """What each of the parent's modules gives for a text, by name, in order."""
        found = self._ask({"do": "describe", "item": _describe(probe)})
        return {str(name): found[f"given_{place}"] for place, name in enumerate(found["names"])}

    @property
    def name(self) -> str:
        """Which library it is, with its version.

        Raises:
            ParentError: it cannot open the parent.
        """
        self._wait_open()
        return str(self._name)

    def release(self) -> None:
        """Give the judge's copy of the parent back. It is opened again when something is asked."""
        if self._open and self._process is not None:
            self._exchange({"do": "close"})
        self._open = self._asked_to_open = False

    def close(self) -> None:
        """Give the process back."""
        if self._process is None:
            return
        if self._asked_to_open or self._waiting:  # and nobody waits for the answer any more
            self._process.kill()
            self._process.wait()
        else:
            with suppress(ParentError):
                self.release()
        _give_process(self._process, self._fresh)
        self._process = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _wait_open(self) -> None:
        if self._open:
            return
        if not self._asked_to_open:
            self.start()
        self._asked_to_open = False
        answer = self._read()
        if "error" in answer:
            raise ParentError(f"the parent's own library cannot load {self._source}: {answer['error']}")
        self._name, self._open = answer["judge"], True

    def _ask(self, request: dict[str, Any]) -> dict[str, NDArray[Any]]:
        self._wait_open()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "answer.npz"
            answer = self._exchange({**request, "out": str(out)})
            if "error" in answer:
                raise ParentError(f"the parent's own library cannot run {self._source}: {answer['error']}")
            with np.load(out, allow_pickle=False) as found:
                return dict(found)

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        return self._read()

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None:
            self._process = _take_process(self._fresh)
        assert self._process.stdin is not None
        self._waiting = True
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._complain()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._complain()
        self._waiting = False
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _complain(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        said = _read_last_words(self._process)
        raise ParentError(
            f"the process that asks the parent's own library about {self._source} ended with code {code} (negative: by "
            f"that signal; 9 is also what running out of memory does){said}"
        )


@dataclass(frozen=True)
class Verdict:
    """What the judge gave for the probes of a family."""

    judge: str
    alone: Vectors
    together: Vectors
    cuts: Mapping[int, Vectors]
    places: tuple[int, ...]


def share_threads() -> int:
    """Threads for each of the two processes that compute a parent's vectors at the same time."""
    return max(1, count_cpus() // 2)


def ask_judge(judge: Judge, plan: TextPlan, probes: Sequence[Probe]) -> Verdict:
    """Ask for all that a reading is held to, and give the judge's copy of the parent back where it is large.

    Raises:
        ParentError: the parent's own library cannot load or run it.
    """
    places = _choose_places(probes)
    alone, together = judge.encode(probes, places)
    cuts = {}
    depths = sorted({point.layers for point in plan.job.points} - {plan.parent.blocks}, reverse=True)
    for layers in depths:
        dropped = plan.shape.tail if plan.readout.final_norm == "drop" else ()
        cuts[layers] = judge.encode_cut([probes[place] for place in places], layers, plan.shape.block_list, dropped)
    if depths:
        judge.release()  # what is left of it is no parent any more
    return Verdict(judge.name, alone, together, cuts, places)


def hold_to_judge(
    verdict: Verdict,
    plan: TextPlan,
    reference: Reference,
    probes: Sequence[Probe],
    describe: Callable[[Probe], tuple[Outputs, Outputs]],
) -> None:
    """Refuse a reading that is not what the parent's own library gives.

    Args:
        describe: what each module gives for a text, by name: in the judge's process, and in this one.

    Raises:
        ParentError: naming the text, by how much it is off, and the first module whose output differs.
    """
    source = plan.job.parent.source
    batched, place = _compare(verdict.together, verdict.alone[list(verdict.places)])
    worst = verdict.places[place]
    if not batched <= BATCH_TOLERANCE:
        raise ParentError(
            f"the parent's own vector of a text depends on the texts beside it ({verdict.judge}: "
            f"{_name(probes[worst])} alone and in a batch differ by {batched:.2g}), so there is nothing that a "
            "sub-model could be equal to. " + _explain_batches(plan)
        )
    off, worst = _compare(reference.whole, verdict.alone)
    if not off <= TOLERANCE:
        raise ParentError(
            f"what was read of {source} is not what its users get: for {_name(probes[worst])}, {verdict.judge} gives a "
            f"vector that differs by {off:.2g} ({TOLERANCE:g} allowed); "
            + _find_first_difference(plan, probes[worst], describe)
        )
    for layers, vectors in verdict.cuts.items():
        off, place = _compare(reference.depths[layers][list(verdict.places)], vectors)
        if not off <= TOLERANCE:
            raise ParentError(
                f"{source} read after {layers} blocks is not {verdict.judge} on the parent with its blocks cut: for "
                f"{_name(probes[verdict.places[place]])} the vectors differ by {off:.2g} ({TOLERANCE:g} allowed)"
            )


def _compare(ours: Vectors, theirs: Vectors) -> tuple[float, int]:
    """The largest difference of rows at length 1, and in which row."""
    if ours.shape != theirs.shape:
        return float("inf"), 0
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (ours, theirs)]
    mine, other = (rows / np.maximum(size, 1e-12)[:, None] for rows, size in zip((ours, theirs), lengths, strict=True))
    # Where the parent's vectors have lengths of their own, those are compared as well.
    ratio = np.abs(lengths[0] - lengths[1]) / np.maximum(lengths[1], 1e-12)
    off = np.maximum(np.abs(mine - other).max(axis=1), ratio)
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    return float(off[worst]), worst


def _find_first_difference(plan: TextPlan, probe: Probe, describe: Callable[[Probe], tuple[Outputs, Outputs]]) -> str:
    """Where the two part, in words."""
    try:
        theirs, ours = describe(probe)
    except ParentError as error:
        return f"and its modules could not be asked one by one ({error})"
    for name, expected in theirs.items():
        mine = ours.get(name)
        if mine is None or mine.shape != expected.shape:
            shape = None if mine is None else mine.shape
            return f"the first that differs is what {name} gives: {expected.shape} there, {shape} here"
        if name == "tokens":
            if not np.array_equal(mine, expected):
                return f"the tokens differ: {expected.tolist()[:12]} there, {mine.tolist()[:12]} here"
        elif np.abs(mine - expected).max() > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return f"the first module whose output differs is {name}" + _list_settings(plan)
    return "all modules give the same one by one, so encode does more than run them" + _list_settings(plan)


def _list_settings(plan: TextPlan) -> str:
    """What the folder sets, as a hint to what may not have been understood."""
    settings = ", ".join(key for key in plan.layout.settings if key not in ("max_seq_length", "do_lower_case"))
    return f" (the folder sets {settings})" if settings else ""


def _explain_batches(plan: TextPlan) -> str:
    if str(plan.asking.padding_side) == "left":
        return (
            "Its tokenizer pads on the left, which moves positions that are counted from the start: set "
            '"padding_side": "right" in its tokenizer_config.json if its users embed one text at a time'
        )
    return (
        "Its tokens mix with padding (convolutions, pooled attention, a transform over the whole sequence, or "
        "positions scaled by the longest text)"
    )


def _choose_places(probes: Sequence[Probe]) -> tuple[int, ...]:
    """Some probes, spread over all of them, and the longest and the shortest."""
    last = len(probes) - 1
    spread = {round(place * last / (SOME_PROBES - 1)) for place in range(SOME_PROBES)}
    by_length = sorted(range(len(probes)), key=lambda place: len(probes[place].text))
    return tuple(sorted({*spread, by_length[0], by_length[-1]}))


def _describe(probe: Probe) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(probe)
    return described


def _name(probe: Probe) -> str:
    how = f" with the prompt {probe.prompt!r}" if probe.prompt else f" as a {probe.task}" if probe.task else ""
    return f"the text {probe.text[:40]!r}{how}"


#: A process that waits for the next parent.
_idle: list[subprocess.Popen[str]] = []


def _take_process(fresh: bool) -> subprocess.Popen[str]:
    while _idle and not fresh:
        process = _idle.pop()
        if process.poll() is None:
            return process
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # everything lies on this disk by now
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        # Two processes share the cores: threads that spin while they wait take them from each other.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    # Libraries are found where this process finds them, but nothing that lies where the user happens to be takes their
    # place. A trusted parent may name classes that lie there.
    here = {"", str(Path.cwd())}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if fresh or path not in here)
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed with the process
    process = subprocess.Popen(
        [sys.executable, "-P", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    _errors[process.pid] = errors
    return process


#: What processes say on standard error, by their number.
_errors: dict[int, IO[str]] = {}


def _read_last_words(process: subprocess.Popen[str]) -> str:
    errors = _errors.get(process.pid)
    if errors is None:
        return ""
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _give_process(process: subprocess.Popen[str], fresh: bool) -> None:
    if fresh or _idle or process.poll() is not None:
        _end(process)
    else:
        _idle.append(process)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()  # at which it ends by itself
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()
    errors = _errors.pop(process.pid, None)
    if errors is not None:
        errors.close()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _end(_idle.pop())
