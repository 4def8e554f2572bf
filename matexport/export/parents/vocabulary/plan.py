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

import json
from collections.abc import Sequence
from pathlib import Path

from matexport.errors import RequestError
from matexport.export.parents.vocabulary.check import check_ids, check_texts, tokenize_both
from matexport.export.parents.vocabulary.corpus import find_used, read_corpus
from matexport.export.parents.vocabulary.model import (
    PrunedVocabulary,
    find_special,
    find_unknown,
    load_tokenizer,
    spell_tokens,
)
from matexport.export.parents.vocabulary.needed import find_ingredients, find_needed
from matexport.export.parents.vocabulary.rewrite import cut_tokenizer
from matexport.export.parents.vocabulary.script import SCRIPT_PREFIX, choose_by_script

MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


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
    parent = load_tokenizer(tokenizer_json)
    special = find_special(data, parent)
    by_script = request.startswith(SCRIPT_PREFIX)
    path = base / request
    if by_script:
        chosen = choose_by_script(data, request, special)
    else:
        chosen = find_used(data, parent, read_corpus(path, request))
        if chosen <= special:
            raise RequestError(
                f"vocabulary = {request!r} was asked; the parent knows none of its words (it has special tokens for "
                "them only): give texts in a language of the parent"
            )
    chosen |= find_used(data, parent, [also])
    kept = chosen | special | find_needed(data, special)
    if data["model"]["type"] == "BPE":
        kept |= find_ingredients(kept, data["model"])
    pruned = cut_tokenizer(data, parent, kept, request if by_script else path.name)
    check_ids(parent, pruned)
    check_texts(parent, pruned, [also])
    if by_script:
        unknown = find_unknown(data, parent)
        inside = kept.issuperset
        check_texts(parent, pruned, spell_tokens(data, kept), lambda ids: unknown not in ids and inside(ids))
    else:
        check_texts(parent, pruned, read_corpus(path, request))
    return pruned


def find_changed(tokenizer_json: str, pruned: PrunedVocabulary, texts: Sequence[str]) -> list[bool]:
    """For each text, whether its tokens are no longer those of the parent's tokenizer."""
    child = load_tokenizer(pruned.tokenizer_json)
    return [
        before != after for before, after in tokenize_both(load_tokenizer(tokenizer_json), child, pruned.kept, texts)
    ]
