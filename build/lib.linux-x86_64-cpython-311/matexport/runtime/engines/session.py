"""What a session is, whatever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Session(Protocol):
    """A graph that is ready to run. May be used by several threads."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> Sequence[NDArray[Any]]:
        """The arrays of some outputs, in their order.

        Args:
            outputs: names of outputs of the graph.
            feeds: an array for each of the graph's inputs, by name.
        """
