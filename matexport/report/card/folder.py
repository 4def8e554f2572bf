"""The card of a folder that is no family: one file of ONNX, or a model for torch. `report` does not read it again.

It says what stands in a manifest elsewhere: which parent, which point, how it was proven, and code that was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matexport.report.card.consumers import describe_consumers
from matexport.report.card.front_matter import format_yaml
from matexport.report.card.render import describe_limits, describe_origin, escape_markdown, format_code
from matexport.spec.facts import FamilyFacts
from matexport.spec.profile import Point, Precision

_TASK, _TAGS = "sentence-similarity", ["matryoshka", "2d-matryoshka", "sentence-embeddings", "feature-extraction"]

_TORCH = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
vectors = model.encode(["a text", "another text"])  # (2, {dim}) float32"""


def render_single_file(facts: FamilyFacts, name: str) -> str:
    """The card of a folder whose ``model.onnx`` holds its weights.

    Args:
        facts: of one profile of texts, as if the folder were a pack.
        name: of the folder.
    """
    ((profile, used),) = facts.profiles.items()
    metadata: dict[str, Any] = {"library_name": "onnx", "pipeline_tag": _TASK, **describe_origin(facts)}
    if "base_model" in metadata and used.precision not in (Precision.FP32, Precision.FP16):
        metadata["base_model_relation"] = "quantized"
    lead = (
        f"`{used.graph}` is the ONNX sub-model `{profile}` of one {escape_markdown(facts.parent.architecture)} "
        f"encoder, its weights inside: {_name_part(facts, used.point)}, in {used.precision}. Its vectors of probes are "
        "the parent's own at that point, within the floors of its precision, in every way that libraries read them."
    )
    metadata["tags"] = [*_TAGS, "onnx", "onnxruntime"]
    return _render(name, metadata, lead, [*describe_consumers(facts), *describe_limits(facts, used.point)], facts)


def render_torch(facts: FamilyFacts, name: str, point: Point, max_abs: float) -> str:
    """The card of a folder that sentence-transformers and transformers load with torch.

    Args:
        facts: of the family.
        name: of the folder.
        max_abs: the largest difference of a coordinate, of the probes' vectors from the parent's.
    """
    metadata = {"library_name": "sentence-transformers", "pipeline_tag": _TASK, **describe_origin(facts)}
    metadata["tags"] = [*_TAGS, "sentence-transformers"]
    lead = (
        f"The first blocks of one {escape_markdown(facts.parent.architecture)} encoder, to train on: "
        f"{_name_part(facts, point)}. The weights are the parent's own. On probes, its vectors differ from the "
        f"parent's at that point by at most {max_abs:.1e}."
    )
    use = ["## Use", "Code is to be run in the folder of this file.", f"```python\n{_TORCH.format(dim=point.dim)}\n```"]
    if facts.text and facts.text.prompts:
        names = ", ".join(map(format_code, facts.text.prompts))
        use.append(f"Prompts: {names}; name one with `prompt_name=`.")
    return _render(name, metadata, lead, [*use, *describe_limits(facts, point)], facts)


def _name_part(facts: FamilyFacts, point: Point) -> str:
    return (
        f"{point.layers} of {facts.parent.blocks} blocks, and the first {point.dim} of {facts.parent.output_width} "
        "coordinates"
    )


def _render(name: str, metadata: dict[str, Any], lead: str, body: Sequence[str], facts: FamilyFacts) -> str:
    blocks = [
        f"---\n{format_yaml(metadata)}\n---",
        f"# {escape_markdown(name)}",
        lead,
        f"Parent: {format_code(facts.parent.source)}.",
        *body,
    ]
    return "\n\n".join(blocks) + "\n"
