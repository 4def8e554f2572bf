"""What one builds, ships and picks: a `Profile` is a `Point` of the parent at a `Precision`, in an `Encoding`.

A point is where a parent is read: after `layers` blocks, the leading `dim` coordinates. A profile's name
(``L02-D064-fp32``) says all of it.
"""

from __future__ import annotations

import re
from enum import StrEnum

from matexport.spec.record import Record


class Precision(StrEnum):
    """How the weights (and the arithmetic) of a sub-model are stored.

    ``fp16``: half precision, the read-out and whatever would overflow in fp32. ``int8``: integer products, one
    activation scale per token, for CPUs. ``int8-static``: QuantizeLinear/DequantizeLinear pairs with calibrated scales.
    ``q8``, ``q4``: weights in blocks, arithmetic in fp32. ``q4-mixed``: q4, but q8 where 4 bits cost most.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_STATIC = "int8-static"
    Q8 = "q8"
    Q4 = "q4"
    Q4_MIXED = "q4-mixed"


class Encoding(StrEnum):
    """What a graph's output holds.

    ``float32``: (B, dim). ``int8``: (B, dim) codes between stored ranges. ``ubinary``: (B, ceil(dim / 8)) uint8, one
    bit per coordinate. Both as sentence-transformers' `quantize_embeddings` makes them from the float32 vectors.
    """

    FLOAT32 = "float32"
    INT8 = "int8"
    UBINARY = "ubinary"

    def width(self, dim: int) -> int:
        """Columns of the output for vectors of `dim` coordinates."""
        return -(-dim // 8) if self is Encoding.UBINARY else dim


class Point(Record, frozen=True, order=True):
    """Where a parent is read.

    Attributes:
        layers: number of transformer blocks run, 1 to N, or 0 for a parent without blocks; the index into
            ``hidden_states``.
        dim: number of leading coordinates kept.
    """

    layers: int
    dim: int

    @property
    def name(self) -> str:
        return f"L{self.layers:02d}-D{self.dim:03d}"


_PRECISIONS = "|".join(sorted(Precision, key=len, reverse=True))
_ENCODINGS = "|".join(encoding for encoding in Encoding if encoding is not Encoding.FLOAT32)
_PROFILE_NAME = re.compile(rf"L(\d{{2,}})-D(\d{{3,}})-({_PRECISIONS})(?:-({_ENCODINGS}))?")


class Profile(Record, frozen=True, order=True):
    """A point at a precision, and what its output holds: one sub-model of a family."""

    point: Point
    precision: Precision
    encoding: Encoding = Encoding.FLOAT32

    @property
    def name(self) -> str:
        return "-".join((self.point.name, self.precision, *self._suffix))

    @property
    def graph_file(self) -> str:
        return ".".join((self.point.name, self.precision, *self._suffix, "onnx"))

    @property
    def _suffix(self) -> tuple[str, ...]:
        return () if self.encoding is Encoding.FLOAT32 else (self.encoding,)

    @classmethod
    def parse(cls, name: str) -> Profile:
        """Read a name such as ``L02-D064-fp32`` or ``L02-D064-int8-ubinary``; raises ValueError when it is none."""
        match = _PROFILE_NAME.fullmatch(name)
        if not match:
            raise ValueError(f"{name!r} is not a profile name such as L02-D064-fp32 or L02-D064-int8-ubinary")
        return cls(Point(int(match[1]), int(match[2])), Precision(match[3]), Encoding(match[4] or Encoding.FLOAT32))


class Probe(Record, frozen=True):
    """An input kept with a family.

    Attributes:
        prompt: name of one of the parent's prompts, put before `text`.
        task: ``query`` or ``document``: as sentence-transformers' `encode_query` and `encode_document` read it.
    """

    text: str
    prompt: str | None = None
    task: str | None = None
