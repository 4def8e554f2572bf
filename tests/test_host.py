"""Which machine a number belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from matexport.host import KERNEL_FLAGS, _read_quota, count_cpus, read_gpus, read_host
from matexport.spec.measured import Host

HOST = Host("AMD EPYC (TM) 7B13 @ 2.4/GHz", "x86_64", ("avx2", "fma"), 2, "Linux-6", "3.11.1", "1.31.0")


def with_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> Host:
    read_text = Path.read_text

    def read(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if path != Path("/proc/cpuinfo"):
            return read_text(path, encoding, errors)
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    return read_host()


def test_this_host() -> None:
    host = read_host()
    assert host.machine == platform.machine()
    assert host.python == platform.python_version()
    assert host.onnxruntime == importlib.metadata.version("onnxruntime")
    assert host.cpus == count_cpus() >= 1
    assert set(host.instruction_sets) <= set(KERNEL_FLAGS)
    assert host == read_host()


def test_the_slug_is_a_plain_file_name() -> None:
    assert HOST.slug == "x86-64-amd-epyc-tm-7b13-2.4-ghz-2cpu-ort1.31.0"


@pytest.mark.parametrize("cpu", ["../../etc/passwd", "a" * 500, "猫", "", "con:", "/", "a\nb\0c"])
def test_no_cpu_name_leads_the_slug_out_of_its_folder(cpu: str) -> None:
    slug = replace(HOST, cpu=cpu).slug
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,119}", slug)
    assert ".." not in slug


@pytest.mark.parametrize("change", [{"cpu": "Intel"}, {"cpus": 3}, {"onnxruntime": "1.32.0"}, {"machine": "arm64"}])
def test_what_changes_numbers_changes_the_slug(change: dict[str, object]) -> None:
    assert replace(HOST, **change).slug != HOST.slug  # type: ignore[arg-type]


def test_x86_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu fma avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t: sme\n"
    )
    host = with_cpuinfo(monkeypatch, text)
    assert host.cpu == "Some: CPU"
    assert host.instruction_sets == ("avx2", "fma", "avx512_vnni")


def test_arm_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    host = with_cpuinfo(monkeypatch, "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert host.cpu == "unknown"
    assert host.instruction_sets == ("asimd", "asimddp", "i8mm")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd03\n", "Cortex-A53"),
        ("model name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\nCPU part\t: 0xD42\n", "Cortex-A78AE"),
        ("CPU implementer\t: 0x51\nCPU part\t: 0xd03\n", "unknown"),
        ("model name\t: ARMv8 Processor\nCPU implementer\t: 0x41\nCPU part\t: 0xfff\n", "ARMv8 Processor"),
    ],
)
def test_arm_cores_have_the_names_of_lscpu(lines: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert with_cpuinfo(monkeypatch, f"processor\t: 0\n{lines}\nprocessor\t: 1\nCPU part\t: 0xd0b\n").cpu == expected


def test_no_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    host = with_cpuinfo(monkeypatch, None)
    assert (host.cpu, host.instruction_sets) == ("arm", ())


def test_cpus_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert count_cpus() == 3


@pytest.mark.parametrize(("reported", "expected"), [(64, 64), (None, 1)])
def test_cpus_where_there_is_no_affinity(reported: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: reported)
    assert count_cpus() == expected


def write_groups(root: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups below `root`, and the list of those that a process is in."""
    for name, text in limits.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "own").write_text(own)
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/app/job\n", {"app/cpu.max": "200000 100000", "app/job/cpu.max": "max 100000"}, 2.0),
        ("0::/app/job\n", {"app/cpu.max": "200000 100000", "app/job/cpu.max": "50000 100000"}, 0.5),
        ("0::/app\n", {"app/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("3:cpu,cpuacct:/box\n2:memory:/box\n",
         {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "100 0"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_control_groups(own: str, limits: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    assert _read_quota(*write_groups(tmp_path, own, limits)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert _read_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (1.5, 1), (0.2, 1), (4.0, 4), (64.0, 6)])
def test_cpus_are_those_that_may_be_used(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr("matexport.host._read_quota", lambda *_: quota)
    assert count_cpus() == expected


def test_cards_are_read_from_the_driver(tmp_path: Path) -> None:
    for place, text in (("0000:41:00.0", "Model: \t\t Card B\nIRQ: 1\n"), ("0000:01:00.0", "Model: Card A\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(text, encoding="utf-8")
    (tmp_path / "0000:99:00.0").mkdir()
    assert read_gpus(tmp_path) == ("Card A", "Card B")
    assert read_gpus(tmp_path / "none") == ()


def test_onnxruntime_may_be_installed_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA it is called onnxruntime-gpu; where it is loaded, it says its own version."""
    (tmp_path / "onnxruntime_gpu-1.30.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-1.30.0.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.30.0\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert read_host().onnxruntime == "1.30.0"
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.32.0"))
    assert read_host().onnxruntime == "1.32.0"
