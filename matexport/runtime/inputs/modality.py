"""How a family's items (texts, arrays) become the arrays that its graphs take: one interface for all modalities.

    items -> `prepare` -> rows -> (by `size`, into batches) -> `feed` -> arrays by input name

Whoever runs graphs knows this interface and nothing of what an item is: not the embedder, nor the judge, nor the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from matexport.family.integrity import Contents
from matexport.family.manifest import SCHEMA
from matexport.family.modality import NEWLINE_FILE, TOKENIZER
from matexport.spec.inputs import ArrayFacts, ImageFacts, InputFacts, PaddingSide, TextFacts
from matexport.spec.probe import AnyProbe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matexport.spec.parity import Prepared

#: A graph's inputs, by name.
Feeds: TypeAlias = "dict[str, NDArray[Any]]"

#: A file's name -> its content.
Read: TypeAlias = Callable[[str], bytes]

#: An item that was prepared: what it is, its modality alone knows.
Row: TypeAlias = Any

#: The ways of running that parity is checked in. In the order of the items and padded as the runtime pads; one at a
#: time; padded as the parent pads, where that is otherwise.
BATCHED, SINGLE, LEFT = "batched", "single", "left"

#: Rows per run in the batched ways: large enough that short and long items share a batch.
BATCH = 4


class Asked(NamedTuple):
    """How an item is to be read: with a prompt (None: the default one; "": none), or as a task's."""

    prompt: str | None = None
    task: str | None = None


#: As the parent reads an item when its users ask for nothing.
NOTHING_ASKED = Asked()


class Compared(NamedTuple):
    """What the probes' rows are against those of the parent's own preprocessing.

    Attributes:
        parity: None where the family keeps none of the parent's.
        rows: what graphs are judged on.
    """

    parity: Prepared | None
    rows: Sequence[Row]


class Inputs(Protocol):
    """What turns a family's items into its graphs' inputs."""

    @property
    def facts(self) -> InputFacts:
        """What it is made from."""

    @property
    def budget(self) -> int:
        """Size of what shares a run, where nobody says otherwise: sizes of its rows, each as large as the largest."""

    @property
    def short(self) -> Any:
        """An item that takes little to embed, for a clock."""

    def check(self, asked: Asked) -> None:
        """Raise RequestError where items cannot be read so."""

    def weigh(self, item: Any, index: int) -> int:
        """Characters or bytes of an item; raises RequestError where it is none. `index` names it in messages."""

    def prepare(self, items: Sequence[Any], asked: Asked = NOTHING_ASKED, *, first: int = 0) -> list[Row]:
        """Items as rows. `first` is what messages call the first of them.

        Raises:
            RequestError: one cannot be read, or cannot be read so.
        """

    def prepare_probe(self, probe: AnyProbe) -> Row:
        """A probe as a row, read as the probe says."""

    def unpack(self, probe: AnyProbe) -> Any:
        """A probe as an item; how it is to be read is left out."""

    def size(self, row: Row) -> int:
        """What a row counts in a run's budget."""

    def feed(self, rows: Sequence[Row], way: str = BATCHED) -> Feeds:
        """The graph's inputs for some rows, as a way of running has them (`BATCHED` and `SINGLE` feed alike)."""

    def gather(self, rows: Sequence[Row], found: NDArray[Any]) -> NDArray[Any]:
        """What a graph gave for `feed` of some rows, (fed, ...) -> (len(rows), numbers of an item).

        Where items have differing numbers of tokens, zeros stand behind those of an item: as many as the most has.
        """

    def trim(self, row: Row, vector: NDArray[Any], tokens: int) -> NDArray[Any]:
        """An item's numbers without those zeros: (most, dim) -> (own, dim), its views having `tokens` each."""

    def stretch(self, row: Row, size: int) -> Row:
        """A row like this one, of the given size: what a shape is timed on."""

    def compare_proof(self, contents: Contents, probes: Sequence[AnyProbe], rows: Sequence[Row]) -> Compared:
        """How the probes' rows here compare with those of the parent's own preprocessing.

        Raises:
            FamilyError: what the family keeps of those cannot be read.
        """


def open_inputs(contents: Contents) -> Inputs:
    """What turns the items of a family, whose files were checked, into inputs.

    Raises:
        FamilyError: a file of it cannot be read by the version of the library that is installed.
    """
    facts = contents.family.facts
    return _LOADERS[type(facts.inputs)](lambda name: bytes(contents.read(name)), facts.inputs, facts.schema)


def load_inputs(folder: Path, facts: InputFacts) -> Inputs:
    """As `open_inputs`, of a folder that is being made and has no manifest yet."""
    return _LOADERS[type(facts)](lambda name: (folder / name).read_bytes(), facts, SCHEMA)


def list_ways(facts: InputFacts) -> Mapping[str, int]:
    """The ways of running that a family is checked in, and how many rows share a run in each."""
    together = 1 if facts.alone else BATCH
    ways = {BATCHED: together, SINGLE: 1}
    return ways | {LEFT: together} if getattr(facts, "padding_side", None) is PaddingSide.LEFT else ways


def _load_text(read: Read, facts: InputFacts, schema: int) -> Inputs:
    from matexport.runtime.inputs.text import TextInputs
    from matexport.runtime.inputs.tokenizer import load_tokenizer

    assert isinstance(facts, TextFacts)
    return TextInputs(load_tokenizer(read(TOKENIZER), facts), schema)


def _load_array(_read: Read, facts: InputFacts, _schema: int) -> Inputs:
    from matexport.runtime.inputs.array import ArrayInputs

    assert isinstance(facts, ArrayFacts)
    return ArrayInputs(facts)


def _load_image(read: Read, facts: InputFacts, _schema: int) -> Inputs:
    assert isinstance(facts, ImageFacts)
    if facts.tiles is None:
        from matexport.runtime.inputs.whole_image import make_image_inputs

        return make_image_inputs(facts)
    from matexport.runtime.inputs.image import ImageInputs
    from matexport.runtime.inputs.tiles import read_newline

    return ImageInputs(facts, read_newline(read(NEWLINE_FILE)))


_LOADERS: Mapping[type, Callable[[Read, InputFacts, int], Inputs]] = {
    TextFacts: _load_text,
    ArrayFacts: _load_array,
    ImageFacts: _load_image,
}
