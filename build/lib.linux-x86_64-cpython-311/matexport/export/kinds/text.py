"""Text encoders: transformers' models, and folders of sentence-transformers. The six functions of their kind.

The parent is looked at without torch, and its judge started meanwhile (`begin`); planned, and its texts chosen
(`plan`); its judge is asked while its weights are loaded (`load`); its reference is held to the judge's verdict
(`reference`).

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.export.parents.plan import Example, Plan, Reference
from matexport.family.manifest import MANIFEST
from matexport.family.token_rows import pack_token_rows
from matexport.io.progress import Progress
from matexport.spec.facts import BATCH_AXIS, POOLING_MASK, SEQUENCE_AXIS
from matexport.spec.job import ExportJob
from matexport.spec.probe import Probe
from matexport.spec.profile import Point

if TYPE_CHECKING:
    from torch import Tensor, nn

    from matexport.export.judge.hold import Verdict
    from matexport.export.judge.process import Judge
    from matexport.export.parents.preflight import Located
    from matexport.export.parents.text import TextParent, TextPlan
    from matexport.runtime.inputs.tokenizer import TextTokenizer

#: The example: rows of unequal length.
EXAMPLE_SHAPE = (3, 12)


@dataclass(frozen=True)
class Begun:
    """A parent whose files were looked at, and its judge.

    Attributes:
        judge: of that parent; it need not have been started.
        after: what is undone when the reference is there, and at the latest behind the export.
    """

    located: Located
    judge: Judge
    after: ExitStack


@dataclass(frozen=True)
class Details:
    """What is known of a planned text encoder beyond `Plan`. Its judge is asked by `load`, and by `reference` alone."""

    text: TextPlan
    begun: Begun | None = None


@dataclass(frozen=True)
class Loaded:
    """A parent with its weights, and what its judge was asked meanwhile.

    Attributes:
        tokens: ids of each probe, as the parent's own preprocessing gives them, in the family's vocabulary.
    """

    parent: TextParent
    tokens: Sequence[list[int]] = ()
    verdict: Future[Verdict] = field(default_factory=Future)


@contextmanager
def begin(job: ExportJob, out: Path) -> Iterator[Begun]:
    """Look at the parent's files, and start its judge where it will be asked for certain."""
    from matexport.export.judge.process import Judge
    from matexport.export.parents.preflight import locate

    located = locate(job)
    with Judge(job, located) as judge, ExitStack() as after:  # who asks it ends before it
        # What is there may be up to date, and a hub parent's weights are fetched when all else was accepted.
        if located.weights is not None and not located.layout.is_plain and not (out / MANIFEST).exists():
            judge.start()
        yield Begun(located, judge, after)


def plan(job: ExportJob, begun: Begun) -> Plan:
    """Settle the read-out, the vocabulary, and the texts that the family is proven and calibrated on.

    Raises:
        RequestError: a point is outside the parent, the read-out is not settled, or a text cannot be used.
        ParentError: the parent cannot be read, is not the pinned one, or has parts that are not supported.
    """
    from matexport.export.kinds.probes.text import choose_calibration, choose_probes, describe_vocabulary
    from matexport.export.parents.folder.source import hash_settings
    from matexport.export.parents.text import plan_parent

    planned = plan_parent(job, begun.located)
    probes, changed = choose_probes(planned)
    return Plan(
        job=job,
        parent=planned.parent,
        readout=planned.readout,
        inputs=planned.text,
        probes=probes,
        calibration=choose_calibration(planned, probes),
        vocabulary=describe_vocabulary(planned, changed),
        made_from={
            "vocabulary": planned.vocabulary.kept if planned.vocabulary else None,
            # Whatever the parent's own library may read in its folder, whether or not this version knows what it does.
            "settings": hash_settings(planned.layout),
            "trust": job.parent.trust_remote_code,
            "route": job.parent.route,
        },
        details=Details(planned, begun),
    )


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The tokenizer's files."""
    from matexport.export.parents.text import runtime_files

    return runtime_files(plan.details.text)


def load(plan: Plan, report: Progress) -> Loaded:
    """Load the parent's weights while its judge is asked for its vectors.

    Raises:
        ParentError: the parent cannot be loaded, or the family's tokenizer does not give its token ids.
    """
    import torch

    from matexport.export.judge.hold import SIDE_BY_SIDE_BYTES, ask_judge, share_threads
    from matexport.export.parents.asking import EDGES, check_tokens
    from matexport.export.parents.text import load_parent, measure_weights

    planned, begun, probes = plan.details.text, plan.details.begun, _list_texts(plan)
    report("load", 0, 1)
    whole = make_whole_tokenizer(planned)
    tokens = check_tokens(planned.opened, whole, probes, plan.job.parent.source)
    check_tokens(planned.opened, whole, EDGES, plan.job.parent.source)
    if planned.vocabulary:
        tokens = [[planned.vocabulary.new_ids[token] for token in row] for row in tokens]
    if planned.layout.is_plain:
        begun.judge.limit(planned.text.max_tokens)
    begun.after.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(min(torch.get_num_threads(), share_threads()))
    beside = begun.after.enter_context(ThreadPoolExecutor(1))
    verdict = beside.submit(ask_judge, begun.judge, planned, probes)
    if measure_weights(planned) > SIDE_BY_SIDE_BYTES:
        verdict.result()
        begun.judge.release()
    parent = load_parent(planned)
    report("load", 1, 1)
    return Loaded(parent, tokens, verdict)


def reference(plan: Plan, loaded: Loaded, report: Progress) -> Reference:
    """The parent's vectors of the probes, held to what its own library gives.

    Raises:
        ParentError: what was read of the parent is not what its users get.
    """
    from matexport.export.judge.hold import hold_to_judge
    from matexport.export.parents.reference import describe_modules, record_reference

    planned, begun, probes = plan.details.text, plan.details.begun, _list_texts(plan)
    vectors = record_reference(loaded.parent, probes, report)
    report("judge", 0, 1)
    verdict = loaded.verdict.result()
    begun.after.close()
    hold_to_judge(
        verdict,
        planned,
        vectors,
        probes,
        lambda probe: (begun.judge.describe(probe), describe_modules(loaded.parent, probe)),
    )
    begun.judge.release()
    report("judge", 1, 1)
    return Reference(vectors.points, pack_token_rows(loaded.tokens), verdict.judge, loaded.parent.opened.unread)


def module(plan: Plan, loaded: Loaded, reads: Sequence[Point]) -> nn.Module:
    """The parent as it is traced: its vocabulary pruned, its attention in matrix products.

    The fused call of attention decomposes into the same with guards around rows that attend to nothing (NaN tests,
    selections), which cost time in every block. The reference was made with whatever the parent uses by default.
    """
    from matexport.export.parents.folder.loading import use_plain_experts
    from matexport.export.parents.module import ExitsModule, ExitsWithStates
    from matexport.export.parents.vocabulary.rewrite import prune_embeddings

    parent, vocabulary = loaded.parent, plan.details.text.vocabulary
    backbone: Any = parent.backbone
    if vocabulary:  # after the reference, which is the whole parent's
        prune_embeddings(backbone, vocabulary.kept)
    with suppress(ValueError, NotImplementedError, AttributeError):  # models with only one kind keep it
        backbone.set_attn_implementation("eager")
    use_plain_experts(backbone)
    return ExitsWithStates(ExitsModule(parent, [read.layers for read in reads])).eval()


def example(plan: Plan) -> Example:
    """`EXAMPLE_SHAPE` token ids and masks, padded on the right; the same in every run."""
    planned = plan.details.text
    vocabulary = len(planned.vocabulary.kept) if planned.vocabulary else planned.tokens
    return Example(
        make_example(planned.text.inputs, vocabulary),
        {0: BATCH_AXIS, 1: SEQUENCE_AXIS},
        own_classes=tuple(planned.layout.own_classes),
    )


def make_example(inputs: Sequence[str], vocabulary: int) -> dict[str, Tensor]:
    """(B, T) int64 tensors of a vocabulary of so many tokens, by the names of the graph's inputs."""
    import torch

    rows, columns = EXAMPLE_SHAPE
    ids = torch.arange(rows * columns).view(rows, columns) % max(vocabulary - 1, 1)
    lengths = torch.tensor([columns, columns - 4, columns - 9])
    mask = (torch.arange(columns) < lengths.unsqueeze(1)).to(torch.int64)
    pooled = mask * (torch.arange(columns) > 0)
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        POOLING_MASK: pooled.to(torch.int64),
    }
    return {name: tensors[name] for name in inputs}


def make_whole_tokenizer(planned: TextPlan) -> TextTokenizer:
    """The family's tokenizer as it is before its vocabulary is pruned."""
    from matexport.runtime.inputs.tokenizer import load_tokenizer

    return load_tokenizer(planned.asking.tokenizer_json.encode(), planned.whole_text)


def _list_texts(plan: Plan) -> list[Probe]:
    return [probe for probe in plan.probes if isinstance(probe, Probe)]
