"""Do two families read an item alike? What does not makes an index of one useless to the other's queries.

Other vectors would show it on some items and not on others; what is found here is a reason by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matexport.errors import RequestError
from matexport.family.integrity import Contents
from matexport.family.manifest import Family
from matexport.family.modality import TOKENIZER
from matexport.runtime.inputs.image import list_views, tabulate_levels
from matexport.runtime.inputs.modality import Inputs, Row, open_inputs
from matexport.runtime.inputs.text import TextInputs, Tokens, find_wrapping
from matexport.spec.inputs import TASKS, ImageFacts, TextFacts
from matexport.spec.probe import AnyProbe, Probe

#: Why vectors cannot be compared, and what is worth knowing beside that.
Findings = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Pairs:
    """Probes as rows of two families, NEW and OLD.

    Attributes:
        rows: place of a probe -> its row in NEW, and in OLD; only of those that both can read.
        lone: places of the probes that only one can read.
    """

    probes: Sequence[AnyProbe]
    new: Inputs
    old: Inputs
    rows: Mapping[int, tuple[Row, Row]]
    lone: Sequence[int]
    places: Mapping[AnyProbe, int] = field(default_factory=dict)


def prepare_pairs(ours: Contents, theirs: Contents, probes: Sequence[AnyProbe]) -> Pairs:
    """Probes as both families prepare them.

    Raises:
        RequestError: one takes texts, say, and the other arrays.
    """
    new, old = ours.family, theirs.family
    if new.facts.modality != old.facts.modality:
        nouns = [family.facts.inputs.noun for family in (new, old)]
        raise RequestError(f"{new.path} takes {nouns[0]}s and {old.path} takes {nouns[1]}s: nothing can be compared")
    here, there = open_inputs(ours), open_inputs(theirs)
    pairs = [(_try_prepare(here, probe), _try_prepare(there, probe)) for probe in probes]
    rows = {index: pair for index, pair in enumerate(pairs) if pair[0] is not None and pair[1] is not None}
    lone = [index for index, pair in enumerate(pairs) if (pair[0] is None) != (pair[1] is None)]
    return Pairs(probes, here, there, rows, lone, {probes[index]: place for place, index in enumerate(rows)})


def find_changes(new: Family, old: Family, pairs: Pairs) -> Findings:
    """Why no profile's index can be kept, and what is worth knowing beside that."""
    return _CHANGES[new.facts.modality](new, old, pairs)


def _try_prepare(inputs: Inputs, probe: AnyProbe) -> Row | None:
    """None of what the family cannot read: a text without tokens, or with a prompt that it does not have."""
    try:
        return inputs.prepare_probe(probe)
    except RequestError:
        return None


def _find_text_changes(new: Family, old: Family, pairs: Pairs) -> Findings:
    ours, theirs = new.text, old.text
    reasons, notes = _compare_tokens(new, old, pairs)
    if ours.max_tokens != theirs.max_tokens:
        reasons.append(f"tokens differ: texts are cut at {ours.max_tokens} tokens, in OLD at {theirs.max_tokens}")
    here, there = find_wrapping(ours, None).before, find_wrapping(theirs, None).before
    if here != there:
        reasons.append(f"tokens differ: the default prompt is {here!r}, in OLD {there!r}")
    for task in TASKS:
        if find_wrapping(ours, None, task) != find_wrapping(theirs, None, task) and ours.tasks != theirs.tasks:
            reasons.append(f"tokens differ: a {task} has another prompt or length")
    changed = [name for name, text in ours.prompts.items() if theirs.prompts.get(name, text) != text]
    if changed:
        reasons.append(f"tokens differ: the prompts {', '.join(changed)} have another text")
    unknown = [index for index in pairs.lone if not _share_prompt(pairs.probes[index], ours, theirs)]
    if unknown:
        notes.append(f"{len(unknown)} probes have a prompt that one family lacks; they are not compared")
    if len(pairs.lone) > len(unknown):
        lone = next(index for index in pairs.lone if index not in unknown)
        reasons.append(f"tokens differ: {pairs.probes[lone].describe()} has none in one of the families")
    return reasons, notes


def _compare_tokens(new: Family, old: Family, pairs: Pairs) -> Findings:
    other = [index for index, (one, two) in pairs.rows.items() if one.ids != two.ids]
    if other:
        renumbered = all(_spell(pairs.new, pairs.rows[i][0]) == _spell(pairs.old, pairs.rows[i][1]) for i in other)
        return [
            f"tokens differ: {len(other)} of {len(pairs.rows)} texts have other token ids, such as "
            f"{pairs.probes[other[0]].describe()}"
            + ("; the pieces are the same, so the vocabulary was cut or renumbered" if renumbered else "")
        ], []
    if new.facts.files[TOKENIZER].sha256 != old.facts.files[TOKENIZER].sha256:
        return [], [f"{TOKENIZER} is another file; it gives the same tokens for all {len(pairs.rows)} texts"]
    return [], []


def _spell(inputs: Inputs, row: Tokens) -> list[str | None]:
    assert isinstance(inputs, TextInputs)
    return [inputs.tokenizer.spell(token) for token in row.ids]


def _share_prompt(probe: AnyProbe, new: TextFacts, old: TextFacts) -> bool:
    assert isinstance(probe, Probe)
    return not probe.prompt or probe.prompt in {*new.prompts} & {*old.prompts}


def _find_array_changes(new: Family, old: Family, _pairs: Pairs) -> Findings:
    ours, theirs = new.facts.inputs.describe(), old.facts.inputs.describe()
    return ([f"arrays differ: {ours} is taken, in OLD {theirs}"] if ours != theirs else []), []


def _find_image_changes(new: Family, old: Family, pairs: Pairs) -> Findings:
    """Probes that both families can read, as the numbers that their graphs are given."""
    ours, theirs = new.facts.inputs, old.facts.inputs
    assert isinstance(ours, ImageFacts)
    assert isinstance(theirs, ImageFacts)
    if ours.in_graph or theirs.in_graph:  # rows are not what the towers are given
        here, there = ours.describe_steps(), theirs.describe_steps()
        if (here, ours.square) != (there, theirs.square):
            return [f"pixels differ: {here}; in OLD {there}"], []
        other = []
    else:
        views = {index: (list_views([one]), list_views([two])) for index, (one, two) in pairs.rows.items()}
        other = [index for index, (one, two) in views.items() if not _show_the_same(one, two)]
    if other:
        return [
            f"pixels differ: {len(other)} of {len(pairs.rows)} images become others, such as "
            f"{pairs.probes[other[0]].describe()}: {ours.describe()}; in OLD {theirs.describe()}"
        ], []
    if (tabulate_levels(ours) != tabulate_levels(theirs)).any():
        return ["pixels differ: grey levels are normalised otherwise (scale, mean or std)"], []
    if new.facts.image and old.facts.image and new.facts.image.tiles != old.facts.image.tiles:
        return [f"tiles differ: {ours.describe()}; in OLD {theirs.describe()}"], []
    return [], []


def _show_the_same(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(a.shape == b.shape and (a == b).all() for a, b in zip(one, two, strict=True))


_CHANGES: Mapping[str, Callable[[Family, Family, Pairs], Findings]] = {
    "text": _find_text_changes,
    "array": _find_array_changes,
    "image": _find_image_changes,
}
