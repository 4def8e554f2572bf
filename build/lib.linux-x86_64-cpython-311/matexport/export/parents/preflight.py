"""What can be refused before torch is imported: in less than a second instead of ten.

The parent's folder is there and every setting in it is known, its weights are the pinned ones, and its configuration
has as many blocks and coordinates as the job asks for. Nothing is decided here that `parents.text` does not decide
again from the model itself; a configuration that does not plainly say its size is left to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matexport.errors import RequestError
from matexport.export.parents.folder.files import ADAPTER, CONFIG, SETTINGS, read_json
from matexport.export.parents.folder.layout import Layout, measure_output, read_layout
from matexport.export.parents.folder.source import (
    check_pin,
    fetch_head_weights,
    find_adapter_base,
    find_weights,
    has_local_weights,
    locate_parent,
)
from matexport.io.jobs import check_calibration, check_points
from matexport.spec.job import ExportJob

#: What configurations of transformers call the number of blocks, and the width of a token's state.
_BLOCKS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_WIDTHS = ("hidden_size", "dim", "n_embd", "d_model")


@dataclass(frozen=True)
class Located:
    """A parent on this disk.

    Attributes:
        weights: file -> sha256; None for a hub parent, whose large weights are fetched when all else was accepted.
    """

    root: Path
    layout: Layout
    weights: Mapping[str, str] | None


def locate(job: ExportJob) -> Located:
    """Find a job's parent, and refuse what its files alone show to be impossible.

    Of a hub parent, the weights that planning needs are fetched when nothing was refused: those of its heads.

    Raises:
        RequestError: a point is outside the parent, or the job contradicts itself.
        ParentError: the parent cannot be read, is not the pinned one, or holds what is not known.
    """
    check_calibration(job)
    root = locate_parent(job.parent, job.base)
    layout = read_layout(root, route=job.parent.route, trust=job.parent.trust_remote_code)
    find_adapter_base(layout)  # fetches what an adapter is for, before anything is loaded
    _check_size(job, layout)
    _check_truncation(job, layout)
    weights = None
    if has_local_weights(job.parent, job.base):
        weights = find_weights(job.parent, layout)
        check_pin(job.parent, weights)
    else:
        fetch_head_weights(job.parent, job.base, layout)
    return Located(root, layout, weights)


def _check_size(job: ExportJob, layout: Layout) -> None:
    """Refuse points that are outside of the parent, where its configuration plainly says its size."""
    path = layout.backbone / CONFIG
    if layout.kind != "Transformer" or not path.is_file() or (layout.backbone / ADAPTER).is_file():
        return
    config = read_json(path)
    text = config.get("text_config", config) if isinstance(config, dict) else {}
    changed: dict[str, Any] = {}
    for key in ("config_args", "config_kwargs"):
        changed |= layout.settings.get(key) or {}
    if not isinstance(text, dict) or (text is not config and changed):
        return
    sizes = {**text, **changed}
    blocks = next((sizes[name] for name in _BLOCKS if isinstance(sizes.get(name), int)), None)
    width = next((sizes[name] for name in _WIDTHS if isinstance(sizes.get(name), int)), None)
    output = measure_output(layout, width) if width is not None else None
    if layout.is_plain and width is not None:
        pooling = job.readout.pooling
        output = width * (len(pooling) if isinstance(pooling, tuple) else 1)
    check_points(job.points, blocks, output, job.parent.source)
    check_points(job.trained or (), blocks, output, job.parent.source, "[trained]: ")


def _check_truncation(job: ExportJob, layout: Layout) -> None:
    """The parent's users never see what lies beyond the width that its folder says."""
    cut, wide = layout.truncate_dim, [point for point in job.points if point.dim > (layout.truncate_dim or point.dim)]
    if wide:
        raise RequestError(
            f"dim={wide[0].dim} was asked; users of {job.parent.source} have its vectors cut to {cut} coordinates "
            f"(truncate_dim in {layout.root / SETTINGS}): ask for 1 to {cut}, or take that key out"
        )
