"""The process that loads the parent as its users do, and what can be asked of it. It shares no code with ours."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from matexport.errors import ParentError
from matexport.export.parents.folder.source import uses_safetensors
from matexport.export.parents.preflight import Located
from matexport.spec.job import ExportJob
from matexport.spec.probe import Probe

Vectors = NDArray[np.float32]

_CHILD = Path(__file__).with_name("child.py")


class JudgeProcess:
    """The process, with one parent open in it.

    Args:
        request: which parent it is to open, and how.
        source: what messages call that parent.
        fresh: it may run code of the parent's own, so it is used for no other.
        script: what the process runs.

    Opening the parent is not waited for: what is asked of it first does that.
    """

    def __init__(self, request: dict[str, Any], source: str, *, fresh: bool = False, script: Path = _CHILD) -> None:
        self._request, self._source, self._fresh, self._script = request, source, fresh, script
        self._process: subprocess.Popen[str] | None = None
        self._open = False
        self._asked_to_open = False
        self._waiting = False

    def start(self) -> None:
        """Have the process open the parent, and do not wait for it."""
        self._send(self._request)
        self._asked_to_open = True

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
        """Let the process go: to the next export, or to its end where that might not answer or ran foreign code."""
        if self._process is None:
            return
        if self._asked_to_open or self._waiting:  # and nobody waits for the answer any more
            self._process.kill()
            self._process.wait()
        else:
            with suppress(ParentError):
                self.release()
        _give_process(self._process, self._fresh or self._script != _CHILD)
        self._process = None

    def __enter__(self) -> Self:
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

    def ask(self, request: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """What the process answers to a request, as arrays.

        Raises:
            ParentError: the library cannot do it.
        """
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
            self._process = _take_process(self._fresh, self._script)
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


class Judge(JudgeProcess):
    """The judge of a parent that embeds texts.

    Args:
        job: of the parent.
        located: where it lies.
    """

    def __init__(self, job: ExportJob, located: Located) -> None:
        layout = located.layout
        pooling = job.readout.pooling
        safe = None
        if layout.kind == "Transformer" and located.weights is not None:
            safe = uses_safetensors(layout)
        request = {
            "do": "open",
            "folder": str(layout.root),
            "plain": layout.is_plain,
            "trust": job.parent.trust_remote_code,
            "safetensors": safe,
            "route": layout.route,
            "pooling": None if pooling is None else list(pooling if isinstance(pooling, tuple) else (pooling,)),
            "max_tokens": job.readout.max_tokens,
        }
        super().__init__(request, job.parent.source, fresh=job.parent.trust_remote_code)

    def limit(self, max_tokens: int) -> None:
        """Have texts cut to so many tokens: of a plain folder, where no library says where they are."""
        self._request["max_tokens"] = max_tokens

    def encode(self, probes: Sequence[Probe], together: Sequence[int] = ()) -> tuple[Vectors, Vectors]:
        """Vectors of the whole parent, (n, W), one text at a time, and of some of the texts in one batch.

        Args:
            together: places of the texts that share a batch.

        Raises:
            ParentError: the library cannot do it.
        """
        items = [_describe(probe) for probe in probes]
        found = self.ask({"do": "encode", "items": items, "together": list(together)})
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
        return self.ask({**request, "items": [_describe(probe) for probe in probes]})["alone"]

    def describe(self, probe: Probe) -> dict[str, NDArray[Any]]:
        """What each of the parent's modules gives for a text, by name, in order."""
        found = self.ask({"do": "describe", "item": _describe(probe)})
        return {str(name): found[f"given_{place}"] for place, name in enumerate(found["names"])}


def _describe(probe: Probe) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(probe)
    return described


#: A process that waits for the next parent.
_idle: list[subprocess.Popen[str]] = []


def _take_process(fresh: bool, script: Path) -> subprocess.Popen[str]:
    while _idle and not fresh and script == _CHILD:
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
        [sys.executable, "-P", str(script)],
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
