"""What the native engine can do with a batch of texts: steps on matrices of float32, one row per token or per text.

A quantized graph is read into a list of these steps (`recognize`), which an extension runs (`program`). Each step makes
one new matrix, known by a number, from matrices made before it. Rows of tokens lie one text after the other, without
padding: what a mask hides in a graph is not there at all.

Every row is computed alike, whatever rows are beside it, by however many threads. So a text's vector is the same, to
the bit, alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from numpy.typing import NDArray

from matexport.spec.record import Record

#: A matrix, by its number.
Matrix = int


class Index(StrEnum):
    """What a lookup takes a row of its table by."""

    TOKENS = "tokens"  # input_ids
    TYPES = "types"  # token_type_ids
    COLUMNS = "columns"  # where the token stands in its padded row, counted from 0
    ORDER = "order"  # how many unmasked tokens of its text come before it


class Function(StrEnum):
    """What is applied to each number."""

    GELU = "gelu"  # x Phi(x), by the error function
    GELU_TANH = "gelu-tanh"  # its approximation by tanh
    SILU = "silu"
    RELU = "relu"
    TANH = "tanh"
    SIGMOID = "sigmoid"


class Pooling(StrEnum):
    """How the rows of a text's tokens become one row."""

    MEAN = "mean"
    FIRST = "first"
    LAST = "last"
    MAX = "max"
    SUM_OVER_ROOT = "sum-over-root"  # sum / sqrt(number of tokens)


class Table(Record, frozen=True, eq=False):
    """Rows that are looked up.

    Attributes:
        rows: (V, K) int8 or float32.
        scales: (V,) float32 that int8 rows are multiplied by; None for float32.
        index: what says which row.
        shift: added to the index.
        uncounted: with `Index.ORDER`, the id of tokens that do not count, as RoBERTa leaves out its padding: the index
            is how many tokens of another id come before in the text, and -1 of such a token itself. None where all
            unmasked tokens count. A text has such a token only where its own words spell the padding.
    """

    rows: NDArray[Any]
    scales: NDArray[Any] | None
    index: Index
    shift: int = 0
    uncounted: int | None = None


class Embed(Record, frozen=True, eq=False):
    """The sum of a row of each table, for each token: (tokens, K)."""

    out: Matrix
    tables: tuple[Table, ...]


class Norm(Record, frozen=True, eq=False):
    """LayerNorm (`centred`) or RMSNorm of each row, times `weight` (K,), plus `bias` (K,) where there is one."""

    out: Matrix
    source: Matrix
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    epsilon: float
    centred: bool


class Add(Record, frozen=True, eq=False):
    """The sum of two matrices of one shape."""

    out: Matrix
    left: Matrix
    right: Matrix


class Multiply(Record, frozen=True, eq=False):
    """The product, number by number, of two matrices of one shape."""

    out: Matrix
    left: Matrix
    right: Matrix


class Affine(Record, frozen=True, eq=False):
    """Each row times `weight` (K,), plus `bias` (K,); either may be missing."""

    out: Matrix
    source: Matrix
    weight: NDArray[Any] | None
    bias: NDArray[Any] | None


class Activate(Record, frozen=True, eq=False):
    """A function of each number."""

    out: Matrix
    source: Matrix
    function: Function


class Columns(Record, frozen=True, eq=False):
    """`count` columns from column `first` on."""

    out: Matrix
    source: Matrix
    first: int
    count: int


class Quantize(Record, frozen=True, eq=False):
    """Codes of each row, for products of integers, and the peak that the row was divided by.

    x = row * smoothing; peak = max |x|, or max x where `bounded`, and at least `least`; code = round(x / peak * levels)
    + zero, to even, held to 0 to 255. A row whose peak is 0 has codes `zero`.

    Attributes:
        smoothing: (K,) float32 or None.
        levels: codes above the zero point.
        zero: the zero point, 0 to 255.
        bounded: whether the peak is the largest number, not the largest size.
        least: the least peak; 0 where any will do.
    """

    out: Matrix
    source: Matrix
    smoothing: NDArray[Any] | None
    levels: int
    zero: int
    bounded: bool
    least: float


class Product(Record, frozen=True, eq=False):
    """(codes - zero) @ weight as integers, times peak / levels of the row and the column's scale, plus bias.

    Attributes:
        source: made by `Quantize`.
        weight: (K, N) int8.
        scales: (N,) float32.
        bias: (N,) float32 or None.
    """

    out: Matrix
    source: Matrix
    weight: NDArray[Any]
    scales: NDArray[Any]
    bias: NDArray[Any] | None


class Dense(Record, frozen=True, eq=False):
    """A product in float32: row @ weight (K, N) + bias (N,)."""

    out: Matrix
    source: Matrix
    weight: NDArray[Any]
    bias: NDArray[Any] | None


class Rotate(Record, frozen=True, eq=False):
    """Rotary positions (Su et al., 2021), of each head of a matrix (tokens, heads * width).

    With c, s the halves' cosines and sines at the token's position p: first half' = first c - second s, second half' =
    second c + first s. Where `interleaved`, the halves are the even and the odd columns.

    Attributes:
        frequencies: (width / 2,) float32; the angle is p times these. The columns past 2 * len(frequencies) of a head
            stay.
        scale: what cosines and sines are multiplied by; 1 mostly.
        index: of the positions.
    """

    out: Matrix
    source: Matrix
    heads: int
    frequencies: NDArray[Any]
    scale: float
    interleaved: bool
    index: Index


class HeadNorm(Record, frozen=True, eq=False):
    """RMSNorm or LayerNorm of each head's columns by itself, as `Norm`; `weight` and `bias` are of a head's width."""

    out: Matrix
    source: Matrix
    heads: int
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    epsilon: float
    centred: bool


class Attend(Record, frozen=True, eq=False):
    """softmax(query key' * scale + bias) value, for each head, among the tokens of one text.

    Attributes:
        query: (tokens, heads * width).
        key, value: (tokens, key_heads * width); each is read by heads / key_heads heads that follow one another.
        causal: a token sees itself and those before it.
        window: a token sees those at most so far from it, or all where None.
        bias: (heads, 2 M + 1) float32 or None: in head h, where a query stands at i and a key at j, what is added is
            bias[h, clip(j - i, -M, M) + M].
        first: `query` and `out` have a row per text, of its first token alone; `key` and `value` have all tokens.
    """

    out: Matrix
    query: Matrix
    key: Matrix
    value: Matrix
    heads: int
    key_heads: int
    scale: float
    causal: bool = False
    window: int | None = None
    bias: NDArray[Any] | None = None
    first: bool = False


class Pool(Record, frozen=True, eq=False):
    """One row for each text: (texts, K)."""

    out: Matrix
    source: Matrix
    pooling: Pooling


class Unit(Record, frozen=True, eq=False):
    """Each row divided by its length, or by `least` where that is more."""

    out: Matrix
    source: Matrix
    least: float


Step = (
    Embed
    | Norm
    | Add
    | Multiply
    | Affine
    | Activate
    | Columns
    | Quantize
    | Product
    | Dense
    | Rotate
    | HeadNorm
    | Attend
    | Pool
    | Unit
)


class Output(Record, frozen=True, eq=False):
    """What a graph gives under a name: a matrix with a row per text, of float32 or of the codes of a quantized vector.

    Attributes:
        name: of the graph's output.
        matrix: which.
        width: its columns.
        encode: what makes the codes of its float32 rows, as the graph's last nodes do; None for float32.
    """

    name: str
    matrix: Matrix
    width: int
    encode: Callable[[NDArray[Any]], NDArray[Any]] | None = None


class Plan(Record, frozen=True, eq=False):
    """All steps of a graph, in order, and what it gives.

    Attributes:
        refused: name of an output that no steps give -> why.
    """

    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    refused: Mapping[str, str] = msgspec.field(default_factory=dict)
