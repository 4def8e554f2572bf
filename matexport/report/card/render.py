"""Findings -> a model card: YAML that a hub reads, and Markdown that people do.

Text from a manifest or a measurement is escaped: what it holds is shown, and is neither markup nor HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matexport.family.survey import Measured
from matexport.marks import HTML, YAML, MarksError, is_edited
from matexport.report.card.consumers import describe_consumers
from matexport.report.card.front_matter import format_yaml
from matexport.report.findings import MB, Findings
from matexport.report.naming import command, describe_family, describe_host, describe_threads, name_hosts, name_item
from matexport.spec.facts import FamilyFacts
from matexport.spec.measured import TaskKind
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.tolerance import FLOORS, tighten

#: How a hub spells the kinds of tasks that have labels.
HUB_TASKS: Mapping[TaskKind, str] = {
    TaskKind.STS: "STS",
    TaskKind.RETRIEVAL: "Retrieval",
    TaskKind.KNN: "ImageClassification",
    TaskKind.ACCURACY: "ImageClassification",
}
_OF_TEXTS = "sentence-similarity", "sentence-embeddings"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def render_card(findings: Findings, present: str | None = None, picture: str | None = None) -> str:
    """The card, front matter first.

    Args:
        present: a card that is there already. What stands between our marks in it is replaced and the rest is kept; a
            key of the front matter that somebody wrote outside of the marks is theirs.
        picture: the file beside the card that shows retention over dims.

    Raises:
        MarksError: the marks in `present` are incomplete, or somebody wrote between them.
    """
    metadata, body = describe_metadata(findings), HTML.wrap(_render_body(findings, picture))
    old = HTML.find(present) if present is not None else None
    if present is None or old is None:
        return f"---\n{YAML.wrap(format_yaml(metadata))}\n---\n\n{body}\n"
    front = YAML.find(present)
    if is_edited(old) or (front and is_edited(front)):
        raise MarksError("somebody wrote between the marks of the report: move that outside of them")
    card = present.replace(old[0], body)
    if front:
        theirs = set(re.findall(r"^([\w-]+) *:", present[: old.start()].replace(front[0], ""), re.MULTILINE))
        ours = {key: value for key, value in metadata.items() if key not in theirs}
        card = card.replace(front[0], YAML.wrap(format_yaml(ours)))
    return card


def _render_body(findings: Findings, picture: str | None) -> str:
    blocks = [
        f"# {escape_markdown(findings.name)}",
        escape_markdown(describe_family(findings)),
        f"Parent: {format_code(findings.family.facts.parent.source)}.",
        *_describe_profiles(findings),
        *([f"![Retention over dims, a line for each number of layers](<{picture}>)"] if picture else []),
        *_describe_use(findings),
        *describe_consumers(findings.family.facts),
        *_describe_parity(findings),
        *_describe_quality(findings),
        *describe_limits(findings.family.facts),
    ]
    return "\n\n".join(blocks)


def describe_metadata(findings: Findings) -> dict[str, Any]:
    """What the hub's YAML says."""
    facts = findings.family.facts
    quantized = any(profile.precision not in (Precision.FP32, Precision.FP16) for profile in facts.profiles.values())
    task, of = _name_task(facts)
    metadata: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": task, **describe_origin(facts)}
    if quantized and "base_model" in metadata:
        metadata["base_model_relation"] = "quantized"
    tags = ["matryoshka", "2d-matryoshka", "onnx", "onnxruntime", of, "feature-extraction"]
    metadata["tags"] = [*tags, *(["quantized"] if quantized else [])]
    if results := list_results(findings):
        metadata["model-index"] = [{"name": findings.name, "results": results}]
    return metadata


def describe_origin(facts: FamilyFacts) -> dict[str, Any]:
    """What the hub's YAML says of the parent."""
    origin = {"license": facts.parent.license} if facts.parent.license is not None else {}
    return {**origin, **({"base_model": facts.parent.source} if is_hub_id(facts.parent.source) else {})}


def _name_task(facts: FamilyFacts) -> tuple[str, str]:
    """What a hub calls what a family is for, and a tag that its users look for."""
    if facts.readout.classes:
        return "image-classification", "image-classification"
    return ("image-feature-extraction", "image-embeddings") if facts.image else _OF_TEXTS


def is_hub_id(source: str) -> bool:
    """Whether a parent's source is a hub id beyond doubt: of a local directory a manifest keeps the bare name."""
    return bool(_HUB_ID.fullmatch(source))


def list_results(findings: Findings) -> list[dict[str, Any]]:
    """Scores on tasks with labels, as a hub's ``model-index`` has them: one metric for each profile."""
    results = []
    for task in findings.tasks:
        quality = task.quality
        scores = {
            name: quality.profiles[name].score for name in findings.family.facts.profiles if name in quality.profiles
        }
        scores = {name: score for name, score in scores.items() if math.isfinite(score)}
        if quality.kind not in HUB_TASKS or not scores:
            continue
        kind = HUB_TASKS[quality.kind]
        metric = re.sub(r"[^a-z0-9]+", "_", quality.metric.lower().replace("@", "_at_")).strip("_") or "score"
        results.append(
            {
                "task": {"type": kind, "name": kind},
                "dataset": {"type": _slug(task.name), "name": task.name},
                "metrics": [
                    {"type": metric, "value": round(score, 6), "name": f"{quality.metric}, {name}"}
                    for name, score in scores.items()
                ],
            }
        )  # fmt: skip
    return results


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "data"


def _describe_profiles(findings: Findings) -> list[str]:
    noun = findings.family.facts.inputs.noun
    header = (
        "profile",
        "layers",
        "dim",
        "trained",
        "disk MB",
        "RAM MB",
        "latency ms",
        f"{noun}s/s",
        "retention",
        "parity",
    )
    rows = []
    for candidate in findings.survey.candidates:
        use = findings.floor_uses.get(candidate.profile)
        parity = (
            "–"
            if use is None
            else f"{use.number} " + format(use.value, ".2g" if use.number.startswith("max") else ".6f")
        )
        off = candidate.profile in findings.broken
        trained = {True: "yes", False: "no", None: "–"}[candidate.trained]
        rows.append(
            (
                candidate.profile, str(candidate.layers), str(candidate.dim), trained,
                f"{candidate.disk_bytes / MB:.1f}", _known(candidate.peak_bytes, ".0f", MB),
                _known(candidate.latency_ms, ".2f"), _known(candidate.texts_per_s, ".0f"),
                _known(candidate.retention, ".4f"), parity + (", off its floor" if off else ""),
            )
        )  # fmt: skip
    threads = describe_threads(findings)
    notes = [
        f"Latency is the median of one {name_item(findings)} {threads}." if threads
        else f"Not timed yet: {format_code(command(findings, 'bench'))} measures latency, memory and throughput."
    ]  # fmt: skip
    tasks = findings.survey.tasks
    notes.append(
        f"Retention is the score over the whole parent's, the least of: {escape_markdown(', '.join(tasks))}." if tasks
        else f"Quality was not measured yet: {format_code(command(findings, 'evaluate'))} measures it."
    )  # fmt: skip
    refused = [
        f"- {format_code(name)} is not here: {escape_markdown(reason)}"
        for name, reason in findings.family.facts.refused.items()
    ]
    return ["## Profiles", format_pipes(header, rows), " ".join(notes), *(["\n".join(refused)] if refused else [])]


#: By modality, what a user would embed: as arguments of the command, in Python, and how many that are.
_EXAMPLES: Mapping[str, tuple[list[str], str, str]] = {
    "text": (["a text", "another text"], '["a text", "another text"]', "2"),
    "image": (["one.png", "another.jpg"], '["one.png", "another.jpg"]', "2"),
    "array": (["--input", "arrays.npy"], "arrays", "n"),
}


def _describe_use(findings: Findings) -> list[str]:
    profile = choose_example(findings)
    dim, encoding = profile.point.dim, profile.encoding
    kind = "float32" if encoding is Encoding.FLOAT32 else "uint8" if encoding is Encoding.UBINARY else "int8"
    facts = findings.family.facts
    given, items, count = _EXAMPLES[facts.modality]
    shape = facts.shape_at(profile.point) if encoding is Encoding.FLOAT32 else (encoding.width(dim),)
    gives = f"({', '.join(map(str, (count, *shape)))}) {kind}"
    if facts.tiled:
        gives = f"{count} arrays of (up to {shape[0]} tokens, {dim}) {kind}"
    named = len(findings.family.profiles) > 1  # of a pack there is nothing to choose
    shell = command(findings, "embed", *(["--profile", profile.name] if named else []), *given)
    which = f", profile={profile.name!r}" if named else ""
    python = (
        "import matexport\n\n"
        f"embedder = matexport.Embedder({findings.place!r}{which})\n"
        f"vectors = embedder.embed({items})  # {gives}"
    )
    pack = command(findings, "pack", profile.name, "../small" if findings.place == "." else "small")
    packed = f"One profile as a folder of its own, with only the weights that it needs: {format_code(pack)}."
    prompts = facts.text.prompts if facts.text else {}
    said = f"Prompts: {', '.join(map(format_code, prompts))}; name one with `prompt=`." if prompts else ""
    return [
        "## Use",
        "Commands and code are to be run in the folder of this file.",
        _fence(shell, "console"),
        _fence(python, "python"),
        *filter(None, [f"{packed if named else ''} {said}".strip()]),
    ]


def choose_example(findings: Findings) -> Profile:
    """A profile to show: in float vectors if there is one, and not off its floor; the deepest and widest of them."""
    profiles = findings.family.profiles
    sound = [profile for profile in profiles if profile.name not in findings.broken] or profiles
    exact = list(Precision)[::-1]
    return max(
        sound, key=lambda profile: (profile.encoding is Encoding.FLOAT32, profile.point, exact.index(profile.precision))
    )


def _describe_parity(findings: Findings) -> list[str]:
    facts, letters = findings.family.facts, name_hosts(findings)
    lines = [
        "Parity is the distance between a sub-model and the parent **at the same point**: every profile is run on the "
        "family's probes, in batches and one at a time, and compared with the parent's own stored vectors. It "
        "says that a sub-model is faithful, not that the parent is any good at that point; retention says that."
    ]
    floors = []
    for precision in Precision:
        if precision in facts.tolerances:
            floor = tighten(facts.tolerances[precision], FLOORS[precision])
            held = [
                f"{name} {word} {value:g}"
                for name, word, value in (
                    ("max abs difference", "at most", floor.max_abs),
                    ("mean cosine", "at least", floor.cosine_mean),
                    ("least cosine", "at least", floor.cosine_min),
                    ("alone and in a batch", "within", floor.spread),
                )
                if value is not None
            ]
            floors.append(f"- {precision}: {', '.join(held)}")
    lines.append("Floors:\n\n" + "\n".join(floors))
    total = len(findings.family.profiles)
    told = [
        f"- host {letters[host]}, {escape_markdown(describe_host(host))}: "
        f"{sum(verdict.passed for verdict in verdicts.values())} of {total} passed"
        for host, verdicts in findings.verdicts
    ]
    told += [
        f"- {format_code(name)} is off its floor on host {letters[host]}: {escape_markdown(reason)}"
        for name, breaches in findings.broken.items()
        for host, reason in breaches
    ]
    lines.append("\n".join(told) or "No host has recorded it since the family was made.")
    lines.append(f"To repeat it on your machine: {format_code(command(findings, 'verify'))}.")
    return ["## Parity", *lines]


def _describe_quality(findings: Findings) -> list[str]:
    if not findings.tasks:
        return []
    rows = [
        (
            task.name, str(task.quality.kind), task.quality.metric, str(task.quality.texts),
            f"{task.quality.parent.score:.4f}" if task.quality.parent else "–",
        )
        for task in findings.tasks
    ]  # fmt: skip
    return [
        "## Quality",
        format_pipes(("task", "kind", "metric", f"{findings.family.facts.inputs.noun}s", "parent's score"), rows),
        "Similarity and neighbours need no labels: they compare with the whole parent. Each profile's scores are in "
        "the HTML report.",
    ]


def describe_limits(facts: FamilyFacts, point: Point | None = None) -> list[str]:
    """Blocks of Markdown. `point`: of a folder that is no family, beside which nothing is said of timings."""
    lines = [
        "The sub-models have the parent's own limits, and its licence, "
        + (
            f"which its model card calls {format_code(facts.parent.license)}."
            if facts.parent.license
            else "not recorded here."
        ),
        f"Taken: {facts.inputs.describe()}" + ("; longer texts are cut." if facts.text else "."),
    ]
    if point is None:
        lines.append("Timings hold on the hosts that they were measured on, and nowhere else.")
    if facts.trained is None:
        lines.append("Nobody said which points the parent was trained to be read at; others may be of little use.")
    elif point is None:
        lines.append("The parent was not trained to be read at points marked untrained.")
    elif point not in facts.trained:
        lines.append("The parent was not trained to be read at this point, which may be of little use.")
    if vocabulary := facts.vocabulary:
        lines.append(
            f"The vocabulary was cut to {vocabulary.tokens} of {vocabulary.parent_tokens} tokens "
            f"({escape_markdown(vocabulary.kept_by)}): other texts are read worse."
        )
    return ["## Limits", "\n".join(f"- {line}" for line in lines)]


def _known(number: Measured | None, form: str, unit: float = 1.0) -> str:
    return "–" if number is None else format(number.value / unit, form)


# --- Markdown


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: on one line, no markup, no HTML, no table cell of its own."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", text)
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)(?=[:.])", r"\1&#8203;", text)  # no link of its own, either


def format_code(text: str) -> str:
    """Inline code; text that code could not hold on every renderer is escaped instead."""
    return escape_markdown(text) if re.search(r"[`<>&|\x00-\x1f\x7f-\x9f\u2028\u2029]", text) else f"`{text}`"


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def format_pipes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are escaped."""
    lines = [header, ["---"] * len(header), *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
