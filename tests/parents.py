"""Small random parents, made in the test process from transformers' configurations. No network, no stored weights.

LayerNorm (and RMSNorm) parameters are drawn at random too: with the usual ones and zeros, a wrong layer, a missing
norm or a swapped order can pass. The tokenizer knows a few words and falls back to characters, so that texts in any
script have tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sits",
    "on",
    "mat",
    "runs",
    "in",
    "snow",
    "of",
    "and",
    "house",
    "red",
    "blue",
    "small",
    "big",
    "river",
    "bank",
    "money",
    "city",
    "is",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?-'",
]
BLOCKS, WIDTH = 3, 32


@dataclass(frozen=True)
class Shape:
    """How to make a kind of parent: its configuration, and how its tokenizer frames and pads a text."""

    config: Callable[..., Any]
    pads_left: bool = False
    decoder: bool = False
    prenorm: bool = False


def _common(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        **extra,
    }


def _framed(**extra: Any) -> dict[str, Any]:
    return _common(**{"bos_token_id": 2, "eos_token_id": 3, **extra})


def _decoder(**extra: Any) -> dict[str, Any]:
    return _common(**{"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3, **extra})


SHAPES: Mapping[str, Shape] = {
    "bert": Shape(lambda **other: hf.BertConfig(**_common(**other))),
    "roberta": Shape(lambda **other: hf.RobertaConfig(**_framed(type_vocab_size=1, **other))),
    "xlm-roberta": Shape(lambda **other: hf.XLMRobertaConfig(**_framed(type_vocab_size=1, **other))),
    "mpnet": Shape(lambda **other: hf.MPNetConfig(**_framed(**other))),
    "distilbert": Shape(
        lambda **other: hf.DistilBertConfig(
            **{
                "vocab_size": len(VOCABULARY),
                "dim": WIDTH,
                "n_layers": BLOCKS,
                "n_heads": 4,
                "hidden_dim": 48,
                "max_position_embeddings": 128,
                **other,
            }
        )
    ),
    "modernbert": Shape(
        lambda **other: hf.ModernBertConfig(
            **_framed(cls_token_id=2, sep_token_id=3, local_attention=8, global_attn_every_n_layers=2, **other)
        ),
        prenorm=True,
    ),
    "qwen3": Shape(lambda **other: hf.Qwen3Config(**_decoder(**other)), pads_left=True, decoder=True, prenorm=True),
    "llama": Shape(lambda **other: hf.LlamaConfig(**_decoder(**other)), decoder=True, prenorm=True),
    "gemma3": Shape(
        lambda **other: hf.Gemma3TextConfig(
            **_decoder(
                sliding_window=8,
                layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                use_bidirectional_attention=True,
                query_pre_attn_scalar=8,
                **other,
            )
        ),
        prenorm=True,
    ),
}


def make_tokenizer(shape: Shape, *, max_length: int = 48) -> Any:
    """A WordPiece tokenizer over `VOCABULARY`, framed as the kind of parent expects."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    frame = "$A [SEP]" if shape.decoder else "[CLS] $A [SEP]"
    special = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side="left" if shape.pads_left else "right",
        model_max_length=max_length,
        model_input_names=(
            ["input_ids", "token_type_ids", "attention_mask"]
            if isinstance(shape.config(), hf.BertConfig) and type(shape.config()) is hf.BertConfig
            else ["input_ids", "attention_mask"]
        ),
    )


def make_parent(
    folder: Path,
    kind: str = "bert",
    *,
    pooling: str | Sequence[str] | None = "mean",
    dense: Sequence[int] = (),
    layer_norm: bool = False,
    normalize: bool = False,
    prompts: Mapping[str, str] | None = None,
    lowercase: bool = False,
    max_length: int = 48,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    change: Callable[[nn.Module], object] | None = None,
) -> Path:
    """Save a random parent in sentence-transformers' layout (without modules.json when `pooling` is None).

    Args:
        config: what its configuration says instead of the small defaults.
        change: what is done to the random weights; `perturb` when left out.
    """
    shape = SHAPES[kind]
    torch.manual_seed(seed)
    model = hf.AutoModel.from_config(shape.config(**(config or {}))).eval()
    (change or perturb)(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer(shape, max_length=max_length).save_pretrained(folder)
    if pooling is None:
        return folder
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    hidden = int(model.config.hidden_size)
    entries = [("Transformer", "", {}), ("Pooling", "1_Pooling", _pooling_config(modes, hidden))]
    width = hidden * len(modes)
    for out in dense:
        entries.append(("Dense", f"{len(entries)}_Dense", _save_dense(folder / f"{len(entries)}_Dense", width, out)))
        width = out
    if layer_norm:
        name = f"{len(entries)}_LayerNorm"
        entries.append(("LayerNorm", name, _save_layer_norm(folder / name, width)))
    if normalize:
        entries.append(("Normalize", f"{len(entries)}_Normalize", {}))
    _write_entries(folder, entries)
    settings = {"max_seq_length": max_length, "do_lower_case": lowercase}
    _write_json(folder / "sentence_bert_config.json", settings)
    if prompts:
        _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return folder


def perturb(model: nn.Module, scale: float = 0.2) -> None:
    """Move every parameter, norms and biases included, away from where initialisation puts it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)


def calm(model: nn.Module) -> None:
    """Perturb less: every product then has a gain of about 1, as in a trained parent, and small precisions keep up."""
    perturb(model, 0.1)


def soothe(model: Any) -> None:
    """A decoder whose blocks add less to the tokens' embeddings than what is there, as in trained ones."""
    perturb(model, 0.05)
    with torch.no_grad():
        model.embed_tokens.weight *= 4


def roughen(model: Any) -> None:
    """A calm BERT of which block 1 leaves the range of half precision, and block 2 suffers at 4 bits.

    Block 1: what goes into Gelu is 30,000 times larger, and what comes out of it is divided again. Block 2: of every 32
    channels the first is always zero, and has weights that are far larger than the others, with which they share a
    scale.
    """
    calm(model)
    first, second = model.encoder.layer[0], model.encoder.layer[1]
    attention = second.attention.self
    with torch.no_grad():
        first.intermediate.dense.weight *= 3e4
        first.intermediate.dense.bias *= 3e4
        first.output.dense.weight /= 3e4
        for norm, readers in (
            (first.output.LayerNorm, [attention.query, attention.key, attention.value]),
            (second.attention.output.LayerNorm, [second.intermediate.dense]),
        ):
            norm.weight[::32] = 0
            norm.bias[::32] = 0
            for layer in readers:
                layer.weight[:, ::32] = 3 * layer.weight[:, ::32].sign()


def _pooling_config(modes: Sequence[str], width: int) -> dict[str, Any]:
    flags = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    return {"word_embedding_dimension": width, **{flag: mode in modes for mode, flag in flags.items()}}


def _save_dense(folder: Path, width: int, out: int) -> dict[str, Any]:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {"linear.weight": torch.randn(out, width) / width**0.5, "linear.bias": torch.randn(out) * 0.1}
    save_file(weights, folder / "model.safetensors")
    return {
        "in_features": width,
        "out_features": out,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }


def _save_layer_norm(folder: Path, width: int) -> dict[str, Any]:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)}, folder / "model.safetensors")
    return {"dimension": width}


def _write_entries(folder: Path, entries: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    listing = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path, _) in enumerate(entries)
    ]
    _write_json(folder / "modules.json", listing)
    for _, path, config in entries:
        if config:
            _write_json(folder / path / "config.json", config)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
