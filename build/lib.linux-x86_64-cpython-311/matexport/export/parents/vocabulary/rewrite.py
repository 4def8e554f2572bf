"""Write a pruned vocabulary with its new ids into the tokenizer's file, the configuration and the embedding's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from matexport.errors import ParentError
from matexport.export.parents.vocabulary.model import (
    PrunedVocabulary,
    affixes,
    read_merge,
    read_vocab,
    renumber_processor,
)


def prune_embeddings(backbone: nn.Module, kept: Sequence[int]) -> None:
    """Cut the (V, H) input embedding of a backbone to the (len(kept), H) rows that stay, in place.

    All modules that share the parameter are cut with it. Rows beyond the tokenizer's last token, which padded
    vocabularies have, are removed. Token ids in the backbone and its configuration are renumbered.

    Args:
        kept: the parent's id of each new id.

    Raises:
        ParentError: the embedding has no row for a kept token, or positions are counted from an id that would change.
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
    config: Any = getattr(backbone, "config", None)  # a table of tokens has none
    if config is None:
        return
    for name in [name for name in vars(config) if name.endswith("_token_id")]:
        setattr(config, name, _renumber(getattr(config, name), new))
    config.vocab_size = len(kept)


def prune_config(files: Mapping[str, bytes], pruned: PrunedVocabulary) -> dict[str, bytes]:
    """The JSON files that a family keeps beside its tokenizer, with the new vocabulary size and ids.

    Args:
        files: name -> content; files other than the known ones are returned as they are.
    """
    new = pruned.new_ids
    result = dict(files)
    if "config.json" in files:
        config = _renumber_keys(json.loads(files["config.json"]), new)
        inner = config.get("text_config")
        if isinstance(inner, dict):
            config["text_config"] = _renumber_keys(inner, new)
        else:
            config["vocab_size"] = len(new)  # if it were missing, the class's default would be used
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


def cut_tokenizer(data: Mapping[str, Any], parent: Tokenizer, kept: set[int], kept_by: str) -> PrunedVocabulary:
    """The tokenizer with only the kept tokens, under new ids.

    Args:
        data: the parent's ``tokenizer.json``.
        parent: the tokenizer that was made of `data`.
        kept: the parent's ids of the tokens that stay.
        kept_by: how the tokens were chosen, for the manifest.
    """
    model = data["model"]
    inside = set(read_vocab(model).values())
    # The library numbers added tokens that the model does not have after those that it has.
    order = sorted(kept, key=lambda token_id: (token_id not in inside, token_id))
    new = {old: position for position, old in enumerate(order)}
    added = {token.content: token_id for token_id, token in parent.get_added_tokens_decoder().items()}
    rewritten = {
        **data,
        "added_tokens": [token | {"id": new[added[token["content"]]]} for token in data["added_tokens"]],
        "post_processor": renumber_processor(data.get("post_processor"), new.__getitem__),
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
    # In the order of the ids, since transformers counts the entries of a WordLevel vocabulary instead of reading ids.
    tokens = sorted((new[old], token) for token, old in model["vocab"].items() if old in new)
    vocab = {token: token_id for token_id, token in tokens}
    if model["type"] != "BPE":
        return {**model, "vocab": vocab}
    skip = len(affixes(model)[0])
    merges = [
        entry
        for entry, (left, right) in zip(model["merges"], map(read_merge, model["merges"]), strict=True)
        if left in vocab and right in vocab and left + right[skip:] in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges}


def _renumber_keys(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    renumbered = {key: _renumber(value, new) if key.endswith("_token_id") else value for key, value in config.items()}
    return renumbered | ({"vocab_size": len(new)} if "vocab_size" in config else {})


def _renumber(value: Any, new: Mapping[int, int]) -> Any:
    """The new id of an old one, or of each in a list without those that are gone.

    None for a single id that is gone: if its key were left out, the class's default would be used.
    """
    if isinstance(value, list):
        return [new[token_id] for token_id in value if token_id in new]
    return new.get(value) if isinstance(value, int) and value >= 0 else value  # some parents use -1 for none


def _write_json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
