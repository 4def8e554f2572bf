"""Ordinary folders that are easy to read wrongly, each rebuilt from a public bug report or from people's own files.

A case builds its folder in the test process: a tiny random parent in its saved form. What sentence-transformers gives
for it is measured by `judge`; here stands only how it is called, and what is expected of an export: the same vectors
(`RIGHT`), or a refusal whose one line holds a given fragment. Where both would serve a user, both are named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from parents import BLOCKS, SHAPES, VOCABULARY, WIDTH, make_parent, make_tokenizer, perturb
from safetensors.torch import load_file, save_file

from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, ReadoutRequest

RIGHT = "right"
LONG = "snow the red cat " * 40
TEXTS = ("the cat sits on the mat", "a Big RED House", "dog", "money, river bank! 42", "Käse 猫 🙂", LONG)
POINTS = (Point(2, 16), Point(BLOCKS, WIDTH))
WHOLE = (Point(BLOCKS, 16), Point(BLOCKS, WIDTH))
KEEP = ReadoutRequest(final_norm=FinalNorm.KEEP)
#: The encoder of a parent without blocks is read after none.
NO_BLOCKS = (Point(0, 16), Point(0, WIDTH))


@dataclass(frozen=True)
class Call:
    """How sentence-transformers is called: a method, and a prompt's name or none."""

    method: str = "encode"
    prompt: str | None = None

    @property
    def task(self) -> str | None:
        return {"encode_query": "query", "encode_document": "document"}.get(self.method)


TASKS = (Call(), Call("encode_query"), Call("encode_document"))


@dataclass(frozen=True)
class Case:
    """A folder, what is said in the job, and what an export of it must come to.

    Attributes:
        build: makes the folder, which does not exist.
        expected: `RIGHT`, a fragment of the refusal, or several of these of which one must come.
        trust: whether its code may run.
        pickle: whether pickled weights may be read.
        route: the route of a Router that is asked for.
        peft: whether peft must be there (True), must be missing (False), or does not matter.
        calls: what is compared.
    """

    name: str
    build: Callable[[Path], object]
    expected: str | tuple[str, ...] = RIGHT
    trust: bool = False
    pickle: bool = False
    route: str | None = None
    peft: bool | None = None
    points: tuple[Point, ...] = POINTS
    readout: ReadoutRequest = field(default_factory=ReadoutRequest)
    calls: tuple[Call, ...] = (Call(),)
    texts: tuple[str, ...] = TEXTS

    @property
    def outcomes(self) -> tuple[str, ...]:
        return (self.expected,) if isinstance(self.expected, str) else self.expected


# How a folder is changed.


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit(path: Path, *, drop: Sequence[str] = (), **changes: Any) -> None:
    """Change keys of a JSON object, which may not exist yet."""
    content = {key: value for key, value in read_json(path).items() if key not in drop}
    write_json(path, content | changes)


def edit_modules(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path = folder / "modules.json"
    write_json(path, change(read_json(path)))


def add_module(folder: Path, type_: str, config: Mapping[str, Any] | None = None, *, at: int | None = None) -> Path:
    """Name one more module, the last one unless `at` says where, and write its configuration."""
    modules = read_json(folder / "modules.json")
    path = f"{len(modules)}_{type_.rpartition('.')[2]}"
    place = len(modules) if at is None else at
    modules.insert(place, {"idx": place, "name": f"extra{len(modules)}", "path": path, "type": type_})
    write_json(folder / "modules.json", modules)
    if config is not None:
        write_json(folder / path / "config.json", config)
    (folder / path).mkdir(exist_ok=True)
    return folder / path


def add_dense(folder: Path, width: int, out: int, **config: Any) -> Path:
    """Add a Dense that says what `config` says, with weights; a residual one of two widths gets its matrix."""
    settings = {"in_features": width, "out_features": out, "bias": True}
    settings["activation_function"] = "torch.nn.modules.activation.Tanh"
    path = add_module(folder, "sentence_transformers.models.Dense", settings | config)
    drawn = torch.Generator().manual_seed(out)
    weights = {"linear.weight": torch.randn(out, width, generator=drawn) / width**0.5}
    weights["linear.bias"] = torch.randn(out, generator=drawn) * 0.1
    if config.get("use_residual") and width != out:
        weights["residual.weight"] = torch.randn(out, width, generator=drawn) / width**0.5
    save_file(weights, path / "model.safetensors")
    return path


def bert(folder: Path, **options: Any) -> Path:
    return make_parent(folder, "bert", **options)


def with_settings(
    kind: str = "bert", *, drop: Sequence[str] = (), parent: Mapping[str, Any] | None = None, **changes: Any
) -> Callable[[Path], None]:
    """A parent of which ``sentence_bert_config.json`` says `changes`, and no longer `drop`."""

    def build(folder: Path) -> None:
        make_parent(folder, kind, **(parent or {}))
        edit(folder / "sentence_bert_config.json", drop=drop, **changes)

    return build


def with_file(name: str, *, parent: Mapping[str, Any] | None = None, **changes: Any) -> Callable[[Path], None]:
    """A BERT of which another JSON file says `changes`."""

    def build(folder: Path) -> None:
        bert(folder, **(parent or {}))
        edit(folder / name, **changes)

    return build


def with_steps(*steps: Callable[[Path], object], kind: str = "bert", **options: Any) -> Callable[[Path], None]:
    """A parent that is then changed by `steps`, in order."""

    def build(folder: Path) -> None:
        make_parent(folder, kind, **options)
        for step in steps:
            step(folder)

    return build


# What lies in the folders.

FLAT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}the bank {{ message['content'] }} . "
    "{% else %}a city : {{ message['content'] }} ! {% endif %}{% endfor %}is the money"
)
STRUCTURED = (
    "{% for message in messages %}{% if message['role'] == 'system' %}the bank {{ message['content'][0]['text'] }} . "
    "{% else %}a city : {% for part in message['content'] %}{{ part['text'] }}{% endfor %} ! "
    "{% endif %}{% endfor %}is the money"
)
#: A template that does something else to a text than to stand around it.
UPPER = "{% for message in messages %}a city : {{ message['content'] | upper | trim }} !{% endfor %}"


def add_template(
    template: str, form: str = "flat", *, modality: bool = True, **settings: Any
) -> Callable[[Path], None]:
    """As sentence-transformers 6.2 saves a transformer whose tokenizer has a chat template."""
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    described = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": forward, "message": {**forward, "format": form}},
        "module_output_name": "token_embeddings",
    }

    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        edit(folder / "sentence_bert_config.json", **(described if modality else {}), **settings)

    return change


def write_code(name: str, code: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(code, encoding="utf-8")

    return change


def rename_type(index: int, type_: str) -> Callable[[Path], None]:
    return lambda folder: edit_modules(
        folder, lambda entries: [{**entry, "type": type_} if n == index else entry for n, entry in enumerate(entries)]
    )


CUSTOM_TRANSFORMER = """
from sentence_transformers.base.modules import Transformer as Stock


class Transformer(Stock):
    def preprocess(self, inputs, prompt=None, **options):
        return super().preprocess(["a small dog " + text for text in inputs], prompt=prompt, **options)
"""
CUSTOM_DENSE = """
import torch
from sentence_transformers.base.modules import Dense as Stock


class Dense(Stock):
    def forward(self, features):
        features = super().forward(features)
        features["sentence_embedding"] = torch.relu(features["sentence_embedding"]) + 0.25
        return features
"""
#: Reads what no traced graph can: the text's length as a number.
CUSTOM_PYTHON = """
from sentence_transformers.base.modules import Dense as Stock


class Dense(Stock):
    def forward(self, features):
        features = super().forward(features)
        if float(features["sentence_embedding"].sum()) > 0:
            features["sentence_embedding"] = -features["sentence_embedding"]
        return features
"""


def add_adapter(*, base: str = "itself", weights: bool = True, **changes: Any) -> Callable[[Path], None]:
    """A LoRA adapter on query and value. `base` is what it says of its base; "other" is a second, equal folder."""

    def change(folder: Path) -> None:
        named = {"itself": str(folder), "other": str(folder.parent / f"{folder.name}-base")}.get(base, base)
        if base == "other":
            shutil.copytree(folder, named)
        drawn, tensors = torch.Generator().manual_seed(1), {}
        for block in range(BLOCKS):
            for matrix in ("query", "value"):
                name = f"base_model.model.encoder.layer.{block}.attention.self.{matrix}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(4, WIDTH, generator=drawn) * 0.3
                tensors[f"{name}.lora_B.weight"] = torch.randn(WIDTH, 4, generator=drawn) * 0.3
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "target_modules": ["query", "value"]}
        kind = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "inference_mode": True}
        write_json(folder / "adapter_config.json", {**kind, **settings, "base_model_name_or_path": named, **changes})
        if not weights:
            (folder / "model.safetensors").unlink()
            (folder / "config.json").unlink()

    return change


def build_clip(folder: Path, output: str = "last_hidden_state") -> None:
    """A CLIP text tower: read by Pooling, or by the tower's own choice of the end token."""
    torch.manual_seed(0)
    config = hf.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=48,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        projection_dim=WIDTH,
    )
    model = hf.CLIPTextModel(config).eval()
    perturb(model)
    bert(folder, pooling="lasttoken")
    model.save_pretrained(folder)
    make_tokenizer(SHAPES["llama"]).save_pretrained(folder)
    if output != "last_hidden_state":
        edit(
            folder / "sentence_bert_config.json",
            modality_config={"text": {"method": "forward", "method_output_name": output}},
            module_output_name="sentence_embedding",
        )
        edit_modules(folder, lambda entries: entries[:1])


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "short_factor": [1.0, 1.0, 1.5, 2.0],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}


def add_relative_positions(folder: Path) -> None:
    """What BERT had in transformers 4: a table of distances in each block, and a configuration that asks for it."""
    weights = load_file(folder / "model.safetensors")
    for block in range(BLOCKS):
        weights[f"encoder.layer.{block}.attention.self.distance_embedding.weight"] = torch.randn(255, 8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", position_embedding_type="relative_key")


def prefix_weights(prefix: str) -> Callable[[Path], None]:
    """Weights as saved from inside of a wrapper."""

    def change(folder: Path) -> None:
        weights = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def point_to(name: str) -> Callable[[Path], None]:
    """What a clone without Git LFS holds in a large file's place."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
    return write_code(name, pointer)


def pickle_weights(folder: Path) -> None:
    """`pytorch_model.bin`, and a half-precision copy of another name that nothing loads."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(halves, folder / "model_fp16.safetensors", metadata={"format": "pt"})


def weigh_layers(folder: Path) -> None:
    """WeightedLayerPooling between the transformer, which then gives all its states, and Pooling."""
    edit(folder / "config.json", output_hidden_states=True)
    config = {"embedding_dimension": WIDTH, "layer_start": 1, "num_hidden_layers": BLOCKS}
    path = add_module(folder, "sentence_transformers.models.WeightedLayerPooling", config, at=1)
    save_file({"layer_weights": torch.tensor([0.5, 1.0, 2.0])}, path / "model.safetensors")


def build_router(folder: Path) -> None:
    """Two encoders, one for queries and one for documents, as `Router` saves them."""
    prefix = "sentence_transformers.base.modules.transformer.Transformer"
    pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    types, structure = {}, {}
    for seed, route in enumerate(("query", "document")):
        parts = (f"{route}_0_Transformer", f"{route}_1_Pooling")
        bert(folder / parts[0], pooling=None, seed=seed)
        write_json(folder / parts[0] / "sentence_bert_config.json", {"max_seq_length": 48})
        write_json(folder / parts[1] / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": "mean"})
        types |= dict(zip(parts, (prefix, pooling), strict=True))
        structure[route] = list(parts)
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    router = "sentence_transformers.base.modules.router.Router"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": router}])


def build_router_with_prompts(folder: Path) -> None:
    """As it, with a prompt for each side."""
    build_router(folder)
    write_json(folder / SAYS, {"prompts": {"query": "the cat ", "document": "a dog "}})


def name_a_foreign_module(folder: Path) -> None:
    """In a route that nobody asks for."""
    build_router(folder)
    routes = read_json(folder / "router_config.json")
    routes["types"]["document_1_Pooling"] = "evil.Pooling"
    write_json(folder / "router_config.json", routes)
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")


def add_asym(folder: Path) -> None:
    """A Dense for each side after Pooling, in the spelling of sentence-transformers 2."""
    path = add_module(folder, "sentence_transformers.models.Asym")
    types = {}
    for route in ("query", "document"):
        made = add_dense(folder, WIDTH, 24 if route == "query" else 23)
        edit(made / "config.json", out_features=24)
        weights = load_file(made / "model.safetensors")
        weights = {"linear.weight": torch.randn(24, WIDTH) / 6, "linear.bias": torch.randn(24)} | (
            weights if route == "query" else {}
        )
        save_file(weights, made / "model.safetensors")
        shutil.move(made, path / f"{route}_0")
        types[f"{route}_0"] = "sentence_transformers.models.Dense"
        edit_modules(folder, lambda entries: entries[:-1])
    structure = {route: [f"{route}_0"] for route in ("query", "document")}
    write_json(path / "config.json", {"types": types, "structure": structure, "parameters": {"allow_empty_key": True}})


def build_static(folder: Path) -> None:
    """StaticEmbedding as sentence-transformers saves it."""
    make_tokenizer(SHAPES["bert"]).backend_tokenizer.save(str(_made(folder / "0_StaticEmbedding") / "tokenizer.json"))
    torch.manual_seed(0)
    table = {"embedding.weight": torch.randn(len(VOCABULARY), WIDTH)}
    save_file(table, folder / "0_StaticEmbedding" / "model.safetensors")
    type_ = "sentence_transformers.models.StaticEmbedding"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": type_}])


def build_words(folder: Path) -> None:
    """WordEmbeddings over words between spaces, then Pooling."""
    torch.manual_seed(0)
    path = _made(folder / "0_WordEmbeddings")
    type_ = "sentence_transformers.models"
    tokenizer = f"{type_}.tokenizer.WhitespaceTokenizer.WhitespaceTokenizer"
    settings = {"tokenizer_class": tokenizer, "update_embeddings": False, "max_seq_length": 20}
    write_json(path / "wordembedding_config.json", settings)
    words = ["PADDING_TOKEN", *VOCABULARY[5:27]]
    known = {"vocab": words, "stop_words": ["the", "of"], "do_lower_case": False}
    write_json(path / "whitespacetokenizer_config.json", known)
    save_file({"emb_layer.weight": torch.randn(len(words), WIDTH)}, path / "model.safetensors")
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    )
    entries = [("WordEmbeddings", "0_WordEmbeddings"), ("Pooling", "1_Pooling")]
    write_json(
        folder / "modules.json",
        [{"idx": n, "name": str(n), "path": path, "type": f"{type_}.{kind}"} for n, (kind, path) in enumerate(entries)],
    )


def build_bag(folder: Path) -> None:
    write_json(folder / "0_BoW" / "config.json", {"vocab": VOCABULARY[5:], "word_weights": {}})
    type_ = "sentence_transformers.models.BoW"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "0_BoW", "type": type_}])


def empty_first(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {})
    write_json(folder / "sentence_roberta_config.json", {"max_seq_length": 5})


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def say(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


def dense(width: int, out: int, **config: Any) -> Callable[[Path], object]:
    return lambda folder: add_dense(folder, width, out, **config)


def module(type_: str, config: Mapping[str, Any] | None = None) -> Callable[[Path], object]:
    return lambda folder: add_module(folder, f"sentence_transformers.models.{type_}", config)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


EIGHTS = {"text": {"padding": "longest", "pad_to_multiple_of": 8}}
PROMPTS = {"query": "the red ", "passage": "a dog "}
NARROW = (Point(2, 16), Point(BLOCKS, 24))
PROMPTED = (Call(), Call(prompt="query"), Call(prompt="passage"), Call("encode_query"), Call("encode_document"))
SETTINGS, SAYS, POOLING = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"

READ_WRONG = (
    Case(
        "config_args: fewer blocks",
        with_settings(config_args={"num_hidden_layers": 2}),
        points=(Point(1, 16), Point(2, 32)),
    ),
    Case("config_args: fewer blocks than are asked", with_settings(config_args={"num_hidden_layers": 2}), "2 blocks"),
    Case("config_args: another activation", with_settings(config_args={"hidden_act": "relu"})),
    Case(
        "config_kwargs: a decoder that looks both ways",
        with_steps(say("config.json", is_causal=True), say(SETTINGS, config_kwargs={"is_causal": False}), kind="llama"),
        readout=KEEP,
    ),
    # transformers takes only what the configuration has, and Llama's has no such attribute of its own.
    Case(
        "config_kwargs: a decoder that does not know the key",
        with_settings("llama", config_kwargs={"is_causal": False}),
        (RIGHT, "is_causal"),
        readout=KEEP,
    ),
    Case(
        "tokenizer_args: model_max_length",
        with_settings(drop=["max_seq_length"], tokenizer_args={"model_max_length": 8}),
    ),
    Case("tokenizer_args: truncation_side", with_settings(tokenizer_args={"truncation_side": "left"})),
    Case("the tokenizer's own truncation_side", with_file("tokenizer_config.json", truncation_side="left")),
    Case(
        "a chat template, flat",
        with_steps(add_template(FLAT), kind="qwen3", pooling="lasttoken", prompts=PROMPTS),
        readout=KEEP,
        calls=PROMPTED,
    ),
    Case(
        "a chat template, structured",
        with_steps(add_template(STRUCTURED, "structured"), prompts=PROMPTS),
        calls=(Call(), Call(prompt="query")),
    ),
    Case(
        "a chat template whose end is not restored",
        with_steps(add_template(FLAT, processing_kwargs={"chat_template": {"restore_suffix": False}})),
    ),
    Case("a chat template that changes the text", with_steps(add_template(UPPER)), "template"),
    Case("a chat template that nothing asks for", with_steps(add_template(FLAT, modality=False))),
    Case(
        "a transformer of the user's, trusted",
        with_steps(write_code("custom_st.py", CUSTOM_TRANSFORMER), rename_type(0, "custom_st.Transformer")),
        (RIGHT, "custom_st.Transformer"),
        trust=True,
    ),
    Case(
        "a transformer of the user's, not trusted",
        with_steps(write_code("custom_st.py", CUSTOM_TRANSFORMER), rename_type(0, "custom_st.Transformer")),
        "custom_st.Transformer",
    ),
    Case(
        "a head of the user's, trusted",
        with_steps(dense(32, 24), write_code("own_head.py", CUSTOM_DENSE), rename_type(2, "own_head.Dense")),
        trust=True,
        points=NARROW,
    ),
    Case(
        "a head of the user's, not trusted",
        with_steps(dense(32, 24), write_code("own_head.py", CUSTOM_DENSE), rename_type(2, "own_head.Dense")),
        "own_head.Dense",
        points=NARROW,
    ),
    Case(
        "a head of the user's that cannot be traced",
        with_steps(dense(32, 24), write_code("own_head.py", CUSTOM_PYTHON), rename_type(2, "own_head.Dense")),
        "own_head.Dense",
        trust=True,
        points=NARROW,
    ),
    Case(
        "an activation of the user's, trusted",
        with_steps(dense(32, 24, activation_function="userland.Wave")),
        (RIGHT, "userland.Wave"),
        trust=True,
        points=NARROW,
    ),
    Case(
        "an activation of the user's, not trusted",
        with_steps(dense(32, 24, activation_function="userland.Wave")),
        (RIGHT, "userland.Wave"),
        points=NARROW,
    ),
    Case("a LoRA adapter, without peft", with_steps(add_adapter()), "pip install peft", peft=False),
    Case("a LoRA adapter", with_steps(add_adapter()), peft=True),
    Case(
        "a LoRA adapter whose base lies elsewhere",
        with_steps(add_adapter(base="other", weights=False)),
        (RIGHT, "base_model_name_or_path"),
        peft=True,
    ),
    Case(
        "a LoRA adapter whose base is out of reach",
        with_steps(add_adapter(base="nobody/nothing-here")),
        "nobody/nothing-here",
        peft=True,
    ),
    Case("a rank-stabilised LoRA adapter", with_steps(add_adapter(use_rslora=True)), (RIGHT, "use_rslora"), peft=True),
    Case("an empty first file of settings", with_steps(empty_first)),
    Case("a default prompt that no prompt has", with_file(SAYS, default_prompt_name="nope"), "nope"),
    Case("prompts for queries and passages", with_steps(prompts=PROMPTS), calls=PROMPTED),
    Case(
        "prompts for queries and documents, one of them the default",
        with_steps(say(SAYS, prompts={"query": "the red ", "document": "a dog "}, default_prompt_name="query")),
        calls=(*TASKS, Call(prompt="document")),
    ),
    Case(
        "a default prompt that the tasks replace by none",
        with_steps(say(SAYS, prompts={"other": "the red "}, default_prompt_name="other")),
        calls=TASKS,
    ),
    Case("a CLIP text tower", build_clip, readout=KEEP),
    Case(
        "a CLIP text tower read at its end token",
        lambda folder: build_clip(folder, "pooler_output"),
        "no module pools, so the vector is one that the model itself pools",
        readout=KEEP,
        points=WHOLE,
    ),
    Case(
        "rope that changes with the text's length",
        with_steps(kind="llama", pooling="mean", config={"rope_parameters": LONG_ROPE}),
        "depends on the texts beside it",
        readout=KEEP,
    ),
    Case("Pooling without its file", with_steps(remove("1_Pooling"), pooling="cls"), "1_Pooling"),
    Case(
        "a length for queries and one for documents",
        with_settings(query_length=6, document_length=9, parent={"prompts": PROMPTS}),
        calls=PROMPTED,
    ),
    Case(
        "a length for queries above that of all other texts",
        with_settings(max_seq_length=6, query_length=12, parent={"prompts": PROMPTS}),
        calls=PROMPTED,
    ),
    Case(
        "Normalize that writes elsewhere",
        with_steps(module("Normalize", {"module_input_name": "sentence_embedding", "module_output_name": "unit"})),
        readout=ReadoutRequest(normalize=False),
    ),
    Case("processing_kwargs: max_length", with_settings(processing_kwargs={"text": {"max_length": 8}})),
    Case(
        "processing_kwargs: no special tokens", with_settings(processing_kwargs={"text": {"add_special_tokens": False}})
    ),
    Case("relative positions that transformers no longer has", with_steps(add_relative_positions)),
)

REFUSED_OR_TRACEBACK = (
    Case("torchscript in config.json", with_file("config.json", torchscript=True)),
    Case("return_dict in config.json", with_file("config.json", return_dict=False)),
    Case(
        "chunks of the feed-forward layer",
        with_file("config.json", chunk_size_feed_forward=1),
        (RIGHT, "chunk_size_feed_forward"),
    ),
    Case(
        "Dense that writes elsewhere",
        with_steps(
            dense(32, 24, module_output_name="small"),
            dense(24, 32, module_input_name="small", module_output_name="sentence_embedding"),
        ),
    ),
    Case("Dense on tokens after Pooling", with_steps(dense(32, 24, module_input_name="token_embeddings"))),
    Case(
        "Dense on tokens before Pooling",
        with_steps(
            dense(32, 32, module_input_name="token_embeddings"),
            lambda folder: edit_modules(folder, lambda entries: [entries[0], entries[2], entries[1]]),
        ),
    ),
    Case(
        "Dense with residuals",
        with_steps(dense(32, 32, use_residual=True), dense(32, 24, use_residual=True)),
        points=NARROW,
    ),
    Case("Dropout", with_steps(module("Dropout", {"dropout": 0.5}))),
    Case("a Router, its queries", build_router, route="query", calls=(Call("encode_query"),)),
    Case("a Router, its documents", build_router, route="document", calls=(Call("encode_document"),)),
    Case("a Router with prompts", build_router_with_prompts, route="query", calls=(Call("encode_query"),)),
    Case("a Router whose other route is a class of the user's", name_a_foreign_module, "evil.Pooling", route="query"),
    Case("a Router of which no route is named", build_router, "route"),
    Case(
        "an Asym after Pooling", with_steps(add_asym), route="document", calls=(Call("encode_document"),), points=NARROW
    ),
    Case("StaticEmbedding", build_static, points=NO_BLOCKS),
    Case("WordEmbeddings", build_words, (RIGHT, "WhitespaceTokenizer"), points=NO_BLOCKS),
    Case("a bag of words", build_bag, "BoW", points=NO_BLOCKS),
    Case("WeightedLayerPooling", with_steps(weigh_layers), points=WHOLE),
    Case("WeightedLayerPooling below the whole depth", with_steps(weigh_layers), "WeightedLayerPooling"),
    Case(
        "prompts that are not pooled",
        with_steps(say(POOLING, include_prompt=False), prompts=PROMPTS),
        calls=PROMPTED,
    ),
    Case(
        "prompts that are not pooled, counted with their padding",
        with_steps(say(POOLING, include_prompt=False), say(SETTINGS, processing_kwargs=EIGHTS), prompts=PROMPTS),
        "has 4, so padding is counted",
    ),
    Case("weights with the prefix of DDP", with_steps(prefix_weights("module.")), "module."),
    Case("weights with the prefix of torch.compile", with_steps(prefix_weights("_orig_mod.")), "_orig_mod."),
    Case("a Git LFS pointer for the weights", with_steps(point_to("model.safetensors")), "LFS"),
    Case("a Git LFS pointer for the tokenizer", with_steps(point_to("tokenizer.json")), "LFS"),
    Case("pickled weights beside a stray file", with_steps(pickle_weights), pickle=True),
    Case(
        "padding on the left of absolute positions",
        with_file("tokenizer_config.json", padding_side="left"),
        (RIGHT, "padding"),
    ),
)

#: Keys that sentence-transformers does not know, or knows and nobody expects.
KEYS = (
    Case("an unknown key of the transformer", with_settings(surprise=1), "surprise"),
    Case("an unknown key of Pooling", with_file(POOLING, surprise=1), "surprise"),
    Case(
        "an unknown key of Dense",
        with_steps(dense(32, 24), say("2_Dense/config.json", surprise=1)),
        "surprise",
        points=NARROW,
    ),
    Case(
        "an unknown key of LayerNorm",
        with_steps(say("2_LayerNorm/config.json", surprise=1), layer_norm=True),
        "surprise",
    ),
    Case("an unknown key of Normalize", with_steps(module("Normalize", {"surprise": 1})), "surprise"),
    Case("an unknown key of the whole", with_file(SAYS, surprise=1), "surprise"),
    Case(
        "an unknown key in modules.json",
        with_steps(
            lambda folder: edit_modules(folder, lambda entries: [{**entry, "surprise": 1} for entry in entries])
        ),
        "surprise",
    ),
    Case("an unknown key of an adapter", with_steps(add_adapter(surprise=1)), "surprise", peft=True),
    Case("a truncated parent", with_file(SAYS, truncate_dim=16), points=(Point(2, 16), Point(BLOCKS, 8))),
    Case("a truncated parent read beyond", with_file(SAYS, truncate_dim=16), "truncate_dim"),
    Case(
        "the model of another library class",
        with_steps(say(SAYS, model_type="CrossEncoder"), pooling="cls"),
        (RIGHT, "model_type"),
    ),
    Case(
        "requirements that are not met",
        with_file(SAYS, requirements={"transformers": ">=99"}),
        "requires: - transformers>=99",
    ),
    Case(
        "a folder outside of the parent",
        with_steps(
            lambda folder: edit_modules(folder, lambda entries: [entries[0], {**entries[1], "path": "../1_Pooling"}])
        ),
        "../1_Pooling",
    ),
)

CASES = (*READ_WRONG, *REFUSED_OR_TRACEBACK, *KEYS)
