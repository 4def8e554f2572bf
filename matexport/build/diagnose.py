"""Which stage of an export is to blame when a sub-model does not give the parent's vectors.

The read-out is checked before anything is traced: it costs one forward in torch. The stages after it are judged only
when a profile has failed: what each of them gave is run on the probes, and the first that is off is named. Which stages
there are, and in which order, is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from matexport.build.serialize import write_graph
from matexport.errors import ParityError
from matexport.family.manifest import Family
from matexport.family.proof import load_references
from matexport.runtime.embedder import Vectors
from matexport.runtime.engine import open_session
from matexport.runtime.inputs.text import Tokens, feed_rows, load_tokenizer, tokenize_probes
from matexport.spec.facts import PaddingSide, TextFacts
from matexport.spec.profile import Point, Profile
from matexport.spec.tolerance import Tolerance
from matexport.verify.judge import run_all_ways
from matexport.verify.parity import compare_vectors

#: Probes that the read-out is checked on, padded into one batch.
READOUT_PROBES = 4

#: A stage's name, what gives its graph, and the graph's output that holds the profile's vectors.
Suspect = tuple[str, Callable[[], ir.Model], str]


def check_readout(
    module: nn.Module,
    reference: Mapping[Point, Vectors],
    *,
    depths: Sequence[int],
    rows: Sequence[Tokens],
    text: TextFacts,
    normalize: bool,
    tolerance: Tolerance,
) -> None:
    """Compare the module that will be traced, in torch and on a padded batch, with the reference.

    Args:
        module: gives one (B, W) vector per depth.
        rows: tokens of the probes, in the reference's order; the first few are used.

    Raises:
        ParityError: naming the point that is off.
    """
    chosen = list(rows[:READOUT_PROBES])
    feeds = feed_rows(chosen, text)
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(feeds[name]) for name in text.inputs))
    full = {depth: output.numpy() for depth, output in zip(depths, outputs, strict=True)}
    for point, expected in reference.items():
        vectors = full[point.layers][:, : point.dim]
        if normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        parity = compare_vectors(vectors, expected[: len(chosen)])
        if breach := parity.find_breach(tolerance):
            raise ParityError(f"read-out: in torch, {point.name} is not the parent's: {breach}", "read-out")


def find_failing_stage(
    family: Family, profile: Profile, suspects: Iterable[Suspect], *, tolerance: Tolerance
) -> str | None:
    """The first suspect whose graph does not give a profile's vectors; None when all of them do.

    Args:
        family: the failed family, in its staging directory, where suspects find their weights.
        suspects: in the order of the pipeline.
    """
    probes, references = load_references(family)
    rows = tokenize_probes(load_tokenizer(family.path, family.facts.text), probes)
    for stage, make_model, output in suspects:
        run = _open_runner(make_model(), output, family)
        ways = run_all_ways(rows, run, family.facts.text.padding_side)
        reference = references[profile.point.name]
        if any(compare_vectors(vectors, reference).find_breach(tolerance) for _, vectors in ways):
            return stage
    return None


def _open_runner(model: ir.Model, output: str, family: Family) -> Callable[[list[Tokens], PaddingSide], Vectors]:
    path = family.path / "suspect.onnx"
    write_graph(model, path)
    session = open_session(path)
    text = family.facts.text

    def run(chosen: list[Tokens], side: PaddingSide) -> Vectors:
        vectors: Vectors = session.run([output], feed_rows(chosen, text, side))[0]
        return vectors

    return run
