"""A plan -> a program of the extension, which has its own copy of the products' weights and reads the rest in place."""

from __future__ import annotations

import ctypes
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matexport.runtime.engines.native.library import (
    Span,
    StepRecord,
    TableRecord,
    choose_kernels,
    load_library,
    make_message,
)
from matexport.runtime.engines.native.steps import (
    Activate,
    Add,
    Affine,
    Attend,
    Columns,
    Dense,
    Embed,
    Function,
    HeadNorm,
    Index,
    Multiply,
    Norm,
    Plan,
    Pool,
    Pooling,
    Product,
    Quantize,
    Rotate,
    Step,
    Table,
    Unit,
)

#: In the order of the extension's numbers (native/program.hpp, native/kernels.hpp).
_OPS = (
    Embed, Norm, Add, Multiply, Affine, Activate, Columns, Quantize, Product, Dense, Rotate, HeadNorm, Attend, Pool,
    Unit,
)  # fmt: skip
_INDICES, _FUNCTIONS, _POOLINGS = tuple(Index), tuple(Function), tuple(Pooling)

Floats = NDArray[np.float32]

#: What a run gives back where it was given what is not in a table.
_OUT_OF_RANGE = 1


class PlanError(Exception):
    """Steps that do not fit together."""


class Program:
    """A plan that is ready to run. Several threads may run it.

    Args:
        plan: what to run.
        max_tokens: the longest text; what positions are made for.
        kernels: the instruction set; the fastest by default.

    Raises:
        RequestError: there is no extension here.
        PlanError: the steps do not fit together.
    """

    def __init__(self, plan: Plan, *, max_tokens: int, kernels: str | None = None) -> None:
        self._library, self.kernels = load_library(), kernels or choose_kernels()
        packer = _Packer(max_tokens)
        records = [packer.pack(step) for step in plan.steps]
        self._keep = packer.keep  # what the library reads in place
        self._widths = [output.width for output in plan.outputs]
        message = make_message()
        numbers = [output.matrix for output in plan.outputs]
        self._handle = self._library.matexport_open(
            self.kernels.encode(),
            (StepRecord * len(records))(*records),
            len(records),
            (TableRecord * len(packer.tables))(*packer.tables),
            len(packer.tables),
            (ctypes.c_int32 * len(numbers))(*numbers),
            len(numbers),
            message,
            len(message),
        )
        if not self._handle:
            raise PlanError(message.value.decode(errors="replace"))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.matexport_close(self._handle)

    def run(
        self,
        ids: NDArray[np.int32],
        starts: NDArray[np.int64],
        *,
        types: NDArray[np.int32] | None = None,
        columns: NDArray[np.int32] | None = None,
        threads: int = 1,
    ) -> list[Floats]:
        """The matrix of each output, a row per text.

        Args:
            ids: (tokens,) of all texts, one after the other.
            starts: (texts + 1,) where each text begins, and where the last ends.
            types: (tokens,) token types; all 0 by default.
            columns: (tokens,) where each token stands in its padded row; by default, where it stands in its text.

        Raises:
            IndexError: a token, a type or a position is beyond its table, or a text has no token.
            MemoryError: there is not enough for texts of this length.
        """
        if threads < 1:
            raise ValueError(f"threads={threads} was asked; at least 1 is needed")
        for array in (types, columns):
            if array is not None and len(array) != len(ids):
                raise ValueError("an array is not as long as the ids")
        if len(starts) < 2 or starts[0] != 0 or starts[-1] != len(ids):
            raise ValueError("starts do not begin at 0 and end with the ids")
        texts = len(starts) - 1
        made = [np.empty((texts, width), np.float32) for width in self._widths]
        addresses = (ctypes.c_void_p * len(made))(*(array.ctypes.data for array in made))
        message = make_message()
        failed = self._library.matexport_run(
            self._handle,
            _address(ids, np.int32),
            _address(types, np.int32),
            _address(columns, np.int32),
            _address(starts, np.int64),
            texts,
            threads,
            addresses,
            message,
            len(message),
        )
        if failed:
            raise (IndexError if failed == _OUT_OF_RANGE else MemoryError)(message.value.decode(errors="replace"))
        return made


def _address(array: NDArray[Any] | None, dtype: type) -> int | None:
    if array is None:
        return None
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"an array is not of contiguous {np.dtype(dtype)}")
    return int(array.ctypes.data)


class _Packer:
    """Steps -> records. What they point to is kept."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.keep: list[NDArray[Any]] = []
        self.tables: list[TableRecord] = []

    def pack(self, step: Step) -> StepRecord:
        for name in step.__struct_fields__:
            value = getattr(step, name)
            if isinstance(value, int) and not -(2**31) <= value < 2**31:  # the record would keep its low bits
                raise PlanError(f"{name} of a step is {value}")
        record = StepRecord(op=_OPS.index(type(step)), out=step.out)
        record.sources[:] = [-1, -1, -1]
        _fill(step, record, self)
        return record

    def span(self, array: NDArray[Any] | None, dtype: type) -> Span:
        if array is None:
            return Span(None, 0)
        array = np.require(array, dtype, ["C", "A"])
        self.keep.append(array)
        return Span(array.ctypes.data, array.size)

    def arrays(self, record: StepRecord, *arrays: NDArray[Any] | None) -> None:
        for place, array in enumerate(arrays):
            record.arrays[place] = self.span(array, np.float32)

    def table(self, table: Table) -> TableRecord:
        if not 0 <= table.shift < len(table.rows):
            raise PlanError(f"a table of {len(table.rows)} rows is read from row {table.shift} on")
        whole = table.scales is not None
        scales = None if table.scales is None else table.scales.reshape(-1)
        return TableRecord(
            self.span(table.rows, np.int8 if whole else np.float32),
            self.span(scales, np.float32),
            len(table.rows),
            _INDICES.index(table.index),
            table.shift,
            -1 if table.uncounted is None else table.uncounted,
        )


@singledispatch
def _fill(step: Step, record: StepRecord, packer: _Packer) -> None:
    raise NotImplementedError(type(step).__name__)


@_fill.register
def _(step: Embed, record: StepRecord, packer: _Packer) -> None:
    record.numbers[:3] = [len(packer.tables), len(step.tables), step.tables[0].rows.shape[1]]
    packer.tables.extend(packer.table(table) for table in step.tables)


@_fill.register
def _(step: Norm, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.numbers[0], record.reals[0] = step.source, step.centred, step.epsilon
    packer.arrays(record, step.weight, step.bias)


@_fill.register
def _(step: HeadNorm, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.numbers[0], record.reals[0] = step.source, step.centred, step.epsilon
    record.numbers[1] = step.heads
    packer.arrays(record, step.weight, step.bias)


@_fill.register(Add)
@_fill.register(Multiply)
def _(step: Add | Multiply, record: StepRecord, _packer: _Packer) -> None:
    record.sources[:2] = [step.left, step.right]


@_fill.register
def _(step: Affine, record: StepRecord, packer: _Packer) -> None:
    record.sources[0] = step.source
    packer.arrays(record, step.weight, step.bias)


@_fill.register
def _(step: Activate, record: StepRecord, _packer: _Packer) -> None:
    record.sources[0], record.numbers[0] = step.source, _FUNCTIONS.index(step.function)


@_fill.register
def _(step: Columns, record: StepRecord, _packer: _Packer) -> None:
    record.sources[0], record.numbers[0], record.numbers[1] = step.source, step.first, step.count


@_fill.register
def _(step: Quantize, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.reals[0] = step.source, step.least
    record.numbers[:3] = [step.zero, step.levels, step.bounded]
    packer.arrays(record, step.smoothing)


@_fill.register
def _(step: Product, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.numbers[0] = step.source, step.weight.shape[1]
    record.arrays[0] = packer.span(step.weight, np.int8)
    record.arrays[1] = packer.span(step.scales, np.float32)
    record.arrays[2] = packer.span(step.bias, np.float32)


@_fill.register
def _(step: Dense, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.numbers[0] = step.source, step.weight.shape[1]
    packer.arrays(record, step.weight, step.bias)


@_fill.register
def _(step: Rotate, record: StepRecord, packer: _Packer) -> None:
    record.sources[0], record.reals[0] = step.source, step.scale
    index = _INDICES.index(step.index)
    record.numbers[:5] = [step.heads, len(step.frequencies), step.interleaved, packer.max_tokens, index]
    packer.arrays(record, step.frequencies)


@_fill.register
def _(step: Attend, record: StepRecord, packer: _Packer) -> None:
    record.sources[:3] = [step.query, step.key, step.value]
    window = -1 if step.window is None else step.window
    reach = 0 if step.bias is None else step.bias.shape[1] // 2
    record.numbers[:6] = [step.heads, step.key_heads, step.causal, window, reach, step.first]
    record.reals[0] = step.scale
    packer.arrays(record, step.bias)


@_fill.register
def _(step: Pool, record: StepRecord, _packer: _Packer) -> None:
    record.sources[0], record.numbers[0] = step.source, _POOLINGS.index(step.pooling)


@_fill.register
def _(step: Unit, record: StepRecord, _packer: _Packer) -> None:
    record.sources[0], record.reals[0] = step.source, step.least
