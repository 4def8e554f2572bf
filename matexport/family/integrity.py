"""Does the disk agree with the manifest, and is what lies there safe to load?

A family may come from anywhere, so the order matters: for each file that it is a regular file, its size and its digest,
and only then what a graph points to. Nothing is given to a runtime before.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

from msgspec.structs import replace

from matexport.errors import DestinationError, FamilyError, Problem, ProblemKind, refuse_file
from matexport.family.guard.additions import is_addition
from matexport.family.guard.operators import MAX_GRAPH_BYTES
from matexport.family.manifest import (
    FOLDERS,
    MANIFEST,
    MEASUREMENTS,
    REPORTED,
    WEIGHTS,
    Family,
    load_family,
)
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.family.weights_file import Buffer, NestedHeader, hash_prefixes, parse_header
from matexport.io.files import hash_file, hash_open_file, open_file
from matexport.spec.facts import FileFacts, ProfileFacts
from matexport.spec.profile import Precision


def describe_files(root: Path) -> dict[str, FileFacts]:
    """Digest and size of every file in `root` that a manifest lists, by name."""
    others = {MANIFEST, *REPORTED}
    paths = [*root.iterdir(), *(path for folder in FOLDERS for path in (root / folder).glob("*"))]
    names = sorted(path.relative_to(root).as_posix() for path in paths if path.is_file())
    names = [name for name in names if name not in others]
    return {name: FileFacts(hash_file(root / name), (root / name).stat().st_size) for name in names}


def describe_prefixes(root: Path, profiles: Mapping[str, ProfileFacts]) -> dict[str, ProfileFacts]:
    """Profiles by name, each with the digest of the prefix of its weights, which lie in `root`."""
    described = dict(profiles)
    for weights in {facts.weights for facts in profiles.values()}:
        users = {name: facts for name, facts in profiles.items() if facts.weights == weights}
        with (root / weights).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        digests = hash_prefixes(content, [facts.weights_prefix_bytes for facts in users.values()])
        for name, facts in users.items():
            described[name] = replace(facts, weights_prefix_sha256=digests[facts.weights_prefix_bytes])
    return described


class Contents:
    """Files of a family, each opened once: what was digested is what is read, whoever replaces the folder meanwhile.

    A safetensors file is mapped, so that all who read it share its pages: it must not be written over in place. Every
    other file is held.

    Attributes:
        family: whose files they are.
    """

    def __init__(self, family: Family, files: Mapping[str, Buffer]) -> None:
        self.family, self._files = family, files

    def read(self, name: str) -> Buffer:
        """The content of one of the files that were opened."""
        return self._files[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)


def check_family(family: Family, *, strict: bool = False) -> Contents:
    """Check every file of a family: present, regular, digest, safe to load; and that there is no other file.

    Args:
        strict: what hubs, git and desktops add (`list_additions`) is extra, too.

    Raises:
        FamilyError: with one problem per file that is missing, changed, extra or refused.
    """
    foreign = list_foreign_files(family) + (list_additions(family) if strict else [])
    extra = [Problem(ProblemKind.EXTRA, name, f"{name} is not listed in {MANIFEST}") for name in sorted(foreign)]
    contents, problems = _open_files(family, family.facts.files)
    problems = [*extra, *problems]
    if not problems:
        graphs = [_describe_graph(facts) for _, facts in sorted(family.facts.profiles.items())]
        graphs += [_describe_exits(family, precision) for precision in sorted(family.facts.exits)]
        graphs += [_describe_copy(family, copy) for copy in sorted(family.facts.copies)]
        problems = _find_unsafe_files(contents, graphs) or _find_wrong_prefixes(contents)
    _raise_problems(family, problems)
    return contents


def check_files(family: Family, names: Iterable[str]) -> Contents:
    """Check some of a family's files: present, regular, digest.

    Raises:
        FamilyError: with one problem per file that is missing, changed or refused.
    """
    contents, problems = _open_files(family, names)
    _raise_problems(family, problems)
    return contents


def check_profile(family: Family, name: str) -> Contents:
    """Check the files that one profile reads, before they are given to a runtime.

    Raises:
        FamilyError: with one problem per file that is missing, changed or refused.
    """
    contents, problems = _open_files(family, family.profile_files(name))
    if not problems:
        problems = _find_unsafe_files(contents, [_describe_graph(family.profile_facts(name))])
    _raise_problems(family, problems)
    return contents


def check_exits(family: Family, precision: Precision) -> Contents:
    """Check the graph of all exits of a precision and the weights it reads, before they are given to a runtime.

    Raises:
        FamilyError: with one problem per file that is missing, changed or refused.
    """
    graph, weights, prefix_bytes = _describe_exits(family, precision)
    contents, problems = _open_files(family, (graph, weights, *family.input_files))
    if not problems:
        problems = _find_unsafe_files(contents, [(graph, weights, prefix_bytes)])
    _raise_problems(family, problems)
    return contents


def list_foreign_files(family: Family) -> list[str]:
    """What lies in a family's folder, is not listed in its manifest, and is no measurement, report or addition."""
    return [str(path.relative_to(family.path)) for path in _list_unlisted(family) if not is_addition(path)]


def list_additions(family: Family) -> list[str]:
    """What hubs, git and desktops put into a family's folder, and licences; see `guard.additions`."""
    return [str(path.relative_to(family.path)) for path in _list_unlisted(family) if is_addition(path)]


def _list_unlisted(family: Family) -> list[Path]:
    """What is neither listed in the manifest, nor a measurement, nor a report."""
    known = {MANIFEST, MEASUREMENTS, *family.facts.files}
    folders = {name.partition("/")[0] for name in family.facts.files if "/" in name}
    extra = [path for path in family.path.iterdir() if path.name not in known | folders and not _is_report(path)]
    for folder in folders:
        extra += [path for path in (family.path / folder).glob("*") if f"{folder}/{path.name}" not in known]
    measurements = family.path / MEASUREMENTS
    if measurements.is_symlink() or (measurements.exists() and not measurements.is_dir()):
        extra.append(measurements)
    elif measurements.is_dir():
        extra += [path for path in measurements.iterdir() if not _is_measurement(path)]
    return sorted(extra)


def _is_measurement(path: Path) -> bool:
    """Or what an interrupted recording left of one."""
    return path.name.endswith((".json", ".json.tmp")) and stat.S_ISREG(path.lstat().st_mode)


def _is_report(path: Path) -> bool:
    """Or what an interrupted `report` left of one."""
    known = any(
        path.name == name or (path.name.startswith(f"{name}.") and path.name.endswith(".tmp")) for name in REPORTED
    )
    return known and stat.S_ISREG(path.lstat().st_mode)


def _open_files(family: Family, names: Iterable[str]) -> tuple[Contents, list[Problem]]:
    """Some files of a family, and what is wrong with those that are left out."""
    files, problems = {}, []
    for name in sorted(names):
        facts = family.facts.files[name]
        mapped = name.endswith(WEIGHTS)
        limit = facts.bytes if mapped else min(facts.bytes, _find_limit(name))
        opened = _open_confined(family.path, name, limit)
        if isinstance(opened, Problem):
            problems.append(opened)
            continue
        with opened as file:
            size = os.fstat(file.fileno()).st_size
            if size != facts.bytes:
                why = f"{name} has {size} bytes, the manifest says {facts.bytes}"
                problems.append(Problem(ProblemKind.CHANGED, name, why))
                continue
            content = b"" if mapped else file.read(size)
            digest = hash_open_file(file) if mapped else hashlib.sha256(content).hexdigest()
            if digest != facts.sha256:
                problems.append(Problem(ProblemKind.CHANGED, name, f"{name} has another sha256 than the manifest says"))
                continue
            files[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped and size else content
    return Contents(family, files), problems


def _open_confined(root: Path, name: str, limit: int) -> FileIO | Problem:
    """A file of a family; the folder that it lies in is no symbolic link, either."""
    folder = (root / name).parent
    if folder != root and folder.is_symlink():
        return Problem(ProblemKind.REFUSED, name, f"{name} lies in a symbolic link, which may lead anywhere")
    opened = open_file(root / name, limit)
    if isinstance(opened, Problem) and folder != root:
        return Problem(opened.kind, name, opened.text.replace(Path(name).name, name, 1))
    return opened


def _find_limit(name: str) -> int:
    """The largest file of its kind that is read into memory."""
    return MAX_GRAPH_BYTES if name.endswith(".onnx") else MAX_SIDE_FILE_BYTES


def _find_unsafe_files(contents: Contents, graphs: Sequence[tuple[str, str, int]]) -> list[Problem]:
    """Problems of graphs, each given with its weights file and the bytes of it that it may read."""
    from matexport.family.graph_file import check_entries, check_graph
    from matexport.family.guard.copies import check_copy, locate_weights

    problems: dict[Problem, None] = {}  # profiles may share a graph
    inputs = contents.family.facts.inputs
    headers: dict[str, NestedHeader] = {}
    for weights in sorted({weights for _, weights, _ in graphs}):
        try:
            headers[weights] = _parse_whole_header(contents, weights)
        except FamilyError as error:
            problems |= dict.fromkeys(error.problems)
    for graph, weights, prefix_bytes in graphs:
        if weights in headers and prefix_bytes not in _list_ends(headers[weights]):
            why = f"{MANIFEST}: {prefix_bytes} bytes of {weights} are no prefix of it that ends with a tensor"
            problems[Problem(ProblemKind.MANIFEST, MANIFEST, why)] = None
        try:
            location = locate_weights(graph, weights)
            model = check_graph(graph, contents.read(graph), {location: prefix_bytes}, inputs)
            if weights in headers:
                check_entries(graph, model, weights, headers[weights].entries)
            if name := contents.family.facts.copies.get(graph):
                original = contents.family.profile_facts(name).graph
                check_copy(graph, contents.read(graph), original, contents.read(original))
        except FamilyError as error:
            problems |= dict.fromkeys(error.problems)
    return list(problems)


def _find_wrong_prefixes(contents: Contents) -> list[Problem]:
    """Problems of profiles whose prefix of the weights has another digest than whoever fetches it alone is told."""
    told = {
        name: facts for name, facts in contents.family.facts.profiles.items() if facts.weights_prefix_sha256 is not None
    }
    problems = []
    for weights in sorted({facts.weights for facts in told.values()}):
        users = {name: facts for name, facts in told.items() if facts.weights == weights}
        digests = hash_prefixes(contents.read(weights), [facts.weights_prefix_bytes for facts in users.values()])
        problems += [
            Problem(
                ProblemKind.MANIFEST,
                MANIFEST,
                f"{MANIFEST}: the {facts.weights_prefix_bytes} bytes of {weights} that {name} needs have another "
                "sha256 than it says",
            )
            for name, facts in users.items()
            if digests[facts.weights_prefix_bytes] != facts.weights_prefix_sha256
        ]
    return problems


def _parse_whole_header(contents: Contents, name: str) -> NestedHeader:
    """The header of a weights file that ends where a tensor does."""
    content = contents.read(name)
    header = parse_header(name, content)
    if len(content) not in _list_ends(header):
        raise refuse_file(name, "ends inside a tensor")
    return header


def _list_ends(header: NestedHeader) -> set[int]:
    """Where a prefix of weights may end, the one without a tensor included."""
    return {header.data_start, *(entry.end for entry in header.entries)}


def _describe_graph(facts: ProfileFacts) -> tuple[str, str, int]:
    return facts.graph, facts.weights, facts.weights_prefix_bytes


def _describe_copy(family: Family, copy: str) -> tuple[str, str, int]:
    """A copy reads what the graph of its profile reads."""
    return (copy, *_describe_graph(family.profile_facts(family.facts.copies[copy]))[1:])


def _describe_exits(family: Family, precision: Precision) -> tuple[str, str, int]:
    """The graph of all exits, which reads as much of the weights as the deepest profile."""
    profiles = [facts for facts in family.facts.profiles.values() if facts.precision is precision]
    return family.facts.exits[precision], profiles[0].weights, max(facts.weights_prefix_bytes for facts in profiles)


def _raise_problems(family: Family, problems: list[Problem]) -> None:
    if problems:
        said = "; ".join(map(str, problems))
        raise FamilyError(f"{family.path} is not the family that was exported: {said}", problems)


def refuse_occupied(out: Path, *, overwrite: bool, differs: str = "") -> None:
    """Refuse a destination that exists, unless it is ours to replace.

    Args:
        differs: how the family that is there differs from what would be written, in words.

    Raises:
        DestinationError: saying what is there and what to do.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        kind = "a symbolic link" if out.is_symlink() else "not a directory"
        raise DestinationError(f"{out} exists and is {kind}; choose another destination")
    if all(is_addition(path) for path in out.iterdir()):
        return  # empty, or the clone of an empty repository
    try:
        foreign = list_foreign_files(load_family(out))
    except FamilyError:
        raise DestinationError(f"{out} exists, and it is no family of matexport: choose another destination") from None
    if foreign:
        raise DestinationError(f"{out} holds files that are not the family's ({foreign[0]}); move them first")
    if not overwrite:
        how = f": {differs}" if differs else ""
        raise DestinationError(f"{out} exists and holds another family{how}; pass --overwrite to replace it")
