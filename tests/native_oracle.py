"""What the steps of a plan mean, in numpy: one text at a time, in float64, its integers in int64.

Written from the docstrings of `steps`, and apart from what runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matexport.runtime.engines.native import steps as s

Array = NDArray[Any]


class Text:
    """The tokens of one text: (n,) ids and types, and the column in its padded row that it begins at."""

    def __init__(self, ids: Array, types: Array, column: int = 0) -> None:
        self.ids, self.types, self.column = ids, types, column

    def index(self, table: s.Table) -> Array:
        """Which row of a table each token takes."""
        if table.index is s.Index.TOKENS:
            return self.ids + table.shift
        if table.index is s.Index.TYPES:
            return self.types + table.shift
        return self.places(table.index, table.uncounted) + table.shift

    def places(self, index: s.Index, uncounted: int | None = None) -> Array:
        """Where the tokens stand."""
        if index is s.Index.COLUMNS:
            return self.column + np.arange(len(self.ids))
        if uncounted is None:
            return np.arange(len(self.ids))
        found, before = [], 0
        for token in self.ids:
            found.append(-1 if token == uncounted else before)
            before += int(token != uncounted)
        return np.array(found)


def run_plan(plan: s.Plan, texts: Sequence[Text]) -> dict[str, Array]:
    """Name of an output -> a row for each text."""
    made = [_run_text(plan, text) for text in texts]
    found = {}
    for output in plan.outputs:
        rows = np.stack([values[output.matrix][0] for values in made]).astype(np.float32)
        assert rows.shape == (len(texts), output.width)
        found[output.name] = rows if output.encode is None else output.encode(rows)
    return found


def split_batch(feeds: Mapping[str, Array]) -> list[Text]:
    """The texts of a padded batch."""
    found = []
    for row, mask in enumerate(feeds["attention_mask"].astype(bool)):
        types = feeds.get("token_type_ids", np.zeros_like(feeds["input_ids"]))
        found.append(Text(feeds["input_ids"][row][mask], types[row][mask], int(mask.argmax())))
    return found


def assert_near(found: Sequence[Array], wanted: Sequence[Array]) -> None:
    """Most texts to 1e-5, and all to a cosine of 0.9999.

    A number that lies on the border of two codes may fall on either side in float32 and in float64, from where on all
    codes of its text may differ. onnxruntime's own results with and without its optimizations are as far from each
    other (2.6e-3 was seen of unit vectors).

    Args:
        found: (n, d) float32 rows, or codes of them, for each batch.
        wanted: the same, by onnxruntime.
    """
    near = []
    for mine, other in zip(found, wanted, strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        left, right = mine.astype(np.float64), other.astype(np.float64)
        if mine.dtype == np.uint8:
            left, right = (np.unpackbits(array, axis=1) - 0.5 for array in (mine, other))
        differences = np.abs(left - right).max(axis=1)
        near += (differences <= 1e-5).tolist()
        if mine.dtype == np.int8:
            assert differences.max() <= 1
            continue
        cosines = (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        assert cosines.min() >= (0.9999 if mine.dtype == np.float32 else 0.8)
    assert np.mean(near) >= 0.5


def _run_text(plan: s.Plan, text: Text) -> dict[int, Any]:
    values: dict[int, Any] = {}
    for step in plan.steps:
        assert step.out not in values
        values[step.out] = _STEPS[type(step)](step, values, text)
    return values


def _embed(step: s.Embed, _values: dict[int, Any], text: Text) -> Array:
    total = 0.0
    for table in step.tables:
        index = text.index(table)
        assert ((index >= 0) & (index < len(table.rows))).all()
        rows = table.rows[index].astype(np.float64)
        total = total + (rows if table.scales is None else rows * table.scales[index][:, None])
    return np.asarray(total)


def _normed(x: Array, step: s.Norm | s.HeadNorm) -> Array:
    if step.centred:
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + step.epsilon) * step.weight
    return x if step.bias is None else x + step.bias


def _norm_heads(step: s.HeadNorm, values: dict[int, Any], _text: Text) -> Array:
    x = values[step.source]
    return _normed(x.reshape(len(x), step.heads, -1), step).reshape(x.shape)


def _affine(step: s.Affine, values: dict[int, Any], _text: Text) -> Array:
    x = values[step.source]
    x = x if step.weight is None else x * step.weight
    return x if step.bias is None else x + step.bias


_erf = np.vectorize(math.erf)
_FUNCTIONS: Mapping[s.Function, Callable[[Array], Array]] = {
    s.Function.GELU: lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    s.Function.GELU_TANH: lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    s.Function.SILU: lambda x: x / (1 + np.exp(-x)),
    s.Function.RELU: lambda x: np.maximum(x, 0),
    s.Function.TANH: np.tanh,
    s.Function.SIGMOID: lambda x: 1 / (1 + np.exp(-x)),
}


def _quantize(step: s.Quantize, values: dict[int, Any], _text: Text) -> tuple[Array, Array]:
    """(codes - zero, peak / levels), in float32 as graphs do: a number half way between two codes goes the same way."""
    x = values[step.source].astype(np.float32)
    if step.smoothing is not None:
        assert step.smoothing.shape == x.shape[1:]
        x = x * step.smoothing
    peak = np.maximum((x if step.bounded else np.abs(x)).max(1, keepdims=True), np.float32(step.least))
    share = np.divide(x, peak, out=np.zeros_like(x), where=peak != 0)
    codes = np.clip(np.rint(share / np.float32(1 / step.levels)) + step.zero, 0, 255)
    return codes.astype(np.int64) - step.zero, peak.astype(np.float64) / step.levels


def _multiply_codes(step: s.Product, values: dict[int, Any], _text: Text) -> Array:
    codes, units = values[step.source]
    x = (codes @ step.weight.astype(np.int64)) * units * step.scales
    return x if step.bias is None else x + step.bias


def _dense(step: s.Dense, values: dict[int, Any], _text: Text) -> Array:
    x = values[step.source] @ step.weight.astype(np.float64)
    return x if step.bias is None else x + step.bias


def _rotate(step: s.Rotate, values: dict[int, Any], text: Text) -> Array:
    x = values[step.source]
    heads = x.reshape(len(x), step.heads, -1).copy()
    half = len(step.frequencies)
    angles = text.places(step.index)[:, None, None] * step.frequencies.astype(np.float64)
    cos, sin = np.cos(angles) * step.scale, np.sin(angles) * step.scale
    pick = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if step.interleaved else (slice(0, half), slice(half, 2 * half))
    )
    one, other = heads[..., pick[0]].copy(), heads[..., pick[1]].copy()
    heads[..., pick[0]], heads[..., pick[1]] = one * cos - other * sin, other * cos + one * sin
    return heads.reshape(x.shape)


def _attend(step: s.Attend, values: dict[int, Any], text: Text) -> Array:
    query, key, value = values[step.query], values[step.key], values[step.value]
    tokens = len(text.ids)
    assert len(query) == (1 if step.first else tokens)
    width = query.shape[1] // step.heads
    made = np.zeros_like(query)
    far = np.arange(tokens)[None, :] - np.arange(len(query))[:, None]
    for head in range(step.heads):
        mine = slice(head * width, (head + 1) * width)
        read = head // (step.heads // step.key_heads)
        others = slice(read * width, (read + 1) * width)
        scores = query[:, mine] @ key[:, others].T * step.scale
        if step.bias is not None:
            most = step.bias.shape[1] // 2
            scores = scores + step.bias[head, np.clip(far, -most, most) + most]
        if step.causal:
            scores[far > 0] = -np.inf
        if step.window is not None:
            scores[np.abs(far) > step.window] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        made[:, mine] = weights / weights.sum(1, keepdims=True) @ value[:, others]
    return made


_POOLINGS: Mapping[s.Pooling, Callable[[Array], Array]] = {
    s.Pooling.MEAN: lambda x: x.mean(0),
    s.Pooling.FIRST: lambda x: x[0],
    s.Pooling.LAST: lambda x: x[-1],
    s.Pooling.MAX: lambda x: x.max(0),
    s.Pooling.SUM_OVER_ROOT: lambda x: x.sum(0) / math.sqrt(len(x)),
}

_STEPS: Mapping[type, Callable[[Any, dict[int, Any], Text], Any]] = {
    s.Embed: _embed,
    s.Norm: lambda step, values, _text: _normed(values[step.source], step),
    s.HeadNorm: _norm_heads,
    s.Add: lambda step, values, _text: values[step.left] + values[step.right],
    s.Multiply: lambda step, values, _text: values[step.left] * values[step.right],
    s.Affine: _affine,
    s.Activate: lambda step, values, _text: _FUNCTIONS[step.function](values[step.source]),
    s.Columns: lambda step, values, _text: values[step.source][:, step.first : step.first + step.count],
    s.Quantize: _quantize,
    s.Product: _multiply_codes,
    s.Dense: _dense,
    s.Rotate: _rotate,
    s.Attend: _attend,
    s.Pool: lambda step, values, _text: _POOLINGS[step.pooling](values[step.source])[None],
    s.Unit: lambda step, values, _text: (
        values[step.source] / max(float(np.linalg.norm(values[step.source])), step.least)
    ),
}
