"""Check that a pruned tokenizer reads texts as the whole one does: both are run, and their ids are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from matexport.errors import ParentError
from matexport.export.parents.vocabulary.model import PrunedVocabulary, load_tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
    """Token ids of each text.

    Args:
        framed: whether to include the special tokens that the tokenizer puts around a text.
    """
    return [list(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=framed)]


def tokenize_both(
    parent: Tokenizer, child: Tokenizer, kept: Sequence[int], texts: Sequence[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids of each text from the parent's tokenizer and from the pruned one, both in the parent's numbering.

    Args:
        kept: the parent's id of each new id (`PrunedVocabulary.kept`).
    """
    pairs = zip(tokenize(parent, texts, framed=True), tokenize(child, texts, framed=True), strict=True)
    return ((before, [kept[token_id] for token_id in after]) for before, after in pairs)


def check_ids(parent: Tokenizer, pruned: PrunedVocabulary) -> None:
    """Check that the library reads the pruned tokenizer with the ids that its plan gives to the kept tokens.

    Raises:
        ParentError: a token has another id; the message names it.
    """
    new = pruned.new_ids
    wanted = {token: new[old] for token, old in parent.get_vocab(with_added_tokens=True).items() if old in new}
    given = load_tokenizer(pruned.tokenizer_json).get_vocab(with_added_tokens=True)
    wrong = sorted(token for token in wanted.keys() | given.keys() if wanted.get(token) != given.get(token))
    if wrong:
        raise ParentError(
            f"the parent's tokenizer cannot be pruned: {wrong[0]!r} would have to be token {wanted.get(wrong[0])} and "
            f"is read as {given.get(wrong[0])} ({len(wrong)} tokens in all): leave vocabulary out"
        )


def check_texts(
    parent: Tokenizer,
    pruned: PrunedVocabulary,
    batches: Iterable[Sequence[str]],
    counts: Callable[[list[int]], bool] = lambda _ids: True,
) -> None:
    """Refuse a pruned vocabulary with which a text has other tokens than before.

    Args:
        batches: the texts.
        counts: called with a text's ids in the parent's numbering; returns whether its tokens have to stay the same.

    Raises:
        ParentError: a text has other tokens; the message quotes it.
    """
    child = load_tokenizer(pruned.tokenizer_json)
    for texts in batches:
        pairs = tokenize_both(parent, child, pruned.kept, texts)
        for text, (before, after) in zip(texts, pairs, strict=True):
            if before != after and counts(before):
                raise ParentError(
                    f"pruning the vocabulary would change the tokens of {text[:60]!r}, all of which were to stay: "
                    "leave vocabulary out, and report this"
                )
