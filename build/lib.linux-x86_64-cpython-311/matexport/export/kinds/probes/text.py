"""Which texts a family of a text encoder is proven on, and which it is calibrated on; what pruning does to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matexport.errors import ParentError, RequestError
from matexport.export.parents.asking import ask_probe
from matexport.export.parents.plan import Calibration
from matexport.export.parents.text import TextPlan, find_changed_texts
from matexport.export.parents.vocabulary.script import SCRIPT_PREFIX
from matexport.io.jobs import check_probes
from matexport.io.texts import (
    MAX_CALIBRATION_TEXTS,
    MIN_CALIBRATION_TEXTS,
    load_calibration,
    load_probes,
    load_shipped_calibration,
    read_texts,
)
from matexport.runtime.inputs.text import find_wrapping
from matexport.spec.facts import VocabularyFacts
from matexport.spec.inputs import TASKS
from matexport.spec.job import ExportJob
from matexport.spec.probe import Probe
from matexport.spec.profile import Encoding, Precision

#: Texts of a vocabulary's corpus that become probes.
CORPUS_PROBES = 16

#: How many probes are repeated with each of the parent's prompts, and as each of its tasks.
PROMPTED_PROBES = 2


def choose_probes(plan: TextPlan) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """The texts that every profile is compared with the parent on.

    Returns:
        them, and those of the job's that a pruned vocabulary changes, which are no probes any more.

    Raises:
        RequestError: a probe cannot be used, or too few are left.
    """
    job = plan.job
    given = load_probes(job.probes)
    check_probes(given, job.name)
    probes = prepare_probes(plan, [*given, *sample_corpus(job)], shipped=job.probes is None)
    _refuse_one_vector(plan, probes)
    return leave_out_changed(plan, probes)


def _refuse_one_vector(plan: TextPlan, probes: Sequence[Probe]) -> None:
    """Refuse a parent for which all probes are the same tokens, so that all of them have one vector."""
    first, *others = (ask_probe(plan.opened, probe, plan.text)["input_ids"].flatten().tolist() for probe in probes)
    if all(tokens == first for tokens in others):
        cut = f"texts are cut at {plan.text.max_tokens} tokens (max_tokens), special ones included: allow more"
        raise RequestError(f"all {len(probes)} probes are the same {len(first)} tokens, so they have one vector; {cut}")


def prepare_probes(plan: TextPlan, probes: Sequence[Probe], *, shipped: bool) -> tuple[Probe, ...]:
    """The probes as they go into the family.

    The shipped ones do not know the parent: those that give no token are left out, and some are repeated with each
    of its prompts and tasks. A user's own are taken as they are.

    Raises:
        RequestError: a user's probe names a prompt or task that the parent does not have, or gives no token.
    """
    if shipped:
        usable = [probe for probe in probes if _has_tokens(plan, probe)]
        prompts = [name for name, text in plan.text.prompts.items() if text]
        prompted = [Probe(probe.text, name) for name in prompts for probe in usable[:PROMPTED_PROBES]]
        tasks = [Probe(probe.text, None, name) for name in plan.text.tasks for probe in _choose_task_probes(usable)]
        return (*usable, *prompted, *tasks)
    for index, probe in enumerate(probes):
        if probe.prompt and probe.prompt not in plan.text.prompts:
            known = ", ".join(plan.text.prompts) or "none"
            raise RequestError(f"probe {index} asks for the prompt {probe.prompt!r}; the parent's prompts are: {known}")
        if probe.task is not None and (probe.task not in TASKS or probe.prompt is not None):
            raise RequestError(
                f"probe {index} has the task {probe.task!r} and the prompt {probe.prompt!r}; a task is one of "
                f"{', '.join(TASKS)}, and has its own prompt"
            )
        if not count_tokens(plan, probe):
            raise RequestError(f"probe {index} ({probe.text[:40]!r}) has no tokens, so the parent has no vector for it")
    return tuple(probes)


def count_tokens(plan: TextPlan, probe: Probe) -> int:
    """Number of tokens of a probe after truncation."""
    return int(ask_probe(plan.opened, probe, plan.text)["input_ids"].numel())


def _has_tokens(plan: TextPlan, probe: Probe) -> bool:
    """Whether a text that was written without knowing the parent means anything to it."""
    try:
        return count_tokens(plan, probe) > 0
    except ParentError:  # such as the name of its image token in a text without an image
        return False


def _choose_task_probes(usable: Sequence[Probe]) -> list[Probe]:
    """A few, with the longest among them: tasks differ in where they cut."""
    return [*usable[: PROMPTED_PROBES - 1], max(usable, key=lambda probe: len(probe.text))] if usable else []


def sample_corpus(job: ExportJob) -> list[Probe]:
    """Some texts of the corpus that the vocabulary is kept for: parity is to be shown on its words, too."""
    if job.vocabulary is None or job.vocabulary.startswith(SCRIPT_PREFIX) or job.probes is not None:
        return []
    return [Probe(text) for text in read_texts(job.base / job.vocabulary, CORPUS_PROBES, "the corpus")]


def leave_out_changed(plan: TextPlan, probes: Sequence[Probe]) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """The probes that a pruned vocabulary leaves as they were, and the texts of the others.

    Raises:
        RequestError: fewer than 2 are left.
    """
    texts = [
        find_wrapping(plan.text, None if probe.task else probe.prompt or "", probe.task).around(probe.text)
        for probe in probes
    ]
    changed = set(find_changed_texts(plan, texts))
    kept = tuple(probe for probe, text in zip(probes, texts, strict=True) if text not in changed)
    if len(kept) < 2:
        raise RequestError(
            f"vocabulary = {plan.job.vocabulary!r} changes the tokens of {len(changed)} of {len(probes)} probes, and "
            "parity needs at least 2 that are left: give probes in the kept vocabulary in [probes]"
        )
    return kept, tuple(text for text in dict.fromkeys(texts) if text in changed)


def describe_vocabulary(plan: TextPlan, changed: tuple[str, ...]) -> VocabularyFacts | None:
    """What the manifest says of a pruned vocabulary; None where it is whole.

    Args:
        changed: the job's texts that are tokenized otherwise since.
    """
    vocabulary = plan.vocabulary
    if vocabulary is None:
        return None
    return VocabularyFacts(vocabulary.kept_by, len(vocabulary.kept), vocabulary.parent_tokens, changed)


def choose_calibration(plan: TextPlan, probes: Sequence[Probe]) -> Calibration:
    """The job's calibration texts, or its vocabulary's corpus, or the shipped ones; none of them is a probe.

    A text that a precision was fitted on says little about how near it is to the parent. Texts without tokens, and
    those that a pruned vocabulary changes, are left out as well.

    Raises:
        RequestError: fewer than 64 texts are left, and something is to be measured on them.
    """
    job = plan.job
    texts, source = load_shipped_calibration(), "shipped"
    if job.calibration:
        texts, source = load_calibration(job.calibration), job.calibration.name
    elif job.vocabulary and not job.vocabulary.startswith(SCRIPT_PREFIX):
        corpus = read_texts(job.base / job.vocabulary, MAX_CALIBRATION_TEXTS, "the corpus")
        if len(corpus) >= MIN_CALIBRATION_TEXTS + CORPUS_PROBES:
            texts, source = corpus, Path(job.vocabulary).name
    held = {probe.text for probe in probes}
    fresh = [text for text in texts if text not in held]
    seen = [text for text in fresh if count_tokens(plan, Probe(text))]
    changed = set(find_changed_texts(plan, seen))
    usable = tuple(Probe(text) for text in seen if text not in changed)
    left_out = ", ".join(
        f"{count} {why}"
        for count, why in (
            (len(texts) - len(fresh), "are probes"),
            (len(fresh) - len(seen), "have no tokens"),
            (len(changed), "lose tokens to the vocabulary"),
        )
        if count
    )
    measured = any(precision is not Precision.FP32 for precision in job.precisions) or Encoding.INT8 in job.encodings
    if measured and len(usable) < MIN_CALIBRATION_TEXTS:
        raise RequestError(
            f"precisions other than fp32 are measured on at least {MIN_CALIBRATION_TEXTS} different texts; of the "
            f"{len(texts)} calibration texts ({source}), {left_out or 'none is left out'}, and {len(usable)} are left: "
            "give more of the kind that will be embedded in [calibration]"
        )
    return Calibration(usable, f"{len(usable)} texts: {source}" + (f" ({left_out})" if left_out else ""))
