"""Every model type of the installed transformers that can be a text encoder, as a tiny random folder.

One rule makes a configuration: whichever of the known synonyms of a size a configuration class has is set to a small
value (`SIZES`), in its sub-configurations too; what the class derives from them (layer types, head sizes, rope) it
derives itself. `CHANGES` holds what the rule cannot know, per type. Types that can never be text encoders are in
`LEFT_OUT`, with a reason, so that what is left is an honest denominator.

All parameters are drawn at random, those of norms most of all: with ones and zeros, a missing norm can pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from parents import BLOCKS, VOCABULARY, WIDTH, Shape, make_tokenizer
from sentence_transformers.base.modules import transformer as loading
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING

IDS = torch.tensor([[2, 5, 6, 7, 8, 3]])
HEADS, INNER, POSITIONS, WINDOW, EXPERTS = 4, 48, 128, 8, 4

#: Name of a configuration's field -> its small value. A field that a class does not have is left out.
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(
        (
            "vocab_size",
            "text_vocab_size",
            "encoder_vocab_size",
            "decoder_vocab_size",
            "src_vocab_size",
            "tgt_vocab_size",
            "vocab_size_per_layer_input",
            "embedding_vocab_size",
        ),
        len(VOCABULARY),
    ),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "embedding_size",
            "decoder_hidden_size",
            "encoder_hidden_size",
            "projection_dim",
            "true_hidden_size",
            "model_dim",
        ),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
        ),
        BLOCKS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "swa_num_attention_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "attention_head_size",
            "d_kv",
            "d_head",
            "v_head_dim",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "swa_head_dim",
            "swa_v_head_dim",
            "dim_head",
            "global_head_dim",
            "index_head_dim",
            "kv_channels",
        ),
        8,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "hidden_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "d_inner",
            "ffn_hidden_size",
            "dim_ff",
            "dff",
            "expert_ffn_hidden_size",
            "shared_intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "intermediate_size_mlp",
            "prefix_dense_intermediate_size",
            "dense_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        INNER,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "max_source_positions",
            "max_target_positions",
            "n_ctx",
            "max_seq_len",
            "block_max_len",
            "max_sequence_length",
            "max_encoder_position_embeddings",
            "original_max_position_embeddings",
        ),
        POSITIONS,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), EXPERTS
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_selected_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "local_attention", "sliding_window_size", "attention_window_size"), WINDOW),
    "first_k_dense_replace": 1,
    "rotary_dim": 4,
    "num_kv_shared_layers": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    # state-space and linear layers
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_chunk_size": 8,
    "state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    # sparse attention
    "index_n_heads": 2,
    "index_topk": 64,
    # images, where a text model has a part for them
    "image_size": 16,
    "patch_size": 8,
}

#: Type -> fields that the rule gets wrong, and why.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    # positions of several axes: the sections must fill half of the rotated part of a head
    **{
        kind: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
        for kind in ("qwen2_vl_text", "qwen2_5_vl_text", "cosmos3_edge_text")
    },
    **{
        kind: {
            "head_dim": 16,
            "hidden_size": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        }
        for kind in ("glm4v_text", "glm_image_text", "glm_ocr_text", "glm4v_moe_text")
    },
    "hunyuan_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1, 1]}},
    "neomme": {"head_dim": 16},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    # heads of which something else is a multiple
    "esmc": {"num_key_value_heads": HEADS},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8},
    "lilt": {"hidden_size": 48},  # its boxes take sixths of it
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "reformer": {
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (8, 16),
        "attn_layers": ["local", "lsh", "local"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "feed_forward_size": INNER,
        "num_buckets": 4,
    },
    # lists with one entry per block
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": WINDOW},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    # what the class insists on
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "xmod": {"default_language": "en_XX"},
    # tables that have nothing to do with texts, and would be large
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "roc_bert": {"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
}

#: Type -> why it is not a text encoder. Modalities other than text are found by `_find_reason`.
LEFT_OUT: Mapping[str, str] = {
    **dict.fromkeys(("bros", "udop"), "needs the boxes of the words beside them"),
    **dict.fromkeys(("lxmert", "vilt"), "needs an image beside the text"),
    **dict.fromkeys(
        (
            "fastspeech2_conformer",
            "fastspeech2_conformer_with_hifigan",
            "vits",
            "csm",
            "dia",
            "higgs_audio_v2",
            "pocket_tts",
            "gradium_phonon_tts",
            "kyutai_speech_to_text",
            "moshi",
            "vibevoice",
            "musicgen",
            "musicgen_melody",
            "clvp",
        ),
        "gives sound, no states of a text",
    ),
    "imagegpt": "its ids are colours, not tokens",
    "layoutlmv2": "needs the package detectron2",
    "pi0": "gives actions of a robot",
    "EvollaModel": "another name of evolla",
}

#: Sub-configurations of what is no text, or of a text model beside something else.
OTHER_PARTS = (
    "text_config", "vision_config", "audio_config", "vq_config", "audio_encoder_config", "audio_encoder",
    "protein_encoder_config", "patcher_config",
)  # fmt: skip


#: Encoders that sentence-transformers loads by rules of its own.
ENCODERS: Mapping[str, str] = {"t5gemma": "T5GemmaEncoderModel"}

#: What a stack's final norm is called, in any of the types.
FINAL_NORMS = frozenset(
    ("norm", "final_layer_norm", "final_layernorm", "ln_f", "layer_norm", "final_norm", "embedding_norm", "norm_f",
     "layernorm", "ln", "ln_final", "output_layernorm", "LayerNorm", "model_norm", "layer_norm_final", "ln_out",
     "encoder_norm", "post_norm", "norm_final", "emb_layer_norm_after", "final_rms_norm", "output_norm", "out_norm")
)  # fmt: skip
#: Where more than one module is called so, or none.
NORMS: Mapping[str, str] = {"janus": "language_model.norm", "neomme": "final_norm"}


@cache
def list_types() -> tuple[str, ...]:
    """All types that are tried, sorted: text alone, and text halves of models with other modalities."""
    return tuple(sorted(kind for kind in CONFIG_MAPPING if find_reason(kind) is None))


@cache
def find_reason(kind: str) -> str | None:
    """Why a type is left out; None when it is in."""
    if kind in LEFT_OUT:
        return LEFT_OUT[kind]
    try:
        model = MODEL_MAPPING[CONFIG_MAPPING[kind]]
        model = model[0] if isinstance(model, list | tuple) else model
        takes = inspect.signature(model.forward).parameters
    except KeyError:
        return "AutoModel has no model for it"
    except (ImportError, ValueError):
        return "its model cannot be imported here"
    if "input_ids" not in takes:
        return "takes no input_ids"
    return None


@cache
def find_class(kind: str) -> Any:
    """The model of a type: its encoder where sentence-transformers loads that alone, otherwise AutoModel's."""
    config = CONFIG_MAPPING[kind]
    if kind in ENCODERS:
        return getattr(hf, ENCODERS[kind])
    for known, module, name in loading._ENCODER_ONLY_MODELS:
        if issubclass(config, known):
            return getattr(importlib.import_module(module), name)
    model = MODEL_MAPPING[config]
    return model[0] if isinstance(model, list | tuple) else model


def has_other_inputs(kind: str) -> bool:
    """Whether a type reads images, sound or the like beside text."""
    return any(name in OTHER_PARTS for name in CONFIG_MAPPING[kind].sub_configs)


def make_config(kind: str) -> Any:
    """The tiny configuration of a type."""
    return _make_config(CONFIG_MAPPING[kind], kind)


@torch.no_grad()
def count_blocks(kind: str, folder: Path) -> int:
    """How many blocks the model in a folder of `make_zoo_parent` tells apart; what its configuration says otherwise."""
    try:
        return len(find_class(kind).from_pretrained(folder)(IDS, output_hidden_states=True).hidden_states) - 1
    except Exception:  # whatever this type's forward raises when it is given ids alone
        return int(getattr(make_config(kind).get_text_config(), "num_hidden_layers", BLOCKS))


def make_zoo_parent(kind: str, folder: Path) -> Path:
    """Save a tiny random model of a type as a plain transformers folder."""
    torch.manual_seed(0)
    config = make_config(kind)
    model: Any = find_class(kind)(config).eval()
    shake(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer(Shape(lambda: config)).save_pretrained(folder)
    if kind in IMAGE_PROCESSOR_MAPPING_NAMES:
        _save_image_processor(kind, folder)
    return folder


def _save_image_processor(kind: str, folder: Path) -> None:
    """What sentence-transformers loads even where texts alone are embedded, and the tokens that it looks for."""
    named = IMAGE_PROCESSOR_MAPPING_NAMES[kind]
    for name in named.values() if isinstance(named, Mapping) else named:
        with contextlib.suppress(ImportError, AttributeError, TypeError):  # torchvision's, which is not there
            getattr(hf, name)().save_pretrained(folder)
            break
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["extra_special_tokens"] = {"image_token": "[MASK]", "boi_token": "[CLS]", "eoi_token": "[SEP]"}
    path.write_text(json.dumps(told), encoding="utf-8")


def shake(model: nn.Module) -> None:
    """Move every parameter; vectors (norms' weights and all biases) further than matrices."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter += (0.3 if parameter.ndim == 1 else 0.1) * torch.randn_like(parameter)


class ZooOracle:
    """Vectors of a folder of `make_zoo_parent` by the textbook: one text at a time, no padding, mean, cut, unit length.

    Args:
        norm: whether states before the last block go through the model's final norm.
    """

    def __init__(self, folder: Path, kind: str, *, norm: bool) -> None:
        self.model: Any = find_class(kind).from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        names = TAILS.get(kind) or [find_norm(self.model, kind)] if norm else []
        self.norm: Any = nn.Sequential(*(self.model.get_submodule(name) for name in names))
        self._takes = inspect.signature(self.model.forward).parameters

    @torch.no_grad()
    def vectors(self, text: str, points: list[tuple[int, int]]) -> list[Any]:
        """One (dim,) array per (layers, dim)."""
        batch = self.tokenizer([text], truncation=True, max_length=48, return_tensors="pt")
        output = self.model(**{name: batch[name] for name in batch if name in self._takes}, output_hidden_states=True)
        states = output.hidden_states
        found = []
        for layers, dim in points:
            last = layers == len(states) - 1
            state = output.last_hidden_state if last else self.norm(states[layers])
            vector = state[0].mean(0)[:dim]
            found.append((vector / vector.norm()).numpy())
        return found


#: What stands between the last block and the last hidden state, where it is more than a norm.
TAILS: Mapping[str, tuple[str, ...]] = {
    "embedding_gemma2_text": ("norm", "embedding_projection"),
    "hy_v4": ("hc_head", "norm"),
    "deepseek_v4": ("hc_head", "norm"),
    "glm5_next_text": ("hc_head", "norm"),
}


def find_norm(model: nn.Module, kind: str) -> str:
    """Name of a model's final norm."""
    if kind in NORMS:
        return NORMS[kind]
    names = [
        name
        for name, _ in model.named_modules()
        if name.split(".")[-1] in FINAL_NORMS
        and not any(part.isdigit() or part in ("embeddings", "pooler", "visual") for part in name.split("."))
        and not any(word in name for word in ("vision", "audio", "image", "projector"))
    ]
    if len(names) != 1:
        raise LookupError(f"{kind}: which is the final norm: {names}")
    return names[0]


def _mix_layers(cls: type, names: set[str]) -> dict[str, Any]:
    """One block of each kind that the full-sized model has, the first kind repeated: kinds often alternate slowly."""
    found: dict[str, Any] = {}
    for name in ("layer_types", "layers_block_type"):
        kinds = list(dict.fromkeys(getattr(cls(), name, None) or ())) if name in names else []
        if len(kinds) > 1:
            found[name] = [kinds[0]] * (BLOCKS - len(kinds)) + kinds
            found["num_hidden_layers"] = len(found[name])
    return found


def _make_config(cls: type, kind: str) -> Any:
    names = {field.name for field in dataclasses.fields(cls)}
    given = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names:  # keys and values are made from one latent for all heads
        given["num_key_value_heads"] = HEADS
    changes = dict(CHANGES.get(kind, {}))
    if kind in ENCODERS:
        changes["is_encoder_decoder"] = False
    given |= _mix_layers(cls, names)
    for name, sub in cls.sub_configs.items():
        if name not in names or name in changes:
            continue
        if sub is hf.AutoConfig:  # any type: the one that the class takes by default
            default = getattr(cls(), name)
            sub = type(default) if default is not None else None
        if sub is not None:
            given[name] = _make_config(sub, sub.model_type)
    config = cls(**given | changes)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config
