"""Texts -> token rows -> the arrays that a graph takes. The tokenizer is the parent's, cut at the parent's length.

How the parent asks for its tokens is said by `TextFacts`: what stands before and after a text (a prompt, a chat
template), where a long one is cut and on which side, whether special tokens are added, which tokens are not pooled.
Nothing else happens to a text here; that these are the parent's own token ids is checked by `export` and by `verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.family.manifest import SCHEMA
from matexport.runtime.inputs.modality import BATCHED, LEFT, NOTHING_ASKED, Asked, Compared, Feeds
from matexport.runtime.inputs.tokenizer import TextTokenizer, encode, read_tokenizers_version
from matexport.spec.facts import POOLING_MASK
from matexport.spec.inputs import TASKS, PaddingSide, TextFacts
from matexport.spec.record import Record

if TYPE_CHECKING:
    import tokenizers
    from numpy.typing import NDArray

    from matexport.family.integrity import Contents
    from matexport.spec.probe import AnyProbe, Probe

#: Tokens per run, padding included: more gain nothing, and what is computed on leaves a core's caches.
BATCH_TOKENS = 512

#: About 16 tokens for most tokenizers.
SHORT_TEXT = "A man is playing a large flute while a woman is slicing an onion."

#: From which schema on a family says what its parent does with the tasks.
TASKS_SCHEMA = 4


class Tokens(Record, frozen=True):
    """One text as the graph takes it: ids and segment ids, without padding; `unpooled` leading ones are not pooled."""

    ids: Sequence[int]
    type_ids: Sequence[int]
    unpooled: int = 0

    @classmethod
    def of(cls, encoding: tokenizers.Encoding, unpooled: int = 0) -> Tokens:
        return cls(encoding.ids, encoding.type_ids, unpooled)


_STRIP: dict[str, Callable[[str], str]] = {"": str, "left": str.lstrip, "right": str.rstrip, "both": str.strip}


@dataclass(frozen=True)
class Wrapping:
    """What is done to a text that is asked for with a prompt or a task.

    Attributes:
        before, after: what is put around it.
        strips: which of its ends lose white space first; see `ChatFacts`.
        max_tokens: where it is cut.
        ending: token ids that one which was cut ends in again.
        unpooled: its leading tokens that are not pooled.
    """

    before: str
    after: str
    strips: str
    max_tokens: int
    ending: tuple[int, ...]
    unpooled: int

    def around(self, text: str) -> str:
        return self.before + _STRIP[self.strips](text) + self.after


class TextInputs:
    """Tokenizes and pads. An item is a string, a row its `Tokens`, its size their number.

    Args:
        schema: of the family: those of some schemas do not say what their parent does with tasks.
    """

    short = SHORT_TEXT

    def __init__(self, tokenizer: TextTokenizer, schema: int = SCHEMA) -> None:
        self.tokenizer, self._schema = tokenizer, schema

    @property
    def facts(self) -> TextFacts:
        """How the parent asks for its tokens."""
        return self.tokenizer.text

    @property
    def budget(self) -> int:
        """`BATCH_TOKENS`, or so little that no two texts share a run, where graphs take one."""
        return 1 if self.facts.alone else BATCH_TOKENS

    def check(self, asked: Asked) -> None:
        """Raise RequestError where the parent has no such prompt or task."""
        check_task(self._schema, self.facts, asked.task)
        find_wrapping(self.facts, asked.prompt, asked.task)

    def weigh(self, item: str, index: int) -> int:
        """Characters of a text."""
        if not isinstance(item, str):
            raise RequestError(f"embed takes strings; text {index} is of type {type(item).__name__}")
        return len(item)

    def prepare(self, items: Sequence[str], asked: Asked = NOTHING_ASKED, *, first: int = 0) -> list[Tokens]:
        """Token ids of texts as the parent asks for them, cut to its length, without padding.

        Raises:
            RequestError: the prompt or task is unknown, or a text has no tokens.
        """
        check_task(self._schema, self.facts, asked.task)
        return tokenize_texts(self.tokenizer, items, asked.prompt, task=asked.task, first=first)

    def prepare_probe(self, probe: AnyProbe) -> Tokens:
        """A probe's tokens. One without a prompt is read without any, whatever the default."""
        return tokenize_probes(self.tokenizer, [probe])[0]  # type: ignore[list-item]  # texts, where facts are of text

    def unpack(self, probe: AnyProbe) -> str:
        """A probe's text."""
        return probe.text  # type: ignore[union-attr]

    def size(self, row: Tokens) -> int:
        """Its tokens."""
        return len(row.ids)

    def feed(self, rows: Sequence[Tokens], way: str = BATCHED) -> Feeds:
        """The graph's inputs, by name: each (len(rows), longest) int64, or as long as all are.

        Padding is on the right unless the way is `LEFT`: there a token's position is its own, whatever else is in the
        batch. The vector is the same with left padding, up to rounding, which a consumer may want that pads as the
        parent does.

        Raises:
            RequestError: there is not one row, and graphs take one.
        """
        if self.facts.alone and len(rows) != 1:
            raise RequestError(f"{len(rows)} texts were given to one run; graphs of a fixed shape take one")
        return feed_rows(rows, self.facts, PaddingSide.LEFT if way == LEFT else PaddingSide.RIGHT)

    def gather(self, rows: Sequence[Tokens], found: NDArray[Any]) -> NDArray[Any]:
        """A row of numbers for each."""
        return found.reshape(len(rows), -1)

    def trim(self, _row: Tokens, vector: NDArray[Any], _tokens: int) -> NDArray[Any]:
        """All of them."""
        return vector

    def stretch(self, row: Tokens, size: int) -> Tokens:
        """Tokens of a text, over and over, as many as asked for; all rows of some parents have one size."""
        size = self.facts.max_tokens if self.facts.one_length else size
        times = -(-size // len(row.ids))
        return Tokens((list(row.ids) * times)[:size], (list(row.type_ids) * times)[:size])

    def compare_proof(self, contents: Contents, probes: Sequence[AnyProbe], rows: Sequence[Tokens]) -> Compared:
        """The probes' token ids here against the parent's; None where the family does not store those.

        Graphs are judged on those of here: nothing about ids is a matter of rounding.

        Raises:
            FamilyError: what it stores cannot be read.
        """
        from matexport.family.token_rows import compare_token_rows, load_token_rows

        stored = load_token_rows(contents, len(probes))
        if stored is None:
            return Compared(None, rows)
        parity = compare_token_rows([row.ids for row in rows], stored, probes, read_tokenizers_version())
        return Compared(parity, rows)


def tokenize_texts(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    prompt: str | None = None,
    *,
    task: str | None = None,
    first: int = 0,
) -> list[Tokens]:
    """`Embedder.prepare` without a session.

    Args:
        first: what messages call the first of the texts.

    Raises:
        RequestError: the prompt or task is unknown, or a text has no tokens.
    """
    wrapping = find_wrapping(tokenizer.text, prompt, task)
    for index, item in enumerate(texts, first):
        try:
            item.encode()
        except UnicodeEncodeError:
            raise RequestError(f"text {index} ({item[:40]!a}) is not Unicode text") from None
    encodings = encode(tokenizer, [wrapping.around(item) for item in texts], wrapping.max_tokens, first)
    rows = [Tokens.of(encoding, wrapping.unpooled) for encoding in encodings]
    if wrapping.ending:
        rows = [_end_again(row, wrapping) for row in rows]
    empty = next((index for index, row in enumerate(rows) if not row.ids), None)
    if empty is not None:
        raise RequestError(
            f"text {first + empty} ({texts[empty][:40]!r}) has no tokens, so the parent has no vector for it"
        )
    return rows


def find_wrapping(text: TextFacts, prompt: str | None, task: str | None = None) -> Wrapping:
    """What the parent does to a text: with the default prompt for None, with none for ``""``, with its task's own.

    Raises:
        RequestError: the parent has no such prompt, there is no such task, or both were asked for.
    """
    max_tokens = text.max_tokens
    if task is not None:
        if task not in TASKS:
            raise RequestError(f"task {task!r} was asked; a text is one of: {', '.join(TASKS)}")
        if prompt is not None:
            raise RequestError(f"prompt {prompt!r} and task {task!r} were asked; a task has its own prompt: give one")
        facts = text.tasks.get(task)
        if facts is None and text.route is not None:
            raise RequestError(
                f"task {task!r} was asked; this family is the route {text.route!r} of its parent, which "
                "takes that task's texts elsewhere"
            )
        if facts is not None:
            prompt, max_tokens = facts.prompt, facts.max_tokens or max_tokens
    if prompt is None:
        prompt = text.default_prompt or ""
    if prompt and prompt not in text.prompts:
        known = ", ".join(text.prompts) or "none"
        hint = f" (as task {prompt!r} every parent takes it)" if prompt in TASKS else ""
        raise RequestError(f"prompt {prompt!r} was asked; the parent's prompts are: {known}{hint}")
    unpooled = text.unpooled.get(prompt, 0) if text.unpooled else 0
    if text.chat is not None:
        frame = text.chat.frames[prompt]
        return Wrapping(frame.before, frame.after, text.chat.strips, max_tokens, frame.ending, unpooled)
    return Wrapping(text.prompts[prompt] if prompt else "", "", "", max_tokens, (), unpooled)


def check_task(schema: int, text: TextFacts, task: str | None) -> None:
    """Refuse a task of a family that was made before they were known, where it might have a prompt.

    Raises:
        RequestError: saying what to do.
    """
    if task is not None and schema < TASKS_SCHEMA and text.prompts:
        raise RequestError(
            f"task {task!r} was asked; this family was made before tasks were known: export it again, or name one of "
            f"its prompts: {', '.join(text.prompts)}"
        )


def feed_rows(rows: Sequence[Tokens], text: TextFacts, side: PaddingSide = PaddingSide.RIGHT) -> Feeds:
    """The graph's inputs, by name: each (len(rows), longest) int64; of padded texts, as long as all are."""
    feeds = pad_rows(rows, side, text.pad_token_id, text.max_tokens if text.padded else 0)
    if POOLING_MASK in text.inputs:
        import numpy as np

        attended = feeds["attention_mask"]
        skipped = np.array([row.unpooled for row in rows])
        feeds[POOLING_MASK] = attended * (attended.cumsum(axis=1) > skipped[:, None])
    return {name: feeds[name] for name in text.inputs}


def tokenize_probes(tokenizer: TextTokenizer, probes: Sequence[Probe]) -> list[Tokens]:
    """Token rows of probes. One without a prompt is read without any, whatever the default.

    Raises:
        RequestError: as `tokenize_texts`.
    """
    return [
        tokenize_texts(tokenizer, [probe.text], None if probe.task else probe.prompt or "", task=probe.task)[0]
        for probe in probes
    ]


def pad_rows(rows: Sequence[Tokens], side: PaddingSide, pad_token_id: int, least: int = 0) -> Feeds:
    """Token rows as (len(rows), longest) int64 arrays: ``input_ids``, ``attention_mask``, ``token_type_ids``.

    Args:
        least: how long they are at least.
    """
    import numpy as np

    if len(rows) == 1 and len(rows[0].ids) >= least:  # nothing to pad: what a search box asks for
        ids, type_ids = (np.array([part], dtype=np.int64) for part in (rows[0].ids, rows[0].type_ids))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": type_ids}
    lengths = np.array([len(row.ids) for row in rows])
    places = np.arange(max(lengths.max(), least))
    if side is PaddingSide.LEFT:
        places = places[::-1]
    attended = places < lengths[:, None]
    ids = np.full(attended.shape, pad_token_id, dtype=np.int64)
    ids[attended] = list(chain.from_iterable(row.ids for row in rows))
    type_ids = np.zeros(attended.shape, dtype=np.int64)
    type_ids[attended] = list(chain.from_iterable(row.type_ids for row in rows))
    return {"input_ids": ids, "attention_mask": attended.astype(np.int64), "token_type_ids": type_ids}


def _end_again(row: Tokens, wrapping: Wrapping) -> Tokens:
    """As sentence-transformers does: a text that reached the limit ends in the template's last tokens all the same."""
    if len(row.ids) < wrapping.max_tokens:
        return row
    kept = wrapping.ending[-len(row.ids) :]
    return Tokens([*row.ids[: len(row.ids) - len(kept)], *kept], row.type_ids, row.unpooled)
