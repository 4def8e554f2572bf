"""The parent itself in torch, read at one point, as its users run it: what ``matexport bench --against torch`` times.

A process of its own, like `measure.trial`, whose plan and result it shares: ``python -m MODULE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matexport.errors import ParentError
from matexport.export.parents.architecture import find_blocks, find_tail
from matexport.export.parents.folder.source import fetch_weights, locate_parent
from matexport.family.integrity import check_files
from matexport.family.manifest import Family, load_family
from matexport.family.proof import load_references, open_proof
from matexport.measure.trial import Subject, TrialPlan, main
from matexport.runtime.inputs.modality import Feeds, Row, open_inputs
from matexport.spec.job import ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import Point, Profile
from matexport.spec.readout import FinalNorm
from matexport.verify.parity import compare_vectors

#: sentence-transformers' own default.
BATCH = 32

#: Probes that must give the family's reference: enough to know the parent by.
CHECKED_PROBES = 4

#: torch in batches against torch one by one, in units of `Parity.max_abs`.
TOLERANCE = 1e-4


class ParentInTorch:
    """sentence-transformers' model of the parent, its blocks and vectors cut to one point.

    Args:
        family: whose parent it is; prompts, length and read-out are as the family says.
        point: where it is read.
        source: a directory, a hub id, or ``package:NAME/path``.
        threads: of torch.

    Raises:
        ParentError: there is no such parent, or sentence-transformers cannot load it.
    """

    def __init__(self, family: Family, point: Point, *, source: str, threads: int) -> None:
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.family, self.point, self.source = family, point, source
        root = locate_parent(ParentSource(source), Path.cwd())
        fetch_weights(ParentSource(source), Path.cwd())
        try:
            model = SentenceTransformer(str(root), device="cpu", truncate_dim=point.dim, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ParentError(f"sentence-transformers cannot load {source}: {str(error).splitlines()[0]}") from error
        self._model = model.float().eval()
        self._model.max_seq_length = family.text.max_tokens
        self._normalize = family.facts.readout.normalize
        # The parent's own tokens, or as many where its vocabulary was pruned.
        self.inputs = open_inputs(check_files(family, family.input_files))
        cut_blocks(self._model, point.layers, family.facts.readout.final_norm)

    @property
    def modules(self) -> list[nn.Module]:
        """sentence-transformers' modules, in order; the first has the blocks that are left."""
        return list(self._model)

    def embed(self, texts: Sequence[str], *, prompt: str | None = None) -> NDArray[np.float32]:
        """(len(texts), dim) float32, by ``SentenceTransformer.encode``."""
        vectors: NDArray[np.float32] = self._model.encode(
            list(texts),
            prompt_name=prompt,
            batch_size=BATCH,
            normalize_embeddings=self._normalize,
            show_progress_bar=False,
        )
        return vectors

    def prepare(self, items: Sequence[str]) -> list[Row]:
        """As `Embedder.prepare`."""
        return self.inputs.prepare(items)

    def feed(self, rows: Sequence[Row]) -> Feeds:
        """As `Embedder.feed`."""
        return self.inputs.feed(rows)

    def compute(self, feeds: Feeds) -> NDArray[np.float32]:
        """The vectors of padded tokens, without sentence-transformers' sorting and batching."""
        with torch.inference_mode():
            features = {name: torch.from_numpy(array) for name, array in feeds.items()}
            vectors = self._model(features)["sentence_embedding"][:, : self.point.dim]
            if self._normalize:
                vectors = nn.functional.normalize(vectors, dim=-1)
            result: NDArray[np.float32] = vectors.numpy()
        return result

    def check(self) -> None:
        """Make sure that this is the parent, cut where the family says.

        Raises:
            ParentError: some probe has another vector than when the family was made.
        """
        found, references = load_references(open_proof(self.family))
        probes = [probe for probe in found[:CHECKED_PROBES] if isinstance(probe, Probe)]
        vectors = np.concatenate([self.embed([probe.text], prompt=probe.prompt) for probe in probes])
        parity = compare_vectors(vectors, references[self.point.name][: len(probes)])
        if not parity.max_abs <= TOLERANCE:
            raise ParentError(
                f"{self.source} in sentence-transformers, cut to {self.point.name}, does not give the vectors that the "
                f"family was made from (max abs difference {parity.max_abs:.2g} on probe {parity.worst}): name the "
                "family's own parent with --parent"
            )


def cut_blocks(model: nn.Module, layers: int, final_norm: FinalNorm) -> None:
    """Leave a transformers model inside of `model` its first blocks, in place.

    Args:
        final_norm: "drop" takes its final norm away, too, unless all blocks stay.
    """
    from transformers import PreTrainedModel

    backbone: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    blocks, count = find_blocks(backbone)
    if layers == count:
        return
    dropped = find_tail(backbone) if final_norm is FinalNorm.DROP else ()
    del blocks[layers:]
    backbone.config.get_text_config().num_hidden_layers = layers
    for name in dropped:
        backbone.set_submodule(name, nn.Identity())


def open_parent(plan: TrialPlan) -> Subject:
    """The parent at a plan's profile's point."""
    point = Profile.parse(plan.profile).point
    return ParentInTorch(load_family(plan.family), point, source=plan.parent, threads=plan.threads)


if __name__ == "__main__":
    raise SystemExit(main(open_parent))
