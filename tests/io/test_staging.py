"""A destination is the old content or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from matexport.errors import DestinationError, RequestError
from matexport.family.integrity import refuse_occupied
from matexport.family.manifest import MANIFEST
from matexport.io import staging
from matexport.io.files import explain_os_errors
from matexport.io.staging import lock_destination, stage_directory

LOCK = ".family.lock"
OLD, NEW = {"family.json": "old", "old.txt": "old"}, {"family.json": "new", "new.txt": "new"}
POSIX = pytest.mark.skipif(os.name != "posix", reason="files are locked otherwise there")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "family"


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's exchange of two names, and without."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "_exchange", lambda _left, _right: False)
    return str(request.param)


def fill(folder: Path, content: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str] | None:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None


def write(out: Path, content: dict[str, str]) -> None:
    with lock_destination(out), stage_directory(out) as stage:
        fill(stage, content)


def write_and_raise(out: Path, error: BaseException | None) -> None:
    with lock_destination(out), stage_directory(out) as stage:
        fill(stage, NEW)
        if error:
            raise error


def beside(out: Path) -> set[str]:
    """What lies beside a destination."""
    return {path.name for path in out.parent.iterdir()} - {out.name}


def test_appears_at_once_and_complete(out: Path) -> None:
    with lock_destination(out), stage_directory(out) as stage:
        fill(stage, NEW)
        assert stage.parent == out.parent, "on the same file system"
        assert not out.exists()
        assert beside(out) == {".family.staging", LOCK}
    assert read(out) == NEW
    assert beside(out) == set()


def test_replaces_at_once(out: Path, way: str) -> None:
    fill(out, OLD)
    with lock_destination(out), stage_directory(out) as stage:
        fill(stage, NEW)
        assert read(out) == OLD
    assert read(out) == NEW
    assert beside(out) == set()


def test_exchange_is_available_here(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges two names")
    fill(tmp_path / "left", OLD)
    fill(tmp_path / "right", NEW)
    assert staging._exchange(tmp_path / "left", tmp_path / "right")
    assert (read(tmp_path / "left"), read(tmp_path / "right")) == (NEW, OLD)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_exchange_is_not_tried_elsewhere(platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert not staging._exchange(tmp_path, tmp_path)


def test_a_relative_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with lock_destination(Path("family")), stage_directory(Path("family")) as stage:
        fill(stage, NEW)
        monkeypatch.chdir("/")
    assert read(tmp_path / "family") == NEW


@pytest.mark.parametrize("error", [ValueError("no"), RequestError("no"), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("before", [None, OLD], ids=["new", "overwriting"])
def test_an_exception_leaves_what_was_there(error: BaseException, before: dict[str, str] | None, out: Path) -> None:
    if before:
        fill(out, before)
    with pytest.raises(type(error)):
        write_and_raise(out, error)
    assert read(out) == before
    assert beside(out) == set()
    write(out, NEW)
    assert read(out) == NEW


def test_what_a_dead_writer_left_is_cleared(out: Path) -> None:
    fill(out.parent / ".family.staging", {"half": "written"})
    fill(out.parent / ".other.staging", {"half": "written"})
    with lock_destination(out):
        assert beside(out) == {".other.staging", LOCK}
        assert not out.exists()


def test_a_crash_between_the_two_renames_is_repaired(out: Path) -> None:
    fill(out.parent / ".family.old", OLD)
    fill(out.parent / ".family.staging", NEW)
    with lock_destination(out):
        assert read(out) == OLD
        assert beside(out) == {LOCK}


def test_a_crash_after_the_two_renames_is_cleared(out: Path) -> None:
    fill(out.parent / ".family.old", OLD)
    fill(out, NEW)
    with lock_destination(out):
        assert read(out) == NEW
        assert beside(out) == {LOCK}
    assert beside(out) == set()


# Otherwise it would stay under its hidden name, though the message says that nothing was changed.
def test_a_second_rename_that_fails_gives_the_old_content_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda _left, _right: False)
    fill(out, OLD)
    rename = Path.rename

    def fail_to_put_in_place(path: Path, target: Path) -> Path:
        if path.name.endswith(".staging"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_to_put_in_place)
    with pytest.raises(DestinationError, match="nothing there was changed"):
        write(out, NEW)
    assert read(out) == OLD


def test_a_second_writer_in_this_process_is_refused(out: Path) -> None:
    with (
        lock_destination(out),
        pytest.raises(DestinationError, match=f"{out} is being written by another process; wait for it to end"),
        lock_destination(out),
    ):
        pytest.fail("two writers")
    write(out, NEW)


def test_writers_of_two_destinations_do_not_wait(out: Path) -> None:
    with lock_destination(out), lock_destination(out.with_name("other")):
        pass


@POSIX
def test_a_lock_that_was_opened_before_its_holder_removed_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened has no name any more, so nobody else would see that it is locked: another is made."""
    import fcntl

    out.parent.mkdir()
    lock, seen = out.parent / LOCK, []

    def flock(descriptor: int, operation: int, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        if not seen:
            lock.unlink()  # by the holder, just now
        seen.append(os.fstat(descriptor).st_ino)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_destination(out):
        assert len(seen) == 2
        assert lock.stat().st_ino == seen[1]
        with pytest.raises(DestinationError, match="is being written by another process"), lock_destination(out):
            pytest.fail("two writers")
    assert beside(out) == set()


@POSIX
def test_a_lock_that_somebody_removed_by_hand_is_not_removed_of_the_next(out: Path) -> None:
    with lock_destination(out):
        (out.parent / LOCK).unlink()
        with lock_destination(out):  # nothing can keep it away then
            pass
        (out.parent / LOCK).touch()  # as if the other one were writing still
    assert beside(out) == {LOCK}


@POSIX
def test_a_lock_that_leads_elsewhere(out: Path, tmp_path: Path) -> None:
    out.parent.mkdir()
    (out.parent / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DestinationError, match="symbolic links"):
        write(out, NEW)
    assert not (tmp_path / "elsewhere").exists()


def test_where_the_system_has_no_such_locks(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """filelock has others there; it keeps writers away, and its file may stay."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    held = staging._take_lock(out.parent / LOCK) if out.parent.mkdir() is None else None
    assert held is not None
    with pytest.raises(DestinationError, match="is being written by another process"):
        write(out, NEW)
    held()
    write(out, NEW)
    assert read(out) == NEW


RACER = """
import os, sys, time
from pathlib import Path
from matexport.errors import DestinationError
from matexport.io.staging import lock_destination
out, mark, turns, seen = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), 0
sys.stdin.readline()
while seen < turns:
    try:
        with lock_destination(out):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another is here, too
            time.sleep(0)
            mark.unlink()
            seen += 1
    except DestinationError as error:
        assert "is being written by another process" in str(error), error
        time.sleep(0.0005)
print(seen)
"""


@POSIX
def test_of_many_writers_one_holds_the_lock(out: Path, tmp_path: Path) -> None:
    """Each takes and removes it many times; with the name alone, or the file alone, two would hold it."""
    out.parent.mkdir()
    command = [sys.executable, "-c", RACER, str(out), str(tmp_path / "mark"), "60"]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [racer.communicate() for racer in racers] == [("60\n", "")] * 4
    assert beside(out) == set()


HOLDER = """
import sys
from pathlib import Path
from matexport.io.staging import lock_destination, stage_directory
with lock_destination(Path(sys.argv[1])), stage_directory(Path(sys.argv[1])) as stage:
    (stage / "half").write_text("written")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("before", [None, OLD], ids=["new", "overwriting"])
def test_another_process_holds_it_until_it_is_killed(before: dict[str, str] | None, out: Path) -> None:
    if before:
        fill(out, before)
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(DestinationError, match="is being written by another process"):
            write(out, NEW)
        assert read(out) == before
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    assert read(out) == before
    assert beside(out) == {".family.staging", LOCK}
    write(out, NEW)
    assert read(out) == NEW
    assert beside(out) == set()


# One process for all kills: it forks a writer that dies before its n-th call to the file system, looks, and goes on.
KILLED_AT_EVERY_STEP = """
import json, os, shutil, signal, sys
from pathlib import Path
from matexport.io import staging

out, old, new = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
if sys.argv[4] == "two renames":
    staging._exchange = lambda left, right: False
steps = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir", "os.listdir", "shutil.rmtree",
         "ctypes.dlopen", "ctypes.dlsym"}

def read(folder):
    # Some file systems list the newest first.
    return {path.name: path.read_text() for path in sorted(folder.iterdir())} if folder.exists() else None

def write(content):
    with staging.lock_destination(out), staging.stage_directory(out) as stage:
        for name, text in content.items():
            (stage / name).write_text(text)

def die_at(step):
    seen = 0
    def count(event, _arguments):
        nonlocal seen
        seen += event in steps
        if event in steps and seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

step = 0
status = None
seen = []
while status != 0:
    step += 1
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    if old is not None:
        out.mkdir()
        for name, text in old.items():
            (out / name).write_text(text)
    child = os.fork()
    if not child:
        die_at(step)
        write(new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    found = read(out)
    if found is None and old is not None:  # between the two renames, where the kernel offers no exchange
        assert sys.argv[4] == "two renames" and read(out.parent / ".family.old") == old, step
        found = "between"
    else:
        assert found in (old, new), (step, found)
    seen.append({str(old): "old", str(new): "new"}.get(str(found), found))
    with staging.lock_destination(out):
        assert read(out) == (old if found == "between" else found), step
    write({"family.json": "rerun"})
    assert read(out) == {"family.json": "rerun"}, step
    assert {path.name for path in out.parent.iterdir()} == {out.name}, step
print(json.dumps(seen))
"""


@pytest.mark.parametrize("before", [None, OLD], ids=["new", "overwriting"])
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_killed_at_every_step(way: str, before: dict[str, str] | None, out: Path) -> None:
    arguments = [str(out), json.dumps(before), json.dumps(NEW), way]
    command = [sys.executable, "-W", "error", "-c", KILLED_AT_EVERY_STEP, *arguments]
    out.parent.parent.mkdir(exist_ok=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert len(seen) > 10
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert ("between" in seen) == (way == "two renames" and before is not None)


LIMITED = """
import resource, sys
from pathlib import Path
from matexport.errors import DestinationError
from matexport.io.staging import lock_destination, stage_directory
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
out = Path(sys.argv[1])
try:
    with lock_destination(out), stage_directory(out) as stage:
        (stage / "weights").write_bytes(bytes(1 << 20))
except DestinationError as error:
    print(error)
"""


@pytest.mark.parametrize("before", [None, OLD], ids=["new", "overwriting"])
def test_a_file_size_limit(before: dict[str, str] | None, out: Path) -> None:
    if before:
        fill(out, before)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(out)], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == f"cannot write {out}: the file size limit was reached; nothing there was changed\n"
    assert read(out) == before
    assert beside(out) == set()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "input/output error"),
    ],
)
@pytest.mark.parametrize("where", ["in the block", "when it is flushed"])
def test_the_disk_refuses(number: int, words: str, where: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    fill(out, OLD)
    if where == "when it is flushed":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DestinationError, match=f"cannot write {out}: {words}; nothing there was changed"):
        write_and_raise(out, OSError(number, os.strerror(number)) if where == "in the block" else None)
    assert read(out) == OLD
    assert beside(out) == set()


def test_an_error_without_a_number_keeps_its_words(out: Path) -> None:
    with pytest.raises(DestinationError, match=r"cannot write .*: something odd; "), explain_os_errors(out):
        raise OSError("something odd")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "family", tmp_path / "file" / "deeper" / "family"):
        with pytest.raises(DestinationError, match=f"cannot write {out}: "):
            write(out, NEW)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_where_nothing_can_be_written() -> None:
    with pytest.raises(DestinationError, match="cannot write /proc/somewhere/family: "):
        write(Path("/proc/somewhere/family"), NEW)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="file name too long"):
        write(tmp_path / ("a" * 300), NEW)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_free_destination(overwrite: bool, tmp_path: Path) -> None:
    refuse_occupied(tmp_path / "absent", overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    refuse_occupied(tmp_path / "empty", overwrite=overwrite)


def test_a_family_is_replaced_only_when_that_is_asked(family: Path) -> None:
    with pytest.raises(DestinationError, match="exists and holds another family; pass --overwrite to replace it"):
        refuse_occupied(family, overwrite=False)
    refuse_occupied(family, overwrite=True)
    (family / "L01-D008.fp32.onnx").write_bytes(b"spoilt")
    refuse_occupied(family, overwrite=True)


def test_a_family_with_someone_elses_file_in_it_is_not_replaced(family: Path) -> None:
    (family / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match=r"holds files that are not the family's \(thesis.tex\)"):
            refuse_occupied(family, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_family_is_never_replaced(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / ".hidden").touch()
    with pytest.raises(DestinationError, match="it is no family of matexport: choose another destination"):
        refuse_occupied(tmp_path / "photos", overwrite=overwrite)
    (tmp_path / "photos" / MANIFEST).mkdir()
    with pytest.raises(DestinationError, match="it is no family of matexport"):
        refuse_occupied(tmp_path / "photos", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_is_no_directory_is_never_replaced(kind: str, overwrite: bool, tmp_path: Path) -> None:
    fill(tmp_path / "family", OLD)
    if kind == "file":
        (tmp_path / "out").touch()
    else:
        (tmp_path / "out").symlink_to("family" if kind == "link" else "nowhere")
    with pytest.raises(
        DestinationError, match=r"out exists and is (not a directory|a symbolic link); choose another destination"
    ):
        refuse_occupied(tmp_path / "out", overwrite=overwrite)
