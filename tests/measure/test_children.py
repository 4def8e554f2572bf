"""Processes that measure end with the one that asked for them, also when that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import GOLDEN

from matexport.measure.bench import run_child

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


def list_children(parent: int) -> list[int]:
    """Processes that were started by another one and run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


def kill_with_children(command: list[str], ready: Callable[[int], bool]) -> list[int]:
    """Kill a process when its child is `ready`; the children that outlive it by 10 seconds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(lambda: any(map(ready, list_children(process.pid))))
            children = list_children(process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, children)), 10)
    left = [child for child in children if is_running(child)]
    for child in left:
        os.kill(child, signal.SIGKILL)
    return left


@LINUX
def test_trials_end_with_a_bench_that_is_killed() -> None:
    options = ["--profile", "L01-D020-fp32", "--threads", "1", "--runs", "1000000", "--seconds", "60"]
    command = [sys.executable, "-m", "matexport", "bench", str(GOLDEN / "schema4"), *options]

    def measures(child: int) -> bool:
        return "onnxruntime" in Path(f"/proc/{child}/maps").read_text()

    assert kill_with_children(command, measures) == []


@LINUX
def test_the_judge_ends_while_it_works(tmp_path: Path) -> None:
    """Its thread reads standard input, so it need not come to an end first."""
    import matexport.export.judge.child as child

    busy, asks = tmp_path / "busy.py", tmp_path / "asks.py"
    busy.write_text(
        f"import sys, time\nsys.path.insert(0, {str(Path(child.__file__).parent)!r})\nimport child\n"
        "next(child.read_requests())\nprint(1, flush=True)\ntime.sleep(100)\n"
    )
    asks.write_text(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(busy)!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(b'{}\\n')\nchild.stdin.flush()\nchild.stdout.readline()\n"
        f"open({str(tmp_path / 'busy')!r}, 'w').close()\ntime.sleep(100)\n"
    )
    assert kill_with_children([sys.executable, str(asks)], lambda _child: (tmp_path / "busy").exists()) == []


def test_a_child_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "says.py").write_text(
        "import sys\nprint(sys.stdin.readline())\nprint('oops', file=sys.stderr)\nsys.exit(3)"
    )
    (tmp_path / "dies.py").write_text("raise SystemExit(4)")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, said = run_child("says", '{"a": "ä"}')
    assert (code, out.strip(), said) == (3, '{"a": "ä"}', "oops\n")
    assert run_child("dies", "x" * 1_000_000)[0] == 4


def test_nothing_that_lies_where_it_is_run_takes_the_place_of_a_library(family: Path, tmp_path: Path) -> None:
    """As the working directory of a bench, somebody's own files; in a family, none could lie at all."""
    for name in ("numpy", "onnxruntime", "json", "tokenizers", "msgspec"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(9)\n"
        )
    command = [sys.executable, "-P", "-m", "matexport", "bench", str(family), "--profile", "L01-D008-fp32"]
    command += ["--runs", "1", "--threads", "1", "--shape", "1x4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "ran").exists()) == (0, False), done.stderr
