"""One point or profile of a family -> one self-contained folder, as one kind of consumer reads it (`layouts`).

A pack is a family of its own: the same kind of manifest, so `embed`, `show` and `verify` work on it. The weights are
the prefix that the graph needs, in which no offset moves. For matexport alone the graph keeps its bytes; for other
consumers it gives the vector at every token, too, lies under the names they look for, and the tokenizer's own files
say where texts are cut. The parent's vectors at other points stay behind; its token ids or pixels of the probes come
along.

A pack is proven where it is made, before it appears: as `verify` does it, and as a stranger would run it, with
onnxruntime, the tokenizers library and what stands in the folder (`plain`).

What was measured of the profile goes along, of every host: it was measured on the same operators, the same bytes of
the weights and the same tokenizer (what repeating the vector costs is in docs/consumers.md). In the pack it stands
under the digest of the pack's own manifest. Left behind is what is true of the family alone: parity in one run with
other profiles, and searches that a narrower profile shortlists for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as alter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from matexport.consumers.files import INPUTS, find_untold, refuse_others, write_consumer_files
from matexport.consumers.layouts import ALL, DTYPES, LAYOUTS, NAMES, NATIVE, SINGLE_FILE, TORCH, Layout
from matexport.errors import DestinationError, FamilyError, RequestError
from matexport.family.graph_file import parse_graph
from matexport.family.guard.additions import copy_licences
from matexport.family.guard.copies import locate_weights, move_weights
from matexport.family.guard.inside import hold_weights
from matexport.family.integrity import (
    Contents,
    check_files,
    check_profile,
    describe_files,
    describe_prefixes,
    refuse_occupied,
)
from matexport.family.manifest import CARD, RANGES, REFERENCE, Family, load_family, write_manifest
from matexport.family.measurements.records import (
    load_measurements,
)
from matexport.family.measurements.sections import keep_unlisted
from matexport.family.modality import CONSUMER_FILES
from matexport.family.proof import open_proof
from matexport.family.weights_file import write_prefix
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.pack.along import record_measured, write_proof
from matexport.pack.graph import expose_states, repeat_vector, take_all_inputs
from matexport.pack.plain import prove_plain
from matexport.report.card.folder import render_single_file
from matexport.report.card.render import render_card
from matexport.report.findings import gather_findings
from matexport.spec.facts import FamilyFacts, ProfileFacts
from matexport.spec.profile import Encoding, Precision
from matexport.spec.record import suggest
from matexport.verify.judge import verify_family

if TYPE_CHECKING:
    pass


def choose_layout(family: Family, profile: str) -> str:
    """The layout where none is asked for: `ALL` of vectors of texts, and `NATIVE` of what no other consumer reads.

    Which are images, codes, and texts that the parent prepares in a way that no file of a consumer can say.
    """
    name, text = select_profiles(family, profile)[0], family.facts.text
    plain = text is not None and family.facts.profiles[name].encoding is Encoding.FLOAT32
    return ALL if plain and text is not None and not find_untold(text) else NATIVE


def select_profiles(family: Family, name: str) -> list[str]:
    """The profiles that a name stands for: itself, or of a point all precisions in float32, the largest first.

    Raises:
        FamilyError: there is none; those that there are are listed.
    """
    if name in family.facts.profiles:
        return [name]
    found = [
        profile.name
        for profile in family.profiles
        if profile.point.name == name and profile.encoding is Encoding.FLOAT32
    ]
    if found:
        return found
    known = [profile.name for profile in family.profiles]
    listed = ", ".join(known)
    raise FamilyError(f"{name!r} was asked; {family.path} has no such profile or point: {listed}{suggest(name, known)}")


def pack_profile(
    family: Family | Path | str,
    profile: str,
    out: Path | str,
    *,
    layout: str | Layout | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Write one profile, or a point in all its precisions, as a folder of its own.

    Args:
        family: the directory of a family, or a loaded `Family`.
        profile: name such as ``L02-D064-fp32``; or of a point, such as ``L02-D064``.
        out: the folder to write; it must not exist, unless `overwrite` is set and it is a family or pack.
        layout: a key of `consumers.layouts.LAYOUTS` whose folder is a family, or such a layout with changes; see
            `choose_layout`. `pack_single_file` and `export.parents.folder.write` write the others.
        overwrite: replace what is in `out`, but for a README.md or report.html that somebody wrote, and measurements.
        progress: called with (stage, done, total).

    Returns:
        the pack.

    Raises:
        FamilyError: there is no such profile, or its files are not the ones that were exported.
        RequestError: the profile cannot have this layout.
        DestinationError: `out` exists, or cannot be written.
        ParityError: the pack does not give the parent's token ids or vectors on this host.
    """
    family = family if isinstance(family, Family) else load_family(family)
    names = select_profiles(family, profile)
    shape = find_layout(layout if layout is not None else choose_layout(family, profile), family, names)
    out = Path(out)
    _refuse_inside(out, family)
    with lock_destination(out):
        refuse_occupied(out, overwrite=overwrite)
        contents = _open_parts(family, names)
        with stage_directory(out) as stage:
            pack = write_pack(contents, names, stage, shape, progress=progress)
            for measured in load_measurements(family).hosts:
                record_measured(pack, measured)
            if shape.configured:
                write_card(pack, out.name)
            copy_licences(family.path, stage)
            keep_unlisted(out, stage)
    return load_family(out)


def list_pack_files(family: Family, names: Sequence[str]) -> tuple[str, ...]:
    """The files of a family that a pack of some profiles of one point is made of; of the weights, their prefix."""
    ranges = {RANGES} if any(family.profile_facts(name).encoding is Encoding.INT8 for name in names) else set()
    run = {file for name in names for file in family.profile_files(name)}
    return tuple(sorted({*run, *family.side_files, family.probes_file, REFERENCE, *ranges}))


def _open_parts(family: Family, names: Sequence[str]) -> Contents:
    parts = [check_profile(family, name) for name in names]
    parts += [check_files(family, family.side_files), open_proof(family)]
    return Contents(family, {name: part.read(name) for part in parts for name in part})


def write_pack(
    contents: Contents,
    names: Sequence[str],
    stage: Path,
    layout: Layout = LAYOUTS[NATIVE],
    *,
    progress: Progress | None = None,
) -> Family:
    """Write profiles of one point into an empty folder, and prove it there: as `verify` does, and as strangers do.

    Args:
        contents: the files of `list_pack_files`, as they were checked; the weights may end with the profiles' prefix.

    Raises:
        FamilyError: the files are no sound family.
        ParityError: the pack does not give the parent's token ids or vectors on this host.
    """
    placed = _place_files(stage, contents, names, layout)
    write_proof(stage, contents, names)
    write_manifest(stage, _describe(contents.family.facts, stage, placed, layout))
    verify_family(stage, progress=progress).require_passed("pack", "nothing was written")
    if layout.configured:
        prove_plain(stage, contents, placed)
    return load_family(stage)


def pack_single_file(family: Family | Path | str, profile: str, out: Path | str) -> Path:
    """Write one profile as a folder whose ``model.onnx`` holds its weights: for consumers, and no family.

    Args:
        family, profile: as for `pack_profile`, one profile.
        out: the folder to write; it must not exist, or be empty.

    Returns:
        `out`.

    Raises:
        FamilyError, RequestError, DestinationError, ParityError: as `pack_profile`; and RequestError where the weights
            are more than a file of ONNX may hold.
    """
    family = family if isinstance(family, Family) else load_family(family)
    names = select_profiles(family, profile)
    find_layout(SINGLE_FILE, family, names)
    out = Path(out)
    _refuse_inside(out, family)
    if any(out.iterdir()) if out.is_dir() else out.exists():
        raise DestinationError(f"{out} exists; choose another destination")
    with lock_destination(out), stage_directory(out) as stage:
        write_single_file(_open_parts(family, names), names, stage, out.name)
        copy_licences(family.path, stage)
    return out


def write_single_file(contents: Contents, names: Sequence[str], stage: Path, called: str) -> None:
    """As `write_pack`, of one profile in one file.

    Args:
        called: what the folder is called once it is there.

    Raises:
        FamilyError, ParityError: as `write_pack`.
        RequestError: the weights are more than a file of ONNX may hold.
    """
    shape = LAYOUTS[SINGLE_FILE]
    placed = _place_files(stage, contents, names, shape)
    prove_plain(stage, contents, placed)
    card = render_single_file(_describe(contents.family.facts, stage, placed, shape), called)
    (stage / CARD).write_text(card, encoding="utf-8")


def _refuse_inside(out: Path, family: Family) -> None:
    if out.absolute().resolve().is_relative_to(family.path.resolve()):
        raise DestinationError(f"{out} is the family itself or inside it; choose another destination")


def write_card(pack: Family, name: str) -> None:
    """The card of a folder for others: what it is, and code for what loads it. `report` brings it up to date."""
    findings = alter(gather_findings(pack), folder=name)
    (pack.path / CARD).write_text(render_card(findings), encoding="utf-8")


def find_layout(asked: str | Layout, family: Family, names: Sequence[str]) -> Layout:
    """The layout, where these profiles can have it.

    Raises:
        RequestError: saying why they cannot.
    """
    layout = asked if isinstance(asked, Layout) else LAYOUTS.get(asked)
    if layout is None or asked == TORCH:
        raise RequestError(
            f"the layout {asked!r} was asked; known are: {', '.join(LAYOUTS)}{suggest(str(asked), LAYOUTS)}"
        )
    if not layout.configured:
        return layout
    encoding = family.facts.profiles[names[0]].encoding
    if encoding is not Encoding.FLOAT32:
        raise RequestError(f"{names[0]} gives {encoding} codes, which other consumers do not take: use --for {NATIVE}")
    refuse_others(family.facts)
    if len(names) > 1 and layout.folders == ("",):
        raise RequestError(f"a folder with one graph takes one profile: name one of {', '.join(names)}")
    return layout


def _list_side_files(contents: Contents, names: Sequence[str], layout: Layout) -> Mapping[str, bytes]:
    """Everything but graphs, weights and the proof: the family's own, and what other consumers read in their place."""
    family = contents.family
    files = {name: bytes(contents.read(name)) for name in family.side_files}
    if not layout.configured:
        return files
    kept = {name: content for name, content in files.items() if name not in CONSUMER_FILES}
    profiles = [family.facts.profiles[name] for name in names]
    return kept | write_consumer_files(
        family.facts, profiles[0], files, tokens=layout.tokens, browser=_describe_for_browsers(profiles, layout)
    )


def _describe_for_browsers(profiles: Sequence[ProfileFacts], layout: Layout) -> dict[str, Any]:
    """What transformers.js is told: which graphs have their weights beside them, and which precision to take."""
    if layout.inside or not layout.folders[-1]:
        return {}
    names = [NAMES[facts.precision] for facts in profiles]
    said: dict[str, Any] = {"use_external_data_format": {f"{name}.onnx": 1 for name in names}}
    return said | ({"dtype": DTYPES[names[0]]} if len(names) == 1 else {})


def _list_places(names: Sequence[str], family: Family, layout: Layout) -> Iterator[tuple[str, ProfileFacts, list[str]]]:
    """(profile, its facts in the pack, where else its graph lies); the first is the one in the folder itself."""
    for name in names:
        facts = family.facts.profiles[name]
        if not layout.configured:
            yield name, facts, []
            continue
        folder, called = layout.folders[-1], NAMES[facts.precision] if layout.folders[-1] else NAMES[Precision.FP32]
        graphs = [f"{folder}{called}.onnx"]
        if name == names[0]:  # what is looked for where nothing was chosen
            plain = f"{NAMES[Precision.FP32]}.onnx"
            graphs = list(dict.fromkeys([plain, f"{folder}{plain}", *graphs]))
        weights = f"{folder}{called}.onnx_data"
        yield name, replace(facts, graph=graphs[0], weights=weights), graphs[1:]


def _place_files(
    stage: Path, contents: Contents, names: Sequence[str], layout: Layout
) -> list[tuple[str, ProfileFacts, list[str]]]:
    """Write everything but the proof where the layout has it; returns where graphs and weights are."""
    family = contents.family
    for name, written in _list_side_files(contents, names, layout).items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_bytes(written)
    placed = list(_list_places(names, family, layout))
    for name, facts, copies in placed:
        before = family.facts.profiles[name]
        content, weights = contents.read(before.graph), contents.read(before.weights)
        for graph in (facts.graph, *copies):
            (stage / graph).parent.mkdir(exist_ok=True)
            if not layout.configured:
                (stage / graph).write_bytes(content)
                continue
            model = parse_graph(before.graph, content)
            take_all_inputs(model)
            if layout.tokens:
                repeat_vector(model, facts.dim)
            if layout.states:
                expose_states(model, before, family.facts)
            if layout.inside:
                hold_weights(model, weights, "choose another --for")
            else:
                move_weights(model, locate_weights(graph, facts.weights))
            (stage / graph).write_bytes(model.SerializeToString(deterministic=True))
        if not layout.inside:
            (stage / facts.weights).parent.mkdir(exist_ok=True)
            with (stage / facts.weights).open("wb") as target:
                write_prefix(before.weights, weights, target, before.weights_prefix_bytes)
    return placed


def _describe(
    facts: FamilyFacts, stage: Path, placed: Sequence[tuple[str, ProfileFacts, list[str]]], layout: Layout
) -> FamilyFacts:
    """The manifest of a pack."""
    assert facts.text is not None or not layout.configured
    profiles = {name: profile for name, profile, _ in placed}
    return replace(
        facts,
        profiles=profiles if layout.inside else describe_prefixes(stage, profiles),
        copies={copy: name for name, _, copies in placed for copy in copies},
        refused={},
        exits={},
        files=describe_files(stage),
        text=replace(facts.text, inputs=INPUTS) if facts.text is not None and layout.configured else facts.text,
    )
