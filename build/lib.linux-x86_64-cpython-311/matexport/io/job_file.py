"""Write a commented job file, as text, from what `export.outline` found about a parent; the parent is not read here.

`render_job` writes points and precisions, everything else that `export` needs to know, and comments on what else it
could be told. The text can be loaded with `io.jobs.load_job` as it is.

Much of the content comes from a stranger's files. So text gets into the file in two ways only: `quote`, for values,
escapes whatever TOML does not take literally; `_comment` and `_aside` make comment lines without line ends and control
characters in them. No library for writing TOML is used, since the comments matter most and none lays them out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from matexport.errors import RequestError
from matexport.io.proposal import Found, Outline, Selection, choose_points, describe_points, join_some, split_grid
from matexport.spec.inputs import TextFacts
from matexport.spec.job import TEXT
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import TEXT_POOLINGS, FinalNorm, PoolingMode

#: Width of the file in characters.
COLUMNS = 118
#: Longer values are cut to this many characters in comments.
_SHOWN = 60
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def render_job(outline: Outline, points: Sequence[Point], precisions: Sequence[Precision], file: str | None) -> str:
    """The text of a job file.

    Args:
        outline: what was found about the parent.
        points, precisions: what the job asks for.
        file: the file's name as the user gave it, for the command in its first lines; None where it has no name yet.

    Raises:
        RequestError: the parent's path cannot be written in TOML.
    """
    sections = [
        _describe(outline, file),
        _render_top(outline, precisions),
        _render_parent(outline),
        _render_readout(outline),
        _render_trained(outline),
        _render_points(outline, points),
        _render_pictures() if outline.found.image else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def quote(text: str) -> str:
    """A text as a TOML basic string, with its double quotes.

    Raises:
        RequestError: the text has surrogates, as a path has whose bytes are not UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"{text!a} is not Unicode text, which a TOML file has to be: rename it, or link to it")
    return f'"{"".join(_escape(character) for character in text)}"'


# --- the sections of a file


def _describe(outline: Outline, file: str | None) -> list[str]:
    parent = outline.found.parent
    name = file or "JOB.toml"
    lines = _comment(
        f"What to export of {outline.parent.source}. Written by `matexport init` from the parent's own files; all of "
        "it may be changed."
    )
    lines += [_aside(f"Build it, and prove every profile:  matexport export {name}"), "#"]
    stored = "" if parent.dtype == "float32" else f", stored as {parent.dtype}"
    lines += _comment(
        f"Parent: {parent.architecture}, {_say_blocks(outline)} of width {parent.width}{stored}; its vectors have "
        f"{parent.output_width} coordinates.",
        hanging=True,
    )
    text, image = outline.found.text, outline.found.image
    lines += _comment(f"Images: {image.describe()}." if image else f"Texts: {_describe_text(text)}.", hanging=True)
    lines += _comment(f"Read-out: {_describe_readout(outline.found)}.", hanging=True)
    lines += _comment(f"Trained at: {_describe_trained(outline)}.", hanging=True)
    for sentence in outline.refused:
        lines += _comment(f"Refused: {sentence}", hanging=True)
    for sentence in outline.ignored:
        lines += _comment(f"Ignored: {sentence}", hanging=True)
    return lines


def _render_top(outline: Outline, precisions: Sequence[Precision]) -> list[str]:
    others = [precision for precision in Precision if precision not in (*precisions, Precision.INT8_STATIC)]
    said = "fp32 is the parent itself; the small precisions are of blocks, of which this parent has none."
    if outline.found.parent.architecture.startswith("ResNet"):  # has no matrices to round
        said = "fp32 is the parent itself. Also: fp16, and int8-static, which needs [calibration]."
    elif outline.blocks:
        said = (
            f"fp32 is the parent itself; int8 is for CPUs, a quarter of the bytes. Also: {', '.join(others)}, and "
            "int8-static, which needs [calibration]. docs/precisions.md says which is for what."
        )
    return [
        *_comment(said),
        f"precisions = [{', '.join(quote(precision) for precision in precisions)}]",
        *_render_more(outline),
    ]


def _render_more(outline: Outline) -> list[str]:
    """What texts, and vectors that can be encoded, allow."""
    more = [
        _aside('encodings = ["float32", "ubinary"]  # what outputs hold: floats, or packed bits, too'),
        _aside('vocabulary = "corpus.txt"           # keep only the tokens of these texts, or "script:Latin"'),
    ]
    return more if outline.found.text else more[:1] if outline.found.poolings else []


def _render_parent(outline: Outline) -> list[str]:
    parent, weights = outline.parent, outline.found.parent.weights
    lines = ["[parent]", f"source = {quote(parent.source)}"]
    lines += [f"kind = {quote(parent.kind)}"] if parent.kind != TEXT else []
    if parent.revision is not None:
        lines.append(f"revision = {quote(parent.revision)}")
    elif outline.commit is not None:
        lines.append(_aside(f"revision = {quote(outline.commit)}  # what was looked at: take it and no later one"))
    if parent.route is not None:
        others = [route for route in outline.routes if route != parent.route]
        if others:
            lines += _comment(f"Each route of this parent is a family of its own. The others: {join_some(others)}.")
        lines.append(f"route = {quote(parent.route)}")
    for name in ("allow_pickle", "trust_remote_code"):
        if getattr(parent, name):
            lines.append(f"{name} = true")
    if len(weights) == 1:
        lines.append(_aside(f"sha256 = {quote(next(iter(weights.values())))}  # refuse any other weights"))
    elif weights:
        pins = ", ".join(f"{quote(name)} = {quote(digest)}" for name, digest in weights.items())
        lines.append(_aside(f"sha256 = {{ {pins} }}  # refuse any other weights"))
    return lines


def _render_readout(outline: Outline) -> list[str]:
    request, found = outline.request, outline.found
    if found.text is None:
        return _render_image_readout(outline)
    lines = ["[readout]"]
    if request.pooling is not None:
        modes = request.pooling if isinstance(request.pooling, tuple) else (request.pooling,)
        others = ", ".join(mode for mode in TEXT_POOLINGS if mode not in modes)
        lines += _comment(
            "A folder of transformers alone does not say how the states of a text's tokens become one vector, so this "
            f"is a guess: look it up in the model's card. Also: {others}, or a list of them."
        )
        said = [quote(mode) for mode in modes]
        lines.append(f"pooling = {said[0]}" if len(said) == 1 else f"pooling = [{', '.join(said)}]")
    if request.final_norm is not None:
        lines += _explain_final_norm(outline)
        lines.append(f"final_norm = {quote(request.final_norm)}")
    if request.normalize:
        lines += _comment("Unit length after the cut to dim, for cosines. Say false where lengths matter.")
    else:
        lines += _comment("The parent's users compare vectors otherwise than by cosine, so lengths are kept.")
    lines.append(f"normalize = {'true' if request.normalize else 'false'}")
    if request.max_tokens is not None:
        lines.append(f"max_tokens = {request.max_tokens}  # more is refused, see above")
    else:
        lines.append(_aside(f"max_tokens = {min(128, found.text.max_tokens)}  # below the parent's own limit"))
    return lines


def _render_image_readout(outline: Outline) -> list[str]:
    found, request = outline.found, outline.request
    size = _aside(f"image_size = {found.image.height if found.image else 0}  # another side than the processor's")
    if not found.poolings:  # of a classifier, or visual tokens
        said = [_aside("features = true  # the feature, cut and then scaled, and not what the heads say"), size]
        return ["[readout]", *said] if outline.parent.kind == "classifier" else []
    assert isinstance(request.pooling, PoolingMode)
    others = [mode for mode in found.poolings if mode is not request.pooling]
    return [
        "[readout]",
        *_comment(f"How a tower's states become a vector. Also: {', '.join(others)}; patches is one for each patch."),
        f"pooling = {quote(request.pooling)}",
        *_comment("The norm behind the last block, over the full width, before fewer blocks too. drop: the raw state."),
        f"final_norm = {quote(request.final_norm or FinalNorm.KEEP)}",
        *_comment("Unit length after the cut to dim, for cosines. Say false where lengths matter."),
        f"normalize = {'true' if request.normalize else 'false'}",
        size,
    ]


def _render_pictures() -> list[str]:
    return [
        *_comment("Folders of image files, in place of those that matexport draws: what every profile is proven on, "
                  "and what small precisions are measured on (at least 32)."),
        _aside("[probes]"), _aside('file = "pictures/"'), _aside("[calibration]"), _aside('file = "more-pictures/"'),
    ]  # fmt: skip


def _render_trained(outline: Outline) -> list[str]:
    if outline.trained is None:
        return [
            *_comment("Where the parent was trained to be read, if you know: `evaluate`, `pick` and `report` flag all "
                      "other points."),
            _aside("[trained]"),
            _aside(f"pairs = [[{outline.depths[-1]}, {outline.width}]]"),
        ]  # fmt: skip
    lines = _comment(
        f"Where {outline.trained.source} says that the parent was trained to be read. `evaluate`, `pick` and `report` "
        "flag all other points."
    )
    return [*lines, "[trained]", *_render_table(outline.trained.points)]


def _render_points(outline: Outline, points: Sequence[Point]) -> list[str]:
    trained = set(outline.trained.points) if outline.trained else set()
    whole = choose_points(outline, Selection.WHOLE)[0]
    lines = _comment(
        "Where to read it: layers is the number of blocks that run, dim the number of leading coordinates that are "
        f"kept. {_say_range(outline)}."
    )
    if trained and set(points) <= trained:
        left_out = len(trained) - len(set(points))
        more = f"; {left_out} more are left out, see [trained]" if left_out else ""
        lines += _comment(f"These are points that the parent was trained at{more}.")
    elif set(points) != {whole}:
        reason = "Nothing says that the parent was trained at these points" if not trained else (
            "The parent was not trained at all of these points"
        )  # fmt: skip
        lines += _comment(f"{reason}; where it was not, expect them to be worse: `matexport evaluate` measures it.")
    return [*lines, "[points]", *_render_table(points)]


def _render_table(points: Iterable[Point]) -> list[str]:
    """The lines of a table of points: as layers and dims if the points are a whole grid, else as pairs."""
    points = sorted(points)
    layers, dims = split_grid(points)
    tokens = sorted({point.tokens for point in points} - {0})
    if len(points) == len(layers) * len(dims) * max(len(tokens), 1):
        more = _render_array("tokens", map(str, tokens)) if tokens else []
        return [*_render_array("layers", map(str, layers)), *_render_array("dims", map(str, dims)), *more]
    return _render_array("pairs", (f"[{point.layers}, {point.dim}]" for point in points))


def _render_array(key: str, items: Iterable[str]) -> list[str]:
    items = list(items)
    line = f"{key} = [{', '.join(items)}]"
    if len(line) <= COLUMNS:
        return [line]
    # A no-break space for each space inside an item, so that lines are broken between items only.
    text = ", ".join(item.replace(" ", "\u00a0") for item in items)
    lines = [part.replace("\u00a0", " ") for part in textwrap.wrap(text, COLUMNS - 2)]
    return [f"{key} = [", *(f"  {part}" for part in lines), "]"]


# --- what the comments say


def _describe_text(text: TextFacts | None) -> str:
    assert text is not None
    said = [text.describe()]
    if text.chat is not None:
        said.append("through a chat template")
    shown = [f"{_show(name)} ({_show(prompt)})" for name, prompt in text.prompts.items()]
    said.append(f"prompts: {join_some(shown, 5)}" if shown else "no prompts")
    if text.default_prompt:
        said.append(f"{_show(text.default_prompt)} where none is named")
    if text.tasks:
        said.append(f"told apart: {' and '.join(text.tasks)}")
    return "; ".join(said)


def _describe_readout(found: Found) -> str:
    own = "pooled by a class of the parent's own" if found.text else ""
    said = [part for part in (" and ".join(found.readout.pooling) or own,) if part]
    if found.readout.heads:
        said.append(f"{'then ' if said else ''}{', '.join(found.readout.heads)}")
    if found.tail:
        said.append(f"behind the last block: {' and '.join(found.tail)}")
    return "; ".join(said)


def _describe_trained(outline: Outline) -> str:
    if outline.trained is None:
        return "none of its files says"
    return f"{describe_points(outline.trained.points)}, says {outline.trained.source}"


def _explain_final_norm(outline: Outline) -> list[str]:
    tail, refused = outline.found.tail, "" if len(outline.found.tail) == 1 else " Only keep is possible here."
    lines = _comment(
        f"What stands behind the last block ({', '.join(tail)}) is always applied there. A vector read after fewer "
        'blocks depends on whether it is applied to it, too: "keep" does, as cutting the layers of the module does; '
        f'"drop" reads the raw hidden_states[layers].{refused}'
    )
    if outline.request.final_norm is FinalNorm.DROP:
        lines += _comment("Drop, since the loss that the parent was trained with read them raw.")
    return lines


def _say_blocks(outline: Outline) -> str:
    return f"{outline.blocks} block{'' if outline.blocks == 1 else 's'}" if outline.blocks else "a table of tokens"


def _say_range(outline: Outline) -> str:
    if outline.only:
        return f"Here: {describe_points(outline.only)}"
    first, last = outline.depths[0], outline.depths[-1]
    layers = f"layers {first} to {last}" if first != last else f"layers {last} only"
    return f"Here: {layers}, dims 1 to {outline.width}"


def _show(text: str) -> str:
    """A value from a stranger's file, quoted and cut to `_SHOWN` characters."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f'"{"".join(_escape(character) for character in cut)}"'


def _comment(text: str, *, hanging: bool = False) -> list[str]:
    """A text as lines of comment; if `hanging`, all lines but the first are indented."""
    return textwrap.wrap(
        _clean(text),
        COLUMNS,
        initial_indent="# ",
        subsequent_indent="#   " if hanging else "# ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _aside(line: str) -> str:
    """One line of the file that is commented out."""
    return f"# {_clean(line)}"


def _clean(text: str) -> str:
    """Text without characters that would end a comment or control a terminal."""
    return "".join(
        " " if character.isspace() else character if character.isprintable() else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    """A character as it has to be written inside of a TOML string."""
    if character in _ESCAPED:
        return _ESCAPED[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
