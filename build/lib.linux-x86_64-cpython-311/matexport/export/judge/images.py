"""The judges of vision towers, and of the text towers beside them: transformers' own processor, tokenizer and models.

Each is a process that shares no code with ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from matexport.export.judge.process import JudgeProcess
from matexport.spec.readout import PoolingMode

_CHILD = Path(__file__).with_name("image_child.py")
_CHECKPOINT = Path(__file__).with_name("checkpoint_child.py")
_TEXTS = Path(__file__).with_name("text_tower_child.py")


class ImageJudge(JudgeProcess):
    """The process, with one tower open in it.

    Args:
        root: the parent's folder.
        source: what messages call it.
        tokens: it is a LLaVA, whose tower and projector are read.
    """

    def __init__(self, root: Path, source: str, *, tokens: bool = False) -> None:
        super().__init__({"do": "open", "folder": str(root), "tokens": tokens}, source, script=_CHILD)

    def read(
        self,
        files: Sequence[Path],
        depths: Sequence[int],
        pooling: PoolingMode,
        *,
        drops: bool,
        image_size: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """``pixels``, (n, 3, H, W) float32, and for each depth ``layers_k``, (n, W) float32, of each file alone.

        Of patches, ``layers_k`` is (n, patches, W).

        Args:
            drops: the final norm is not applied before the last block.
            image_size: side of the images, where it is not the processor's own.

        Raises:
            ParentError: the library cannot open the parent, or a file.
        """
        request = {"do": "read", "files": [str(file) for file in files], "depths": list(depths)}
        return self.ask({**request, "pooling": str(pooling), "drops": drops, "image_size": image_size})

    def read_tokens(self, files: Sequence[Path], counts: Sequence[int]) -> dict[str, NDArray[Any]]:
        """What is made of each file alone: all their views, 1 or as many as it has tiles and one more, and tokens.

        ``pixels``, (views of all files, 3, H, W) float32, and ``views``, (n,), how many each file has; for each count
        ``tokens_s``, (tokens of all files, W) float32, and ``lengths_s``, (n,).

        Raises:
            ParentError: the library cannot open the parent, or a file.
        """
        return self.ask({"do": "read", "files": [str(file) for file in files], "counts": list(counts)})


class CheckpointJudge(JudgeProcess):
    """The process, with a checkpoint's weights open in it: of a classifier, or of Franca.

    Args:
        file: its weights.
        source: what messages call it.
        heads: it is a classifier on a ViT, whose names are those of Franca.
    """

    def __init__(self, file: Path, source: str, *, heads: bool = False) -> None:
        super().__init__({"do": "open", "weights": str(file), "heads": heads}, source, script=_CHECKPOINT)

    def classify(
        self, files: Sequence[Path], dims: Sequence[int], *, image_size: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """``pixels`` (n, 3, H, W), ``features`` (n, W) and, for each dim, ``logits_m`` (n, classes), of files alone.

        Raises:
            ParentError: the weights or a file cannot be read.
        """
        request = {"do": "read", "files": [str(file) for file in files], "dims": list(dims)}
        return self.ask({**request, "image_size": image_size})

    def read_tower(
        self,
        files: Sequence[Path],
        depths: Sequence[int],
        pooling: PoolingMode,
        *,
        drops: bool,
        image_size: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """As `ImageJudge.read`, of Franca.

        Raises:
            ParentError: the weights or a file cannot be read.
        """
        request = {"do": "read", "files": [str(file) for file in files], "depths": list(depths)}
        return self.ask({**request, "pooling": str(pooling), "drops": drops, "image_size": image_size})


class TextTowerJudge(JudgeProcess):
    """The process, with a text tower open in it.

    Args:
        root: the parent's folder.
        source: what messages call it.
    """

    def __init__(self, root: Path, source: str) -> None:
        super().__init__({"do": "open", "folder": str(root)}, source, script=_TEXTS)

    def read(
        self, texts: Sequence[str], depths: Sequence[int], limit: int, *, drops: bool
    ) -> tuple[list[list[int]], dict[int, NDArray[Any]]]:
        """The token ids of each text, cut at `limit`, and for each depth its vectors, (n, W) float32, each text alone.

        Args:
            drops: the final norm is not applied before the last block.

        Raises:
            ParentError: the library cannot open the parent, or tokenize a text.
        """
        found = self.ask({"do": "read", "texts": list(texts), "depths": list(depths), "limit": limit, "drops": drops})
        ends = found["counts"].cumsum().tolist()
        rows = [found["ids"][start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]
        return rows, {depth: found[f"layers_{depth}"] for depth in depths}
