"""Where a parent's own files say that it was trained to be read.

Three files may: `matryoshka.json`, which says it outright, in the words of a job's ``[trained]``; the model card that
sentence-transformers writes, where each loss stands with its parameters; and a ``truncate_dim``, to which the parent's
users have its vectors cut. The first that says anything counts. Nothing is concluded from names.

All three are a stranger's: read up to a size, held to the parent's depth and width, and what is odd is left out with a
sentence about it. A card cannot make this fail. Only JSON and text are read here, and no torch is needed.
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeGuard

from matexport.export.parents.folder.files import SETTINGS
from matexport.io.proposal import Trained
from matexport.spec.profile import Point

CARD, STATED = "README.md", "matryoshka.json"
#: Bytes that are read of a file; cards of thousands of lines have a tenth of it.
MOST_BYTES = 1 << 20
#: Losses of a card, lines and characters of one loss's parameters, and numbers in one list.
MOST_LOSSES, MOST_LINES, MOST_CHARACTERS, MOST_NUMBERS = 64, 1024, 1 << 16, 256

_LOSS = re.compile(r"\* Loss: [^<]{0,8}<code>([\w.]{1,200})</code>")
_TAG = re.compile(r"- loss:(\w{1,200})")
_PARAMETERS = "with these parameters:"


@dataclass(frozen=True)
class Shape:
    """What claims are held to: how many blocks a parent has, and how many coordinates its users see."""

    blocks: int
    width: int

    @property
    def depths(self) -> tuple[int, ...]:
        """After which blocks it can be read."""
        return tuple(range(1, self.blocks + 1)) or (0,)


@dataclass
class _Reading:
    """A file being read: what it is held to, and what was odd in it."""

    shape: Shape
    file: str
    odd: list[str] = field(default_factory=list)

    def complain(self, sentence: str) -> None:
        self.odd.append(f"{self.file}: {sentence}")

    def take(self, value: object, allowed: Sequence[int], what: str) -> tuple[int, ...]:
        """The numbers of a list that a parent has, sorted; none where there is no such list."""
        if not isinstance(value, list) or not value or len(value) > MOST_NUMBERS:
            self.complain(f"{what} is {_show(value)}, which is no list of at most {MOST_NUMBERS} numbers")
            return ()
        good = sorted({number for number in value if _is_whole(number) and number in allowed})
        bad = [number for number in value if not (_is_whole(number) and number in allowed)]
        if bad:
            self.complain(f"{what} names {_show(bad)}; this parent has {allowed[0]} to {allowed[-1]}")
        return tuple(good)

    def take_dims(self, value: object, what: str) -> tuple[int, ...]:
        return self.take(value, range(1, self.shape.width + 1), what)


def find_trained(root: Path, shape: Shape) -> tuple[Trained | None, tuple[str, ...]]:
    """What the files in a parent's folder say, and a sentence for each thing in them that is odd."""
    odd: list[str] = []
    for file, read in _READERS.items():
        reading = _Reading(shape, file)
        trained = read(root / file, reading)
        odd += reading.odd
        if trained is not None:
            return trained, tuple(odd)
    return None, tuple(odd)


def read_small_json(path: Path) -> Any:
    """What a JSON file of at most a mebibyte holds; None where there is none, whatever lies there."""
    text = _read_text(path)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The same where it is an object, else None."""
    content = read_small_json(path)
    return content if isinstance(content, dict) else None


def _read_stated(path: Path, reading: _Reading) -> Trained | None:
    """``pairs``, or ``layers`` and ``dims``, of which one alone means the whole of the other."""
    content = read_object(path)
    if content is None:
        if os.path.lexists(path):
            reading.complain(f"is no JSON object of at most {MOST_BYTES} bytes")
        return None
    if "pairs" in content:
        return _make(_take_pairs(content["pairs"], reading), reading.file)
    if not {"layers", "dims"} & content.keys():
        reading.complain("has neither pairs nor layers nor dims")
        return None
    depths, width = reading.shape.depths, reading.shape.width
    layers = reading.take(content["layers"], depths, "layers") if "layers" in content else depths[-1:]
    dims = reading.take_dims(content["dims"], "dims") if "dims" in content else (width,)
    return _make(product(layers, dims), reading.file)


def _take_pairs(value: object, reading: _Reading) -> list[tuple[int, int]]:
    if not isinstance(value, list) or len(value) > MOST_NUMBERS:
        reading.complain(f"pairs is {_show(value)}, which is no list of at most {MOST_NUMBERS} pairs")
        return []
    depths, dims = reading.shape.depths, range(1, reading.shape.width + 1)

    def is_good(pair: object) -> bool:
        return (
            isinstance(pair, list) and len(pair) == 2 and all(_is_whole(number) for number in pair)
            and pair[0] in depths and pair[1] in dims
        )  # fmt: skip

    if bad := [pair for pair in value if not is_good(pair)]:
        reading.complain(
            f"pairs names {_show(bad)}; this parent has {depths[0]} to {depths[-1]} layers, and 1 to {dims[-1]} dims"
        )
    return [(pair[0], pair[1]) for pair in value if is_good(pair)]


def _read_card(path: Path, reading: _Reading) -> Trained | None:
    """The losses of a card that sentence-transformers wrote; several, for several data sets, add up."""
    text = _read_text(path)
    if text is None:
        if os.path.lexists(path):
            reading.complain(f"is no text of at most {MOST_BYTES} bytes")
        return None
    lines = text.splitlines()
    points: set[Point] = set()
    names: list[str] = []
    for name, parameters in islice(_list_losses(lines), MOST_LOSSES):
        meaning = _LOSSES.get(name)
        if meaning is None:
            continue
        found = set(meaning(parameters, reading))
        points |= found
        names += [name] if found and name not in names else []
    if not points:
        _mention_tags(lines, reading)
        return None
    raw = any(name in _READ_RAW for name in names)
    return Trained(tuple(sorted(points)), f"{reading.file} ({' and '.join(names)})", raw)


def _list_losses(lines: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each loss by the last part of its name, with its parameters; None where they are no JSON."""
    for place, line in enumerate(lines):
        match = _LOSS.match(line.strip()[:1000])
        if match:
            follows = lines[place + 1 : place + 1 + MOST_LINES] if line.rstrip().endswith(_PARAMETERS) else []
            yield match[1].rpartition(".")[2], _read_parameters(follows)


def _read_parameters(lines: Sequence[str]) -> dict[str, Any] | None:
    """The JSON between two fences, of which the first is the first line."""
    if not lines or lines[0].strip() != "```json":
        return None
    end = next((place for place, line in enumerate(lines) if place and line.strip() == "```"), 0)
    text = "\n".join(lines[1:end])
    try:
        parameters = json.loads(text) if len(text) <= MOST_CHARACTERS else None
    except (ValueError, RecursionError):
        return None
    return parameters if isinstance(parameters, dict) else None


def _read_dims(name: str, parameters: dict[str, Any] | None, reading: _Reading) -> tuple[int, ...]:
    if parameters is None or "matryoshka_dims" not in parameters:
        reading.complain(f"{name} stands there without matryoshka_dims that can be read")
        return ()
    return reading.take_dims(parameters["matryoshka_dims"], f"matryoshka_dims of {name}")


def _mean_matryoshka(parameters: dict[str, Any] | None, reading: _Reading) -> Iterator[Point]:
    """Leading coordinates of the whole parent."""
    dims = _read_dims("MatryoshkaLoss", parameters, reading)
    return (Point(reading.shape.depths[-1], dim) for dim in dims)


def _mean_matryoshka_2d(parameters: dict[str, Any] | None, reading: _Reading) -> Iterator[Point]:
    """Each dim after each block: whichever are drawn at a step, over a training it is all of them."""
    dims = _read_dims("Matryoshka2dLoss", parameters, reading)
    return (Point(*pair) for pair in product(reading.shape.depths, dims))


def _mean_adaptive_layer(parameters: dict[str, Any] | None, reading: _Reading) -> Iterator[Point]:
    """All coordinates after each block. A loss inside of it does not say its own parameters."""
    if (parameters or {}).get("loss") == "MatryoshkaLoss":
        reading.complain("AdaptiveLayerLoss holds a MatryoshkaLoss, whose dims a card does not say")
    return (Point(depth, reading.shape.width) for depth in reading.shape.depths)


def _mean_starbucks(parameters: dict[str, Any] | None, reading: _Reading) -> Iterator[Point]:
    """Layers and dims go in pairs."""
    given = [(parameters or {}).get(f"matryoshka_{name}") for name in ("layers", "dims")]
    layers, dims = given
    if not isinstance(layers, list) or not isinstance(dims, list) or len(layers) != len(dims):
        reading.complain("StarbucksLoss stands there without as many matryoshka_layers as matryoshka_dims")
        return iter(())
    pairs = [list(pair) for pair in zip(layers, dims, strict=True)]
    return (Point(*pair) for pair in _take_pairs(pairs, reading))


_LOSSES: dict[str, Callable[[dict[str, Any] | None, _Reading], Iterator[Point]]] = {
    "MatryoshkaLoss": _mean_matryoshka,
    "Matryoshka2dLoss": _mean_matryoshka_2d,
    "AdaptiveLayerLoss": _mean_adaptive_layer,
    "StarbucksLoss": _mean_starbucks,
}
#: Losses that pool the hidden states of early blocks as they are, without the final norm of a pre-norm parent
#: (`TransformerDecorator` of sentence-transformers' AdaptiveLayerLoss).
_READ_RAW = {"Matryoshka2dLoss", "AdaptiveLayerLoss"}


def _mention_tags(lines: Sequence[str], reading: _Reading) -> None:
    """A card whose text was rewritten often keeps its tags, which say less."""
    named = (match[1] for line in lines if (match := _TAG.fullmatch(line.strip()[:300])))
    tags = sorted({name for name in named if name in _LOSSES})
    if tags and not reading.odd:
        reading.complain(f"is tagged {' and '.join(tags)}, but does not say the loss's parameters")


def _read_truncation(path: Path, reading: _Reading) -> Trained | None:
    """The parent's users have its vectors cut to so many coordinates; `Shape.width` is no more than that."""
    cut = (read_object(path) or {}).get("truncate_dim")
    if not _is_whole(cut) or cut not in range(1, reading.shape.width + 1):
        return None  # export has its own word on a value that is none
    return Trained((Point(reading.shape.depths[-1], cut),), f"{reading.file} (truncate_dim)")


_READERS: dict[str, Callable[[Path, _Reading], Trained | None]] = {
    STATED: _read_stated,
    CARD: _read_card,
    SETTINGS: _read_truncation,
}


def _make(pairs: Any, source: str) -> Trained | None:
    points = tuple(sorted({Point(*pair) for pair in pairs}))
    return Trained(points, source) if points else None


def _read_text(path: Path) -> str | None:
    """A file of at most a mebibyte of UTF-8; None where there is none."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        return content.decode("utf-8") if len(content) <= MOST_BYTES else None
    except (OSError, ValueError):
        return None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _show(value: object) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # it was parsed with less on the stack
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
