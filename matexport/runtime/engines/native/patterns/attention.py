"""Attention: scores of queries and keys, what is added to them, softmax, and the sum of values.

What a mask says is not matched but worked out, and compared with what `Attend` can do. A mask must hide exactly what
the batch masks, so that texts without padding need none; beyond that it may let a token see those before it alone, or
those that are near, and may add a number by head and distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from matexport.runtime.engines.native.geometry.known import (
    BATCH,
    CASES,
    FIRST,
    ONE,
    TOKENS,
    Axis,
    Case,
    Known,
    column,
    find_reach,
    find_scalar,
    make_case,
    reads_tokens,
)
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array, bound
from matexport.runtime.engines.native.patterns.values import Grid, Source, Value, cut_columns, describe_axes, refuse
from matexport.runtime.engines.native.steps import Attend
from matexport.spec.record import Record

#: What is added to a score that does not count: softmax makes 0 of it, however large the others are.
_HIDDEN = -1e8

#: How many times as far as the last change of a bias it is looked at, before it is taken to stay as it is. Biases of T5
#: and MPNet change at distances that grow by less than a half.
_SETTLED = 4

#: The longest text that masks are worked out for.
_MOST_TOKENS = 2500


class Heads(NamedTuple):
    """A matrix seen by heads.

    Attributes:
        heads: how many are seen; `repeat` of them, one after the other, are the same columns.
        first: the row is the first token's.
    """

    source: Source
    heads: int
    repeat: int
    width: int
    first: bool


class Sight(NamedTuple):
    """What a mask lets a token see: see `Attend`."""

    causal: bool
    window: int | None
    bias: Array | None


class Scores(Record, frozen=True, eq=False):
    """Of each query with each key; `weighed` after softmax."""

    query: Heads
    key: Heads
    scale: float
    masks: tuple[Known, ...] = ()
    weighed: bool = False


class Holes(Record, frozen=True, eq=False):
    """Where weights are no numbers: nowhere in a row that sees a token."""

    scores: Scores


def find_heads(grid: Grid, *, turned: bool = False) -> Heads:
    """A matrix with the axes (batch, heads, tokens, columns), or the last two `turned`.

    Raises:
        UnknownGraphError: it has others, or the heads do not lie side by side.
    """
    axes = grid.axes
    if len(axes) == 4:
        rows, columns = (axes[3], axes[2]) if turned else (axes[2], axes[3])
        heads = Axis("columns", 1, columns.size) if axes[1] == ONE else axes[1]
        side_by_side = heads.kind == "columns" == columns.kind and columns.stride == 1 == columns.repeat
        side_by_side = side_by_side and (heads.size == 1 or heads.stride == columns.size)
        if axes[0] == BATCH and rows in (TOKENS, FIRST) and side_by_side:
            source = cut_columns(grid.source, grid.first, heads.size * columns.size)
            return Heads(source, heads.size * heads.repeat, heads.repeat, columns.size, rows == FIRST)
    raise refuse(f"attention over the axes {describe_axes(axes)}")


def score(_node: Node, given: Sequence[Value]) -> Scores:
    """A product of queries with keys whose last axes are turned."""
    query, key = given
    one, other = find_heads(query), find_heads(key, turned=True)
    if (one.heads, one.width) != (other.heads, other.width) or other.first or one.repeat != 1:
        raise refuse(f"queries {describe_axes(query.axes)} with keys {describe_axes(key.axes)}")
    return Scores(one, other, query.factor * key.factor)


def scale(node: Node, given: Sequence[Value]) -> Scores | None:
    """Times a number, or by one, before anything is added; None where it is another value."""
    scores: Scores = given[0]
    number = find_scalar(given[1])
    if not number or scores.masks or scores.weighed:
        return None
    return replace(scores, scale=scores.scale * (1 / number if node.type == "Div" else number))


def add_mask(_node: Node, given: Sequence[Value]) -> Scores | None:
    """Plus what follows from the mask and places alone; None once softmax was."""
    scores, mask = given
    return None if scores.weighed else replace(scores, masks=(*scores.masks, mask))


def weigh(node: Node, given: Sequence[Value]) -> Scores:
    """Softmax over the keys."""
    scores: Scores = given[0]
    if scores.weighed or node.read_int("axis", -1) not in (-1, 3):
        raise refuse("it weighs other than keys")
    return replace(scores, weighed=True)


def find_holes(_node: Node, given: Sequence[Value]) -> Holes | None:
    """IsNaN of weights."""
    return Holes(given[0]) if given[0].weighed else None


def fill_holes(_node: Node, given: Sequence[Value]) -> Scores | None:
    """Weights, and 0 where they are no numbers: the weights of any token that counts."""
    holes, number, scores = given
    return scores if holes.scores is scores and find_scalar(number) == 0 else None


def keep_scores(node: Node, given: Sequence[Value]) -> Scores:
    """A Cast to float32, or Identity."""
    if node.read_int("to", 1) != 1:
        raise refuse("it makes other numbers than float32 of scores")
    scores: Scores = given[0]
    return scores


def attend(_node: Node, given: Sequence[Value]) -> Grid:
    """Weights times values.

    Raises:
        UnknownGraphError: they are no weights, or the mask is not known.
    """
    scores, value = given
    if not scores.weighed:
        raise refuse("scores without softmax are multiplied with a matrix")
    values = find_heads(value)
    query, key = scores.query, scores.key
    if values.first or (values.heads, values.repeat) != (key.heads, key.repeat):
        raise refuse(f"weights of {key.heads} heads times values {describe_axes(value.axes)}")
    if values.width != key.width:
        raise refuse(f"values of {values.width} columns, and keys of {key.width}")
    sight = read_sight(scores.masks, query.heads, first=query.first)

    def make(out: int, *sources: int) -> Attend:
        heads, key_heads = query.heads, key.heads // key.repeat
        return Attend(out, *sources, heads, key_heads, scores.scale, *sight, query.first)  # type: ignore[call-arg, arg-type]

    source = Source(query.heads * query.width, make, (query.source, key.source, values.source))
    heads = column(query.heads, query.width) if query.heads > 1 else ONE
    axes = (BATCH, heads, FIRST if query.first else TOKENS, column(query.width))
    return Grid(source, axes, factor=value.factor)


def read_sight(masks: tuple[Known, ...], heads: int, *, first: bool) -> Sight:
    """What a token sees where all of some masks are added to its scores.

    Raises:
        UnknownGraphError: that is no `Sight`, or it depends on what the batch masks otherwise than that it is hidden.
    """
    if not masks:
        raise refuse("attention without a mask reads the padding")
    key = "sight", *map(id, masks), heads, first
    notes = masks[0].notes  # type: ignore[union-attr]
    if key not in notes:
        notes[key] = masks, _read_sight(masks, heads, first)
    found: Sight = notes[key][1]
    return found


def _read_sight(masks: tuple[Known, ...], heads: int, first: bool) -> Sight:
    if reads_tokens(masks):
        raise refuse("a mask follows from the ids or types of tokens")
    reach = find_reach(masks, _MOST_TOKENS)
    cases = list(CASES) if reach is None else [*CASES, make_case(reach, left=not first)]
    while True:
        added = [(case, _sum_masks(masks, case, heads, first)) for case in cases]
        farthest = max(int(case.mask.sum(axis=1).max()) for case in cases) - 1
        causal, window, bias = _look(added, farthest, first)
        for case, mask in added:
            _check_sight(case, mask, first, (causal, window, bias))
        settled = _find_last_change(bias)
        if settled * _SETTLED <= farthest:
            break
        if settled * _SETTLED + 2 > _MOST_TOKENS or (settled == farthest and len(cases) > len(CASES) + 1):
            raise refuse("what is added to scores grows with the distance of two tokens")
        cases.append(make_case(settled * _SETTLED + 2, left=not first))
    kept = None
    if bias.any():
        kept = bias[:, farthest - settled : farthest + settled + 1]
        kept = np.ascontiguousarray(np.broadcast_to(kept, (heads, kept.shape[1])))
    return Sight(causal, window if window < farthest else None, kept)


def _look(added: Sequence[tuple[Case, Array]], farthest: int, first: bool) -> tuple[bool, int, Array]:
    """Whether no token sees one behind it, how far one sees, and what is added to a score by the distance.

    Args:
        added: batches, and what masks add to their scores.
        farthest: that two tokens of them are from each other.
    """
    causal, window, bias = True, 0, np.zeros((added[0][1].shape[1], 2 * farthest + 1), np.float32)
    for case, mask in added:
        seen, far = mask > _HIDDEN, _measure(case, first)
        if (seen != seen[:, :1]).any() or (seen & ~_real_keys(case, first) & _real_queries(case, first)).any():
            raise refuse("a mask lets tokens see padding, or lets heads see different tokens")
        texts, queries, keys = np.nonzero(seen[:, 0] & _pair(case, first))
        distances = far[queries, keys]
        causal = causal and not (distances > 0).any()
        window = max(window, int(np.abs(distances).max(initial=0)))
        bias[:, distances + farthest] = mask[texts, :, queries, keys].T
    return causal, window, bias


def _check_sight(case: Case, mask: Array, first: bool, sight: tuple[bool, int, Array]) -> None:
    """Refuse a mask that is not what was read from it."""
    causal, window, bias = sight
    far, farthest = _measure(case, first), bias.shape[1] // 2
    seen = _pair(case, first) & (np.abs(far) <= window) & ((far <= 0) | (not causal))
    expected = bias[:, np.clip(far, -farthest, farthest) + farthest][None]
    real = np.broadcast_to(_real_queries(case, first), mask.shape)
    shown = np.broadcast_to(seen[:, None], mask.shape)
    if not np.array_equal((mask > _HIDDEN)[real], shown[real]):
        raise refuse("a mask is neither the padding's, nor causal, nor a window")
    if not np.allclose(np.where(shown, mask, 0), np.where(shown, expected, 0), rtol=1e-6, atol=1e-7):
        raise refuse("what is added to scores does not follow from the distance of two tokens")


def _find_last_change(bias: Array) -> int:
    """The distance from which on (heads, 2 M + 1) numbers by distance stay what they are."""
    middle = bias.shape[1] // 2
    changes = (np.diff(bias, axis=1) != 0).any(axis=0)  # between column k and the next
    places = np.nonzero(changes)[0]
    if not places.size:
        return 0
    return int(max(middle - places[0], places[-1] + 1 - middle, 0))


def _sum_masks(masks: Sequence[Known], case: Case, heads: int, first: bool) -> Array:
    """(B, heads, queries, T) float32: what is added to the scores; one head where all are the same."""
    arrays = [np.asarray(mask.work_out(case)) for mask in masks]
    if any(array.dtype != np.float32 or array.ndim > 4 for array in arrays):
        raise refuse("what is added to scores is not float32, or has more axes")
    told = heads if any(array.ndim > 2 and array.shape[-3] != 1 for array in arrays) else 1
    shape = (case.texts, told, 1 if first else case.tokens, case.tokens)
    bound(shape)
    total = np.zeros(shape, np.float32)
    for array in arrays:
        try:
            total = total + np.broadcast_to(array, shape)
        except ValueError:
            raise refuse(f"what is added to scores has the shape {array.shape}, and these {shape}") from None
    return total


def _measure(case: Case, first: bool) -> Array:
    """(queries, T): how far a key stands behind a query."""
    places = np.arange(case.tokens)
    return places[None] - (places[:1] if first else places)[:, None]


def _real_keys(case: Case, first: bool) -> Array:
    return np.broadcast_to(case.mask[:, None, None], (case.texts, 1, 1 if first else case.tokens, case.tokens))


def _real_queries(case: Case, first: bool) -> Array:
    return case.mask[:, None, :1, None] if first else case.mask[:, None, :, None]


def _pair(case: Case, first: bool) -> Array:
    """(B, queries, T): whether both are tokens."""
    pairs: Array = (_real_keys(case, first) & _real_queries(case, first))[:, 0]
    return pairs
