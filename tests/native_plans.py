"""Plans on weights drawn at random, and changes to them that may not fit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from native_oracle import Text

from matexport.runtime.engines.native import steps as s
from matexport.runtime.engines.native.program import PlanError, Program

VOCABULARY, POSITIONS = 50, 90


class Maker:
    """Steps on random weights, numbered one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps: list[Any] = []

    def add(self, step: Callable[..., Any], *rest: Any, **named: Any) -> int:
        out = len(self.steps)
        self.steps.append(step(out, *rest, **named))
        return out

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def codes(self, *shape: int, most: int = 127) -> np.ndarray:
        return self.rng.integers(-most, most + 1, shape).astype(np.int8)

    def embed(self, width: int) -> int:
        whole = s.Table(self.codes(VOCABULARY, width), np.abs(self.floats(VOCABULARY)) / 64, s.Index.TOKENS)
        places = s.Table(self.floats(POSITIONS + 2, width), None, s.Index.COLUMNS, 2)
        return self.add(s.Embed, (whole, s.Table(self.floats(2, width), None, s.Index.TYPES), places))

    def quantize(self, source: int, width: int, **named: Any) -> int:
        given = {"smoothing": np.abs(self.floats(width)), "levels": 127, "zero": 128, "bounded": False, "least": 0.0}
        return self.add(s.Quantize, source, **(given | named))

    def product(self, source: int, inner: int, columns: int, *, most: int = 64) -> int:
        scales = np.abs(self.floats(columns)) / (64 * inner**0.5)
        return self.add(s.Product, source, self.codes(inner, columns, most=most), scales, self.floats(columns))

    def plan(self, source: int, width: int, pooling: s.Pooling | None = s.Pooling.MEAN) -> s.Plan:
        pooled = source if pooling is None else self.add(s.Pool, source, pooling)
        return s.Plan(tuple(self.steps), (s.Output("vector", pooled, width),))


def make_texts(lengths: Sequence[int], seed: int = 1) -> list[Text]:
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(0, VOCABULARY, n), rng.integers(0, 2, n), int(rng.integers(0, 3))) for n in lengths]


def run_program(program: Program, texts: Sequence[Text], threads: int = 1) -> np.ndarray:
    joined = [np.concatenate(parts).astype(np.int32) for parts in zip(*map(_spread, texts), strict=True)]
    starts = np.cumsum([0, *(len(text.ids) for text in texts)]).astype(np.int64)
    (made,) = program.run(joined[0], starts, types=joined[1], columns=joined[2], threads=threads)
    return made


def _spread(text: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return text.ids, text.types, text.column + np.arange(len(text.ids))


def make_encoder(layers: int = 2, width: int = 48) -> s.Plan:
    """Blocks of BERT, on weights drawn at random."""
    maker = Maker(3)
    rows = maker.add(s.Norm, maker.embed(width), maker.floats(width), maker.floats(width), 1e-12, True)
    for _ in range(layers):
        codes = maker.quantize(rows, width)
        parts = [maker.product(codes, width, width) for _ in range(3)]
        mixed = maker.quantize(maker.add(s.Attend, *parts, 4, 4, 0.3), width)
        rows = maker.add(s.Add, rows, maker.product(mixed, width, width))
        rows = maker.add(s.Norm, rows, maker.floats(width), maker.floats(width), 1e-12, True)
        inner = maker.add(s.Activate, maker.product(maker.quantize(rows, width), width, 3 * width), s.Function.GELU)
        settings = {"smoothing": None, "levels": 223, "zero": 32, "bounded": True, "least": 1.2}
        outer = maker.product(maker.quantize(inner, 3 * width, **settings), 3 * width, width)
        rows = maker.add(s.Norm, maker.add(s.Add, rows, outer), maker.floats(width), maker.floats(width), 1e-12, True)
    return maker.plan(maker.add(s.Unit, maker.add(s.Pool, rows, s.Pooling.MEAN), 1e-12), width, None)


def make_other_encoder(width: int = 24) -> s.Plan:
    """A block with all the steps that BERT's have not: rotations, norms of heads, gates, masks of all kinds."""
    maker = Maker(4)
    rows = maker.embed(width)
    angles = (100.0 ** -np.arange(3)).astype(np.float32)
    codes = maker.quantize(rows, width)
    joined = maker.product(codes, width, 2 * width)
    query, key = maker.add(s.Columns, joined, 0, width), maker.add(s.Columns, joined, width, width)
    query = maker.add(s.HeadNorm, query, 2, maker.floats(width // 2), maker.floats(width // 2), 1e-6, True)
    query, key = (
        maker.add(s.Rotate, part, 2, angles, 1.0, turn, s.Index.COLUMNS) for part, turn in ((query, False), (key, True))
    )
    narrow = maker.add(s.Columns, key, 0, width // 2)
    for settings in ({"causal": True}, {"window": 5}, {"bias": maker.floats(2, 9)}):
        mixed = maker.add(s.Attend, query, narrow, narrow, 2, 1, 0.3, **settings)
        rows = maker.add(s.Add, rows, mixed)
    gate = maker.add(s.Activate, maker.add(s.Dense, rows, maker.floats(width, width), None), s.Function.SILU)
    rows = maker.add(s.Affine, maker.add(s.Multiply, rows, gate), maker.floats(width), maker.floats(width))
    rows = maker.add(s.Norm, rows, maker.floats(width), None, 1e-6, False)
    first = maker.add(s.Pool, rows, s.Pooling.FIRST)
    last = maker.add(s.Attend, first, rows, rows, 2, 2, 0.3, first=True)
    return maker.plan(maker.add(s.Unit, last, 1e-12), width, None)


def try_changed(seed: int, kernels: str | None = None) -> np.ndarray | None:
    """The vectors of a plan of which one to three fields were changed; None where it is refused.

    They are of three texts with up to 90 tokens, on one to three threads, with types and columns or without.
    """
    rng = np.random.default_rng(seed)
    plan = make_encoder(1, 20) if rng.integers(2) else make_other_encoder()
    steps = list(plan.steps)
    texts = make_texts(rng.integers(1, POSITIONS - 3, 3).tolist(), seed)
    ids, types, columns = (np.concatenate(parts).astype(np.int32) for parts in zip(*map(_spread, texts), strict=True))
    starts = np.cumsum([0, *(len(text.ids) for text in texts)]).astype(np.int64)
    try:
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(steps)))
            steps[place] = _change(steps[place], rng)
        program = Program(s.Plan(tuple(steps), plan.outputs), max_tokens=POSITIONS, kernels=kernels)
        (made,) = program.run(
            ids,
            starts,
            types=types if rng.integers(2) else None,
            columns=columns if rng.integers(2) else None,
            threads=int(rng.integers(1, 4)),
        )
    except (PlanError, TypeError, AttributeError, IndexError, ValueError, ctypes.ArgumentError):
        return None
    return made


def _change(record: Any, rng: np.random.Generator) -> Any:
    """A step, or a table of one, with another value in one of its fields."""
    name = record.__struct_fields__[int(rng.integers(len(record.__struct_fields__)))]
    value = getattr(record, name)
    changed: Any
    if isinstance(value, np.ndarray):
        changed = value[..., :-1] if rng.integers(2) else np.concatenate([value, value], axis=-1)
    elif isinstance(value, tuple):
        changed = (*value[:-1], _change(value[-1], rng)) if rng.integers(2) else value + value
    elif isinstance(value, StrEnum):
        changed = rng.choice(list(type(value)))
        changed = type(value)(changed)
    elif isinstance(value, bool):
        changed = not value
    elif isinstance(value, int):
        changed = int(value + rng.integers(-3, 4)) if rng.integers(3) else int(rng.integers(-(2**33), 2**33))
    else:
        changed = float("nan") if rng.integers(2) else None
    return type(record)(**{field: getattr(record, field) for field in record.__struct_fields__} | {name: changed})
