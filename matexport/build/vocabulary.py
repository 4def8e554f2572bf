"""A parent's vocabulary cut to the tokens of a corpus, or to those written in some scripts.

`plan_vocabulary` settles which tokens stay and rewrites the tokenizer; `prune_config` and `prune_embeddings` make the
files beside it and the backbone agree. A text whose tokens all stay is tokenized as before, which is more than keeping
the tokens themselves:

- BPE keeps whatever its merges pass through on the way to a kept token. Merges inside a token's span never look outside
  it, so what a token needs is found by building it alone, once, instead of once per word of the corpus.
- Unigram keeps its least likely piece, because the price of an unknown character is reckoned from that.
- WordPiece keeps the pieces at which a word of the corpus fails, or shorter ones would make it known.
- The first ids stay themselves up to the last special one below `LOW_IDS`. RoBERTa counts positions from the padding
  token's id, and transformers' own tokenizer classes have numbers such as ``unk_id=3`` in their code.

These are derived, then checked: every text of the corpus is tokenized by both tokenizers before a plan is given out.
"""

from __future__ import annotations

import itertools
import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from tokenizers import Tokenizer
from torch import nn

from matexport.errors import ParentError, RequestError

MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
SCRIPT_PREFIX = "script:"
#: A larger corpus says nothing more about a vocabulary, and takes hours.
MAX_CORPUS_BYTES = 1 << 30
#: One text of a corpus; a longer line is a file without line breaks.
MAX_TEXT_CHARACTERS = 1 << 20
#: Ids below this are kept as they are, up to the last special token among them.
LOW_IDS = 16
_BATCH_TEXTS = 1024


@dataclass(frozen=True)
class PrunedVocabulary:
    """Which tokens stay, and the tokenizer that knows only those.

    Attributes:
        tokenizer_json: for `tokenizers.Tokenizer.from_str`.
        kept: the parent's ids in the new order: new id ``i`` is the parent's ``kept[i]``. Ascending, but that added
            tokens which the model itself does not have come last, as the library numbers them.
        kept_by: the request; of a file only its name.
        parent_tokens: size of the parent's vocabulary.
    """

    tokenizer_json: str
    kept: tuple[int, ...]
    kept_by: str
    parent_tokens: int

    @property
    def new_ids(self) -> dict[int, int]:
        """The parent's id -> new id, in the order of the new ids."""
        return {old: new for new, old in enumerate(self.kept)}


def plan_vocabulary(tokenizer_json: str, request: str, base: Path, *, also: Sequence[str] = ()) -> PrunedVocabulary:
    """Settle which tokens stay.

    Args:
        tokenizer_json: the parent's tokenizer, as its `to_str` gives it.
        request: ``script:Latin,Cyrillic``, or the path of a UTF-8 file with one text per line.
        base: directory against which a relative path is read.
        also: texts that must stay as they are whatever is asked for, such as the parent's prompts.

    Raises:
        RequestError: the file cannot be read or is too large, a script is unknown, nothing but special tokens would
            stay, or the tokenizer's model is not supported.
        ParentError: a text whose tokens all stay would be tokenized differently.
    """
    data = json.loads(tokenizer_json)
    if data["model"].get("type") not in MODELS:
        raise RequestError(
            f"vocabulary = {request!r} was asked; the parent's tokenizer is a {data['model'].get('type')} model, and "
            f"only {', '.join(MODELS)} can be pruned: leave vocabulary out"
        )
    parent = _load_tokenizer(tokenizer_json)
    special = _find_special(data, parent)
    by_script = request.startswith(SCRIPT_PREFIX)
    path = base / request
    if by_script:
        chosen = _choose_by_script(data, request, special)
    else:
        chosen = _find_used(data, parent, _read_corpus(path, request))
        if chosen <= special:
            raise RequestError(
                f"vocabulary = {request!r} was asked; the parent knows none of its words (it has special tokens for "
                "them only): give texts in a language of the parent"
            )
    chosen |= _find_used(data, parent, [also])
    kept = chosen | special | _find_needed(data, special)
    if data["model"]["type"] == "BPE":
        kept |= _find_ingredients(kept, data["model"])
    pruned = _cut_tokenizer(data, parent, kept, request if by_script else path.name)
    _check_ids(parent, pruned)
    _check_texts(parent, pruned, [also])
    if by_script:
        unknown = _find_unknown(data, parent)
        inside = kept.issuperset
        _check_texts(parent, pruned, _spell_tokens(data, kept), lambda ids: unknown not in ids and inside(ids))
    else:
        _check_texts(parent, pruned, _read_corpus(path, request))
    return pruned


def find_changed(tokenizer_json: str, pruned: PrunedVocabulary, texts: Sequence[str]) -> list[bool]:
    """For each text, whether its tokens are no longer those of the parent's tokenizer."""
    child = _load_tokenizer(pruned.tokenizer_json)
    return [
        before != after for before, after in _tokenize_both(_load_tokenizer(tokenizer_json), child, pruned.kept, texts)
    ]


def prune_embeddings(backbone: nn.Module, kept: Sequence[int]) -> None:
    """Cut the (V, H) input embedding of a backbone to the (len(kept), H) rows that stay, in place.

    Whatever shares the parameter is cut with it. Rows beyond the tokenizer's last token, as padded vocabularies have
    them, go. Token ids that the backbone and its configuration remember are renumbered.

    Raises:
        ParentError: the embedding has no row for a kept token, or positions are counted from an id that would move.
    """
    embedding: Any = backbone.get_input_embeddings()  # type: ignore[operator]
    weight = embedding.weight
    if len(weight) <= max(kept):
        raise ParentError(
            f"the parent's tokenizer has a token with id {max(kept)}, and its input embedding has {len(weight)} rows: "
            "the tokenizer does not belong to these weights"
        )
    new = {old: position for position, old in enumerate(kept)}
    for module in backbone.modules():
        if isinstance(module, nn.Embedding) and module.weight is not weight and module.padding_idx is not None:
            moved = new.get(module.padding_idx)
            if moved != module.padding_idx:
                raise ParentError(
                    f"the parent counts positions from its padding token, id {module.padding_idx}, which pruning the "
                    f"vocabulary would make {moved}: leave vocabulary out"
                )
    weight.data = weight.data[torch.tensor(kept, dtype=torch.int64, device=weight.device)]
    for module in backbone.modules():
        if isinstance(module, nn.Embedding) and module.weight is weight:
            module.num_embeddings = len(kept)
        for name in [name for name in vars(module) if name == "padding_idx" or name.endswith("_token_id")]:
            setattr(module, name, _renumber(getattr(module, name), new))
    config: Any = getattr(backbone, "config", None)  # a mere table has none
    if config is None:
        return
    for name in [name for name in vars(config) if name.endswith("_token_id")]:
        setattr(config, name, _renumber(getattr(config, name), new))
    config.vocab_size = len(kept)


def prune_config(files: Mapping[str, bytes], pruned: PrunedVocabulary) -> dict[str, bytes]:
    """The files that a family keeps beside its tokenizer, with the new size and ids. Others are passed through."""
    new = pruned.new_ids
    result = dict(files)
    if "config.json" in files:
        config = _renumber_keys(json.loads(files["config.json"]), new)
        inner = config.get("text_config")
        if isinstance(inner, dict):
            config["text_config"] = _renumber_keys(inner, new)
        else:
            config["vocab_size"] = len(new)  # a missing one would be read as the class's default
        result["config.json"] = _write_json(config)
    if "tokenizer_config.json" in files:
        config = _renumber_keys(json.loads(files["tokenizer_config.json"]), new)
        if "added_tokens_decoder" in config:
            added = {int(key): token for key, token in config["added_tokens_decoder"].items()}
            config["added_tokens_decoder"] = {str(new[old]): token for old, token in added.items() if old in new}
        result["tokenizer_config.json"] = _write_json(config)
    if "special_tokens_map.json" in files:
        result["special_tokens_map.json"] = _write_json(
            _renumber_keys(json.loads(files["special_tokens_map.json"]), new)
        )
    return result


def _load_tokenizer(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the model proper, added tokens outside it left out."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _score) in enumerate(model["vocab"])}
    return dict(model["vocab"])


# What must stay


def _find_special(data: Mapping[str, Any], parent: Tokenizer) -> set[int]:
    """Ids of the added tokens, and of those that something names: the post-processor, the padding, the model."""
    found = set(parent.get_added_tokens_decoder())

    def note(token_id: int) -> int:
        found.add(token_id)
        return token_id

    _renumber_processor(data.get("post_processor"), note)
    if data.get("padding"):
        found.add(data["padding"]["pad_id"])
    unknown = _find_unknown(data, parent)
    return found if unknown is None else found | {unknown}


def _find_unknown(data: Mapping[str, Any], parent: Tokenizer) -> int | None:
    model = data["model"]
    named: int | None = model.get("unk_id")  # only Unigram has a number
    return named if model["type"] == "Unigram" else parent.token_to_id(model.get("unk_token") or "")


def _find_needed(data: Mapping[str, Any], special: set[int]) -> set[int]:
    """Ids of the tokens without which the algorithm, or a consumer of the tokenizer, would not work as before."""
    model, vocab = data["model"], _read_vocab(data["model"])
    tokens: set[str] = set()
    if _is_byte_level(data):
        tokens |= _decorate(_BYTE_SYMBOLS, model)
    if model.get("byte_fallback"):
        tokens |= {f"<0x{byte:02X}>" for byte in range(256)}
    needed = {vocab[token] for token in tokens & vocab.keys()}
    if model["type"] == "Unigram":
        needed.add(min(range(len(model["vocab"])), key=lambda index: float(model["vocab"][index][1])))
    low = max((token_id for token_id in special if token_id < LOW_IDS), default=-1)
    return needed | {token_id for token_id in vocab.values() if token_id <= low}


def _find_ingredients(kept: set[int], model: Mapping[str, Any]) -> set[int]:
    """Ids of everything that BPE makes on its way to the kept tokens, from single characters on."""
    vocab = _read_vocab(model)
    prefix, suffix = _affixes(model)
    ranks = {tuple(_read_merge(entry)): rank for rank, entry in enumerate(model["merges"])}
    found: set[str] = set()
    for token in [token for token, token_id in vocab.items() if token_id in kept]:
        for symbols in _spell_symbols(token, prefix, suffix):
            made = [*symbols]
            while len(symbols) > 1:
                rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(itertools.pairwise(symbols)))
                if rank == len(ranks):
                    break
                symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(prefix) :]]
                made.append(symbols[at])
            if symbols == [token]:  # or merges never give it, and it only ever stands for a whole word
                found.update(made)
    return {vocab[token] for token in found & vocab.keys()}


def _spell_symbols(token: str, prefix: str, suffix: str) -> Iterator[list[str]]:
    """The symbols from which BPE may start towards a token: it can begin, end, fill or be inside a word."""
    for head, tail in itertools.product({"", prefix}, {"", suffix}):
        core = token[len(head) : len(token) - len(tail)]
        if core and token == head + core + tail:
            symbols = [head + core[0], *(prefix + character for character in core[1:])]
            symbols[-1] += tail
            yield symbols


def _affixes(model: Mapping[str, Any]) -> tuple[str, str]:
    """What the model puts before a piece that continues a word, and after one that ends it; mostly nothing."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _decorate(characters: Iterable[str], model: Mapping[str, Any]) -> set[str]:
    """The forms in which single characters may be in the vocabulary."""
    prefix, suffix = _affixes(model)
    return {
        head + character + tail for character in characters for head in {"", prefix} for tail in {"", suffix}
    }  # fmt: skip


def _read_merge(entry: str | Sequence[str]) -> Sequence[str]:
    return entry.split(" ") if isinstance(entry, str) else entry


# By corpus


def _read_corpus(path: Path, request: str) -> Iterator[list[str]]:
    """The texts of a file in batches, blank lines left out."""
    asked = f"vocabulary = {request!r} was asked; {path}"
    wanted = 'give a UTF-8 text file with one text per line, or scripts such as "script:Latin,Cyrillic"'
    batch: list[str] = []
    texts = characters = 0
    try:
        if not path.is_file():
            raise RequestError(f"{asked} is not a file: {wanted}")
        if path.stat().st_size > MAX_CORPUS_BYTES:
            raise RequestError(
                f"{asked} has {path.stat().st_size} bytes, and at most {MAX_CORPUS_BYTES} are read: give a sample of it"
            )
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_TEXT_CHARACTERS + 1):
                if len(line) > MAX_TEXT_CHARACTERS:
                    raise RequestError(
                        f"{asked} has a line of more than {MAX_TEXT_CHARACTERS} characters: give one text per line"
                    )
                if not line.strip():
                    continue
                texts, characters = texts + 1, characters + len(line)
                batch.append(line.rstrip("\n"))
                if len(batch) == _BATCH_TEXTS or characters > MAX_TEXT_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
    except UnicodeDecodeError as error:
        raise RequestError(f"{asked} is not UTF-8 ({error.reason}): {wanted}") from error
    except OSError as error:
        raise RequestError(f"{asked} cannot be read ({error.strerror}): {wanted}") from error
    if not texts:
        raise RequestError(f"{asked} holds no text: {wanted}")
    yield batch


def _find_used(data: Mapping[str, Any], parent: Tokenizer, batches: Iterable[Sequence[str]]) -> set[int]:
    """Ids of the tokens of some texts, of their single characters, and of what their unknown words fail at."""
    model, vocab = data["model"], _read_vocab(data["model"])
    if model["type"] == "WordLevel":
        return {token_id for texts in batches for ids in _tokenize(parent, texts) for token_id in ids}
    splitter = _make_splitter(data)
    unknown = _find_unknown(data, parent)
    used: set[int] = set()
    characters: set[str] = set()
    for texts in batches:
        for ids, split in zip(_tokenize(parent, texts), splitter.encode_batch(list(texts)), strict=True):
            used.update(ids)
            words = [word for word, word_id in zip(split.tokens, split.ids, strict=True) if word_id == 0]
            characters.update(*words)
            if model["type"] == "WordPiece" and unknown in ids:
                used.update(token_id for word in words for token_id in _walk_word(word, model, vocab))
    return used | {vocab[token] for token in _decorate(characters, model) & vocab.keys()}


def _make_splitter(data: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer whose tokens are the words that the parent's model is given, as it sees them.

    A Unigram model that knows no piece (here a noncharacter) gives each word back whole, with its unknown id, 0.
    """
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["\U0010ffff", 0.0]], "byte_fallback": False}
    added = [token | {"id": index} for index, token in enumerate(data["added_tokens"], start=1)]
    return _load_tokenizer(json.dumps({**data, "model": model, "added_tokens": added, "post_processor": None}))


def _walk_word(word: str, model: Mapping[str, Any], vocab: Mapping[str, int]) -> Iterator[int]:
    """Ids of the pieces that WordPiece takes from a word, longest first, until it ends or nothing fits."""
    if len(word) > model["max_input_chars_per_word"]:
        return
    start = 0
    while start < len(word):
        head = model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if head + word[start:end] in vocab)
        end = next(ends, None)
        if end is None:
            return
        yield vocab[head + word[start:end]]
        start = end


# By script


def _choose_by_script(data: Mapping[str, Any], request: str, special: set[int]) -> set[int]:
    """Ids of the tokens that can be part of a text in some scripts; digits, punctuation and marks are in all."""
    codes = np.r_[:0xD800, 0xE000:0x110000]  # without the surrogates
    every = codes.astype("<u4").tobytes().decode("utf-32-le")
    classes = "".join(_read_scripts(request))
    own = _find_characters(classes, every)
    fits = _make_filter(own | _find_characters(r"\p{Script=Common}\p{Script=Inherited}", every), _is_byte_level(data))
    prefix, suffix = _affixes(data["model"])
    chosen: set[int] = set()
    found = False
    for token, token_id in _read_vocab(data["model"]).items():
        if token_id not in special and fits(token.removeprefix(prefix).removesuffix(suffix)):
            chosen.add(token_id)
            found = found or not own.isdisjoint(_spell_token(token, data))
    if not found:
        raise RequestError(
            f"vocabulary = {request!r} was asked; the parent has no token with a character of it: "
            "give a script that the parent was trained on, or a text file"
        )
    return chosen


def _read_scripts(request: str) -> Iterator[str]:
    """The class of each script that is asked for, for a set in a pattern."""
    for name in request.removeprefix(SCRIPT_PREFIX).split(","):
        pattern = rf"\p{{Script={name.strip()}}}"
        try:
            if not regex.fullmatch("[A-Za-z]+(?:[_ ][A-Za-z]+)*", name.strip()):
                raise regex.error("not a name")
            regex.compile(pattern)
        except regex.error as error:
            raise RequestError(
                f"vocabulary = {request!r} was asked; {name.strip()!r} is not a Unicode script: give names such as "
                "Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai, Han, Hiragana, Katakana, Hangul"
            ) from error
        yield pattern


def _find_characters(classes: str, every: str) -> set[str]:
    return set("".join(regex.findall(f"[{classes}]+", every)))


def _make_filter(allowed: set[str], byte_level: bool) -> Callable[[str], bool]:
    """Whether a token can be part of a text of the allowed characters; byte-level ones may begin and end inside one."""
    if not byte_level:
        return allowed.issuperset
    encoded = [character.encode() for character in allowed if not character.isascii()]
    heads = {code[:end] for code in encoded for end in range(1, len(code))}
    tails = {code[start:end] for code in encoded for start in range(1, len(code)) for end in range(start + 1, 5)}

    def fits(token: str) -> bool:
        if not _BYTE_SYMBOLS.keys() >= set(token):
            return False
        raw = bytes(_BYTE_SYMBOLS[symbol] for symbol in token)
        rest = raw.lstrip(_CONTINUATION_BYTES)
        tail = raw[: len(raw) - len(rest)]
        decoder = getincrementaldecoder("utf-8")()
        try:
            whole = decoder.decode(rest)
        except UnicodeDecodeError:
            return False
        head = decoder.getstate()[0]
        return allowed.issuperset(whole) and (not tail or tail in tails) and (not head or head in heads)

    return fits


def _is_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether the model is given bytes, each written as one of 256 characters."""
    return any('"type": "ByteLevel"' in json.dumps(data.get(part)) for part in ("normalizer", "pre_tokenizer"))


def _list_byte_symbols() -> dict[str, int]:
    """The character for each byte: itself where it is visible in Latin-1, otherwise the next one from U+0100 on.

    GPT-2's table (Radford et al., 2019), which every byte-level tokenizer has taken over.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTE_SYMBOLS = _list_byte_symbols()
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def _spell_token(token: str, data: Mapping[str, Any]) -> str:
    """What a token stands for in a text, without characters that it has only a part of."""
    prefix, suffix = _affixes(data["model"])
    bare = token.removeprefix(prefix).removesuffix(suffix)
    if not _is_byte_level(data):
        return bare.replace("▁", " ")
    return bytes(_BYTE_SYMBOLS[symbol] for symbol in bare if symbol in _BYTE_SYMBOLS).decode(errors="ignore")


# Rewriting


def _cut_tokenizer(data: Mapping[str, Any], parent: Tokenizer, kept: set[int], kept_by: str) -> PrunedVocabulary:
    model = data["model"]
    inside = set(_read_vocab(model).values())
    # The library numbers added tokens that the model does not have after those that it has.
    order = sorted(kept, key=lambda token_id: (token_id not in inside, token_id))
    new = {old: position for position, old in enumerate(order)}
    added = {token.content: token_id for token_id, token in parent.get_added_tokens_decoder().items()}
    rewritten = {
        **data,
        "added_tokens": [token | {"id": new[added[token["content"]]]} for token in data["added_tokens"]],
        "post_processor": _renumber_processor(data.get("post_processor"), new.__getitem__),
        "model": _cut_model(model, new),
    }
    if data.get("padding"):
        rewritten["padding"] = data["padding"] | {"pad_id": new[data["padding"]["pad_id"]]}
    return PrunedVocabulary(
        tokenizer_json=json.dumps(rewritten, ensure_ascii=False, separators=(",", ":")),
        kept=tuple(order),
        kept_by=kept_by,
        parent_tokens=parent.get_vocab_size(with_added_tokens=True),
    )


def _cut_model(model: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        pieces = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        return {**model, "vocab": pieces, "unk_id": _renumber(model.get("unk_id"), new)}
    # In the order of the ids: transformers counts the entries of a WordLevel vocabulary instead of reading them.
    tokens = sorted((new[old], token) for token, old in model["vocab"].items() if old in new)
    vocab = {token: token_id for token_id, token in tokens}
    if model["type"] != "BPE":
        return {**model, "vocab": vocab}
    skip = len(_affixes(model)[0])
    merges = [
        entry
        for entry, (left, right) in zip(model["merges"], map(_read_merge, model["merges"]), strict=True)
        if left in vocab and right in vocab and left + right[skip:] in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges}


def _renumber_processor(part: Any, renumber: Callable[[int], int]) -> Any:
    """A post-processor with every token id replaced."""
    match part and part["type"]:
        case "Sequence":
            return part | {"processors": [_renumber_processor(inner, renumber) for inner in part["processors"]]}
        case "TemplateProcessing":
            tokens = part["special_tokens"].items()
            return part | {
                "special_tokens": {key: token | {"ids": list(map(renumber, token["ids"]))} for key, token in tokens}
            }
        case "BertProcessing" | "RobertaProcessing":
            return part | {end: [part[end][0], renumber(part[end][1])] for end in ("sep", "cls")}
    return part


def _renumber_keys(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    renumbered = {key: _renumber(value, new) if key.endswith("_token_id") else value for key, value in config.items()}
    return renumbered | ({"vocab_size": len(new)} if "vocab_size" in config else {})


def _renumber(value: Any, new: Mapping[int, int]) -> Any:
    """A new id, or a list of them. None for one that has gone: left out, it would be read as the class's default."""
    if isinstance(value, list):
        return [new[token_id] for token_id in value if token_id in new]
    return new.get(value) if isinstance(value, int) and value >= 0 else value  # some say -1 for none


def _write_json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


# Checking


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
    return [list(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=framed)]


def _tokenize_both(
    parent: Tokenizer, child: Tokenizer, kept: Sequence[int], texts: Sequence[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Each text's ids by the parent's tokenizer and by the pruned one, both in the parent's numbers."""
    pairs = zip(_tokenize(parent, texts, framed=True), _tokenize(child, texts, framed=True), strict=True)
    return ((before, [kept[token_id] for token_id in after]) for before, after in pairs)


def _check_ids(parent: Tokenizer, pruned: PrunedVocabulary) -> None:
    new = pruned.new_ids
    wanted = {token: new[old] for token, old in parent.get_vocab(with_added_tokens=True).items() if old in new}
    given = _load_tokenizer(pruned.tokenizer_json).get_vocab(with_added_tokens=True)
    wrong = sorted(token for token in wanted.keys() | given.keys() if wanted.get(token) != given.get(token))
    if wrong:
        raise ParentError(
            f"the parent's tokenizer cannot be pruned: {wrong[0]!r} would have to be token {wanted.get(wrong[0])} and "
            f"is read as {given.get(wrong[0])} ({len(wrong)} tokens in all): leave vocabulary out"
        )


def _check_texts(
    parent: Tokenizer,
    pruned: PrunedVocabulary,
    batches: Iterable[Sequence[str]],
    counts: Callable[[list[int]], bool] = lambda _ids: True,
) -> None:
    """Refuse when a text has changed whose ids (the parent's) count."""
    child = _load_tokenizer(pruned.tokenizer_json)
    for texts in batches:
        pairs = _tokenize_both(parent, child, pruned.kept, texts)
        for text, (before, after) in zip(texts, pairs, strict=True):
            if before != after and counts(before):
                raise ParentError(
                    f"pruning the vocabulary would change the tokens of {text[:60]!r}, all of which were to stay: "
                    "leave vocabulary out, and report this"
                )


def _spell_tokens(data: Mapping[str, Any], kept: set[int]) -> Iterator[list[str]]:
    """The kept tokens as texts, in batches; first nothing, which is framed only."""
    yield [""]
    texts = [_spell_token(token, data) for token, token_id in _read_vocab(data["model"]).items() if token_id in kept]
    for start in range(0, len(texts), _BATCH_TEXTS):
        yield texts[start : start + _BATCH_TEXTS]
