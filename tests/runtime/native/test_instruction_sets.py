"""native/check.cpp holds every kernel to plain loops, in double and int64: here, and for ARM in an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "native"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-w")
#: Set where the cross compiler and the emulator must be there, as in CI (Debian: g++-aarch64-linux-gnu, qemu-user).
REQUIRED = os.environ.get("MATEXPORT_ARM_TESTS") == "required"


def build(compiler: str, out: Path, *flags: str, sources: Path = NATIVE) -> None:
    files = [sources / "check.cpp", *sorted(sources.glob("kernels_*.cpp"))]
    subprocess.run([compiler, *FLAGS, *flags, *files, "-o", out], check=True, timeout=300)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_kernels_of_this_processor(tmp_path: Path) -> None:
    build("c++", tmp_path / "check")
    result = run(tmp_path / "check")
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "portable: checked")


def test_kernels_of_arm(tmp_path: Path) -> None:
    found = shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")
    if not found and not REQUIRED:
        pytest.skip("no compiler for ARM, or no emulator")
    build("aarch64-linux-gnu-g++", tmp_path / "check", "-static")
    result = run("qemu-aarch64", tmp_path / "check")
    assert (result.returncode, result.stdout) == (0, "portable: checked\nneon-dotprod: checked\n")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_kernel_that_is_wrong(tmp_path: Path) -> None:
    """The last column of a tail is left out where it alone is left: the check names the kernel."""
    shutil.copytree(NATIVE, tmp_path / "native")
    file = tmp_path / "native" / "kernels_of.hpp"
    text = file.read_text()
    right = "if (i < width) use(i, (int)(width - i));"
    assert text.count(right) == 1
    file.write_text(text.replace(right, "if (i + 1 < width) use(i, (int)(width - i));"))
    build("c++", tmp_path / "check", sources=tmp_path / "native")
    result = run(tmp_path / "check")
    assert result.returncode == 1
    assert "portable: " in result.stdout
