"""Families whose graphs take one text of a fixed number of tokens (the targets rknn and litert), of text encoders.

    plan -> refused, or what is shipped takes padded texts -> ... -> precisions -> token types held

The parent is traced, and held to its own vectors, on texts of any length; what is shipped alone has one. How long it is
says the read-out's `max_tokens`, or the parent's own limit: longer texts are cut there, as in every family.

These converters make half precision and whole numbers themselves, of their own graph and with their own calibration;
so they are given fp32. What they were seen to do with it is in docs/targets.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from matexport.errors import RequestError
from matexport.export.parents.plan import Plan
from matexport.family.modality import MASKED, TOKENIZER
from matexport.runtime.inputs.text import TextInputs
from matexport.runtime.inputs.tokenizer import load_tokenizer
from matexport.spec.facts import POOLING_MASK
from matexport.spec.inputs import TextFacts
from matexport.spec.profile import Encoding, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

#: Tokens of each text, where nobody says how many: a parent that takes more is not taken at its limit.
MOST_TOKENS = 512


def settle_shape(plan: Plan, files: Mapping[str, bytes]) -> Plan:
    """The plan, with what its graphs take where the target has one shape.

    Args:
        files: what the family holds of its inputs, by name.

    Raises:
        RequestError: the parent, a precision or an encoding has no such graph, or a text would be too long.
    """
    job, facts, source = plan.job, plan.inputs, plan.job.parent.source
    if not job.target.is_fixed:
        return plan
    asked = f"the target {job.target} was asked"
    if not isinstance(facts, TextFacts) or facts.full or not set(MASKED) <= set(facts.inputs):
        takes = "texts without a mask" if isinstance(facts, TextFacts) else f"{facts.noun}s"
        raise RequestError(f"{asked}; it is made of text encoders, and {source} takes {takes}: ask for portable")
    if POOLING_MASK in facts.inputs:
        raise RequestError(
            f"{asked}; graphs have two inputs, and {source} does not pool its prompts, for which there is a third: ask "
            "for portable"
        )
    if other := next((precision for precision in job.precisions if precision is not Precision.FP32), None):
        raise RequestError(
            f"{asked} with the precision {other}; its converter makes half precision and whole numbers itself, and "
            "takes fp32: ask for fp32 alone"
        )
    if coded := next((encoding for encoding in job.encodings if encoding is not Encoding.FLOAT32), None):
        raise RequestError(f"{asked} with the encoding {coded}; its graphs give vectors: ask for float32 alone")
    _check_length(plan, facts, asked)
    _check_token_types(plan, facts, files, asked)
    return replace(plan, shipped=structs.replace(facts, inputs=MASKED, padded=True))


def _check_length(plan: Plan, facts: TextFacts, asked: str) -> None:
    if plan.job.readout.max_tokens is None and facts.max_tokens > MOST_TOKENS:
        raise RequestError(
            f"{asked}; every text would take a run of all tokens that {plan.job.parent.source} allows "
            f"({facts.describe()}): say how many in [readout], such as max_tokens = 128"
        )
    longer = next((name for name, task in facts.tasks.items() if (task.max_tokens or 0) > facts.max_tokens), None)
    if longer:
        raise RequestError(
            f"{asked}; the task {longer} has longer texts ({facts.tasks[longer].max_tokens} tokens) than the graphs' "
            f"{facts.max_tokens}: ask for portable"
        )


def _check_token_types(plan: Plan, facts: TextFacts, files: Mapping[str, bytes], asked: str) -> None:
    """A tokenizer gives the same types to every single text: by its template, and not by what a text says."""
    inputs = TextInputs(load_tokenizer(files[TOKENIZER], facts))
    other = {kind for probe in plan.probes for kind in inputs.prepare_probe(probe).type_ids} - {0}
    if "token_type_ids" in facts.inputs and other:
        raise RequestError(
            f"{asked}; graphs have two inputs, and the tokens of {plan.job.parent.source} are of the types 0 and "
            f"{min(other)}: ask for portable"
        )


def fit_inputs(plan: Plan, models: Sequence[ir.Model]) -> None:
    """Have graphs take ids and mask alone, in place, where the plan ships that."""
    from matexport.export.graph.fixed import hold_token_types

    if plan.job.target.is_fixed:
        for model in models:
            hold_token_types(model)
