"""Outlines of parents that were never looked at: for job files and for what `init` says."""

from __future__ import annotations

from typing import Any

import msgspec

from matexport.io.proposal import (
    Found,
    Outline,
)
from matexport.spec.facts import ParentFacts
from matexport.spec.inputs import PaddingSide, TextFacts
from matexport.spec.job import ParentSource
from matexport.spec.readout import FinalNorm, PoolingMode, Readout, ReadoutRequest


def make_outline(blocks: int = 6, width: int = 384, **changes: Any) -> Outline:
    parent = ParentFacts("p", "BertModel", blocks, width, width, "float32", {"model.safetensors": "ab" * 32})
    readout = Readout(FinalNorm.ABSENT, (PoolingMode.MEAN,), (), True)
    text = TextFacts(("input_ids", "attention_mask"), 256, PaddingSide.RIGHT, 0, {})
    found = changes.pop("found", Found(parent, readout, text))
    depths = tuple(range(1, blocks + 1)) or (0,)
    outline = Outline(ParentSource("some/parent"), ReadoutRequest(), found, width, depths)
    return msgspec.structs.replace(outline, **changes)
