"""Arrays -> the array that a graph takes: of one shape and type, stacked. Nothing is done to their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.runtime.inputs.modality import BATCHED, NOTHING_ASKED, Asked, Compared, Feeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matexport.family.integrity import Contents
    from matexport.spec.inputs import ArrayFacts
    from matexport.spec.probe import AnyProbe

#: Arrays per run: a matrix product gains nothing from more rows.
BATCH_ARRAYS = 32


class ArrayInputs:
    """Stacks arrays. An item is what numpy reads as an array of `facts.shape`; a row is that array in `facts.dtype`."""

    budget = BATCH_ARRAYS

    def __init__(self, facts: ArrayFacts) -> None:
        self.facts = facts

    @property
    def short(self) -> NDArray[Any]:
        """An array of ones."""
        import numpy as np

        return np.ones(self.facts.shape, self.facts.dtype)

    def check(self, asked: Asked) -> None:
        """Raise RequestError for a prompt or a task."""
        if asked.prompt or asked.task:
            how = f"prompt {asked.prompt!r}" if asked.prompt else f"task {asked.task!r}"
            raise RequestError(f"{how} was asked; this family takes arrays ({self.facts.describe()}), which have none")

    def weigh(self, item: Any, index: int) -> int:
        """Bytes of an array."""
        return int(self._read(item, index).nbytes)

    def prepare(self, items: Sequence[Any], asked: Asked = NOTHING_ASKED, *, first: int = 0) -> list[NDArray[Any]]:
        """Arrays of the family's shape and type.

        Raises:
            RequestError: one has another shape, or numbers that the type does not hold, or a prompt or task was asked.
        """
        self.check(asked)
        return [self._read(item, index) for index, item in enumerate(items, first)]

    def prepare_probe(self, probe: AnyProbe) -> NDArray[Any]:
        """A probe's array."""
        return self.unpack(probe)

    def unpack(self, probe: AnyProbe) -> NDArray[Any]:
        """A probe's array."""
        import numpy as np

        flat: NDArray[Any] = np.frombuffer(probe.content, np.dtype(probe.dtype).newbyteorder("<"))  # type: ignore[union-attr]
        return flat.astype(self.facts.dtype).reshape(self.facts.shape)

    def size(self, _row: NDArray[Any]) -> int:
        """All count alike."""
        return 1

    def feed(self, rows: Sequence[NDArray[Any]], _way: str = BATCHED) -> Feeds:
        """(len(rows), *shape) under the input's name."""
        import numpy as np

        return {self.facts.input: np.stack(rows)}

    def gather(self, rows: Sequence[NDArray[Any]], found: NDArray[Any]) -> NDArray[Any]:
        """A row of numbers for each."""
        return found.reshape(len(rows), -1)

    def trim(self, _row: NDArray[Any], vector: NDArray[Any], _tokens: int) -> NDArray[Any]:
        """All of them."""
        return vector

    def stretch(self, row: NDArray[Any], _size: int) -> NDArray[Any]:
        """The row: all have one size."""
        return row

    def compare_proof(self, _contents: Contents, _probes: Sequence[AnyProbe], rows: Sequence[NDArray[Any]]) -> Compared:
        """Nothing is done to an array that could be done otherwise."""
        return Compared(None, rows)

    def _read(self, item: Any, index: int) -> NDArray[Any]:
        import numpy as np

        facts = self.facts
        try:
            array = np.asarray(item)
        except (ValueError, TypeError):  # lists of unequal length
            raise RequestError(f"array {index} is no array; {facts.describe()} is taken") from None
        if array.shape != facts.shape or array.dtype.kind not in "biuf":
            raise RequestError(f"array {index} is {array.dtype} of shape {array.shape}; {facts.describe()} is taken")
        if array.dtype == facts.dtype:
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(facts.dtype)
            # Whole numbers must stay what they are; of fractions a float may round, but none may become infinite.
            fractions = cast.dtype.kind == "f"
            kept = np.isfinite(cast) == np.isfinite(array) if fractions else cast.astype(array.dtype) == array
        if not kept.all():
            lost = f"{array[~kept][0]}, which {facts.dtype} does not"
            raise RequestError(f"array {index} holds {lost}; {facts.describe()} is taken")
        return cast
