"""`Family` <-> ``family.json``: the facts of a family, and the digests of its files.

The manifest holds facts only: nothing that was measured, no time, no absolute path, so that the same inputs give the
same bytes. It may come from anywhere, so what is checked and in which order matters: its size, its schema, its records,
its names (bare file names, so no path can leave the folder). Whether the disk agrees with it is for `integrity` to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import msgspec

from matexport.errors import FamilyError, Problem, ProblemKind
from matexport.family.modality import MAX_ARRAY_NUMBERS, MODALITIES, find_modality, list_input_files
from matexport.io.files import open_file, parse_json
from matexport.spec.facts import FamilyFacts, ProfileFacts
from matexport.spec.inputs import TextFacts
from matexport.spec.profile import Encoding, Precision, Profile
from matexport.spec.record import Record, read_record, suggest

MANIFEST = "family.json"
#: Of a folder of two families; see `towers`.
TOWERS = "towers.json"
REFERENCE = "reference.safetensors"
#: What names of weights files end in; the second is what consumers look for beside a graph.
WEIGHTS = (".safetensors", ".onnx_data")
RANGES = "ranges.safetensors"
MEASUREMENTS = "measurements"

#: Where other consumers look for graphs and for what pools: the only folders that files of a family lie in.
FOLDERS = ("onnx", "1_Pooling")

#: What `matexport report` writes. They hold measurements, so no digest covers them; they may lie there or not.
REPORT = "report.html"
CARD = "README.md"
PICTURE = "report.svg"
REPORTED = (REPORT, CARD, PICTURE)

#: 2 added precisions and encodings; 3 graphs of all exits and the trained points; 4 the judge, the parent's own token
#: ids, and how it asks for tokens (tasks, chat templates, the side that is cut). What older ones lack has a default.
SCHEMA = 4
READABLE = (1, 2, 3, 4)
MAX_MANIFEST_BYTES = 16 << 20


#: What a profile may say: far above any model, and small enough to reckon with.
MAX_LAYERS, MAX_DIM, MAX_TOKENS = 9_999, 1 << 16, 1 << 16
#: A bare name, or one in a folder where other consumers look.
_FILE_NAME = re.compile(rf"(?:(?:{'|'.join(FOLDERS)})/)?[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}")
_RUNTIME = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Family(Record, frozen=True):
    """A family (or a pack, which is a family of one profile) on disk: where it is, and its facts.

    Attributes:
        digest: sha256 of the manifest that was read. What is measured is measured of that one.
    """

    path: Path
    facts: FamilyFacts
    digest: str = ""

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, by layers, then dim, then precision from the largest to the smallest, then encoding."""
        precisions, encodings = list(Precision), list(Encoding)
        return tuple(
            sorted(
                (Profile.parse(name) for name in self.facts.profiles),
                key=lambda profile: (
                    profile.point,
                    precisions.index(profile.precision),
                    encodings.index(profile.encoding),
                ),
            )
        )

    def profile_facts(self, name: str) -> ProfileFacts:
        """The facts of one profile.

        Raises:
            FamilyError: the family has no such profile; the ones it has are listed.
        """
        facts = self.facts.profiles.get(name)
        if facts is None:
            known = [profile.name for profile in self.profiles]
            raise FamilyError(f"profile {name!r} was asked; {self.path} has {', '.join(known)}{suggest(name, known)}")
        return facts

    def is_trained(self, name: str) -> bool | None:
        """Whether the parent was trained to be read at a profile's point; None where nobody said."""
        facts, trained = self.profile_facts(name), self.facts.trained
        return None if trained is None else facts.point in trained

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
        """Files that turn an item into inputs, which every profile shares: no graphs, no weights, not the proof."""
        profiles = self.facts.profiles.values()
        others = {self.probes_file, REFERENCE, RANGES, *self.facts.exits.values(), *self.facts.copies}
        others |= {facts.graph for facts in profiles} | {facts.weights for facts in profiles}
        return tuple(sorted(set(self.facts.files) - others))

    def profile_files(self, name: str) -> tuple[str, ...]:
        """The files that running one profile reads."""
        facts = self.profile_facts(name)
        return (facts.graph, facts.weights, *self.input_files)

    @property
    def weights_files(self) -> frozenset[str]:
        """The files that graphs read their weights from."""
        return frozenset(facts.weights for facts in self.facts.profiles.values())

    @property
    def input_files(self) -> tuple[str, ...]:
        """The files that turning an item into the graph's inputs reads."""
        return list_input_files(self.facts)

    @property
    def probes_file(self) -> str:
        """The file of the probes."""
        return find_modality(self.facts).probes

    @property
    def text(self) -> TextFacts:
        """What turns a text into the graph's inputs, for what is done with texts alone.

        Raises:
            FamilyError: the family takes something else.
        """
        if self.facts.text is None:
            raise FamilyError(f"{self.path} takes {self.facts.inputs.noun}s, and this is done with texts")
        return self.facts.text


def load_family(path: Path | str) -> Family:
    """Read and check the manifest of a family or pack. Files other than the manifest are not touched.

    Raises:
        FamilyError: there is no manifest, it is malformed, from a later version, or names a file outside the folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise _refuse(f"{root} is not a directory; a family is the folder that `matexport export` writes")
    manifest = root / MANIFEST
    if not manifest.exists() and (root / TOWERS).is_file():
        raise _refuse(f"{root} holds two families, {root / 'text'} and {root / 'image'}: name one of them")
    if not manifest.exists():
        raise _refuse(f"{root} has no {MANIFEST}: it is not a family or pack of matexport")
    opened = open_file(manifest, MAX_MANIFEST_BYTES)
    if isinstance(opened, Problem):
        raise _refuse(f"{root}: {opened}")
    with opened as file:
        content = file.read()
    try:
        data = parse_json(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refuse(f"{manifest} is not JSON ({error})") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema not in READABLE:
        raise _refuse(f"{manifest} has schema {schema!r}; this matexport reads up to {SCHEMA}: upgrade matexport")
    facts = read_record(data, FamilyFacts, str(manifest), _refuse)
    _check_names(facts, manifest)
    return Family(root, facts, hashlib.sha256(content).hexdigest())


def list_words(family: Family) -> list[Path]:
    """What people wrote in a family's folder: a file of `REPORTED` that holds more than `report` put there.

    Raises:
        OSError: a file cannot be read.
    """
    from matexport.marks import is_whole  # not while a process that only embeds or picks starts

    paths = [family.path / name for name in REPORTED if name not in family.facts.files]
    present = [path for path in paths if path.is_file() and not path.is_symlink()]
    return [path for path in present if not is_whole(path.read_bytes().decode("utf-8", "surrogateescape"))]


def write_manifest(root: Path, facts: FamilyFacts) -> None:
    """Write ``family.json`` into `root`, the same bytes for the same facts."""
    data = json.dumps(msgspec.to_builtins(facts), indent=1, sort_keys=True, ensure_ascii=False)
    (root / MANIFEST).write_text(data + "\n", encoding="utf-8")


def _refuse(why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.MANIFEST, file=MANIFEST)


def _check_names(facts: FamilyFacts, manifest: Path) -> None:
    for name, file in facts.files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            where = f"inside the folder, or in {' or '.join(FOLDERS)}"
            raise _refuse(f"{manifest} lists the file {name!r}; only bare file names {where}, are allowed")
        if not _SHA256.fullmatch(file.sha256) or file.bytes < 0:
            raise _refuse(f"{manifest}: {name} has no valid sha256 and size")
    _check_profiles(facts, manifest)
    for name in facts.refused:
        _parse_profile(name, manifest)
    _check_inputs(facts, manifest)
    modality = find_modality(facts)
    for file_name in (*list_input_files(facts), modality.probes, REFERENCE):
        if file_name not in facts.files:
            raise _refuse(f"{manifest} does not list {file_name}")
    if RANGES not in facts.files and any(profile.encoding is Encoding.INT8 for profile in facts.profiles.values()):
        raise _refuse(f"{manifest} has int8 outputs and does not list {RANGES}")
    for precision, file_name in facts.exits.items():
        if file_name not in facts.files or precision not in {profile.precision for profile in facts.profiles.values()}:
            raise _refuse(f"{manifest}: {file_name!r} is to hold all exits in {precision}, which is not there")
    for copy, name in facts.copies.items():
        if copy not in facts.files or name not in facts.profiles:
            raise _refuse(f"{manifest}: {copy!r} is to be a copy of the graph of {name}, and one of them is not there")
    _check_kinds(facts, manifest)
    for made in facts.precisions.values():
        if made.onnxruntime is not None and not _RUNTIME.fullmatch(made.onnxruntime):
            raise _refuse(f"{manifest}: {made.onnxruntime!r} is no version of onnxruntime, such as '1.22'")
    if missing := {profile.precision for profile in facts.profiles.values()} - set(facts.tolerances):
        raise _refuse(f"{manifest} gives no tolerance for {', '.join(sorted(missing))}")


def _check_profiles(facts: FamilyFacts, manifest: Path) -> None:
    if not facts.profiles:
        raise _refuse(f"{manifest} lists no profile")
    for name, profile in facts.profiles.items():
        if _parse_profile(name, manifest) != Profile(profile.point, profile.precision, profile.encoding):
            raise _refuse(
                f"{manifest}: the profile {name} says {profile.layers} layers, dim {profile.dim}, {profile.precision}, "
                f"{profile.encoding}"
            )
        if not (profile.layers <= MAX_LAYERS and 1 <= profile.dim <= MAX_DIM and profile.tokens <= MAX_TOKENS):
            raise _refuse(
                f"{manifest}: {name} has more than {MAX_LAYERS} layers, {MAX_DIM} dims or {MAX_TOKENS} tokens"
            )
        for file_name in (profile.graph, profile.weights):
            if file_name not in facts.files:
                raise _refuse(f"{manifest}: {name} uses {file_name!r}, which is not among the listed files")
        if profile.weights_prefix_bytes < 0:
            needed = f"{profile.weights_prefix_bytes} bytes of {profile.weights}"
            raise _refuse(f"{manifest}: {name} needs {needed}, which cannot be")
        if profile.weights_prefix_bytes > facts.files[profile.weights].bytes:
            raise _refuse(f"{manifest}: {name} needs more of {profile.weights} than there is")
        if profile.weights_prefix_sha256 is not None and not _SHA256.fullmatch(profile.weights_prefix_sha256):
            raise _refuse(f"{manifest}: {name} has no valid sha256 of what it needs of {profile.weights}")
    for precision in sorted({profile.precision for profile in facts.profiles.values()}):
        weights = sorted({profile.weights for profile in facts.profiles.values() if profile.precision is precision})
        if len(weights) > 1:  # the graph of all exits reads one
            raise _refuse(f"{manifest}: the profiles in {precision} read {' and '.join(weights)}; they share one file")


def _check_kinds(facts: FamilyFacts, manifest: Path) -> None:
    """Every file is of a kind that export writes: nothing that a program could take for code, or a runtime for more."""
    graphs = {*facts.exits.values(), *facts.copies, *(profile.graph for profile in facts.profiles.values())}
    weights = {profile.weights for profile in facts.profiles.values()}
    modality = find_modality(facts)
    others = {REFERENCE, RANGES, modality.probes, *list_input_files(facts), *modality.kept}
    for name in facts.files:
        fits = name.endswith(".onnx") if name in graphs else name.endswith(WEIGHTS) if name in weights else None
        if fits is False or (fits is None and name not in others):
            raise _refuse(f"{manifest} lists the file {name!r}, which is of no kind that export writes")


def _parse_profile(name: str, manifest: Path) -> Profile:
    try:
        parsed = Profile.parse(name)
    except ValueError as error:
        raise _refuse(f"{manifest}: {error}") from None
    if parsed.name != name:
        raise _refuse(f"{manifest}: the profile {name!r} is spelt {parsed.name}")
    return parsed


def _check_inputs(facts: FamilyFacts, manifest: Path) -> None:
    """Exactly one modality is set, and it makes sense."""
    there = [name for name in MODALITIES if getattr(facts, name) is not None]
    if len(there) != 1:
        raise _refuse(f"{manifest} has {' and '.join(there) or 'none'} of {', '.join(MODALITIES)}; it is to have one")
    MODALITIES[there[0]].check(facts.inputs, lambda why: _refuse(f"{manifest}: {why}"))
    if not facts.output:
        raise _refuse(f"{manifest}: the graphs' output has no name")
    if len({profile.tokens > 0 for profile in facts.profiles.values()}) > 1:
        raise _refuse(f"{manifest}: some profiles name their visual tokens and others do not")
    for name, profile in facts.profiles.items() if facts.tiled else ():
        if not profile.tokens or math.isqrt(profile.tokens) ** 2 != profile.tokens or facts.readout.classes:
            raise _refuse(f"{manifest}: {name} gives no square of visual tokens, and images are cut into tiles")
        if facts.width_at(profile.point) > MAX_ARRAY_NUMBERS:
            raise _refuse(f"{manifest}: {name} has more than {MAX_ARRAY_NUMBERS} numbers of an image cut into tiles")
