"""What turns an item into a graph's inputs: one record for each modality, as ``family.json`` has them.

Data only, as all of `spec`; `runtime.inputs` does what they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, TypeAlias

import msgspec

from matexport.spec.probe import Dtype
from matexport.spec.record import Record


class PaddingSide(StrEnum):
    """The side on which the parent's tokenizer pads a batch."""

    RIGHT = "right"
    LEFT = "left"


#: What a text may be to a parent that tells them apart, as sentence-transformers calls it.
TASKS = ("query", "document")


class TaskFacts(Record, frozen=True):
    """What the parent does with the texts of a task, where it tells queries from documents.

    Attributes:
        prompt: name of the prompt put before them; ``""`` for none, None for the default prompt.
        max_tokens: their own limit; None for that of all texts.
    """

    prompt: str | None = None
    max_tokens: int | None = None


class Frame(Record, frozen=True):
    """What a chat template puts around a text. `ending` are the token ids that a text which was cut ends in again."""

    before: str
    after: str
    ending: tuple[int, ...] = ()


class ChatFacts(Record, frozen=True):
    """A chat template, written out for each prompt.

    Attributes:
        frames: name of a prompt -> what stands around a text; under ``""`` what does without a prompt.
        strips: where white space is taken off a text first: ``left``, ``right``, ``both``, or ``""`` for nowhere.
    """

    frames: Mapping[str, Frame]
    strips: str = ""


#: `TextFacts.max_tokens` of a parent that takes texts of any length: the largest that the tokenizers library counts to.
NO_LIMIT = (1 << 31) - 1


class TextFacts(Record, frozen=True):
    """What turns a text into the graph's inputs.

    Attributes:
        inputs: names of the graph's inputs, each (batch_size, sequence_length) int64.
        max_tokens: longer token sequences are cut, special tokens counted; `NO_LIMIT` where none are.
        padding_side: the parent's own; every graph takes right padding too.
        prompts: name -> text put before the input; it may be empty.
        default_prompt: name of the prompt used when none is asked for.
        cuts: the side on which a text that is too long loses tokens.
        special_tokens: whether the tokenizer adds its special tokens.
        tasks: some of `TASKS`, where the parent treats them otherwise than other texts.
        chat: the parent's chat template, if its texts go through one. The prompt is then inside of the frame.
        route: of a parent that routes its texts; a task that is not among `tasks` takes another route.
        unpooled: name of a prompt -> how many leading tokens are left out of the pooling with it. None where the
            parent pools its prompts; else the graph has an input ``pooling_mask``.
        full: every row has `max_tokens` tokens: the parent attends to what pads it, and graphs take no other length.
        padded: graphs take one text in a run, padded to `max_tokens` and masked; the parent takes any length.
    """

    inputs: tuple[str, ...]
    max_tokens: int
    padding_side: PaddingSide
    pad_token_id: int
    prompts: Mapping[str, str]
    default_prompt: str | None = None
    cuts: PaddingSide = PaddingSide.RIGHT
    special_tokens: bool = True
    tasks: Mapping[str, TaskFacts] = msgspec.field(default_factory=dict)
    chat: ChatFacts | None = None
    route: str | None = None
    unpooled: Mapping[str, int] | None = None
    full: bool = False
    padded: bool = False

    #: What one vector is of, in words.
    noun: ClassVar[str] = "text"

    @property
    def alone(self) -> bool:
        """Whether a text has a run to itself."""
        return self.padded

    @property
    def one_length(self) -> bool:
        """Whether graphs take rows of `max_tokens` tokens and no others."""
        return self.full or self.padded

    @property
    def dims(self) -> tuple[int, ...]:
        """Of each of the graph's inputs; 0 where any length is taken."""
        return (int(self.padded), self.max_tokens if self.one_length else 0)

    @property
    def longest(self) -> int:
        """The largest size (tokens) of what one vector is of."""
        return self.max_tokens

    def describe(self) -> str:
        """What is taken, in words."""
        if self.max_tokens == NO_LIMIT:
            return "texts of any length"
        said = f"up to {self.max_tokens} tokens" + (", the last ones" if self.cuts is PaddingSide.LEFT else "")
        return f"{said}; graphs take one text, padded to {self.max_tokens}" if self.padded else said


class ArrayFacts(Record, frozen=True):
    """A graph that takes arrays as they are: features that something else computed, or pixels.

    Attributes:
        input: name of the graph's one input, (batch_size, *shape).
        shape: of what one vector is of.
    """

    input: str
    shape: tuple[int, ...]
    dtype: Dtype = Dtype.FLOAT32

    noun: ClassVar[str] = "array"
    alone: ClassVar[bool] = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return (self.input,)

    @property
    def dims(self) -> tuple[int, ...]:
        """Of the graph's input; 0 where any length is taken."""
        return (0, *self.shape)

    @property
    def longest(self) -> int:
        """All arrays have one size."""
        return 1

    def describe(self) -> str:
        """What is taken, in words."""
        return f"{self.dtype} of shape ({', '.join(map(str, self.shape))})"


class Resampling(StrEnum):
    """How an image is brought to another size: the filters of Pillow, each with its support scaled (antialias)."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


#: The longest side of an image whose preparation is in the graph: what is worked out for it grows with its sides.
LONGEST_SIDE = 1 << 15


class TileFacts(Record, frozen=True):
    """How an image is cut into tiles, each as large as the graph takes, and their tokens are merged again: LLaVA-NeXT.

    Attributes:
        pinpoints: (height, width) of what an image may be fitted into, multiples of a tile's side; the order decides
            between two that fit alike.
    """

    pinpoints: tuple[tuple[int, int], ...]


class ImageFacts(Record, frozen=True):
    """What turns an image into pixels, (batch_size, 3, height, width) float32, in front of the graph or inside of it.

    In this order, as transformers does: the orientation that a camera noted is applied and the image converted to RGB;
    it is padded to a square; resized; cut at its centre to (height, width), with black around it where it is smaller;
    and each grey level g of a channel becomes (g * scale - mean) / std.

    Attributes:
        input: name of the graph's one input.
        resized: (shorter side,), the longer one in proportion and rounded down; (height, width); or () for no resizing.
        square: the colour that an image is padded with to a square, which it is then in the middle of; None for none.
        mean, std: of each channel, in units of `scale`.
        in_graph: whether the graph itself does all that comes after the conversion to RGB. Its input is one image then,
            (1, H, W, 3) uint8 with sides of up to `LONGEST_SIDE`, and else the pixels.
        tiles: of a parent that is given the whole image, resized, and its tiles behind it; the batch of the graph is
            then one of tiles. None for one view of each image.
    """

    input: str
    height: int
    width: int
    resized: tuple[int, ...]
    resampling: Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: tuple[int, ...] | None = None
    in_graph: bool = False
    tiles: TileFacts | None = None

    noun: ClassVar[str] = "image"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return (self.input,)

    @property
    def alone(self) -> bool:
        """Whether an image has a run to itself: images of different sizes cannot share one."""
        return self.in_graph

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's pixels, once they are prepared."""
        return (3, self.height, self.width)

    @property
    def dims(self) -> tuple[int, ...]:
        """Of the graph's input; 0 where any length is taken."""
        return (1, 0, 0, 3) if self.in_graph else (0, *self.shape)

    @property
    def longest(self) -> int:
        """All images have one size."""
        return 1

    @property
    def most_views(self) -> int:
        """How often the graph runs for one image, at most: once, or for the whole image and each tile."""
        return 1 + max((rows * columns for rows, columns in self._list_grids()), default=0)

    def count_most_tokens(self, tokens: int) -> int:
        """How many visual tokens an image has at most, where each of its views has so many (a square number).

        Of tiles: those of the whole image, then each row of the merged ones with one more behind it.
        """
        side = math.isqrt(tokens)
        merged = (rows * side * (columns * side + 1) for rows, columns in self._list_grids())
        return tokens + max(merged, default=0)

    def _list_grids(self) -> list[tuple[int, int]]:
        pinpoints = self.tiles.pinpoints if self.tiles else ()
        return [(height // self.height, width // self.width) for height, width in pinpoints]

    def count_patches(self, side: int) -> int:
        """How many patches of side x side a graph's image has."""
        return (self.height // side) * (self.width // side)

    def describe(self) -> str:
        """What is taken, in words."""
        return f"{self.describe_steps()}, inside of the graph" if self.in_graph else self.describe_steps()

    def describe_steps(self) -> str:
        """What is done to an image, wherever that is."""
        said = "image files of any size"
        if self.tiles is not None:
            pinpoints = ", ".join(f"{height} x {width}" for height, width in self.tiles.pinpoints)
            return (
                f"{said}, resized to {self.height} x {self.width} ({self.resampling}), and fitted into one of "
                f"{pinpoints} and cut into tiles"
            )
        if self.square is not None:
            said += ", padded to a square"
        if len(self.resized) == 1:
            said += f", the shorter side resized to {self.resized[0]} ({self.resampling})"
        elif self.resized:
            said += f", resized to {self.resized[0]} x {self.resized[1]} ({self.resampling})"
        return said if self.resized == (self.height, self.width) else f"{said}, cut to {self.height} x {self.width}"


#: What turns an item into a graph's inputs: one record for each modality.
InputFacts: TypeAlias = TextFacts | ArrayFacts | ImageFacts

#: The fields of `FamilyFacts` of which a family has exactly one.
MODALITIES = ("text", "array", "image")
