"""Images for graphs that prepare them themselves: decoded, upright and RGB, and otherwise as they are; one in each run.

    file -> Pillow: orientation, RGB -> (H, W, 3) uint8: a row -> (1, H, W, 3) uint8

What was decoded is as large as the image, so rows weigh what they are, and a window of items holds few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.runtime.inputs.image import ImageInputs, PreparedImage, open_image
from matexport.runtime.inputs.modality import BATCHED, Feeds
from matexport.spec.inputs import LONGEST_SIDE, ImageFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

#: What a row counts in a run's budget, which nobody asks to be so large: none shares a run.
WHOLE_RUN = 1 << 62


class WholeImageInputs(ImageInputs):
    """Decodes, and leaves the rest to the graph. Items are those of `ImageInputs`; a row is an (H, W, 3) uint8 array.

    Raises:
        MissingExtraError: Pillow is not installed.
    """

    budget = 1

    def weigh(self, item: Any, index: int) -> int:
        """Bytes of the file and of what is in it, decoded."""
        if isinstance(item, PreparedImage):
            return int(item.row.nbytes)
        given = super().weigh(item, index)
        if hasattr(item, "size") and hasattr(item, "convert"):
            width, height = item.size
            return int(3 * width * height)
        if hasattr(item, "__array__"):
            return given
        try:
            with open_image(item, index) as opened:  # reads its head alone
                return given + 3 * opened.width * opened.height
        except Exception:  # `prepare` says what is wrong with it
            return given

    def size(self, _row: NDArray[Any]) -> int:
        """A run to itself."""
        return WHOLE_RUN

    def feed(self, rows: Sequence[NDArray[Any]], _way: str = BATCHED) -> Feeds:
        """(1, H, W, 3) uint8 under the input's name.

        Raises:
            RequestError: there is not one row.
        """
        if len(rows) != 1:
            raise RequestError(f"{len(rows)} images were given to one run; a graph that prepares images takes one")
        return {self.facts.input: rows[0][None]}

    def _fit(self, image: Image.Image, name: str) -> NDArray[Any]:
        """An RGB image as it is."""
        import numpy as np

        if max(image.size) > LONGEST_SIDE:
            raise RequestError(
                f"{name} has {image.width} x {image.height} pixels; graphs that prepare images take sides of up to "
                f"{LONGEST_SIDE}"
            )
        return np.ascontiguousarray(image)


def make_image_inputs(facts: ImageFacts) -> ImageInputs:
    """What turns images into what a family's graphs take."""
    return WholeImageInputs(facts) if facts.in_graph else ImageInputs(facts)
