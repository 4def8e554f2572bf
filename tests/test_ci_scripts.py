"""Scripts of CI that need what not every machine has: there, they say so and do not pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import GOLDEN, ROOT

WEBGPU = ROOT / "ci" / "webgpu.sh"

pytestmark = pytest.mark.skipif(not WEBGPU.is_file() or sys.platform == "win32", reason="run from the checkout")


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(WEBGPU), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_webgpu_without_a_driver() -> None:
    result = run_script(GOLDEN / "schema4", VK_DRIVER_FILES="/no/such/icd.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no vk_swiftshader_icd.json here: install chromium" in result.stderr


def test_webgpu_without_a_family() -> None:
    result = run_script()
    assert (result.returncode, result.stderr) == (2, "usage: ci/webgpu.sh FAMILY [PROFILE...]\n")


def test_the_gpu_benchmark_without_a_card() -> None:
    """It writes nothing where there was none."""
    if Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("there is a card here")
    out = ROOT / "benchmarks" / "results" / "gpu.json"
    before = out.read_bytes() if out.is_file() else None
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), str(GOLDEN / "schema4")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "no NVIDIA card is known to a driver here: nothing was measured" in result.stderr
    assert (out.read_bytes() if out.is_file() else None) == before
