"""Which settings of a parent's folder are accepted: those whose effect is known.

What a setting does is not decided here: sentence-transformers itself loads the parent (`loading`), so an accepted
setting takes effect as it does for the parent's users. Every other setting is refused by name, since its effect could
be one that a trace, a tokenizer file or a cut does not reproduce.

The settings are those of sentence-transformers 6.2 (`config_keys` of its modules, `Transformer.load_config`,
`BaseModel._load_config_modules`) and the older spellings that it still reads.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matexport.errors import ParentError
from matexport.export.parents.folder.files import ADAPTER, MODULES, SETTINGS, read_object

_KNOWN = {
    MODULES: {"idx", "name", "path", "type", "kwargs"},
    SETTINGS: {
        "__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
        "requirements",
    },
    "Transformer": {
        "max_seq_length", "do_lower_case", "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs",
        "config_args", "config_kwargs", "transformer_task", "modality_config", "module_output_name",
        "processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion",
    },
    "Pooling": {
        "embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", "pooling_mode_cls_token",
        "pooling_mode_max_tokens", "pooling_mode_mean_tokens", "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken",
    },
    "Dense": {
        "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
        "use_residual",
    },
    "LayerNorm": {"dimension"},
    "Normalize": {"module_input_name", "module_output_name"},
    "Dropout": {"dropout"},
    "WeightedLayerPooling": {"embedding_dimension", "word_embedding_dimension", "layer_start", "num_hidden_layers"},
    "WordEmbeddings": {"tokenizer_class", "update_embeddings", "max_seq_length"},
    "StaticEmbedding": set[str](),
}  # fmt: skip

#: What sentence-transformers does with a setting that is not known, by where it reads the setting.
_EFFECT = {
    MODULES: "sentence-transformers reads nothing from it",
    SETTINGS: "sentence-transformers reads nothing from it",
    "Dense": "sentence-transformers warns and leaves it out, but another library that saved it does not",
    "Normalize": "sentence-transformers leaves it out, but another library that saved it does not",
    "StaticEmbedding": "sentence-transformers reads no settings here",
}

_OTHER_EFFECT = "sentence-transformers hands it to the module's constructor"

#: Accepted settings of `model_args`, which are handed to transformers' `from_pretrained`. They say where and how fast a
#: model runs, and change no vector; its numbers are always float32 here.
_MODEL_ARGUMENTS = {
    "dtype", "torch_dtype", "attn_implementation", "low_cpu_mem_usage", "use_safetensors", "add_pooling_layer",
    "use_cache", "trust_remote_code", "revision", "cache_dir", "token", "local_files_only", "experts_implementation",
}  # fmt: skip

#: Accepted settings of `processing_kwargs`, which are handed to the tokenizer on every call.
_TEXT_ARGUMENTS = {
    "max_length", "truncation", "add_special_tokens", "padding", "padding_side", "pad_to_multiple_of", "return_tensors",
    "return_token_type_ids", "return_attention_mask",
}  # fmt: skip

_CHAT_ARGUMENTS = {"add_generation_prompt", "continue_final_message", "restore_suffix", "chat_template"} | {
    "truncation", "max_length", "padding", "return_tensors", "enable_thinking",
}  # fmt: skip

#: Settings of a LoRA adapter: the fields of peft 0.21's LoraConfig.
_ADAPTER_SETTINGS = {
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias",
    "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
    "monteclora_config", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora",
    "use_dora", "use_qalora", "use_rslora", "velora_config",
}  # fmt: skip

#: Settings of an adapter that do more than add a low-rank matrix, so that merging would lose them.
_UNMERGED = (
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
)


def refuse_unknown(
    content: Mapping[str, Any], kind: str, path: Path, known: set[str] | None = None, does: str | None = None
) -> None:
    """Refuse settings that are not on a list.

    Args:
        content: the settings, as they were read.
        kind: what the settings belong to, a kind of module or a file's name. It is used in messages, and chooses the
            list if none is given.
        path: the file.
        known: the names of the accepted settings.
        does: what sentence-transformers does with other settings, as the words after its name in the message.

    Raises:
        ParentError: `content` is no JSON object, or has another setting; the message names the first.
    """
    if not isinstance(content, dict):
        raise ParentError(f"{path}: {kind} is no JSON object")
    for key in content:
        if key not in (_KNOWN[kind] if known is None else known):
            effect = f"sentence-transformers {does}" if does else _EFFECT.get(kind, _OTHER_EFFECT)
            raise ParentError(
                f"{path}: the setting {key!r} of {kind} is not known here ({effect}), so its "
                "effect on the vectors is not either: take it out if it has none"
            )


def check_transformer_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of the first module with which its output would not be the token states of a text.

    Raises:
        ParentError: there is such a setting, or an unknown one; the message names it.
    """

    def refuse(key: str, does: str, instead: str) -> None:
        raise ParentError(f"{path}: {key} = {json.dumps(settings[key])[:80]} {does}: {instead}")

    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        refuse("transformer_task", "loads the model with another head", "only feature-extraction is supported")
    if settings.get("query_expansion") is not None:
        refuse("query_expansion", "fills queries up with mask tokens, for late interaction", "take it out")
    if settings.get("module_output_name", "token_embeddings") != "token_embeddings":
        refuse(
            "module_output_name", "has the model itself give the vector", "only token_embeddings, pooled, is supported"
        )
    for modality, entry in (settings.get("modality_config") or {}).items():
        if modality not in ("text", "message"):
            continue
        method, output = (
            entry.get(key) if isinstance(entry, dict) else None for key in ("method", "method_output_name")
        )
        if method != "forward" or output not in ("last_hidden_state", ["last_hidden_state"]):
            raise ParentError(
                f"{path}: modality_config reads {output!r} of {method!r} for {modality}; only the last_hidden_state of "
                "forward can be read after fewer layers"
            )
    for key in ("model_args", "model_kwargs"):
        refuse_unknown(
            settings.get(key) or {}, key, path, _MODEL_ARGUMENTS, "hands it to transformers' from_pretrained"
        )
    for key, arguments in (settings.get("processing_kwargs") or {}).items():
        known = {"text": _TEXT_ARGUMENTS, "common": _TEXT_ARGUMENTS, "chat_template": _CHAT_ARGUMENTS}.get(key)
        if known is not None:
            refuse_unknown(
                arguments or {}, f"processing_kwargs.{key}", path, known, "hands it to the tokenizer on every call"
            )
        elif key not in ("audio", "image", "video"):
            raise ParentError(
                f"{path}: processing_kwargs has {key!r}, which sentence-transformers ignores with a warning: it "
                "belongs under text, common or chat_template"
            )


def check_adapter(folder: Path) -> None:
    """Refuse a folder's adapter unless it can be merged into the weights; a folder without one passes.

    Raises:
        ParentError: the adapter is no LoRA adapter or does more than add a low-rank matrix, or peft is not installed.
    """
    path = folder / ADAPTER
    if not path.is_file():
        return
    adapter = read_object(path)
    kind = adapter.get("peft_type")
    if kind != "LORA":
        raise ParentError(f"{path}: peft_type is {kind!r}; only LORA adapters can be merged into the weights")
    refuse_unknown(adapter, ADAPTER, path, _ADAPTER_SETTINGS, "warns of it and leaves it out, as peft does")
    for key in _UNMERGED:
        if adapter.get(key):
            raise ParentError(
                f"{path}: {key} is more than a difference of matrices, so merging would lose it: merge the adapter "
                "with peft's merge_and_unload and save the model"
            )
    if importlib.util.find_spec("peft") is None:
        raise ParentError(
            f"{folder} has an adapter ({ADAPTER}), which sentence-transformers applies with the package peft: install "
            "it with: pip install peft"
        )
