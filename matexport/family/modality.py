"""What a family keeps on disk of its inputs, by modality: which files, what is checked of its facts, and the probes.

`FamilyFacts` has one field for each modality; the modules of `runtime.inputs` turn items into arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from matexport.errors import RequestError
from matexport.spec.facts import POOLING_MASK, FamilyFacts
from matexport.spec.inputs import TASKS, ArrayFacts, Frame, ImageFacts, TextFacts, TileFacts
from matexport.spec.probe import AnyProbe, ArrayProbe, Dtype, ImageProbe

if TYPE_CHECKING:
    from matexport.family.weights_file import Buffer
    from matexport.spec.probe import Probe

TOKENIZER = "tokenizer.json"
PROBES = "probes.jsonl"
ARRAY_PROBES = "probes.safetensors"
IMAGE_FILES = ("config.json", "preprocessor_config.json")

#: The vector behind each row of merged tiles, (dim,) float32 under `NEWLINE`.
NEWLINE_FILE, NEWLINE = "image_newline.safetensors", "image_newline"
TEXT_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json")

#: What other consumers of texts read, in a pack that is made for them.
CONSUMER_FILES = (
    "1_Pooling/config.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json",
    "vocab.txt",
)  # fmt: skip

#: tokenizer.json of a 260k vocabulary is 33 MB; this bounds what is read into memory from an untrusted folder.
MAX_SIDE_FILE_BYTES = 256 << 20

#: Of a prompt, or of what a chat template puts around a text: more would be most of what is embedded.
MAX_PROMPT_CHARACTERS = 1 << 16

#: Tokens of a row that is always full: each text takes them all.
MAX_FULL_TOKENS = 1 << 13

#: The inputs of a graph of one length: ids, and which of them stand for something.
MASKED = ("input_ids", "attention_mask")

#: Numbers of one array: an image of 8192 x 8192 in three colours has fewer.
MAX_ARRAY_NUMBERS = 1 << 28

#: The longest side of an image that a graph takes, and of one that is made on the way to it.
MAX_SIDE = 1 << 13

#: What an image may be fitted into before it is cut into tiles: how many there are, and tiles of one.
MAX_PINPOINTS, MAX_TILES = 256, 256

#: Name of the one tensor in `ARRAY_PROBES`.
_ARRAYS = "probes"

#: Why facts are refused, in words, after the name of the manifest.
Refuse = Callable[[str], Exception]


class Modality(NamedTuple):
    """What a family has on disk of its inputs.

    Attributes:
        files: what turning an item into the graph's inputs reads.
        kept: the parent's own files, which other consumers read.
        probes: the file of the probes.
        check: raises where facts contradict themselves.
        read: name and content of the file of the probes -> the probes; raises RequestError, in words, where it holds
            none.
        write: probes -> the content of their file.
    """

    files: tuple[str, ...]
    kept: tuple[str, ...]
    probes: str
    check: Callable[[Any, Refuse], None]
    read: Callable[[str, Buffer, Any], tuple[AnyProbe, ...]]
    write: Callable[[Any], bytes]


def find_modality(facts: FamilyFacts) -> Modality:
    """Of a family whose facts were checked."""
    return MODALITIES[facts.modality]


def list_input_files(facts: FamilyFacts) -> tuple[str, ...]:
    """What turning an item into the graph's inputs, and what comes out into what an item has, reads."""
    return (*find_modality(facts).files, *((NEWLINE_FILE,) if facts.tiled else ()))


def _check_text(text: TextFacts, refuse: Refuse) -> None:
    known = ("input_ids", "attention_mask", "token_type_ids", POOLING_MASK)
    if not text.inputs or not set(text.inputs) <= set(known) or len(set(text.inputs)) != len(text.inputs):
        raise refuse(f"the inputs {list(text.inputs)} are not some of {', '.join(known)}")
    if not 1 <= text.max_tokens < 1 << 31 or not -(1 << 31) <= text.pad_token_id < 1 << 31:
        raise refuse(f"max_tokens={text.max_tokens}, pad_token_id={text.pad_token_id} cannot be")
    if text.full and (text.max_tokens > MAX_FULL_TOKENS or text.pad_token_id < 0 or text.chat is not None):
        raise refuse(f"rows that are always full have up to {MAX_FULL_TOKENS} tokens, which all have an id")
    if text.padded:
        _check_padded(text, refuse)
    said = [*text.prompts.values(), *(part for frame in _list_frames(text) for part in (frame.before, frame.after))]
    if max(map(len, said), default=0) > MAX_PROMPT_CHARACTERS:
        raise refuse(f"a prompt has more than {MAX_PROMPT_CHARACTERS} characters")
    if text.default_prompt is not None and text.default_prompt not in text.prompts:
        raise refuse(f"the default prompt {text.default_prompt!r} is not among the prompts")
    if (text.unpooled is None) != (POOLING_MASK not in text.inputs):
        raise refuse(f"{POOLING_MASK} is an input if and only if tokens of prompts are not pooled")
    for name, count in (text.unpooled or {}).items():
        if name not in text.prompts:
            raise refuse(f"tokens of the prompt {name!r} are not pooled, which is not among the prompts")
        if not 0 <= count < 1 << 31:
            raise refuse(f"{count} tokens of the prompt {name!r} are not pooled, which cannot be")
    for name, task in text.tasks.items():
        if name not in TASKS:
            raise refuse(f"the task {name!r} is none of {', '.join(TASKS)}")
        if task.prompt and task.prompt not in text.prompts:
            raise refuse(f"the task {name} has the prompt {task.prompt!r}, which is not among them")
        if task.max_tokens is not None and not 1 <= task.max_tokens < 1 << 31:
            raise refuse(f"the task {name} has max_tokens={task.max_tokens}, which cannot be")
    if text.chat is not None and set(text.chat.frames) != {"", *text.prompts}:
        raise refuse("the chat template is not written out for each prompt and for none")


def _check_padded(text: TextFacts, refuse: Refuse) -> None:
    limits = [text.max_tokens, *(task.max_tokens or 0 for task in text.tasks.values())]
    if text.full or text.max_tokens > MAX_FULL_TOKENS or text.pad_token_id < 0 or set(text.inputs) != set(MASKED):
        raise refuse(
            f"texts that are padded to one length have up to {MAX_FULL_TOKENS} tokens, which all have an id, and "
            f"the inputs {' and '.join(MASKED)}"
        )
    if max(limits) > text.max_tokens:
        raise refuse(f"a task has texts of {max(limits)} tokens, and graphs take {text.max_tokens}")


def _list_frames(text: TextFacts) -> list[Frame]:
    return list(text.chat.frames.values()) if text.chat else []


def _read_texts(name: str, content: Buffer, _text: TextFacts) -> tuple[Probe, ...]:
    from matexport.io.texts import parse_probes  # not while a process that only embeds starts

    try:
        return parse_probes(bytes(content).decode("utf-8"), name)
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not UTF-8 text") from None


def _write_texts(probes: tuple[Probe, ...]) -> bytes:
    from matexport.io.texts import format_probes

    return format_probes(probes).encode()


def _check_array(array: ArrayFacts, refuse: Refuse) -> None:
    numbers = 1
    for length in array.shape:
        numbers *= max(length, 0)
        if not 1 <= numbers <= MAX_ARRAY_NUMBERS:
            raise refuse(f"arrays of shape {array.shape} cannot be: 1 to {MAX_ARRAY_NUMBERS} numbers are taken")
    if not array.input:
        raise refuse("the graph's input has no name")


def _read_arrays(name: str, content: Buffer, array: ArrayFacts) -> tuple[ArrayProbe, ...]:
    from matexport.family.weights_file import parse_header
    from matexport.io.texts import MAX_PROBES

    entries = [entry for entry in parse_header(name, content).entries if entry.name == _ARRAYS]
    kind = _STORED[array.dtype]
    if len(entries) != 1 or entries[0].dtype != kind or entries[0].shape[1:] != array.shape:
        raise RequestError(f"{name} has no {kind} tensor {_ARRAYS!r} of arrays of shape {array.shape}")
    (entry,) = entries
    count = entry.shape[0]
    if not 2 <= count <= MAX_PROBES or entry.nbytes > MAX_SIDE_FILE_BYTES:
        raise RequestError(
            f"{name} has {count} arrays ({entry.nbytes} bytes); 2 to {MAX_PROBES} are taken, and up to "
            f"{MAX_SIDE_FILE_BYTES} bytes"
        )
    if entry.end > len(content):
        raise RequestError(f"{name} ends inside {_ARRAYS!r}")
    size = entry.nbytes // count
    return tuple(
        ArrayProbe(content[start : start + size], array.dtype, array.shape)
        for start in range(entry.offset, entry.end, size)
    )


def _write_arrays(probes: tuple[ArrayProbe, ...]) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    first = probes[0]
    content = np.frombuffer(b"".join(probe.content for probe in probes), np.dtype(first.dtype).newbyteorder("<"))
    stored: bytes = save({_ARRAYS: content.reshape(len(probes), *first.shape)})
    return stored


def _check_image(image: ImageFacts, refuse: Refuse) -> None:
    sides = (image.height, image.width, *image.resized)
    if len(image.resized) > 2 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise refuse(f"images of {image.height} x {image.width}, resized to {list(image.resized)}, cannot be")
    if image.square is not None and not (len(image.square) == 3 and all(0 <= level <= 255 for level in image.square)):
        raise refuse(f"the colour {list(image.square)} cannot be")
    if len(image.mean) != 3 or len(image.std) != 3:
        raise refuse(f"mean={list(image.mean)}, std={list(image.std)} are not three numbers each")
    numbers = (image.scale, *image.mean, *image.std)
    if not all(abs(number) < 1e6 for number in numbers) or not all(part > 1e-6 for part in (image.scale, *image.std)):
        raise refuse(f"scale={image.scale}, mean={image.mean}, std={image.std} cannot be")
    if not image.input:
        raise refuse("the graph's input has no name")
    if image.tiles is not None:
        _check_tiles(image, image.tiles, refuse)


def _check_tiles(image: ImageFacts, tiles: TileFacts, refuse: Refuse) -> None:
    side = image.height
    if image.width != side or image.resized != (side, side) or image.square is not None:
        raise refuse(f"tiles of {side} x {image.width} beside an image resized to {list(image.resized)} cannot be")
    if not 1 <= len(tiles.pinpoints) <= MAX_PINPOINTS:
        raise refuse(f"{len(tiles.pinpoints)} pinpoints cannot be: 1 to {MAX_PINPOINTS} are taken")
    for height, width in tiles.pinpoints:
        fits = all(1 <= length <= MAX_SIDE and length % side == 0 for length in (height, width))
        if not fits or (height // side) * (width // side) > MAX_TILES:
            raise refuse(f"{height} x {width} is not cut into 1 to {MAX_TILES} tiles of {side} x {side}")


def _read_images(name: str, content: Buffer, _image: ImageFacts) -> tuple[ImageProbe, ...]:
    from matexport.family.weights_file import parse_header
    from matexport.io.texts import MAX_PROBES

    header = parse_header(name, content)
    if header.end != len(content) or len(content) > MAX_SIDE_FILE_BYTES:
        raise RequestError(f"{name} has {len(content)} bytes, and its images end at {header.end}")
    entries = header.entries
    if not 2 <= len(entries) <= MAX_PROBES or any(entry.dtype != "U8" for entry in entries):
        raise RequestError(f"{name} holds {len(entries)} files; 2 to {MAX_PROBES} images as bytes are taken")
    return tuple(
        ImageProbe(entry.name.partition("/")[2], bytes(content[entry.offset : entry.end]))
        for entry in sorted(entries, key=lambda entry: entry.name)
    )


def _write_images(probes: tuple[ImageProbe, ...]) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    files = {f"{index:05d}/{probe.name}": np.frombuffer(probe.content, np.uint8) for index, probe in enumerate(probes)}
    stored: bytes = save(files)
    return stored


_STORED = {Dtype.FLOAT32: "F32", Dtype.UINT8: "U8", Dtype.INT64: "I64"}

#: The field of `FamilyFacts` -> what there is on disk.
MODALITIES: Mapping[str, Modality] = {
    "text": Modality((TOKENIZER,), (*TEXT_FILES, *CONSUMER_FILES), PROBES, _check_text, _read_texts, _write_texts),
    "array": Modality((), ("config.json",), ARRAY_PROBES, _check_array, _read_arrays, _write_arrays),
    "image": Modality((), IMAGE_FILES, ARRAY_PROBES, _check_image, _read_images, _write_images),
}
