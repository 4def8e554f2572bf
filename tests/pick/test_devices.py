"""Devices: the shipped ones are whole, and a wrong file is refused in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from msgspec.structs import replace
from places import ROOT

from matexport import load_device
from matexport.errors import RequestError
from matexport.host import ARM_CORES
from matexport.spec.measured import Host

SHIPPED = sorted((ROOT / "matexport" / "pick" / "devices").glob("*.toml"))
PI = Host("Cortex-A76", "aarch64", ("asimd", "asimddp"), 4, "Linux glibc 2.36", "3.11.2", "1.31.0")
WHOLE = 'name = "a board"\nsources = ["https://example.org/board"]\n[limits]\nmax_ram_mb = 100\n'


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_device_has_limits_and_says_where_each_is_from(path: Path) -> None:
    device = load_device(path)
    assert all(source.startswith("https://") for source in device.sources)
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.startswith(("max_", "min_"))]
    assert lines, "no limit, no device"
    assert all(" # " in line for line in lines), "the rule stands beside the limit"
    assert device.host is None or device.host.cpu in ARM_CORES.values(), "as `read_host` names it"


def test_there_are_several() -> None:
    assert len(SHIPPED) >= 6
    assert len({load_device(path).name for path in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"onnxruntime": "1.24.0", "os": "Linux musl"}, True),
        ({"instruction_sets": ("asimd", "asimddp", "i8mm")}, True),
        ({"cpus": 2}, False),
        ({"cpu": "Cortex-A72"}, False),
        ({"instruction_sets": ("asimd",)}, False),
    ],
)
def test_measurements_of_a_device_are_recognised(change: dict[str, object], expected: bool) -> None:
    host = load_device(next(path for path in SHIPPED if path.stem == "raspberry-pi-5")).host
    assert host is not None
    assert host.matches(replace(PI, **change)) == expected


def write(folder: Path, text: str) -> Path:
    (folder / "device.toml").write_text(text, encoding="utf-8")
    return folder / "device.toml"


def test_a_whole_file(tmp_path: Path) -> None:
    device = load_device(write(tmp_path, WHOLE))
    assert (device.name, device.limits.max_ram_mb, device.limits.max_disk_mb, device.host) == (
        "a board",
        100,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE + "max_rams_mb = 3\n", r"unknown key 'limits.max_rams_mb'; known here: max_latency_ms, max_disk_mb"),
        (WHOLE.replace("name", "nam", 1), r"unknown key 'nam'; known here: name, sources, limits, host"),
        (WHOLE + '[host]\ncpu = "x"\ncpus = 4\ncores = 4\n', r"unknown key 'host.cores'; known here: cpu, cpus"),
        (WHOLE + '[host]\ncpu = "x"\ncpus = 0\n', r"\[host\] needs the name of the cpu, and cpus of at least 1"),
        (WHOLE + '[host]\ncpu = "x"\ncpus = 4\ninstruction_sets = ["neon"]\n',
         r"unknown instruction sets neon; known here: avx2"),
        (WHOLE.replace("100", "-1"), r"max_ram_mb = -1 was asked; a limit is a finite number above 0"),
        (WHOLE.replace("100", "inf"), r"max_ram_mb = inf was asked"),
        (WHOLE.replace("100", "nan"), r"max_ram_mb = nan was asked"),
        (WHOLE + "min_retention = 95\n", r"it is a share of 1, such as 0.95"),
        (WHOLE.replace('["https://example.org/board"]', "[]"), "sources must be the addresses"),
        (WHOLE.replace("https://example.org/board", "the shop"), "sources must be the addresses"),
        (WHOLE.replace("a board", " "), "name is empty"),
        ('name = "x"\n', "missing required field"),
        ("[limits", "is not a TOML file"),
    ],
)  # fmt: skip
def test_a_wrong_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load_device(write(tmp_path, text))
    assert "device.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_comes_along_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raspberry-pi-5").mkdir()
    for path in SHIPPED:
        assert load_device(path.stem) == load_device(path)
    write(tmp_path, WHOLE).rename(tmp_path / "board")
    assert load_device("board").name == "a board", "a file may be called as one likes"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("raspberrypi-5", "; did you mean 'raspberry-pi-5'?"),
        ("profiles/devices/raspberry-pi-5.toml", "; did you mean 'raspberry-pi-5'?"),
        ("aws-lambda", "; did you mean 'aws-lambda-512mb'?"),
        ("toaster", ""),
    ],
)
def test_an_unknown_name_lists_the_known_ones(asked: str, meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_device(asked)
    assert str(caught.value) == (
        f"the device {asked!r} was asked; neither a file nor one of those that come with matexport: android-play, "
        "aws-lambda-512mb, aws-t4g-small, browser-tab, jetson-orin-nano, raspberry-pi-5, raspberry-pi-5-8gb, "
        f"raspberry-pi-zero-2-w{meant}"
    )


def test_what_is_not_python_goes_into_the_wheel() -> None:
    """By the globs of pyproject.toml, which setuptools takes its data by."""
    package = ROOT / "matexport"
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["matexport"]
    packed = {path for pattern in globs for path in package.glob(pattern) if path.is_file()}  # as setuptools
    own = (".py", ".pyc", ".so")  # and the native engine's library, which setuptools builds
    found = {path for path in package.rglob("*") if path.is_file() and path.suffix not in own}
    assert found == packed
    assert set(SHIPPED) <= packed


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the device .*: No such file"):
        load_device(tmp_path / "none.toml")
