"""Plan to cut a parent's vocabulary to the tokens of a corpus, or to the tokens written in some scripts.

`plan_vocabulary` decides which tokens stay and rewrites the tokenizer; `prune_config` and `prune_embeddings` in
`rewrite` change the other files and the backbone in the same way. A text whose tokens all stay is tokenized as before.
For this, more tokens have to stay than those of the texts:

- For BPE, all tokens that merges make on the way to a kept token. Merges inside a token's span never look outside of
  it, so these are found by building each kept token alone, once, instead of once per word of the corpus.
- For Unigram, the least likely piece, because the cost of an unknown character is computed from its score.
- For WordPiece, the pieces that are found in a word of the corpus before it turns out to be unknown. Without them,
  shorter pieces might fit and make the word known.
- All ids up to the last special token below `LOW_IDS`, which therefore stay the same. RoBERTa counts positions from the
  padding token's id, and transformers' own tokenizer classes have numbers such as ``unk_id=3`` in their code.

The result is checked: before a plan is returned, both tokenizers are run on every text of the corpus.
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
    """Decide which tokens stay.

    Args:
        tokenizer_json: the parent's tokenizer, as `Tokenizer.to_str` gives it.
        request: ``script:Latin,Cyrillic``, or the path of a UTF-8 file with one text per line.
        base: directory that a relative path starts from.
        also: texts whose tokens must stay the same for every request, such as the parent's prompts.

    Raises:
        RequestError: the file cannot be read or is too large, a script is unknown, nothing but special tokens would
            stay, or the tokenizer's model is not supported.
        ParentError: a kept token would have another id than planned, or a text whose tokens all stay would be tokenized
            differently.
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
    """For each text, whether the pruned tokenizer gives other tokens than the parent's tokenizer."""
    child = load_tokenizer(pruned.tokenizer_json)
    return [
        before != after for before, after in tokenize_both(load_tokenizer(tokenizer_json), child, pruned.kept, texts)
    ]
