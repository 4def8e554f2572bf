"""How a parent turns a text into token ids, written down so that the tokenizers library alone can do it again.

Nothing is concluded from settings: sentence-transformers is asked for the tokens of sample texts, with each prompt and
as a query and a document, and what its tokenizer was told then (the limit, the side that is cut, special tokens) is
read off; what a chat template puts around a text is learned in `chat`. Whether all of that gives the parent's own ids
is checked on every probe (`check_tokens`), so what cannot be written down this way (a class that changes texts by
itself, a template that branches on them) is found and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from matexport.errors import ParentError, one_line
from matexport.export.parents.chat import is_chat, learn_chat
from matexport.export.parents.folder.loading import Opened, module_class
from matexport.runtime.inputs.text import Tokens, tokenize_probes
from matexport.runtime.inputs.tokenizer import TextTokenizer
from matexport.spec.inputs import NO_LIMIT, TASKS, ChatFacts, PaddingSide, TaskFacts, TextFacts
from matexport.spec.probe import Probe

#: Two texts whose tokens show how a batch is padded, and whether special tokens are added.
_SAMPLES = ("a", "a small cat sits in the house")

#: Texts whose ends and insides some preprocessing changes and tokenizers do not. Their tokens are checked, too.
EDGES = (
    Probe(" a text with spaces around it "), Probe("a text with a line end\n"), Probe("\n\ta text behind white space"),
    Probe("Two  spaces, {braces}, <tags> and {{ more }}"),
)  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """What is known of a parent's texts before its weights are loaded.

    Attributes:
        tokenizer_json: the tokenizer as a family holds it: neither padding nor cutting.
        gives: names of what the parent's own preprocessing gives for the model.
    """

    tokenizer_json: str
    gives: frozenset[str]
    max_tokens: int
    padding_side: PaddingSide
    pad_token_id: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    cuts: PaddingSide
    special_tokens: bool
    tasks: Mapping[str, TaskFacts]
    chat: ChatFacts | None
    route: str | None
    unpooled: Mapping[str, int] | None

    @property
    def longest(self) -> int:
        """Most tokens that any text may have: a task's own limit may be above that of all other texts."""
        return max(self.max_tokens, *(task.max_tokens or 0 for task in self.tasks.values()), 0)


def learn_asking(opened: Opened, source: str) -> Asking:
    """Ask a parent for the tokens of sample texts, in each way that its users may.

    Raises:
        ParentError: its tokenizer is not one of the tokenizers library, or its texts go through more than that.
    """
    tokenizer = find_tokenizer(opened.first, source)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    features = preprocess(opened, _SAMPLES, None, None)
    padding = backend.padding or {}
    limit, cuts = _read_limit(opened, backend)
    prompts = _list_prompts(opened)
    tasks = {} if opened.model is None else _learn_tasks(opened, backend, limit)
    special = _adds_special_tokens(opened, backend)
    plain = copy_tokenizer(backend)
    chat = learn_chat(opened, prompts, plain, source) if is_chat(opened.first) else None
    default = getattr(opened.model, "default_prompt_name", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    side = padding.get("direction", getattr(tokenizer, "padding_side", "right"))
    return Asking(
        tokenizer_json=str(plain.to_str(pretty=False)),
        gives=frozenset(features),
        max_tokens=limit,
        padding_side=PaddingSide(side),
        pad_token_id=padding.get("pad_id", pad if pad is not None else 0),
        prompts=prompts,
        default_prompt=default if default in prompts else None,
        cuts=cuts,
        special_tokens=special,
        tasks=tasks,
        chat=chat,
        route=opened.route,
        unpooled=_count_unpooled(opened, prompts, limit, source),
    )


def preprocess(opened: Opened, texts: Sequence[str], prompt: str | None, task: str | None) -> dict[str, torch.Tensor]:
    """What the parent's own first module makes of texts: (n, T) ids and what else it gives.

    Args:
        prompt: the text of a prompt; None or empty for none.
        task: ``query``, ``document`` or a route.

    Raises:
        ParentError: it cannot.
    """
    task = task or opened.task
    options = {"task": task} if task is not None else {}
    maker: Any = opened.first if opened.model is None else opened.model
    try:
        features: dict[str, Any] = dict(maker.preprocess(list(texts), prompt=prompt or None, **options))
    except Exception as error:  # tokenizers raises bare Exception, a parent's own class anything
        raise ParentError(
            f"the parent's own preprocessing cannot read the text {texts[0][:40]!r}: {one_line(error)}"
        ) from error
    return features


def list_token_ids(opened: Opened, probe: Probe, text: TextFacts) -> list[int]:
    """A probe's token ids as the parent's own preprocessing gives them, without padding.

    Raises:
        ParentError: it cannot read the text.
    """
    features = ask_probe(opened, probe, text)
    ids = features["input_ids"].reshape(-1)
    mask = features.get("attention_mask")
    return [int(token) for token in (ids if mask is None else ids[mask.reshape(-1) == 1])]


def ask_probe(opened: Opened, probe: Probe, text: TextFacts) -> dict[str, torch.Tensor]:
    """The features of one probe, (1, T) each, as `encode`, `encode_query` or `encode_document` would make them.

    Raises:
        ParentError: the parent's own preprocessing cannot read the text.
    """
    prompt, task = probe.prompt, probe.task
    if task is not None:
        facts = text.tasks.get(task)
        prompt = facts.prompt if facts else None
        prompt = text.default_prompt if prompt is None else prompt
    return preprocess(opened, [probe.text], text.prompts[prompt] if prompt else None, task)


def check_tokens(opened: Opened, tokenizer: TextTokenizer, probes: Sequence[Probe], source: str) -> list[list[int]]:
    """Hold the family's tokenizer to the parent's own preprocessing.

    Args:
        tokenizer: of the family, whole vocabulary.

    Returns:
        the parent's token ids of each probe.

    Raises:
        ParentError: they differ for some probe, which is named with both.
    """
    mine: list[Tokens] = tokenize_probes(tokenizer, probes)
    theirs = [list_token_ids(opened, probe, tokenizer.text) for probe in probes]
    off = [place for place, (row, ids) in enumerate(zip(mine, theirs, strict=True)) if list(row.ids) != ids]
    if off:
        first = off[0]
        raise ParentError(
            f"token ids differ in {len(off)} of {len(probes)} probes: for {_describe(probes[first])} the parent's own "
            f"preprocessing gives {_show(theirs[first], mine[first].ids)}, and its tokenizer, told the same, "
            f"{_show(mine[first].ids, theirs[first])}: {_name_class(opened.first)} of {source} does more to a text "
            "than a tokenizer, a prompt and a chat template can say"
        )
    return theirs


def lower_limit(opened: Opened, max_tokens: int) -> None:
    """Have a parent cut its texts earlier than by itself, whatever says where it does."""
    first: Any = opened.first
    if isinstance(first, module_class("Transformer")):
        first.max_seq_length = max_tokens
        for name in ("query_length", "document_length"):
            if getattr(first, name, None) is not None:
                setattr(first, name, min(getattr(first, name), max_tokens))
        for part in ("text", "common"):
            told = first.processing_kwargs.get(part, {})
            if "max_length" in told:
                told["max_length"] = min(told["max_length"], max_tokens)
    elif isinstance(first, module_class("StaticEmbedding")):
        first.tokenizer.enable_truncation(max_tokens)
    else:
        first.max_seq_length = max_tokens


def find_tokenizer(first: Any, source: str) -> Any:
    """A module's tokenizer: transformers' fast kind, or the tokenizers library's own.

    Raises:
        ParentError: it has none of these.
    """
    tokenizer = getattr(first, "tokenizer", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # sentence-transformers' wrapper for word embeddings
    if hasattr(tokenizer, "backend_tokenizer") or type(tokenizer).__module__.startswith("tokenizers"):
        return tokenizer
    raise ParentError(
        f"the tokenizer of {source} ({type(tokenizer).__name__}) is Python code and no fast tokenizer "
        "(tokenizer.json), which is what runs without transformers"
    )


def copy_tokenizer(backend: Any) -> Tokenizer:
    """A tokenizer as a family holds it, which neither pads nor cuts; the given one is left as it is."""
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain


def _list_prompts(opened: Opened) -> dict[str, str]:
    """Name -> text; without the two empty ones that sentence-transformers gives every parent."""
    given = opened.model.prompts if opened.model is not None else {}
    return {name: text or "" for name, text in given.items() if text or name not in TASKS}


def _read_limit(opened: Opened, backend: Any) -> tuple[int, PaddingSide]:
    """What the tokenizer was told about long texts when it was last asked."""
    told = backend.truncation
    side = PaddingSide(told["direction"]) if told else PaddingSide.RIGHT
    limits = [told["max_length"]] if told else []
    own = getattr(opened.first, "max_seq_length", None)
    if not isinstance(opened.first, module_class("Transformer")) and isinstance(own, int):
        limits.append(own)  # word embeddings cut after the tokenizer
    allowed = [int(limit) for limit in limits if 0 < limit < NO_LIMIT]
    return min(allowed, default=NO_LIMIT), side


def _learn_tasks(opened: Opened, backend: Any, limit: int) -> dict[str, TaskFacts]:
    """What the parent does with queries and documents, where that is not what it does with any text."""
    tasks = {}
    for task in TASKS:
        asked = _overhear(opened.model, f"encode_{task}")
        if asked is None or not opened.takes(task):
            continue
        name, text = asked.get("prompt_name"), asked.get("prompt")
        if name is not None:
            text = opened.model.prompts[name]
        prompt = None if text is None else (name or "") if text else ""
        preprocess(opened, _SAMPLES[:1], text, asked.get("task"))
        own, _ = _read_limit(opened, backend)
        default = getattr(opened.model, "default_prompt_name", None) or ""
        if opened.route is not None or own != limit or (prompt if prompt is not None else default) != default:
            tasks[task] = TaskFacts(prompt, own if own != limit else None)
    return tasks


def _overhear(model: Any, method: str) -> dict[str, Any] | None:
    """What a method such as `encode_query` hands on to `encode`; None where there is no such method."""
    heard: dict[str, Any] = {}
    if not hasattr(model, method):
        return None
    model.encode = lambda *_texts, **options: heard.update(options)
    try:
        getattr(model, method)(["a"])
    finally:
        del model.encode
    return heard


def _adds_special_tokens(opened: Opened, backend: Any) -> bool:
    if is_chat(opened.first):
        return False  # the template has them in its text
    ids = preprocess(opened, _SAMPLES[:1], None, None)["input_ids"].reshape(-1).tolist()
    return bool(ids != backend.encode(_SAMPLES[0], add_special_tokens=False).ids)


def _count_unpooled(opened: Opened, prompts: Mapping[str, str], limit: int, source: str) -> dict[str, int] | None:
    """How many tokens of each prompt are left out of the pooling, where the parent leaves them out.

    Raises:
        ParentError: it leaves out so many that a text may have no token left: its vector is then of padding.
    """
    leaves_out = any(getattr(module, "include_prompt", True) is False for module in opened.chain)
    if not leaves_out or not prompts or is_chat(opened.first):
        return None
    lengths = {}
    for name, text in prompts.items():
        if not text:
            continue
        length = preprocess(opened, _SAMPLES[:1], text, None).get("prompt_length")
        if length is None:
            continue
        own = int(preprocess(opened, [text], None, None)["attention_mask"].sum())
        if int(length) > own or int(length) >= limit:
            why = f"has {own}, so padding is counted" if int(length) > own else f"fills the limit of {limit}"
            raise ParentError(
                f"{source} leaves {int(length)} tokens of the prompt {name!r} out of the pooling, which {why}: of a "
                "short text nothing would be pooled; take pad_to_multiple_of out of processing_kwargs, or shorten it"
            )
        lengths[name] = int(length)
    return lengths or None


def _describe(probe: Probe) -> str:
    how = f" with the prompt {probe.prompt!r}" if probe.prompt else f" as a {probe.task}" if probe.task else ""
    return f"{probe.text[:40]!r}{how}"


def _name_class(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _show(ids: Sequence[int], others: Sequence[int]) -> str:
    """A row of token ids from a little before the first that differs from another row's."""
    pairs = zip(ids, others, strict=False)
    place = next((place for place, (one, two) in enumerate(pairs) if one != two), min(len(ids), len(others)))
    start = max(place - 2, 0)
    shown = ", ".join(str(token) for token in ids[start : start + 8])
    before, after = "... " if start else "", " ..." if start + 8 < len(ids) else ""
    return f"[{before}{shown}{after}]"


def describe_text(asking: Asking, inputs: tuple[str, ...], max_tokens: int, side: PaddingSide) -> TextFacts:
    """What a family's manifest says of its texts.

    Args:
        inputs: names of the graph's inputs, in their order.
        max_tokens: where texts are cut.
        side: on which side batches are padded.
    """
    return TextFacts(
        inputs=inputs,
        max_tokens=max_tokens,
        padding_side=side,
        pad_token_id=asking.pad_token_id,
        prompts=asking.prompts,
        default_prompt=asking.default_prompt,
        cuts=asking.cuts,
        special_tokens=asking.special_tokens,
        tasks=asking.tasks,
        chat=asking.chat,
        route=asking.route,
        unpooled=asking.unpooled,
    )
