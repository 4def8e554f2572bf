"""One point of a family -> a folder that sentence-transformers and transformers load with torch, to train it further.

It is the parent with fewer blocks: its own weights, its pooling and heads, a bias-free Dense that keeps the leading
coordinates, and the scaling to length 1 behind that. (``truncate_dim`` would cut after the scaling and leave vectors
that are not of length 1.) What is written is loaded again from the disk and held to the family's reference.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from matexport.consumers.files import describe_pooling, encode_json, list_modules, write_text_files
from matexport.errors import DestinationError, ParentError, ParityError, RequestError, one_line
from matexport.export.parents.folder.loading import module_class
from matexport.export.parents.in_torch import ParentInTorch
from matexport.family.guard.additions import copy_licences
from matexport.family.integrity import check_files
from matexport.family.manifest import CARD, Family, load_family
from matexport.family.proof import load_references, open_proof
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.report.card.folder import render_torch
from matexport.runtime.inputs.text import find_wrapping
from matexport.spec.facts import FamilyFacts
from matexport.spec.parity import Parity
from matexport.spec.probe import Probe
from matexport.spec.profile import Point, Profile
from matexport.spec.readout import FinalNorm
from matexport.spec.tolerance import Tolerance
from matexport.verify.parity import compare_vectors

#: How far a coordinate of a folder's vector may be from the parent's exit: the same library, weights and operators.
TOLERANCE = 1e-6

#: Heads that every version of sentence-transformers has, and so can load.
_STOCK = ("Dense", "LayerNorm")


def write_torch_folder(
    family: Family | Path | str,
    profile: str,
    out: Path | str,
    *,
    parent: str | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Write the parent at one point as a folder of sentence-transformers.

    Args:
        family: the directory of a family, or a loaded `Family`.
        profile: name such as ``L02-D064-fp32``, or of a point, such as ``L02-D064``: its precision plays no part.
        out: the folder to write; it must not exist, or be empty.
        parent: a directory, a hub id, or ``package:NAME/path``; what the family says it was made from when left out.
        progress: called with (stage, done, total).

    Returns:
        how far the folder's vectors of the probes are from the parent's.

    Raises:
        RequestError: the point has no such folder: of images, with a final norm that is left out, with heads of the
            parent's own.
        ParentError: the parent cannot be loaded, or is not the one that the family was made from.
        DestinationError: `out` exists, or cannot be written.
        ParityError: what was written does not give the parent's vectors.
    """
    family = family if isinstance(family, Family) else load_family(family)
    facts, out, point = family.facts, Path(out), Profile.parse(_name_profile(family, profile)).point
    files = write_text_files(facts, {name: bytes(content) for name, content in _read_side_files(family).items()})
    _refuse_dropped_norm(facts, point)
    if any(out.iterdir()) if out.is_dir() else out.exists():
        raise DestinationError(f"{out} exists; choose another destination")
    report = progress or (lambda _stage, _done, _total: None)
    report("load the parent", 0, 1)
    loaded = _load_parent(family, point, parent)
    report("load the parent", 1, 1)
    with lock_destination(out), stage_directory(out) as stage:
        for name, content in files.items():
            (stage / name).write_bytes(content)
        _save(stage, loaded, facts, point.dim)
        report("load the folder", 0, 1)
        parity = _prove(stage, family, point.name)
        (stage / CARD).write_text(render_torch(facts, out.name, point, parity.max_abs), encoding="utf-8")
        copy_licences(family.path, stage)
    report("load the folder", 1, 1)
    return parity


def _load_parent(family: Family, point: Point, named: str | None) -> ParentInTorch:
    source = named or family.facts.parent.source
    try:
        return ParentInTorch(family, point, source=source, threads=torch.get_num_threads())
    except ParentError as error:
        if named is not None:
            raise
        raise ParentError(
            f"{error}; the family says that it was made of {source}: say where that is by --parent"
        ) from None


def _refuse_dropped_norm(facts: FamilyFacts, point: Point) -> None:
    if point.layers < facts.parent.blocks and facts.readout.final_norm is FinalNorm.DROP:
        raise RequestError(
            f"{point.name} is read without the parent's final norm, which transformers' own class always computes: no "
            "folder of it gives this exit"
        )


def _name_profile(family: Family, name: str) -> str:
    at_point = [profile.name for profile in family.profiles if profile.point.name == name]
    if name not in family.facts.profiles and at_point:
        return at_point[0]
    family.profile_facts(name)
    return name


def _read_side_files(family: Family) -> dict[str, Any]:
    opened = check_files(family, family.side_files)
    return {name: opened.read(name) for name in opened}


def _save(stage: Path, loaded: ParentInTorch, facts: FamilyFacts, dim: int) -> None:
    """Write a model module by module, under names and with keys that old versions read, too."""
    first, *behind = loaded.modules
    backbone: Any = first.model
    _trim_layers(backbone.config)
    backbone.save_pretrained(stage)
    kept: list[tuple[str, str]] = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modes = facts.readout.pooling
    width = facts.parent.width * len(modes)
    for head in behind:
        kind = type(head).__name__
        if kind in ("Pooling", "Normalize"):  # written anew; and scaled behind the cut
            continue
        if kind not in _STOCK:
            raise RequestError(f"the parent has a head of its own ({kind}), which this folder cannot hold")
        kept.append((f"{len(kept)}_{kind}", kind))
        width = _save_head(head, stage / kept[-1][0], width)
    if dim < width:
        kept.append((f"{len(kept)}_Dense", "Dense"))
        _save_head(_make_cut(width, dim), stage / kept[-1][0], width)
    if facts.readout.normalize:
        kept.append((f"{len(kept)}_Normalize", "Normalize"))
    written = encode_json({
        "1_Pooling/config.json": describe_pooling(facts.parent.width, modes), "modules.json": list_modules(kept)
    })  # fmt: skip
    (stage / "1_Pooling").mkdir()
    for name, content in written.items():
        (stage / name).write_bytes(content)


def _trim_layers(config: Any) -> None:
    """Let what a configuration says of each block say it of the blocks that are left."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        text.layer_types = list(kinds)[: text.num_hidden_layers]


def _make_cut(width: int, dim: int) -> Any:
    """A Dense that keeps the leading coordinates: its matrix is an identity cut to (dim, width)."""
    cut = module_class("Dense")(width, dim, bias=False, activation_function=nn.Identity())
    with torch.no_grad():
        cut.linear.weight.copy_(torch.eye(dim, width))
    return cut


def _save_head(head: Any, folder: Path, width: int) -> int:
    """Write a Dense or LayerNorm with the keys that all versions read; returns how wide its output is."""
    folder.mkdir()
    config: dict[str, object]
    if type(head).__name__ == "Dense":
        width, activation = head.linear.out_features, type(head.activation_function)
        config = {
            "in_features": head.linear.in_features,
            "out_features": width,
            "bias": head.linear.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__name__}",
        }
    else:
        config = {"dimension": width}
    (folder / "config.json").write_bytes(encode_json({"config.json": config})["config.json"])
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / "model.safetensors")
    return width


def _prove(stage: Path, family: Family, point: str) -> Parity:
    """Load a folder as its users will, and hold its vectors to the parent's.

    Raises:
        ParityError: the vectors are others, or the library warned of something.
    """
    from sentence_transformers import SentenceTransformer

    probes, references = load_references(open_proof(family))
    text = family.text
    told = [
        (index, probe) for index, probe in enumerate(probes)
        if isinstance(probe, Probe) and find_wrapping(text, None if probe.task else "", probe.task).max_tokens
        == text.max_tokens
    ]  # fmt: skip
    with _hear_warnings() as heard:
        try:
            model = SentenceTransformer(str(stage), device="cpu", local_files_only=True)
        except Exception as error:  # of a library that is given a folder it may not understand
            raise ParityError(f"sentence-transformers cannot load the folder: {one_line(error)}", "pack") from error
    if heard:
        raise ParityError(f"sentence-transformers warns of the folder: {heard[0]}", "pack")
    rows = [find_wrapping(text, None if probe.task else probe.prompt or "", probe.task) for _, probe in told]
    texts = [wrapping.around(probe.text) for wrapping, (_, probe) in zip(rows, told, strict=True)]
    vectors: NDArray[np.float32] = model.float().encode(texts, prompt="", show_progress_bar=False)
    parity = compare_vectors(vectors, references[point][[index for index, _ in told]])
    if breach := parity.find_breach(Tolerance(max_abs=TOLERANCE)):
        raise ParityError(
            f"{point}: sentence-transformers, on what was written, is off the parent's own vectors: {breach}; is "
            "--parent the parent that the family was made from?",
            "pack",
        )
    return parity


@contextmanager
def _hear_warnings() -> Iterator[list[str]]:
    """What is warned of in the block, by Python's warnings or in a log of these libraries."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(" ".join(record.getMessage().split()))

    ear = Ear(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:  # whatever was silenced is heard, and shown to nobody
            logger.handlers, logger.propagate = [ear], False
            logger.setLevel(logging.WARNING)
        try:
            yield heard
        finally:
            for logger, level, handlers, propagates in before:
                logger.setLevel(level)
                logger.handlers, logger.propagate = handlers, propagates
            heard += [str(warning.message) for warning in raised if warning.category is not DeprecationWarning]
