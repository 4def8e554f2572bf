"""The preparation of images as a part of the graphs, where a job asks for it (`preprocess_in_graph`); of every kind.

    plan -> refused, or what is shipped takes whole images -> ... -> precisions -> nodes in front, held to Pillow

Nothing between the two knows of it: a parent is traced, calibrated and quantized on pixels that the runtime prepares.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from matexport.errors import ParityError, RequestError
from matexport.export.parents.plan import Plan
from matexport.spec.inputs import ImageFacts

if TYPE_CHECKING:
    import onnx_ir as ir

#: Name of the input of a graph that prepares images.
INPUT = "image"

#: Grey levels of 255 that a pixel may be off from what the runtime makes with Pillow.
MOST_LEVELS = 1

#: The Pillow whose order of passes the nodes follow; older ones resample columns first, whatever an image's size.
PILLOW = 13


def settle_preparation(plan: Plan) -> Plan:
    """The plan, with what its graphs take where the preparation of images goes into them.

    Raises:
        RequestError: it takes no images, resamples by a filter that graphs do not, or by another Pillow.
    """
    if not plan.job.preprocess_in_graph:
        return plan
    from matexport.export.graph.pixels import FILTERS

    facts, source = plan.inputs, plan.job.parent.source
    if not isinstance(facts, ImageFacts):
        raise RequestError(f"preprocess_in_graph was asked; {source} takes {facts.noun}s: leave it out")
    if facts.tiles is not None:
        raise RequestError(f"preprocess_in_graph was asked; images of {source} are cut into tiles: leave it out")
    if facts.resized and facts.resampling not in FILTERS:
        raise RequestError(
            f"preprocess_in_graph was asked; images of {source} are resized by {facts.resampling}, and in a graph by "
            f"{', '.join(FILTERS)} alone: leave it out"
        )
    _check_pillow()
    return replace(plan, shipped=structs.replace(facts, in_graph=True, input=INPUT))


def put_preparation_in_front(plan: Plan, models: Sequence[ir.Model]) -> None:
    """Have graphs take whole images, in place, where the plan ships that.

    Raises:
        ParityError: the nodes give other pixels of a probe than the runtime does with Pillow.
    """
    from matexport.export.graph import pixels

    facts = plan.shipped
    if not isinstance(facts, ImageFacts):
        return
    _check_preparation(plan, facts)
    for model in models:
        pixels.put_preparation_in_front(model, facts)


def _check_pillow() -> None:
    import PIL

    if int(PIL.__version__.partition(".")[0]) < PILLOW:
        raise RequestError(
            f"preprocess_in_graph was asked; graphs resample images as Pillow {PILLOW} does, and {PIL.__version__} is "
            f"installed, which does otherwise: install pillow>={PILLOW}"
        )


def _check_preparation(plan: Plan, facts: ImageFacts) -> None:
    """Run the nodes alone on the probes, and hold them to the pixels that the parent is traced and judged on."""
    from matexport.export.graph.edit import write_graph
    from matexport.export.graph.pixels import make_preparation
    from matexport.runtime.engines.onnxruntime import open_session
    from matexport.runtime.inputs.image import ImageInputs
    from matexport.runtime.inputs.whole_image import WholeImageInputs

    with tempfile.TemporaryDirectory() as folder:
        write_graph(make_preparation(facts), Path(folder, "pixels.onnx"))
        session = open_session(Path(folder, "pixels.onnx"))
    assert isinstance(plan.inputs, ImageFacts)
    prepared, whole = ImageInputs(plan.inputs), WholeImageInputs(facts)
    level = facts.scale / np.array(facts.std, np.float64)[:, None, None]
    for probe in plan.probes:
        expected = prepared.feed([prepared.prepare_probe(probe)])[plan.inputs.input]
        (found,) = session.run(None, whole.feed([whole.prepare_probe(probe)]))
        off = float((np.abs(found.astype(np.float64) - expected) / level).max())
        if not off <= MOST_LEVELS + 1e-3:
            raise ParityError(
                f"preparation: in the graph, {probe.describe()} has other pixels than Pillow gives, by up to {off:.1f} "
                f"grey levels ({MOST_LEVELS} allowed); nothing was written",
                "preparation",
            )
