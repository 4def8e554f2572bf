"""What one builds, ships and picks: a `Profile` is a `Point` of the parent at a `Precision`, in an `Encoding`.

A point is where a parent is read: after `layers` blocks, the leading `dim` coordinates, from `tokens` visual tokens
where it has any. A profile's name (``L02-D064-fp32``, ``L24-D4096-T036-int8``) says all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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


class Target(StrEnum):
    """What a family's graphs are written for: how they are spelt, not what they compute.

    `ONNXRUNTIME` is the newest onnxruntime on a CPU, with operators of its own where they are faster. `PORTABLE` is any
    engine: operators of the ONNX standard alone, and of an old version where that has them. `RKNN` and `LITERT` are
    converters for devices that run graphs of one shape: portable, and of one text of a fixed number of tokens.
    """

    ONNXRUNTIME = "onnxruntime"
    PORTABLE = "portable"
    RKNN = "rknn"
    LITERT = "litert"

    @property
    def is_standard(self) -> bool:
        """Whether graphs have operators of the ONNX standard alone."""
        return self is not Target.ONNXRUNTIME

    @property
    def is_fixed(self) -> bool:
        """Whether graphs take one text of a fixed number of tokens."""
        return self in (Target.RKNN, Target.LITERT)


#: What might be taken for a target, and is none -> what it is, and what to do. A family is one file of weights that all
#: profiles share; with the weights inside of each graph, every profile would hold those of all that are shallower.
NO_TARGETS: Mapping[str, str] = {
    "single-file": "a family's profiles share one file of weights, so no target puts them into the graphs: export for "
    "another, and write the profile that is wanted as one file by matexport pack FAMILY PROFILE OUT --for single-file",
}


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


class Point(Record, frozen=True, order=True, omit_defaults=True):
    """Where a parent is read. The points of a parent all name `tokens`, or none does.

    Attributes:
        layers: number of blocks run, 1 to N, or 0 for a parent without blocks; the index into ``hidden_states``. Of a
            parent that is read after all of its blocks alone, N.
        dim: number of leading coordinates kept.
        tokens: number of vectors that an item gets: of visual tokens that the parent's are pooled to, or of patches; 0
            for a parent that gives one vector.
    """

    layers: int
    dim: int
    tokens: int = 0

    @property
    def name(self) -> str:
        return f"L{self.layers:02d}-D{self.dim:03d}" + (f"-T{self.tokens:03d}" if self.tokens else "")


_PRECISIONS = "|".join(sorted(Precision, key=len, reverse=True))
_ENCODINGS = "|".join(encoding for encoding in Encoding if encoding is not Encoding.FLOAT32)
_PROFILE_NAME = re.compile(rf"L(\d{{2,}})-D(\d{{3,}})(?:-T(\d{{3,}}))?-({_PRECISIONS})(?:-({_ENCODINGS}))?")


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
        layers, dim, tokens, precision, encoding = match.groups()
        point = Point(int(layers), int(dim), int(tokens or 0))
        return cls(point, Precision(precision), Encoding(encoding or Encoding.FLOAT32))
