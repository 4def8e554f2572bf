"""Judges that start at once: forks of one process that has imported what they need.

A judge is a process of its own, and what it costs is importing torch, transformers and sentence-transformers. Most
tests need one and are not about how it starts. Here its libraries are imported once per test process; each judge is a
fork, in which the same script runs with the directory, the import path and the streams that it would have had. Where a
test sets variables that the libraries read when they are imported, it is started as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: How the variables begin that the libraries read.
READ = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "SENTENCE_TRANSFORMERS_", "TOKENIZERS_", "OMP_", "XDG_", "HOME")

#: Names the descriptor of the server that a test process lets a script of its own ask.
SHARED = "MATEXPORT_TEST_JUDGES"

_server: socket.socket | None = None
_usual: dict[str, str] = {}


class ForkedProcess:
    """What `matexport.export.judge.process` uses of a Popen, of a fork."""

    def __init__(self, request: dict[str, Any], errors: int, server: socket.socket) -> None:
        (given, stdin), (stdout, gives), (self._said, says) = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(server, [json.dumps(request).encode()], [given, gives, errors, says])
        for descriptor in (given, gives, says):
            os.close(descriptor)
        self.stdin, self.stdout = os.fdopen(stdin, "w", encoding="utf-8"), os.fdopen(stdout, encoding="utf-8")
        self.pid, self._owner = self._read_number(), os.getpid()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and self._owner != os.getpid():
            self.returncode = 0  # as a Popen says in a fork of who started it
        if self.returncode is None:
            if not select.select([self._said], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("judge", timeout or 0)
            self.returncode = self._read_number()
            os.close(self._said)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _read_number(self) -> int:
        """A line, byte by byte: nothing of the next one is read."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._said, 1)
            if not byte:
                raise OSError("the process that forks judges has ended")
            line += byte
        return int(line)


def start_judge(command: list[str], *, env: dict[str, str], stderr: Any, **options: Any) -> Any:
    """Takes the place of `subprocess.Popen` in `matexport.export.judge.process`."""
    global _server
    if _list_read() != _usual:
        return subprocess.Popen(command, env=env, stderr=stderr, **options)
    if _server is None and SHARED in os.environ:
        _server = socket.socket(fileno=int(os.environ[SHARED]))
    if _server is None:
        _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        serve = [sys.executable, "-P", "-W", "ignore", __file__, str(theirs.fileno())]
        plain = {name: value for name, value in env.items() if name != "PYTHONPATH"}  # each fork has its own
        process = subprocess.Popen(serve, env=plain, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        process.returncode = 0  # it ends when nobody is left to ask it, and is not waited for
        theirs.close()
    path = [str(Path(part).resolve()) for part in env["PYTHONPATH"].split(os.pathsep)]
    request = {"script": command[-1], "cwd": str(Path.cwd()), "path": path}
    return ForkedProcess(request, stderr.fileno(), _server)


def _list_read() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ)}


def share_judges() -> dict[str, str]:
    """The variable by which a script finds the server of this process; none where it has not been started yet."""
    return {SHARED: str(_server.fileno())} if _server else {}


def patch_judge(patch: Any) -> None:
    """Have the judges of this process be forks, for as long as `patch`, a MonkeyPatch, lasts."""
    _usual.update(_list_read())
    warm = SimpleNamespace(PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired, Popen=start_judge)
    patch.setattr("matexport.export.judge.process.subprocess", warm)


def serve_forks(server: socket.socket) -> None:
    """Fork for every request, until there is nobody left to make one."""
    import sentence_transformers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 1 << 20, 4)
        if not message:
            return
        if os.fork() == 0:
            server.close()
            mind(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def mind(request: dict[str, Any], stdin: int, stdout: int, errors: int, says: int) -> None:
    """Be the parent of a judge: say its number, and later how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(says)
        for place, descriptor in enumerate((stdin, stdout, errors)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        be_judge(request)
    for descriptor in (stdin, stdout, errors):
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
        os.write(says, f"{child}\n".encode())
        os.write(says, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    os._exit(0)


def be_judge(request: dict[str, Any]) -> None:
    import runpy

    code = 1
    try:
        os.chdir(request["cwd"])
        sys.path[:] = [*request["path"], *(part for part in sys.path if part not in request["path"])]
        sys.argv = [request["script"]]
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])))
