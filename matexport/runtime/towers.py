"""Texts and images -> vectors of one space, with one profile of a model that has two towers (CLIP, SigLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.family.towers import TwoTowers, load_towers
from matexport.io.files import ENDINGS
from matexport.runtime.embedder import Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TwoTowerEmbedder:
    """One profile of both towers, ready to embed: the dot product of a text's and an image's vector is their score.

    What a model scales that product by (CLIP's and SigLIP's ``logit_scale``, and SigLIP's bias) changes no ranking, and
    is left to whoever needs probabilities.

    Args:
        towers: the folder of two families, or what `load_towers` gave.
        profile: name of a profile of the images; may be left out when there is only one.
        threads: of each run; all CPUs of this process by default.

    Attributes:
        text, image: the `Embedder` of each tower.

    Raises:
        FamilyError: there is no such profile, or its files are not the ones that were exported.
    """

    def __init__(
        self, towers: TwoTowers | Path | str, profile: str | None = None, *, threads: int | None = None
    ) -> None:
        self.towers = towers if isinstance(towers, TwoTowers) else load_towers(towers)
        text, self.profile = self.towers.find(profile)
        self.text = Embedder(self.towers.text, text, threads=threads)
        self.image = Embedder(self.towers.image, self.profile, threads=threads)
        self.dim = self.image.dim

    def embed(self, items: Sequence[Any]) -> NDArray[Any]:
        """Embed texts and images, in any order.

        Args:
            items: a string is a text; a `Path`, a file's bytes, a Pillow image or an (H, W, 3) uint8 array an image.

        Returns:
            (len(items), dim) float32, or codes, in the order of the items; see `Embedder.embed`.

        Raises:
            RequestError: an item is neither, or cannot be read; a string names an image file.
        """
        import numpy as np

        for index, item in enumerate(items):
            if isinstance(item, str) and item.lower().endswith(tuple(ENDINGS)) and Path(item).is_file():
                raise RequestError(
                    f"item {index} is the text {item!r}, which is the name of a file: give Path({item!r})"
                )
        texts = [index for index, item in enumerate(items) if isinstance(item, str)]
        images = [index for index, item in enumerate(items) if not isinstance(item, str)]
        found = [self.text.embed([items[at] for at in texts]), self.image.embed([items[at] for at in images])]
        vectors: NDArray[Any] = np.empty((len(items), *found[0].shape[1:]), found[0].dtype)
        vectors[texts], vectors[images] = found
        return vectors

    def close(self) -> None:
        """Give both sessions back."""
        self.text.close()
        self.image.close()

    def __enter__(self) -> TwoTowerEmbedder:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
