"""Values that follow from shapes, the mask, token ids and constants alone, and what they are for some batches.

How an exporter spells a mask, a position or an angle does not matter: its nodes are worked out for a few small batches
(`Case`), and whoever reads them compares the numbers with what a step would mean. A number that a spelling compares
with may be out of reach of a small batch, a window of 128 for instance; so `find_reach` says how long a batch must be
to see past every number that stands in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from matexport.runtime.engines.native.geometry.node import Node, UnknownGraphError
from matexport.runtime.engines.native.geometry.operators import OPERATORS, Array

#: Nodes one after the other that are worked out; a mask has about 20.
MAX_DEPTH = 200

#: Of all that is worked out for one longer batch. Masks of 2500 tokens take 200 MB.
MAX_BYTES = 1 << 30

#: Numbers up to this are seen past by the small cases.
SEEN = 4

#: Numbers from this on are no places in a text, but what a mask adds.
_NO_PLACE = 1e5


class Axis(NamedTuple):
    """One axis of how a graph sees a matrix.

    Attributes:
        kind: of `KINDS`.
        size: of columns, how many steps; `stride` apart, each taken `repeat` times one after the other.
    """

    kind: str
    size: int = 1
    stride: int = 0
    repeat: int = 1


#: The texts of a batch; the tokens of each; its first token alone; both axes as one; an axis of length 1.
BATCH, TOKENS, FIRST, FLAT, ONE = Axis("batch"), Axis("tokens"), Axis("first"), Axis("flat"), Axis("one")


def column(size: int, stride: int = 1, repeat: int = 1) -> Axis:
    """An axis of columns; of one, the stride says nothing, and is 1."""
    return Axis("columns", size, stride if size > 1 else 1, repeat)


class Case:
    """A small batch.

    Args:
        mask: (B, T) bool.
        padding: the id of what is masked.
        inside: the id of one token inside the first text; None where it is like the others.

    Attributes:
        made: what values are for this batch, by their `id`, for as long as the batch is looked at.
        made_bytes: how large that is.
    """

    def __init__(self, mask: Array, padding: int = 0, inside: int | None = None) -> None:
        self.mask = mask
        self.made: dict[int, Array] = {}
        self.made_bytes = 0
        self.texts, self.tokens = mask.shape
        places = np.arange(mask.size).reshape(mask.shape)
        ids = np.where(mask, 1000 + places * 7 % 31, padding)
        if inside is not None:
            ids[0, self.tokens // 2] = inside
        self.feeds: Mapping[str, Array] = {
            "input_ids": ids,
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": (places % 3 % 2) * mask,
        }

    def measure(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        """The lengths that axes have in this batch."""
        sizes = {"batch": self.texts, "tokens": self.tokens, "flat": self.texts * self.tokens}
        return tuple(sizes.get(axis.kind, axis.size * axis.repeat) for axis in axes)


def _draw(length: int, *ranges: tuple[int, int]) -> Case:
    places = np.arange(length)
    return Case(np.stack([(start <= places) & (places < end) for start, end in ranges]))


#: Texts of several lengths, alone and padded on either side, or on both.
CASES = (
    _draw(12, (0, 12), (0, 1), (5, 12)),
    _draw(7, (0, 4), (2, 6)),
    _draw(1, (0, 1)),
)


def make_case(length: int, *, left: bool = True) -> Case:
    """A text in so many places, one of which, the first or the last, is padding where there are two."""
    padding = int(length > 1)
    return _draw(length, (padding, length) if left else (0, length - padding))


class Constant:
    """An initializer, read when it is asked for."""

    free, depth = True, 0

    def __init__(self, tensor: Any, read: Callable[[Any], Array]) -> None:
        self.shape: tuple[int, ...] = tuple(tensor.dims)
        self._tensor, self._read = tensor, read
        self._array: Array | None = None
        self.notes: dict[Any, Any] = {}

    @property
    def array(self) -> Array:
        """Its numbers."""
        if self._array is None:
            self._array = self._read(self._tensor)
        return self._array

    def work_out(self, _case: Case) -> Array:
        """The same for any batch."""
        return self.array


class Input:
    """An input of the graph."""

    free, depth = False, 0

    def __init__(self, name: str) -> None:
        self.name = name

    def work_out(self, case: Case) -> Array:
        """What the batch has for it.

        Raises:
            UnknownGraphError: it is none of the inputs of a text encoder.
        """
        if self.name not in case.feeds:
            raise UnknownGraphError(f"it reads the input {self.name}, which is not known")
        return case.feeds[self.name]


class Dims:
    """The lengths of a matrix's axes, as Shape gives them."""

    free, depth = False, 0

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self.free = all(axis.kind in ("columns", "one", "first") for axis in axes)

    def work_out(self, case: Case) -> Array:
        """(axes,) int64."""
        return np.array(case.measure(self.axes), np.int64)


class Rows:
    """The rows that a step gives, worked out when there are some: what is made of them is done with numpy."""

    free, depth = False, 0

    def work_out(self, case: Any) -> Array:
        """Those of a `Given`."""
        found: Array = case.rows
        return found


class Given(NamedTuple):
    """Rows in the place of a case."""

    rows: Array


class Worked:
    """What an operator makes of such values.

    Attributes:
        free: it is the same for any batch.
        depth: how many nodes one after the other make it.
        notes: what a reader has found out about it.
    """

    def __init__(self, node: Node, given: Sequence[Known | None], part: int = 0) -> None:
        self.notes: dict[Any, Any] = {}
        self.node, self.given, self.part = node, tuple(given), part
        known = [value for value in given if value is not None]
        self.free: bool = all(value.free for value in known)
        self.depth: int = 1 + max((value.depth for value in known), default=0)
        self._found: dict[int, Array] = {}

    def work_out(self, case: Any) -> Array:
        """What it is for a batch.

        Raises:
            UnknownGraphError: it is not known.
        """
        if self.free or case in CASES:  # which are there for good, so that an `id` stays theirs
            key = 0 if self.free else id(case)
            if key not in self._found:
                self._found[key] = self._work(case)
            return self._found[key]
        if id(self) not in case.made:
            found = self._work(case)
            case.made_bytes += found.nbytes
            if case.made_bytes > MAX_BYTES:
                raise UnknownGraphError(f"{self.node.describe()}: what is made of a mask is too large to be looked at")
            case.made[id(self)] = found
        made: Array = case.made[id(self)]
        return made

    def _work(self, case: Any) -> Array:
        if self.depth > MAX_DEPTH:
            raise UnknownGraphError(f"{self.node.describe()}: more than {MAX_DEPTH} nodes make it")
        return self.apply([None if value is None else value.work_out(case) for value in self.given])

    def apply(self, given: Sequence[Array | None]) -> Array:
        """What the operator makes of some arrays.

        Raises:
            UnknownGraphError: it is not known.
        """
        try:
            with np.errstate(all="ignore"):
                made = OPERATORS[self.node.type](self.node, given)
        except UnknownGraphError as problem:
            raise UnknownGraphError(f"{self.node.describe()}: {problem}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
            raise UnknownGraphError(f"{self.node.describe()} cannot be worked out: {problem}") from None
        found: Array = np.asarray(made[self.part] if isinstance(made, list) else made)
        return found


Known: TypeAlias = Constant | Input | Dims | Rows | Worked
KNOWN = (Constant, Input, Dims, Rows, Worked)


def find_constant(value: Any) -> Array | None:
    """The numbers of a value that is the same for any batch; None where it is another."""
    if isinstance(value, Constant):
        return value.array
    return value.work_out(CASES[0]) if isinstance(value, KNOWN) and value.free else None


def find_scalar(value: Any) -> float | None:
    """The one number of a constant; None where it is none, or has more."""
    array = find_constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def list_parts(value: Known) -> list[Known]:
    """A value and all that it is worked out from, each once."""
    seen: dict[int, Known] = {}
    pending = [value]
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            if isinstance(part, Worked):
                pending += [given for given in part.given if given is not None]
    return list(seen.values())


def find_reach(values: Sequence[Known], limit: int) -> int | None:
    """The length of a text that sees past all numbers that values are made with; None where `CASES` do.

    Args:
        limit: of that length.

    Raises:
        UnknownGraphError: it would be longer.
    """
    most = 0
    for value in values:
        for part in list_parts(value):
            if part.free or (isinstance(part, Worked) and part.node.type == "ConstantOfShape"):
                # What is worked out of constants alone counts like them: a window may be spelt as a product.
                most = max(most, _reach_past(np.asarray(part.work_out(CASES[0])), filled=not part.free))
    if most > limit:
        raise UnknownGraphError(f"a number that follows from places reaches {most} tokens far, too far to be looked at")
    return most or None


def reads_tokens(values: Sequence[Known]) -> bool:
    """Whether values follow from the ids or types of tokens, and not only from how many there are: small batches show
    what is made of places and the mask, but not what one id among thousands would change.
    """
    return any(
        isinstance(given, Input) and given.name in ("input_ids", "token_type_ids")
        for value in values
        for part in (value, *list_parts(value))
        if isinstance(part, Worked) and part.node.type != "Shape"
        for given in part.given
    ) or any(isinstance(value, Input) and value.name in ("input_ids", "token_type_ids") for value in values)


def _reach_past(array: Array, *, filled: bool) -> int:
    """Past numbers that places may be compared with, or to the end of a table by places; 0 where `CASES` do.

    Args:
        filled: whether all of its numbers are one, in a shape that follows from the batch.
    """
    if math.prod(array.shape) > 2 * SEEN and not filled:
        return int(max(array.shape))
    sizes = np.abs(array.astype(np.float64))
    most = float(np.max(sizes, initial=0, where=sizes < _NO_PLACE))
    return 2 * math.ceil(most) + 9 if most > SEEN else 0
