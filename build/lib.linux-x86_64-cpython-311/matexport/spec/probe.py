"""Inputs that are kept with a family, on which it is proven equal to its parent: one record for each modality."""

from __future__ import annotations

import struct
from enum import StrEnum
from itertools import islice
from typing import TypeAlias

from matexport.spec.record import Record

#: Characters of a text, and numbers of an array, that a description shows.
SHOWN_CHARACTERS, SHOWN_NUMBERS = 60, 4


class Dtype(StrEnum):
    """Types of the numbers that an array may hold, as numpy calls them."""

    FLOAT32 = "float32"
    UINT8 = "uint8"
    INT64 = "int64"


_FORMATS = {Dtype.FLOAT32: "<f", Dtype.UINT8: "<B", Dtype.INT64: "<q"}


class Probe(Record, frozen=True):
    """A text that is kept with a family.

    Attributes:
        prompt: name of one of the parent's prompts, put before `text`.
        task: ``query`` or ``document``: as sentence-transformers' `encode_query` and `encode_document` read it.
    """

    text: str
    prompt: str | None = None
    task: str | None = None

    def describe(self, most: int = SHOWN_CHARACTERS) -> str:
        """Such as ``'a big red house', prompt 'query'``, on one line; of a long text, the first characters."""
        how = f", prompt {self.prompt!r}" if self.prompt else f", task {self.task!r}" if self.task else ""
        return repr(self.text if len(self.text) <= most else self.text[: most - 3] + "...") + how


class ArrayProbe(Record, frozen=True):
    """An array that is kept with a family.

    Attributes:
        content: its numbers, little-endian, in C order.
    """

    content: bytes
    dtype: Dtype
    shape: tuple[int, ...]

    def describe(self, most: int = SHOWN_NUMBERS) -> str:
        """Such as ``float32 (8,) [0.25, -1.5, 0.125, 3, ...]``."""
        numbers = [
            f"{number:.4g}" for (number,) in islice(struct.iter_unpack(_FORMATS[self.dtype], self.content), most)
        ]
        if len(self.content) > len(numbers) * struct.calcsize(_FORMATS[self.dtype]):
            numbers.append("...")
        return f"{self.dtype} {self.shape} [{', '.join(numbers)}]"


class ImageProbe(Record, frozen=True):
    """An image file that is kept with a family.

    Attributes:
        name: what it is called; no two probes of a family share one.
        content: the file's bytes.
    """

    name: str
    content: bytes

    def describe(self, most: int = SHOWN_CHARACTERS) -> str:
        """Such as ``'wide.png' (1204 bytes)``."""
        return f"{self.name if len(self.name) <= most else self.name[: most - 3] + '...'!r} ({len(self.content)} bytes)"


#: An input of any modality. It can be compared and hashed, and describes itself.
AnyProbe: TypeAlias = Probe | ArrayProbe | ImageProbe
