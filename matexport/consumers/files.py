"""The files that other consumers configure themselves from: tokenizer, limit, width, pooling, prompts.

Two lengths decide where a consumer cuts a text, and each reads another: ``truncation`` of ``tokenizer.json``, and
``model_max_length`` of ``tokenizer_config.json`` (some read ``max_position_embeddings``, or ``max_seq_length``). All
say the parent's limit here. The module types and the pooling's keys are those that every version of
sentence-transformers since 2 reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matexport.errors import FamilyError, RequestError
from matexport.family.modality import TOKENIZER
from matexport.spec.facts import FamilyFacts, ProfileFacts
from matexport.spec.inputs import NO_LIMIT, PaddingSide, TextFacts
from matexport.spec.readout import PoolingMode

#: What sentence-transformers alone reads.
SENTENCE_TRANSFORMERS = ("config_sentence_transformers.json", "sentence_bert_config.json")

#: Which inputs consumers feed, used or not.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: What a tokenizer's configuration may name; each is a token, as text or as a record with ``content``.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Keys that would bring code of the parent's, or a class that other versions do not know.
_DROPPED = ("auto_map", "backend", "is_local", "name_or_path", "processor_class", "tokenizer_file", "vocab_file")

_POOLING = {
    PoolingMode.CLS: "cls_token", PoolingMode.MEAN: "mean_tokens", PoolingMode.MAX: "max_tokens",
    PoolingMode.MEAN_SQRT_LEN: "mean_sqrt_len_tokens", PoolingMode.WEIGHTED_MEAN: "weightedmean_tokens",
    PoolingMode.LAST_TOKEN: "lasttoken",
}  # fmt: skip


def write_consumer_files(
    facts: FamilyFacts,
    profile: ProfileFacts,
    files: Mapping[str, bytes],
    *,
    tokens: bool,
    browser: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """What stands beside a graph, by name, in place of what the family has.

    Args:
        tokens: whether the graph gives the vector at every token, for what pools tokens: only then is there anything
            for sentence-transformers to configure.
        files: the family's own: ``tokenizer.json``, and ``config.json`` and ``tokenizer_config.json`` where it has
            them.
        browser: what ``config.json`` tells transformers.js of the graphs.

    Raises:
        RequestError: the parent does something to texts that no other consumer would do.
        FamilyError: a file is not what its name says.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if facts.readout.normalize:
        modules.append(("2_Normalize", "Normalize"))
    config = _describe_model(facts, profile, _read("config.json", files))
    written = write_text_files(facts, files) | encode_json(
        {"config.json": config | ({"transformers.js_config": dict(browser)} if browser else {})}
    )
    if not tokens:
        return {name: content for name, content in written.items() if name not in SENTENCE_TRANSFORMERS}
    pooling = describe_pooling(profile.dim, [PoolingMode.MEAN])
    return written | encode_json({"modules.json": list_modules(modules), "1_Pooling/config.json": pooling})


def write_text_files(facts: FamilyFacts, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The tokenizer's files, the limit and the prompts, as `write_consumer_files` gives them."""
    text = refuse_others(facts)
    tokenizer, said = _read(TOKENIZER, files), _read("tokenizer_config.json", files)
    pad = _spell(tokenizer, text.pad_token_id)
    config = _describe_tokenizer(text, said, pad)
    written = encode_json({
        "tokenizer_config.json": config,
        "special_tokens_map.json": {name: config[name] for name in SPECIAL_TOKENS if name in config},
        "sentence_bert_config.json": {"max_seq_length": text.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": dict(text.prompts),
            "default_prompt_name": text.default_prompt,
            "similarity_fn_name": "cosine" if facts.readout.normalize else "dot",
            "truncate_dim": None,
        },
    })  # fmt: skip
    cutting = json.dumps(_cut_and_pad(tokenizer, text, pad), ensure_ascii=False, separators=(",", ":"))
    vocabulary = _list_pieces(tokenizer)
    return written | {TOKENIZER: cutting.encode()} | ({"vocab.txt": vocabulary} if vocabulary else {})


def encode_json(files: Mapping[str, object]) -> dict[str, bytes]:
    """Name -> data, as the content of files that people may read."""
    return {name: json.dumps(data, ensure_ascii=False, indent=1).encode() + b"\n" for name, data in files.items()}


def describe_pooling(width: int, modes: Sequence[PoolingMode]) -> dict[str, object]:
    """``1_Pooling/config.json`` with a key for each mode, as all versions of sentence-transformers read it."""
    known: dict[str, object] = {f"pooling_mode_{called}": mode in modes for mode, called in _POOLING.items()}
    return {"word_embedding_dimension": width} | known | {"include_prompt": True}


def list_modules(modules: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
    """``modules.json`` of (folder, class of sentence-transformers), under the names that all its versions read."""
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]


def refuse_others(facts: FamilyFacts) -> TextFacts:
    """How texts are read, of a family that other consumers can read as the parent does.

    Raises:
        RequestError: it takes no texts, or they go through what no file of a consumer can say.
    """
    if facts.text is None:
        raise RequestError(f"other consumers' folders are of texts; this family takes {facts.inputs.noun}s")
    if untold := find_untold(facts.text):
        raise RequestError(f"{untold}, and no other consumer does that: pack it with --for matexport")
    return facts.text


def find_untold(text: TextFacts) -> str | None:
    """What a parent does to its texts that no file of a consumer can say, in words."""
    if text.padded:
        return f"the graphs take one text, padded to {text.max_tokens} tokens"
    if text.chat is not None:
        return "the parent puts a chat template around each text"
    if text.unpooled:
        return "the parent leaves the tokens of its prompts out of the pooling"
    if text.route is not None:
        return f"the parent routes its texts by task ({text.route})"
    return None


def _read(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        data = json.loads(files[name])  # of parents, whose lengths may be larger than a strict reader takes
    except (ValueError, RecursionError) as error:
        raise FamilyError(f"{name} is not JSON ({error})", file=name) from None
    if not isinstance(data, dict):
        raise FamilyError(f"{name} holds no object", file=name)
    return data


def _cut_and_pad(tokenizer: Mapping[str, Any], text: TextFacts, pad: str) -> dict[str, Any]:
    """The tokenizer, cutting at the limit and padding to the longest of a batch, as its readers expect it to."""
    changed = dict(tokenizer)
    changed["truncation"] = None if text.max_tokens == NO_LIMIT else {
        "direction": _capitalise(text.cuts),
        "max_length": text.max_tokens,
        "strategy": "LongestFirst",
        "stride": 0,
    }  # fmt: skip
    changed["padding"] = {
        "strategy": {"Fixed": text.max_tokens} if text.full else "BatchLongest",
        "direction": _capitalise(text.padding_side),
        "pad_to_multiple_of": None,
        "pad_id": text.pad_token_id,
        "pad_type_id": 0,
        "pad_token": pad,
    }
    if not text.special_tokens:
        changed["post_processor"] = None  # consumers ask for special tokens: it has none then
    return changed


def _capitalise(side: PaddingSide) -> str:
    return str(side).capitalize()


def _describe_tokenizer(text: TextFacts, said: Mapping[str, Any], pad: str) -> dict[str, Any]:
    """``tokenizer_config.json``, for both generations of transformers: the class is the one that both have."""
    kept = {name: value for name, value in said.items() if name not in _DROPPED}
    special = {name: _spell_special(kept[name]) for name in SPECIAL_TOKENS if kept.get(name)}
    return kept | special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.max_tokens,
        "model_input_names": list(INPUTS),
        "pad_token": pad,
        "padding_side": str(text.padding_side),
        "truncation_side": str(text.cuts),
    }  # fmt: skip


def _spell_special(token: object) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise FamilyError("tokenizer_config.json names a special token that is no text", file="tokenizer_config.json")
    return content


def _describe_model(facts: FamilyFacts, profile: ProfileFacts, said: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json``: the parent's, with the width and the depth that this folder has."""
    text, parent = facts.inputs, facts.parent
    assert isinstance(text, TextFacts)
    config = {name: value for name, value in said.items() if name != "auto_map"}
    config.setdefault("model_type", "bert")  # of a parent without a configuration: readers want a type that they know
    widths = {"hidden_size", *({"dim", "d_model", "n_embd"} & config.keys())}
    depths = {"num_hidden_layers", *({"n_layers", "num_layers", "n_layer"} & config.keys())}
    lengths = {"max_position_embeddings"} if text.max_tokens != NO_LIMIT else set()
    if isinstance(kinds := config.get("layer_types"), list):  # of each block; transformers 5 counts them
        config["layer_types"] = kinds[: profile.layers]
    if type(heads := config.get("num_attention_heads")) is int and heads > 0 and profile.dim % heads:
        config["num_attention_heads"] = math.gcd(heads, profile.dim)  # it divides the width, and runs nowhere
    return config | dict.fromkeys(widths, profile.dim) | dict.fromkeys(depths, profile.layers) | dict.fromkeys(
        lengths, text.max_tokens
    ) | {"architectures": [parent.architecture], "pad_token_id": text.pad_token_id}  # fmt: skip


def _spell(tokenizer: Mapping[str, Any], token: int) -> str:
    """A token as text, by its id."""
    for added in tokenizer.get("added_tokens") or []:
        if added.get("id") == token:
            return str(added["content"])
    vocabulary = _map_pieces(tokenizer)
    found = next((piece for piece, id_ in vocabulary.items() if id_ == token), None)
    if found is None:
        raise RequestError(f"rows are padded with token {token}, which the tokenizer has no text for")
    return found


def _map_pieces(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    pieces = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(pieces, dict):
        return pieces
    return {piece: index for index, (piece, *_) in enumerate(pieces)}  # of a unigram model, with scores


def _list_pieces(tokenizer: Mapping[str, Any]) -> bytes:
    """``vocab.txt`` of a WordPiece tokenizer, a piece per line in the order of ids; nothing for other kinds."""
    if (tokenizer.get("model") or {}).get("type") != "WordPiece":
        return b""
    ids = _map_pieces(tokenizer)
    ordered = sorted(ids, key=lambda piece: ids[piece])
    if [ids[piece] for piece in ordered] != list(range(len(ordered))) or any("\n" in piece for piece in ordered):
        return b""  # a hole cannot be written down as lines
    return "".join(f"{piece}\n" for piece in ordered).encode()
