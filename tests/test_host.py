"""Which machine a number belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from matexport.host import KERNEL_FLAGS, Host, count_cpus, read_host

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
