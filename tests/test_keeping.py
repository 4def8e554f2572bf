"""What people wrote in a folder that is written again stays: words, measurements, the vectors of another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commandline import Run
from forge import edit_manifest
from reporting import record_scores, record_timings

from matexport import load_family, pack_profile, verify_family
from matexport.errors import DestinationError
from matexport.family.manifest import CARD, MANIFEST, MEASUREMENTS, REPORT
from matexport.family.measurements.records import load_bench, load_quality
from matexport.family.measurements.sections import find_measurements, keep_unlisted
from matexport.host import read_host
from matexport.io import staging
from matexport.io.files import hash_file, replace_file
from matexport.io.staging import lock_destination
from matexport.marks import HTML, YAML, is_whole
from matexport.report.findings import gather_findings
from matexport.report.write import write_report
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point

NAME = "L01-D008-fp32"
MINE = "# mine\n\nwords of mine\n"


# --- --overwrite


def fill(family: Path) -> None:
    """A README.md of somebody, a page of ours, and a measurement of this host and of another one."""
    record_timings(load_family(family), {NAME: 1.0})
    shutil.copyfile(find_measurements(load_family(family), read_host()), family / MEASUREMENTS / "other.json")
    write_report(gather_findings(family))
    (family / CARD).write_text(MINE)


def test_pack_over_a_folder_with_words(run: Run, family: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    assert run("pack", family, NAME, out).code == 0
    fill(out)
    bench = (out / MEASUREMENTS / "other.json").read_bytes()
    assert run("pack", family, "L02-D008-fp32", out, "--overwrite").code == 0
    assert (out / CARD).read_text() == MINE
    assert not (out / REPORT).exists(), "it was about the other pack, and all of it ours"
    assert (out / MEASUREMENTS / "other.json").read_bytes() == bench
    assert verify_family(out).passed
    (out / REPORT).write_text("<p>mine</p>")
    assert run("pack", family, NAME, out, "--overwrite").code == 0
    assert (out / REPORT).read_text() == "<p>mine</p>"


@pytest.mark.usefixtures("quick_traces")
def test_export_over_a_folder_with_words(parent: Path, family: Path) -> None:
    from matexport.export import export_family

    fill(family)
    old = hash_file(family / MANIFEST)
    here = find_measurements(load_family(family), read_host())
    before = here.read_bytes()
    export_family(ExportJob(ParentSource(str(parent)), (Point(1, 8),)), family, overwrite=True)
    assert (family / CARD).read_text() == MINE
    assert not (family / REPORT).exists()
    assert here.with_suffix(f".{old[:8]}.json").read_bytes() == before, "of the old family: kept, under another name"
    assert "parity" in json.loads(here.read_text()), "of the new one"
    assert load_bench(load_family(family), read_host()) is None
    assert verify_family(family).passed


def test_measurements_of_the_same_files_go_on_counting(family: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(family, tmp_path / "again"))
    fill(family)
    record_scores(load_family(again), {NAME: 0.9})
    keep_unlisted(family, again)
    loaded = load_family(again)
    assert load_bench(loaded, read_host()) is not None
    assert load_quality(loaded, read_host()) is not None


# --- report


def test_words_around_the_report_stay(run: Run, family: Path) -> None:
    assert run("report", family).code == 0
    card = family / CARD
    first = card.read_text()
    assert is_whole(first)
    mine = first.replace("---\n", "---\nlicense: mit\ntags: [mine]\n", 1) + "\n## Mine\n\nwords\n"
    mine = mine.replace("---\n\n<!--", "---\n\nBefore.\n\n<!--")
    assert "Before." in mine
    card.write_text(mine)
    record_timings(load_family(family), {NAME: 1.0})
    result = run("report", family)
    assert f"{card}: " in result.out
    assert "updated between its marks" in result.out
    now = card.read_text()
    assert "Before." in now
    assert now.endswith("\n## Mine\n\nwords\n")
    assert "Not timed yet" in first
    assert "Not timed yet" not in now
    yaml = pytest.importorskip("yaml")
    metadata = yaml.safe_load(now.split("---\n")[1])
    assert (metadata["license"], metadata["tags"]) == ("mit", ["mine"]), "a key that is theirs is not written twice"
    assert now.count("tags:") == 1
    assert run("report", family).code == 0
    assert card.read_text() == now


def test_lines_may_end_otherwise(family: Path) -> None:
    write_report(gather_findings(family))
    card = family / CARD
    card.write_bytes(card.read_bytes().replace(b"\n", b"\r\n") + b"caf\xe9\r\n")
    write_report(gather_findings(family))
    assert card.read_bytes().endswith(b"caf\xe9\r\n")


def test_words_between_the_marks_are_not_lost(run: Run, family: Path) -> None:
    assert run("report", family).code == 0
    card = family / CARD
    edited = card.read_text().replace("## Limits", "## Limits\n\nwords of mine")
    card.write_text(edited)
    run("report", family).complains("README.md", "somebody wrote between the marks", "--overwrite")
    assert card.read_text() == edited
    result = run("report", family, "--overwrite")
    assert f"{card}: " in result.out
    assert "replaced" in result.out
    assert "words of mine" not in card.read_text()


@pytest.mark.parametrize(
    "mine",
    [
        MINE,
        "<!-- Written by matexport report, which replaces it. -->\n# old\n",
        "<!-- matexport report: begin 0, x -->\nno end\n",
        HTML.wrap("a") + "\n" + HTML.wrap("b"),
    ],
    ids=["no marks", "an earlier version", "half a mark", "twice"],
)
def test_a_card_without_sound_marks_stays(mine: str, run: Run, family: Path) -> None:
    (family / CARD).write_text(mine)
    run("report", family).complains("README.md", "--overwrite")
    assert (family / CARD).read_text() == mine
    assert not (family / REPORT).exists()
    assert run("report", family, "--overwrite").code == 0
    assert is_whole((family / CARD).read_text())


def test_a_place_for_the_report_in_a_file_of_ones_own(run: Run, family: Path) -> None:
    """Marks with nothing between them are an invitation; the front matter is theirs."""
    (family / CARD).write_text("# mine\n\n<!-- matexport report: begin -->\n<!-- matexport report: end -->\n\nafter\n")
    assert run("report", family).code == 0
    text = (family / CARD).read_text()
    assert text.startswith("# mine\n")
    assert text.endswith("\n\nafter\n")
    assert "## Profiles" in text
    assert run("report", family).code == 0


def test_a_page_of_somebody_stays(run: Run, family: Path) -> None:
    (family / REPORT).write_text("<p>mine</p>")
    run("report", family).complains("report.html exists and was not written by", "--overwrite")
    assert run("report", family, "--overwrite", "--json").json["did"] == {
        str(family / REPORT): "replaced",
        str(family / CARD): "written",
    }


def test_what_is_whole() -> None:
    text = f"---\n{YAML.wrap('a: 1')}\n---\n\n{HTML.wrap('text')}\n"
    assert is_whole(text)
    assert not is_whole(text + "words")
    assert not is_whole(text.replace("text", "words"))
    assert not is_whole("")
    assert not is_whole(MINE)


def test_commands_work_where_they_are_read(run: Run, family: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(family, tmp_path / "my family; x"))
    write_report(gather_findings(odd))
    assert "matexport verify ." in (odd / CARD).read_text()
    assert "matexport.Embedder('.', profile=" in (odd / CARD).read_text()
    write_report(gather_findings(odd), tmp_path / "page.html")
    assert "matexport verify 'my family; x'" in (tmp_path / "page.md").read_text()
    pack = pack_profile(family, NAME, tmp_path / "pack")
    write_report(gather_findings(pack))
    card = (pack.path / CARD).read_text()
    assert "matexport embed . 'a text' 'another text'" in card
    assert "matexport.Embedder('.')" in card
    assert "matexport pack" not in card, "a pack has one profile"


# --- files and folders


def test_two_writers_at_once(tmp_path: Path) -> None:
    """Each has a file of its own, and what is there in the end is whole."""
    path, barrier = tmp_path / "v.npy", threading.Barrier(2)

    def write(value: int) -> None:
        with replace_file(path) as file:
            barrier.wait()
            for _ in range(100):
                file.write(np.full(100, value, np.int64).tobytes())

    writers = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(np.frombuffer(path.read_bytes(), np.int64))) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.npy"]


@pytest.mark.skipif(os.name != "posix", reason="files cannot be locked without waiting")
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom matexport.io.files import replace_file\n"
        f"with replace_file(Path({str(path)!r})) as file:\n"
        "    file.write(b'half')\n    file.flush()\n    print(1, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = tmp_path.iterdir()
        with replace_file(path) as file:
            file.write(b"whole")
        assert left.exists(), "its writer lives"
        process.kill()
    others = [tmp_path / name for name in ("v.npy.tmp", "v.npy.notes.npy.tmp", "w.npy.abcdefgh.npy.tmp")]
    for other in others:
        other.touch()
    assert left.exists()
    with replace_file(path) as file:
        file.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no mount point that may be written")
def test_a_mount_point_is_refused_before_anything_is_made(run: Run, family: Path) -> None:
    run("pack", family, NAME, "/dev/shm").complains("/dev/shm is a mount point", "/dev/shm/family")


def test_a_folder_that_is_mounted_on_its_own_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.path.ismount` does not see it; a rename fails all the same."""
    out = tmp_path / "a b"
    out.mkdir()
    monkeypatch.setattr(staging, "_list_mounts", lambda: {os.fsencode(out)})
    with pytest.raises(DestinationError, match="is a mount point"), lock_destination(out):
        pass
    assert list(tmp_path.iterdir()) == [out]


def test_mounts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    line = rb"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root rw"
    monkeypatch.setattr(Path, "read_bytes", lambda _path: line)
    assert staging._list_mounts() == {b"/mnt 2\\x"}


def test_measurements_that_lead_elsewhere(run: Run, family: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (family / MEASUREMENTS).rename(tmp_path / "before") if (family / MEASUREMENTS).exists() else None
    (family / MEASUREMENTS).symlink_to(elsewhere)
    run("evaluate", family, "--profile", NAME).complains("measurements is a link")
    with pytest.raises(Exception, match="measurements is a link"):
        record_timings(load_family(family), {NAME: 1.0})
    assert list(elsewhere.iterdir()) == []
    edit_manifest(family, lambda _facts: None)


# --- progress where there is no terminal


def test_each_stage_has_a_line_where_work_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    from matexport.cli.progress import QUIET_SECONDS, print_stages

    now = [0.0]
    report = print_stages(lambda: now[0])
    report("plan", 0, 1)
    report("plan", 1, 1)
    report("load", 0, 1)
    assert capsys.readouterr().err == "", "what is quick says nothing"
    now[0] = QUIET_SECONDS
    report("load", 1, 1)
    report("verify", 0, 30)
    for done in range(30):
        report("verify", done, 30)
    assert capsys.readouterr() == ("", "matexport: plan\nmatexport: load\nmatexport: verify (of 30)\n")


def test_hints_on_the_terminal_can_be_pasted(run: Run, family: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(family, tmp_path / "my family; x"))
    shutil.rmtree(odd / MEASUREMENTS, ignore_errors=True)
    assert f"run matexport verify '{odd}' --record" in run("show", odd).out
    assert f"run matexport evaluate '{odd}'" in run("pick", odd).out
