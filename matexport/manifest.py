"""`Family` <-> ``family.json``: the facts of a family, its files' digests, and whether the disk agrees with them.

The manifest holds facts only: nothing that was measured, no time, no absolute path, so that the same inputs give the
same bytes. What is checked and in which order matters, because a family may come from anywhere: size of the
manifest, its schema, its records, its names (bare file names, so no path can leave the folder), then for each file
that it is a regular file, its size and its digest, and only then what a graph points to.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from matexport.errors import FamilyError
from matexport.io.files import hash_file
from matexport.nestedfile import read_header
from matexport.spec.facts import (
    FamilyFacts,
    FileFacts,
    ProfileFacts,
    TextFacts,
)
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.record import Record, read_record

MANIFEST = "family.json"
TOKENIZER = "tokenizer.json"
PROBES = "probes.jsonl"
REFERENCE = "reference.safetensors"
RANGES = "ranges.safetensors"
MEASUREMENTS = "measurements"

#: What `matexport report` writes. They hold measurements, so no digest covers them; they may lie there or not.
REPORT = "report.html"
CARD = "README.md"

#: The graph's input that says which tokens are pooled, where those of a prompt are not.
POOLING_MASK = "pooling_mask"

#: 2 added precisions and encodings; 3 graphs of all exits and the trained points; 4 the judge, the parent's own token
#: ids, and how it asks for tokens (tasks, chat templates, the side that is cut). What older ones lack has a default.
SCHEMA = 4
READABLE = (1, 2, 3, 4)
MAX_MANIFEST_BYTES = 16 << 20

#: tokenizer.json of a 260k vocabulary is 33 MB; this bounds what is read into memory from an untrusted folder.
MAX_SIDE_FILE_BYTES = 256 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Family(Record, frozen=True):
    """A family (or a pack, which is a family of one profile) on disk: where it is, and its facts."""

    path: Path
    facts: FamilyFacts

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, by layers, then dim, then precision from the largest to the smallest, then encoding."""
        precisions, encodings = list(Precision), list(Encoding)
        return tuple(
            sorted(
                (Profile.parse(name) for name in self.facts.profiles),
                key=lambda it: (it.point, precisions.index(it.precision), encodings.index(it.encoding)),
            )
        )

    def profile_facts(self, name: str) -> ProfileFacts:
        """The facts of one profile.

        Raises:
            FamilyError: the family has no such profile; the ones it has are listed.
        """
        facts = self.facts.profiles.get(name)
        if facts is None:
            known = ", ".join(profile.name for profile in self.profiles)
            raise FamilyError(f"profile {name!r} was asked; {self.path} has {known}")
        return facts

    def is_trained(self, name: str) -> bool | None:
        """Whether the parent was trained to be read at a profile's point; None where nobody said."""
        facts, trained = self.profile_facts(name), self.facts.trained
        return None if trained is None else Point(facts.layers, facts.dim) in trained

    def measure_download(self, name: str) -> int:
        """Bytes of a profile's graph and of the prefix of the weights that it needs."""
        facts = self.profile_facts(name)
        return self.facts.files[facts.graph].bytes + facts.weights_prefix_bytes

    def measure_disk(self, name: str) -> int:
        """Bytes of what a pack of a profile needs to run: the tokenizer and configuration, too, without the proof."""
        files = self.facts.files
        return self.measure_download(name) + sum(files[side].bytes for side in self.side_files)

    @property
    def side_files(self) -> tuple[str, ...]:
        """Files of the parent's text side, which every profile shares: neither graphs, nor weights, nor the proof."""
        profiles = self.facts.profiles.values()
        others = {PROBES, REFERENCE, RANGES, *self.facts.exits.values()}
        others |= {facts.graph for facts in profiles} | {facts.weights for facts in profiles}
        return tuple(sorted(set(self.facts.files) - others))

    def profile_files(self, name: str) -> tuple[str, ...]:
        """The files that running one profile reads."""
        facts = self.profile_facts(name)
        return (facts.graph, facts.weights, TOKENIZER)


def load_family(path: Path | str) -> Family:
    """Read and check the manifest of a family or pack. Files other than the manifest are not touched.

    Raises:
        FamilyError: there is no manifest, it is malformed, from a later version, or names a file outside the folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise FamilyError(f"{root} is not a directory; a family is the folder that `matexport export` writes")
    manifest = root / MANIFEST
    if not manifest.exists():
        raise FamilyError(f"{root} has no {MANIFEST}: it is not a family or pack of matexport")
    problem = _find_file_problem(manifest, MAX_MANIFEST_BYTES)
    if problem:
        raise FamilyError(f"{root}: {problem}")
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FamilyError(f"{manifest} is not JSON ({error})") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema not in READABLE:
        raise FamilyError(f"{manifest} has schema {schema!r}; this matexport reads up to {SCHEMA}: upgrade matexport")
    facts = read_record(data, FamilyFacts, str(manifest), FamilyError)
    _check_names(facts, manifest)
    return Family(root, facts)


def write_manifest(root: Path, facts: FamilyFacts) -> None:
    """Write ``family.json`` into `root`, the same bytes for the same facts."""
    data = json.dumps(msgspec.to_builtins(facts), indent=1, sort_keys=True, ensure_ascii=False)
    (root / MANIFEST).write_text(data + "\n", encoding="utf-8")


def describe_files(root: Path) -> dict[str, FileFacts]:
    """Digest and size of every file in `root` that a manifest lists, by name."""
    others = {MANIFEST, REPORT, CARD}
    names = sorted(path.name for path in root.iterdir() if path.is_file() and path.name not in others)
    return {name: FileFacts(hash_file(root / name), (root / name).stat().st_size) for name in names}


def check_family(family: Family) -> None:
    """Check every file of a family: present, regular, digest, safe to load; and that there is no other file.

    Raises:
        FamilyError: with one problem per file that is missing, changed, extra or refused.
    """
    extra = [f"extra: {name} is not listed in {MANIFEST}" for name in list_foreign_files(family)]
    problems = [*extra, *_find_changed_files(family, family.facts.files)]
    if not problems:
        graphs = [_describe_graph(facts) for _, facts in sorted(family.facts.profiles.items())]
        graphs += [_describe_exits(family, precision) for precision in family.facts.exits]
        problems = _find_unsafe_files(family, graphs)
    _raise_problems(family, problems)


def check_files(family: Family, names: Iterable[str]) -> None:
    """Check some of a family's files: present, regular, digest."""
    _raise_problems(family, _find_changed_files(family, names))


def check_profile(family: Family, name: str) -> None:
    """Check the files that one profile reads, before they are given to a runtime.

    Raises:
        FamilyError: with one problem per file that is missing, changed or refused.
    """
    problems = _find_changed_files(family, family.profile_files(name))
    if not problems:
        problems = _find_unsafe_files(family, [_describe_graph(family.profile_facts(name))])
    _raise_problems(family, problems)


def check_exits(family: Family, precision: Precision) -> None:
    """Check the graph of all exits of a precision and the weights it reads, before they are given to a runtime.

    Raises:
        FamilyError: with one problem per file that is missing, changed or refused.
    """
    graph, weights, prefix_bytes = _describe_exits(family, precision)
    problems = _find_changed_files(family, (graph, weights, TOKENIZER))
    if not problems:
        problems = _find_unsafe_files(family, [(graph, weights, prefix_bytes)])
    _raise_problems(family, problems)


def list_foreign_files(family: Family) -> list[str]:
    """What lies in a family's folder and is neither listed in its manifest, nor a measurement, nor a report."""
    known = {MANIFEST, MEASUREMENTS, *family.facts.files}
    extra = [path for path in family.path.iterdir() if path.name not in known and not _is_report(path)]
    measurements = family.path / MEASUREMENTS
    if measurements.is_symlink() or (measurements.exists() and not measurements.is_dir()):
        extra.append(measurements)
    elif measurements.is_dir():
        extra += [path for path in measurements.iterdir() if not _is_measurement(path)]
    return [str(path.relative_to(family.path)) for path in sorted(extra)]


def _check_names(facts: FamilyFacts, manifest: Path) -> None:
    for name, file in facts.files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise FamilyError(f"{manifest} lists the file {name!r}; only bare file names inside the folder are allowed")
        if not _SHA256.fullmatch(file.sha256) or file.bytes < 0:
            raise FamilyError(f"{manifest}: {name} has no valid sha256 and size")
    if not facts.profiles:
        raise FamilyError(f"{manifest} lists no profile")
    for name, profile in facts.profiles.items():
        try:
            parsed = Profile.parse(name)
        except ValueError as error:
            raise FamilyError(f"{manifest}: {error}") from None
        if parsed.name != name:
            raise FamilyError(f"{manifest}: the profile {name!r} is spelt {parsed.name}")
        if parsed != Profile(Point(profile.layers, profile.dim), profile.precision, profile.encoding):
            raise FamilyError(
                f"{manifest}: the profile {name} says {profile.layers} layers, dim {profile.dim}, {profile.precision}, "
                f"{profile.encoding}"
            )
        for file_name in (profile.graph, profile.weights):
            if file_name not in facts.files:
                raise FamilyError(f"{manifest}: {name} uses {file_name!r}, which is not among the listed files")
        if profile.weights_prefix_bytes > facts.files[profile.weights].bytes:
            raise FamilyError(f"{manifest}: {name} needs more of {profile.weights} than there is")
    for name in facts.refused:
        try:
            Profile.parse(name)
        except ValueError as error:
            raise FamilyError(f"{manifest}: {error}") from None
    _check_text(facts.text, manifest)
    for file_name in (TOKENIZER, PROBES, REFERENCE):
        if file_name not in facts.files:
            raise FamilyError(f"{manifest} does not list {file_name}")
    if RANGES not in facts.files and any(profile.encoding is Encoding.INT8 for profile in facts.profiles.values()):
        raise FamilyError(f"{manifest} has int8 outputs and does not list {RANGES}")
    for precision, file_name in facts.exits.items():
        if file_name not in facts.files or precision not in {it.precision for it in facts.profiles.values()}:
            raise FamilyError(f"{manifest}: {file_name!r} is to hold all exits in {precision}, which is not there")
    if missing := {profile.precision for profile in facts.profiles.values()} - set(facts.tolerances):
        raise FamilyError(f"{manifest} gives no tolerance for {', '.join(sorted(missing))}")


def _check_text(text: TextFacts, manifest: Path) -> None:
    known = ("input_ids", "attention_mask", "token_type_ids", POOLING_MASK)
    if not text.inputs or not set(text.inputs) <= set(known) or len(set(text.inputs)) != len(text.inputs):
        raise FamilyError(f"{manifest}: the inputs {list(text.inputs)} are not some of {', '.join(known)}")
    if not 1 <= text.max_tokens < 1 << 31 or not -(1 << 31) <= text.pad_token_id < 1 << 31:
        raise FamilyError(f"{manifest}: max_tokens={text.max_tokens}, pad_token_id={text.pad_token_id} cannot be")
    if text.default_prompt is not None and text.default_prompt not in text.prompts:
        raise FamilyError(f"{manifest}: the default prompt {text.default_prompt!r} is not among the prompts")
    if (text.unpooled is None) != (POOLING_MASK not in text.inputs):
        raise FamilyError(f"{manifest}: {POOLING_MASK} is an input if and only if tokens of prompts are not pooled")
    for name, task in text.tasks.items():
        if task.prompt and task.prompt not in text.prompts:
            raise FamilyError(f"{manifest}: the task {name} has the prompt {task.prompt!r}, which is not among them")
        if task.max_tokens is not None and not 1 <= task.max_tokens < 1 << 31:
            raise FamilyError(f"{manifest}: the task {name} has max_tokens={task.max_tokens}, which cannot be")
    if text.chat is not None and set(text.chat.frames) != {"", *text.prompts}:
        raise FamilyError(f"{manifest}: the chat template is not written out for each prompt and for none")


def _is_measurement(path: Path) -> bool:
    """Or what an interrupted recording left of one."""
    return path.name.endswith((".json", ".json.tmp")) and stat.S_ISREG(path.lstat().st_mode)


def _is_report(path: Path) -> bool:
    """Or what an interrupted `report` left of one."""
    known = any(
        path.name == name or (path.name.startswith(f"{name}.") and path.name.endswith(".tmp"))
        for name in (REPORT, CARD)
    )
    return known and stat.S_ISREG(path.lstat().st_mode)


def _find_changed_files(family: Family, names: Iterable[str]) -> list[str]:
    problems = []
    for name in sorted(names):
        path, facts = family.path / name, family.facts.files[name]
        limit = facts.bytes if name.endswith(".safetensors") else min(facts.bytes, MAX_SIDE_FILE_BYTES)
        problem = _find_file_problem(path, limit)
        if problem:
            problems.append(problem)
        elif path.stat().st_size != facts.bytes:
            problems.append(f"changed: {name} has {path.stat().st_size} bytes, the manifest says {facts.bytes}")
        elif hash_file(path) != facts.sha256:
            problems.append(f"changed: {name} has another sha256 than the manifest says")
    return problems


def _find_file_problem(path: Path, limit: int) -> str | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"missing: {path.name}"
    # Symbolic links could leave the folder. Hard links are let through: package installers make them, and they
    # cannot show a file that its owner could not have copied here.
    if not stat.S_ISREG(status.st_mode):
        return f"refused: {path.name} is not a regular file (links are not followed)"
    if status.st_size > limit:
        return f"changed: {path.name} has {status.st_size} bytes, more than the {limit} that are allowed"
    return None


def _find_unsafe_files(family: Family, graphs: Iterable[tuple[str, str, int]]) -> list[str]:
    """Problems of graphs, each given with its weights file and the bytes of it that it may read."""
    from matexport.graphfile import check_entries, check_graph  # protobuf: 50 ms, which only looking on does not spend

    problems: dict[str, None] = {}
    for graph, weights, prefix_bytes in graphs:
        try:
            header = read_header(family.path / weights)
            size = (family.path / weights).stat().st_size
            if size not in {header.data_start, *(entry.end for entry in header.entries)}:
                raise FamilyError(f"{weights}: ends inside a tensor")
            check_graph(family.path / graph, {weights: prefix_bytes})
            check_entries(family.path / graph, weights, header.entries)
        except FamilyError as error:
            problems[f"refused: {error}"] = None
    return list(problems)


def _describe_graph(facts: ProfileFacts) -> tuple[str, str, int]:
    return facts.graph, facts.weights, facts.weights_prefix_bytes


def _describe_exits(family: Family, precision: Precision) -> tuple[str, str, int]:
    """The graph of all exits, which reads as much of the weights as the deepest profile."""
    profiles = [facts for facts in family.facts.profiles.values() if facts.precision is precision]
    return family.facts.exits[precision], profiles[0].weights, max(facts.weights_prefix_bytes for facts in profiles)


def _raise_problems(family: Family, problems: list[str]) -> None:
    if problems:
        raise FamilyError(f"{family.path} is not the family that was exported: {'; '.join(problems)}", problems)
