"""Do we read a parent as sentence-transformers does, whatever its files say?

Folders are drawn at random, each from a seed of its own: a tiny backbone with random weights (BERT, RoBERTa, MPNet,
DistilBERT, ModernBERT, Qwen3, Llama, Gemma3, a T5 encoder), and settings of every known file, from
`sentence_bert_config.json` and its older names to what `modules.json` calls its classes; some have a LoRA adapter, a
Router, WeightedLayerPooling, or a table of tokens in place of a backbone. Most settings are left alone in any one
folder, so that many of them can be exported. Some values are wrong, and some keys do not exist.

Each folder is read twice. sentence-transformers embeds some texts as a user would, one at a time: plainly, with each
prompt, by `encode_query` and `encode_document`, and plainly once more with its blocks cut to two. Our reading of the
same folder embeds them in one padded batch and alone, in torch; for a share of the folders, and wherever this reading
is off, the whole export is made, with its judge, and its ONNX graph embeds them. Then either the vectors agree, or we
refused with a `MatexportError`; "wrong" is any other vector of an export, and one where sentence-transformers refuses
the folder. Another exception is a traceback.

Bars: 0 folders wrong, 0 tracebacks; and since a reader that refuses all would hold those, how many of the folders that
sentence-transformers can embed are not refused. A folder is drawn again with `--only SEED`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import Bar, Report, finish, make_parser, print_bars, say

WRONG = Bar("folders read wrongly", 0)
TRACEBACKS = Bar("tracebacks", 0)
AGREE = Bar("share that agrees, of the folders that sentence-transformers can embed", 0.6, at_least=True)
#: Of a coordinate, where the vector has length 1.
FLOOR = 1e-5
LONG = "snow the red cat " * 60  # beyond every limit, and with most beyond the positions
TEXTS = (
    "the cat sits on the mat",
    "a Big RED House",
    "dog",
    "money, river bank! 42",
    LONG,
    "Käse 猫 🙂",
    " a [MASK] of [SEP] snow  ",
    "the river is in the city and the bank is on the river of money",
)
WIDTH, BLOCKS = 32, 3
KINDS = ("bert", "roberta", "mpnet", "distilbert", "modernbert", "qwen3", "llama", "gemma3", "t5")
PRENORM = {"modernbert", "qwen3", "llama", "gemma3", "t5"}
STATIC = "static"
BLOCK_LISTS = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "mpnet": "encoder.layer",
    "t5": "encoder.block",
    "distilbert": "transformer.layer",
}
#: Where a parent is read below its whole depth, and how many dims of it are compared.
BELOW, BELOW_DIMS = 2, 8


@dataclass(frozen=True)
class Item:
    """A text, and how it is embedded: a method of SentenceTransformer, and a prompt's name or none."""

    text: str
    method: str = "encode"
    prompt: str | None = None

    @property
    def task(self) -> str | None:
        return {"encode_query": "query", "encode_document": "document"}.get(self.method)


@dataclass
class Drawn:
    """A folder as it was drawn: which backbone, what was set in words, and what the job must say."""

    kind: str
    trust: bool = False
    prompts: tuple[str, ...] = ()
    route: str | None = None
    whole_only: bool = False
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """How a folder came out.

    `outcome` is one of ``agree``, ``refused`` (by us alone), ``both refuse``, ``wrong`` and ``traceback``.
    """

    seed: int
    outcome: str
    detail: str
    said: tuple[str, ...]
    whole: bool = False


def main() -> int:
    """The command line."""
    parser = make_parser("fuzz_parents", __doc__, repeats=1)
    parser.add_argument("--folders", type=int, default=2000, help="how many are drawn (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="the first folder's seed (default: 0)")
    parser.add_argument("--whole", type=float, default=0.03, metavar="SHARE", help="share that is exported as a whole")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--only", type=int, metavar="SEED", help="draw one folder again, and say all about it")
    options = parser.parse_args()
    if options.only is not None:
        return show_one(options.only, options.whole)
    print_bars((WRONG, TRACEBACKS, AGREE))
    folders = min(options.folders, 40) if options.quick else options.folders
    seeds = range(options.seed, options.seed + folders)
    verdicts = list(judge_seeds(seeds, whole=options.whole, jobs=options.jobs))
    counts = Counter(verdict.outcome for verdict in verdicts)
    measured = {
        "outcomes": dict(counts.most_common()),
        "whole exports": sum(verdict.whole for verdict in verdicts),
        "refusals": dict(Counter(shorten(v.detail) for v in verdicts if v.outcome == "refused").most_common()),
        "failures": [asdict(verdict) for verdict in verdicts if verdict.outcome in ("wrong", "traceback")],
    }
    settings = {"folders": folders, "seed": options.seed, "whole": options.whole, "texts": len(TEXTS), "floor": FLOOR}
    loadable = counts["agree"] + counts["refused"] + counts["wrong"] + counts["traceback"]
    share = counts["agree"] / max(loadable, 1)
    held = [(WRONG, counts["wrong"]), (TRACEBACKS, counts["traceback"]), (AGREE, round(share, 3))]
    import sentence_transformers

    versions = {"sentence-transformers": sentence_transformers.__version__}
    return finish("fuzz_parents", options, Report(held, measured, settings, versions))


def show_one(seed: int, whole: float) -> int:
    (verdict,) = judge_seeds([seed], whole=whole)
    print(json.dumps(asdict(verdict), indent=1, ensure_ascii=False))
    return int(verdict.outcome in ("wrong", "traceback"))


def judge_seeds(seeds: Sequence[int], *, whole: float = 0.0, jobs: int = 1) -> Iterator[Verdict]:
    """One verdict for each seed, in order."""
    prepare_process()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_MODULES_CACHE"] = str(Path(place, "modules"))
        backbones = Path(place, "backbones")
        with quiet():
            save_backbones(backbones)
        judge_seed = partial(judge_folder, backbones=backbones, place=Path(place), whole=whole)
        if jobs == 1:
            yield from report_progress(map(judge_seed, seeds), len(seeds))
            return
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare_process) as pool:
            yield from report_progress(pool.map(judge_seed, seeds, chunksize=8), len(seeds))


def prepare_process() -> None:
    """Settings that count when the libraries are imported, and the tests' parents."""
    for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ.setdefault(name, value)
    tests = str(Path(__file__).resolve().parents[1] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)


def report_progress(verdicts: Iterable[Verdict], total: int) -> Iterator[Verdict]:
    for done, verdict in enumerate(verdicts, 1):
        if verdict.outcome in ("wrong", "traceback"):
            say(f"{verdict.seed}: {verdict.outcome}: {verdict.detail[:160]}  [{'; '.join(verdict.said)}]")
        if done % 100 == 0:
            say(f"{done} of {total}")
        yield verdict


def judge_folder(seed: int, *, backbones: Path, place: Path, whole: float) -> Verdict:
    """Draw a folder, and compare the two readings."""
    rng = random.Random(seed)
    folder = place / f"parent{seed}"
    try:
        with quiet():
            drawn = draw(rng, folder, backbones)
            is_whole = random.Random(f"whole {seed}").random() < whole
            items = list_items(drawn)
            family = place / f"family{seed}"
            outcome, detail = compare_readings(folder, drawn, items, family if is_whole else None)
            if outcome == "wrong" and not is_whole:  # an export asks the judge, too
                is_whole = True
                outcome, exported = compare_readings(folder, drawn, items, family)
                detail = f"{exported} (reading: {detail})"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place / f"family{seed}", ignore_errors=True)
    return Verdict(seed, outcome, detail, (drawn.kind, *drawn.said), is_whole)


def compare_readings(folder: Path, drawn: Drawn, items: Sequence[Item], family: Path | None) -> tuple[str, str]:
    """The outcome and what there is to say about it."""
    from matexport.errors import MatexportError
    from matexport.spec.job import ExportJob, ParentSource
    from matexport.spec.profile import Point
    from matexport.spec.readout import FinalNorm, ReadoutRequest

    theirs, below, refusal = ask_library(folder, drawn, items)
    readable = [index for index, vector in enumerate(theirs) if vector is not None]
    asked = [items[index] for index in readable] or list(items)
    width = next((len(vector) for vector in theirs if vector is not None), WIDTH)
    readout = ReadoutRequest(final_norm=FinalNorm.KEEP if drawn.kind in PRENORM else None, normalize=False)
    source = ParentSource(str(folder), trust_remote_code=drawn.trust, route=drawn.route)
    depth = 0 if drawn.kind == STATIC else BLOCKS
    early = () if drawn.whole_only or not depth else (Point(BELOW, min(BELOW_DIMS, width)),)
    job = ExportJob(source, (*early, Point(depth, width)), readout)
    try:
        ours = embed_family(job, asked, family) if family else read_vectors(job, asked)
    except MatexportError as error:
        return ("refused" if readable else "both refuse"), str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    if not readable:
        return "wrong", f"sentence-transformers refuses: {refusal}"
    at_depth = ours.pop("below", [None] * len(asked))
    for way, vectors in ours.items():
        for item, index, vector in zip(asked, readable, vectors, strict=True):
            off = measure(vector, theirs[index])
            if not off <= FLOOR:
                call = f"{item.method}(prompt_name={item.prompt!r})"
                return "wrong", f"off by {off:.2g}, {way}, {call} of {item.text[:30]!r}"
    for item, vector, expected in zip(asked, at_depth, (below[index] for index in readable), strict=True):
        if vector is None or expected is None:
            continue
        off = measure(vector, expected[: len(vector)])
        if not off <= FLOOR:
            return "wrong", f"off by {off:.2g} after {BELOW} blocks, of {item.text[:30]!r}"
    return "agree", ""


def list_items(drawn: Drawn) -> list[Item]:
    calls = [("encode", None), *(("encode", name) for name in drawn.prompts)]
    calls += [(f"encode_{task}", None) for task in ("query", "document") if drawn.route in (None, task)]
    return [Item(text, method, prompt) for method, prompt in calls for text in TEXTS]


def measure(vector: Any, expected: Any) -> float:
    """The largest difference of a coordinate, where the expected vector has length 1."""
    import numpy as np

    if vector.shape != expected.shape:
        return float("inf")
    length = float(np.linalg.norm(expected))
    return float(np.abs(vector - expected).max()) / (length if length > 0 else 1.0)


def shorten(message: str) -> str:
    """A refusal without what differs from folder to folder."""
    message = re.sub(r"\S*/\S*", "PATH", message)
    return re.sub(r"-?\d[\d.e+-]*", "N", message)[:120]


# sentence-transformers' reading.


def ask_library(folder: Path, drawn: Drawn, items: Sequence[Item]) -> tuple[list[Any], list[Any], str]:
    """A vector for each item, and with blocks cut for each plain one, None where it cannot be embedded; and why."""
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=drawn.trust,
            model_kwargs={"dtype": torch.float32},
        )
    except Exception as error:
        return [None] * len(items), [None] * len(items), f"{type(error).__name__}: {error}"
    vectors, refusal = [], ""
    for item in items:
        vector, problem = embed_alone(model, item, drawn.route)
        vectors.append(vector)
        refusal = problem or refusal
    below: list[Any] = [None] * len(items)
    if drawn.kind != STATIC and not drawn.whole_only and any(vector is not None for vector in vectors):
        first = model[0] if drawn.route is None else model[0].sub_modules[drawn.route][0]
        backbone = getattr(first.model, first.model.base_model_prefix, first.model)  # without the head of a task
        del backbone.get_submodule(BLOCK_LISTS.get(drawn.kind, "layers"))[BELOW:]
        plain = [(item.method, item.prompt) == ("encode", None) for item in items]
        below = [embed_alone(model, item, drawn.route)[0] if asked else None
                 for item, asked in zip(items, plain, strict=True)]  # fmt: skip
    return vectors, below, refusal


def embed_alone(model: Any, item: Item, route: str | None) -> tuple[Any, str]:
    """One vector, None where the item cannot be embedded; and why."""
    task = {"task": route} if route is not None and item.task is None else {}
    try:
        encode: Callable[..., Any] = getattr(model, item.method)
        (vector,) = encode([item.text], prompt_name=item.prompt, show_progress_bar=False, **task)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return (vector if vector.ndim == 1 and vector.size else None), ""


# Our reading: what to adapt when its functions change.


def read_vectors(job: Any, items: Sequence[Item]) -> dict[str, Any]:
    """Our vectors at the whole depth and the job's largest dim, by way of running: "batched", "alone" -> (n, dim).

    Raises:
        MatexportError: the parent is refused, or an item is.
    """
    import numpy as np
    import torch

    from matexport.export.kinds.probes.text import prepare_probes
    from matexport.export.parents.asking import check_tokens
    from matexport.export.parents.module import ExitsModule
    from matexport.export.parents.text import load_parent, plan_parent, runtime_files
    from matexport.io.texts import load_probes
    from matexport.runtime.inputs.text import feed_rows, tokenize_texts
    from matexport.runtime.inputs.tokenizer import load_tokenizer

    plan = plan_parent(job)
    with tempfile.TemporaryDirectory() as place:
        for name, content in runtime_files(plan).items():
            Path(place, name).write_bytes(content)
        tokenizer = load_tokenizer(Path(place, "tokenizer.json").read_bytes(), plan.text)
    # As an export does, on the shipped probes; they are other texts than the items.
    check_tokens(plan.opened, tokenizer, prepare_probes(plan, load_probes(None), shipped=True), job.parent.source)
    early = [point.layers for point in job.points[:-1]]
    exits = ExitsModule(load_parent(plan), [plan.parent.blocks, *early]).eval()
    rows = [tokenize_texts(tokenizer, [item.text], item.prompt, task=item.task)[0] for item in items]

    def run(part: Sequence[Any]) -> Any:
        feeds = feed_rows(part, plan.text)
        with torch.no_grad():
            outputs = exits(*(torch.from_numpy(feeds[name]) for name in plan.text.inputs))
        return [vectors[:, : point.dim].numpy() for vectors, point in zip(outputs, points, strict=True)]

    points = (job.points[-1], *job.points[:-1])
    batches = [rows[start : start + len(TEXTS)] for start in range(0, len(rows), len(TEXTS))]
    alone = [run([row]) for row in rows]
    found = {
        "batched": np.concatenate([run(batch)[0] for batch in batches]),
        "alone": np.concatenate([outputs[0] for outputs in alone]),
    }
    return found | ({"below": [outputs[1][0] for outputs in alone]} if early else {})


def embed_family(job: Any, items: Sequence[Item], out: Path) -> dict[str, Any]:
    """The same by a whole export, and its graph of the whole depth and width."""
    import numpy as np

    from matexport import Embedder
    from matexport.export import export_family

    family = export_family(job, out, overwrite=True).family
    embedder = Embedder(family, f"{job.points[-1].name}-fp32")

    def run(part: Sequence[Item]) -> Any:
        return embedder.embed([item.text for item in part], prompt=part[0].prompt, task=part[0].task)

    batches = [[item for item in items if (item.method, item.prompt) == call] for call in calls_of(items)]
    found = {
        "batched": np.concatenate([run(batch) for batch in batches]),
        "alone": np.concatenate([run([item]) for batch in batches for item in batch]),
    }
    if len(job.points) > 1:
        embedder = Embedder(family, f"{job.points[0].name}-fp32")
        found["below"] = [run([item])[0] for batch in batches for item in batch]
    return found


def calls_of(items: Sequence[Item]) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((item.method, item.prompt) for item in items))


def save_backbones(root: Path) -> None:
    """Every kind of backbone with its tokenizer, once; folders are drawn by copying one."""
    import parents
    import torch
    import transformers as hf

    for kind in KINDS:
        if kind != "t5":
            parents.make_parent(root / kind, kind, pooling=None)
            continue
        torch.manual_seed(0)
        config = hf.T5Config(
            vocab_size=len(parents.VOCABULARY),
            d_model=WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=BLOCKS,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
        )
        model = hf.T5EncoderModel(config).eval()
        parents.perturb(model)
        model.save_pretrained(root / kind)
        parents.make_tokenizer(parents.SHAPES["llama"]).save_pretrained(root / kind)


class Dice:
    """A random generator that says what it drew."""

    def __init__(self, rng: random.Random, said: list[str]) -> None:
        self.rng = rng
        self._said = said

    def happens(self, share: float) -> bool:
        return self.rng.random() < share

    def choose(self, name: str, *values: Any) -> Any:
        value = self.rng.choice(values)
        self._said.append(f"{name} = {json.dumps(value)}")
        return value

    def note(self, text: str) -> None:
        self._said.append(text)


def draw(rng: random.Random, folder: Path, backbones: Path) -> Drawn:
    """Compose a random sentence-transformers folder."""
    if rng.random() < 0.04:
        return draw_static(rng, folder)
    drawn = Drawn(rng.choice(KINDS))
    dice = Dice(rng, drawn.said)
    shutil.copytree(backbones / drawn.kind, folder)
    draw_transformer(dice, folder)
    draw_configuration(dice, folder)
    draw_tokenizer(dice, folder)
    modules = [Module("Transformer", "", None), (pooling := draw_pooling(dice)), *draw_heads(dice, folder, pooling)]
    if dice.happens(0.04):
        modules.insert(1, draw_weighing(dice, folder, drawn))
    if drawn.kind in ("bert", "roberta") and dice.happens(0.15):
        draw_adapter(dice, folder)
    draw_whole(dice, folder, drawn)
    draw_modules(dice, folder, drawn, modules)
    if dice.happens(0.05):
        draw_router(dice, folder, drawn)
    return drawn


def draw_static(rng: random.Random, folder: Path) -> Drawn:
    """A table of tokens in place of a backbone, and heads on the mean."""
    import parents
    import torch
    from safetensors.torch import save_file

    drawn = Drawn(STATIC)
    dice = Dice(rng, drawn.said)
    folder.mkdir()
    tokenizer = parents.make_tokenizer(parents.SHAPES["bert"]).backend_tokenizer
    if dice.happens(0.3):
        tokenizer.enable_truncation(dice.choose("tokenizer.json cuts at", 6, 16))
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(rng.randrange(1 << 30))
    save_file({"embedding.weight": torch.randn(len(parents.VOCABULARY), WIDTH)}, folder / "model.safetensors")
    modules = [Module("StaticEmbedding", "", None), *draw_heads(dice, folder, Module("Pooling", "", None, WIDTH))]
    draw_whole(dice, folder, drawn)
    draw_modules(dice, folder, drawn, modules)
    return drawn


def draw_weighing(dice: Dice, folder: Path, drawn: Drawn) -> Module:
    """WeightedLayerPooling, which does nothing unless the configuration asks for the states of all layers."""
    import torch
    from safetensors.torch import save_file

    drawn.whole_only = True
    start = dice.choose("layer_start", 1, 2)
    edit(folder / "config.json", output_hidden_states=dice.choose("output_hidden_states", True, True, False))
    path = folder / "1_WeightedLayerPooling"
    path.mkdir()
    save_file({"layer_weights": torch.rand(BLOCKS + 1 - start) + 0.1}, path / "model.safetensors")
    config = {"embedding_dimension": WIDTH, "num_hidden_layers": BLOCKS, "layer_start": start}
    return Module("WeightedLayerPooling", path.name, config)


def draw_adapter(dice: Dice, folder: Path) -> None:
    """A LoRA adapter, with settings that peft knows, and sometimes one that it does not."""
    from cases import add_adapter

    changes = dice.choose(
        "adapter", {}, {"lora_alpha": 3}, {"use_rslora": True}, {"lora_dropout": 0.4}, {"peft_version": "0.1"},
        {"modules_to_save": ["pooler"]}, {"peft_type": "IA3"}, {"surprise": 1}, {"inference_mode": False},
        {"base_model_name_or_path": "nowhere/at-all"}, {"alpha_pattern": {"query": 5}},
    )  # fmt: skip
    add_adapter(**changes)(folder)


def draw_router(dice: Dice, folder: Path, drawn: Drawn) -> None:
    """The same modules behind a Router: a route with all of them, and one with the first two."""
    entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    if any(not isinstance(entry.get("path"), str) or ".." in entry["path"] for entry in entries):
        return
    names = [entry["path"] or "part_0" for entry in entries]
    if (folder / "adapter_config.json").exists() or len(set(names)) < len(names):
        return
    inside = folder / "part_0"
    inside.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name not in ("config_sentence_transformers.json", "modules.json"):
            shutil.move(path, inside / path.name)
    drawn.route = dice.choose("route", "query", "document")
    other = "document" if drawn.route == "query" else "query"
    routes = {
        "types": {name: entry["type"] for name, entry in zip(names, entries, strict=True)},
        "structure": {drawn.route: names, other: names[:2]},
        "parameters": {
            "default_route": dice.choose("default_route", None, "query", "document"),
            "allow_empty_key": True,
        },
    }
    write_json(folder / "router_config.json", routes)
    router = "sentence_transformers.base.modules.router.Router"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": router}])


@dataclass
class Module:
    """An entry of modules.json, and what its own file says."""

    kind: str
    path: str
    config: dict[str, Any] | None
    width: int = WIDTH


SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


def draw_transformer(dice: Dice, folder: Path) -> None:
    """`sentence_bert_config.json`, or one of its older names."""
    settings: dict[str, Any] = {}
    if dice.happens(0.8):
        settings["max_seq_length"] = dice.choose(
            "max_seq_length", 6, 16, 16, 48, 48, 128, None, *([400] if dice.happens(0.1) else [])
        )
    if dice.happens(0.3):
        settings["do_lower_case"] = dice.choose("do_lower_case", True, False)
    if dice.happens(0.15):
        key = dice.rng.choice(["config_args", "config_kwargs"])
        settings[key] = dice.choose(key, *CONFIG_ARGS)
    if dice.happens(0.12):
        key = dice.rng.choice(["model_args", "model_kwargs"])
        settings[key] = dice.choose(key, *MODEL_ARGS)
    if dice.happens(0.2):
        key = dice.rng.choice(["tokenizer_args", "processor_kwargs"])
        settings[key] = dice.choose(key, *TOKENIZER_ARGS)
    if dice.happens(0.15):
        settings["processing_kwargs"] = dice.choose("processing_kwargs", *PROCESSING)
    for key in ("query_length", "document_length"):
        if dice.happens(0.1):
            settings[key] = dice.choose(key, 5, 12, None)
    if dice.happens(0.04):
        settings["query_expansion"] = dice.choose(
            "query_expansion", None, {"strategy": "fixed", "length": 12}, {"strategy": "min", "length": 8}
        )
    if dice.happens(0.08):
        settings["transformer_task"] = dice.choose(
            "transformer_task", "feature-extraction", "feature-extraction", "fill-mask", "sequence-classification"
        )
    if dice.happens(0.06):
        settings["unpad_inputs"] = dice.choose("unpad_inputs", None, False, True)
    if dice.happens(0.2):
        draw_modality(dice, folder, settings)
    if dice.happens(0.03):
        settings["tokenizer_name_or_path"] = dice.choose("tokenizer_name_or_path", None)
    if dice.happens(0.03):
        settings[dice.choose("unknown key of the transformer", "surprise", "max_length", "pooling_mode")] = 1
    name = SETTINGS[0]
    if dice.happens(0.15):
        name = dice.choose("file", *SETTINGS[1:])
        if dice.happens(0.5):
            dice.note("an empty first file")
            write_json(folder / SETTINGS[0], {})
        elif dice.happens(0.3):
            dice.note("another file comes first")
            write_json(folder / SETTINGS[0], {"max_seq_length": 9})
    if settings or dice.happens(0.5):
        write_json(folder / name, settings)


CONFIG_ARGS = (
    {"num_hidden_layers": 2},
    {"hidden_act": "relu"},
    {"is_causal": False},
    {"attention_dropout": 0.5},
    {"layer_norm_eps": 1e-3},
    {"rms_norm_eps": 1e-2},
    {"surprise": 1},
    {"output_hidden_states": True},
    {"use_cache": False},
    {"torchscript": True},
    {"return_dict": False},
    {"trust_remote_code": True},
    {"max_position_embeddings": 64},
    {},
)
MODEL_ARGS = (
    {"torch_dtype": "float16"},
    {"dtype": "bfloat16"},
    {"attn_implementation": "eager"},
    {"attn_implementation": "sdpa"},
    {"add_pooling_layer": False},
    {"trust_remote_code": True},
    {"surprise": 1},
    {"low_cpu_mem_usage": True},
    {},
)
TOKENIZER_ARGS = (
    {"model_max_length": 8},
    {"model_max_length": 40},
    {"truncation_side": "left"},
    {"padding_side": "left"},
    {"padding_side": "right"},
    {"do_lower_case": True},
    {"add_prefix_space": True},
    {"use_fast": False},
    {"cls_token": "[SEP]"},
    {"pad_token": "[MASK]"},
    {"add_bos_token": True},
    {"add_eos_token": False},
    {"clean_up_tokenization_spaces": True},
    {"surprise": 1},
    {},
)
PROCESSING = (
    {"text": {"max_length": 8}},
    {"text": {"max_length": 30}},
    {"common": {"max_length": 10}},
    {"text": {"add_special_tokens": False}},
    {"text": {"truncation": False}},
    {"text": {"truncation": "only_first"}},
    {"text": {"padding": "max_length"}},
    {"text": {"padding": "longest", "pad_to_multiple_of": 8}},
    {"text": {"padding_side": "left"}},
    {"text": {"return_token_type_ids": False}},
    {"text": {"return_attention_mask": False}},
    {"text": {"surprise": 1}},
    {"surprise": {"max_length": 4}},
    {"image": {"size": 4}},
    {"chat_template": {"add_generation_prompt": True}},
    {"chat_template": {"restore_suffix": False}},
    {"chat_template": {"max_length": 14}},
    {},
)
TEMPLATES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}the bank {{ m['content'] }} . {% else %}a city : "
    "{{ m['content'] }} ! {% endif %}{% endfor %}is the money",
    "{% for m in messages %}a city : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}is the money{% endif %}",
    "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}",
    "{% for m in messages %}[CLS] {{ m['content'] | upper }} [SEP]{% endfor %}",
    "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %} in the house",
    "{{ messages[0]['content'] }}{% if task is defined %} is a {{ task }}{% endif %}",
    "{% for m in messages %}{% for c in m['content'] %}a {{ c['text'] }} on the mat {% endfor %}{% endfor %}",
)


def draw_modality(dice: Dice, folder: Path, settings: dict[str, Any]) -> None:
    """What each modality calls, as 6.x saves it; with a chat template the texts become messages."""
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    text = dict(forward)
    if dice.happens(0.15):
        text["method_output_name"] = dice.choose(
            "method_output_name", "pooler_output", ["hidden_states", 2], None, ["last_hidden_state"]
        )
    modality: dict[str, Any] = {"text": text}
    has_template = dice.happens(0.6)
    if has_template:
        template = dice.rng.randrange(len(TEMPLATES))
        dice.note(f"chat template {template}")
        (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    if (has_template and dice.happens(0.8)) or dice.happens(0.05):
        form = dice.choose("format", "flat", "structured", "auto")
        modality["message"] = {**forward, "format": form}
    if dice.happens(0.05):
        modality[dice.choose("modality", "image", "image+text", "smell")] = forward
    if dice.happens(0.9):
        settings["modality_config"] = modality
    if dice.happens(0.9):
        output = (
            "token_embeddings"
            if dice.happens(0.93)
            else dice.choose("module_output_name", "sentence_embedding", "surprise")
        )
        settings["module_output_name"] = output


def draw_configuration(dice: Dice, folder: Path) -> None:
    """`config.json` of transformers: flags that change what its model returns, or how it computes."""
    if dice.happens(0.15):
        edit(folder / "config.json", **dice.choose("config.json", *CONFIGURATION))
    if dice.happens(0.02):
        edit(
            folder / "config.json",
            **dice.choose("config.json", {"num_hidden_layers": 4}, {"num_layers": 2}, {"hidden_size": 48}),
        )


CONFIGURATION = (
    {"torchscript": True},
    {"return_dict": False},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"use_cache": True},
    {"dtype": "bfloat16"},
    {"torch_dtype": "float16"},
    {"is_causal": False},
    {"is_decoder": True},
    {"chunk_size_feed_forward": 1},
    {"hidden_act": "relu"},
    {"surprise": 1},
    {"architectures": ["SurpriseModel"]},
    {"attn_implementation": "eager"},
    {"tie_word_embeddings": False},
)


def draw_tokenizer(dice: Dice, folder: Path) -> None:
    """`tokenizer_config.json`, and what `tokenizer.json` brings of cutting and padding."""
    if dice.happens(0.12):
        edit(folder / "tokenizer_config.json", **dice.choose("tokenizer_config.json", *TOKENIZER))
    if dice.happens(0.08):
        direction = dice.choose("tokenizer.json cuts", "Right", "Left")
        cut = {"direction": direction, "max_length": 7, "strategy": "LongestFirst", "stride": 0}
        edit(folder / "tokenizer.json", truncation=cut)
    if dice.happens(0.08):
        strategy = dice.choose("tokenizer.json pads", "BatchLongest", {"Fixed": 20})
        pad = {"strategy": strategy, "direction": "Right", "pad_to_multiple_of": None}
        pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
        edit(folder / "tokenizer.json", padding=pad)


TOKENIZER = (
    {"padding_side": "left"},
    {"padding_side": "right"},
    {"truncation_side": "left"},
    {"model_max_length": 12},
    {"model_max_length": 10**30},
    {"model_input_names": ["input_ids", "attention_mask"]},
    {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    {"do_lower_case": True},
    {"surprise": 1},
    {"pad_token": None},
    {"chat_template": TEMPLATES[0]},
    {"tokenizer_class": "BertTokenizer"},
)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def draw_pooling(dice: Dice) -> Module:
    """`1_Pooling/config.json`, in either spelling."""
    modes = dice.rng.sample(MODES, dice.rng.choice([1, 1, 1, 1, 2, 3]))
    dice.note(f"pooling {'+'.join(modes)}")
    config: dict[str, Any] = {dice.rng.choice(["word_embedding_dimension", "embedding_dimension"]): WIDTH}
    if dice.happens(0.5):
        known = dice.rng.sample(MODES, 6) if dice.happens(0.6) else modes
        config |= {FLAGS[mode]: mode in modes for mode in known}
    else:
        config["pooling_mode"] = modes[0] if len(modes) == 1 and dice.happens(0.8) else modes
    if dice.happens(0.2):
        config["include_prompt"] = dice.choose("include_prompt", True, False)
    if dice.happens(0.06):
        config |= dice.choose(
            "Pooling",
            {"surprise": 1},
            {"pooling_mode": "mean", "pooling_mode_cls_token": True},
            {"word_embedding_dimension": 7},
            {"pooling_mode": "surprise"},
            {"pooling_mode": []},
            {"pooling_mode_mean_tokens": False},
            {"embedding_dimension": None},
        )
    return Module("Pooling", "1_Pooling", config, WIDTH * len(modes))


ACTIVATIONS = (
    "torch.nn.modules.activation.Tanh",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.activation.GELU",
    "torch.nn.modules.activation.Sigmoid",
    "torch.nn.Tanh",
    "torch.nn.modules.activation.SiLU",
)
ODD_ACTIVATIONS = ("surprise.Wave", "torch.tanh", "torch.nn.Surprise", "torch.nn.Linear", None, "userland.Wave")


def draw_heads(dice: Dice, folder: Path, pooling: Module) -> list[Module]:
    """What comes after Pooling: a chain, parts of which may read and write under other names."""
    import torch
    from safetensors.torch import save_file

    widths = {"sentence_embedding": pooling.width}
    modules: list[Module] = []
    for place in range(2, 2 + dice.rng.choice([0, 0, 1, 1, 2, 3])):
        kind = dice.rng.choice(["Dense", "Dense", "Dense", "LayerNorm", "Normalize", "Normalize", "Dropout"])
        path = f"{place}_{kind}"
        reads = (
            dice.rng.choice(list(widths))
            if kind in ("Dense", "Normalize") and dice.happens(0.3)
            else "sentence_embedding"
        )
        width = widths[reads]
        config: dict[str, Any] = {}
        weights: dict[str, torch.Tensor] = {}
        torch.manual_seed(dice.rng.randrange(1 << 30))
        if kind == "Dense":
            out = dice.rng.choice([16, 24, 32, 48, width])
            config = {"in_features": width, "out_features": out, "bias": dice.happens(0.8)}
            if dice.happens(0.9):
                config["activation_function"] = dice.rng.choice(ACTIVATIONS)
            if dice.happens(0.05):
                config["activation_function"] = dice.choose("activation_function", *ODD_ACTIVATIONS)
            weights["linear.weight"] = torch.randn(out, width) / width**0.5
            if config["bias"]:
                weights["linear.bias"] = torch.randn(out) * 0.1
            if dice.happens(0.2):
                config["use_residual"] = dice.choose("use_residual", True, True, False)
                if config["use_residual"] and out != width:
                    weights["residual.weight"] = torch.randn(out, width) / width**0.5
        elif kind == "LayerNorm":
            out, config = width, {"dimension": width}
            weights = {"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)}
        else:
            out = width
            config = {"dropout": 0.3} if kind == "Dropout" and dice.happens(0.8) else {}
        writes = reads
        if reads != "sentence_embedding" or (kind in ("Dense", "Normalize") and dice.happens(0.5)):
            config["module_input_name"] = reads
        if kind in ("Dense", "Normalize") and dice.happens(0.2):
            writes = dice.choose(f"{path} writes", "sentence_embedding", "small", "other")
            config["module_output_name"] = writes
        if reads != "sentence_embedding":
            dice.note(f"{path} reads {reads}")
        widths[writes] = out
        if dice.happens(0.03):
            dice.note(f"unknown key of {kind}")
            config["surprise"] = 1
        modules.append(Module(kind, path, config))
        if weights:
            (folder / path).mkdir()
            save_file(weights, folder / path / "model.safetensors")
    dice.note("heads " + ("+".join(module.kind for module in modules) or "none"))
    return modules


PROMPTS = {"query": "the red ", "document": "a dog ", "passage": "in the house ", "clustering": "money: ", "other": ""}


def draw_whole(dice: Dice, folder: Path, drawn: Drawn) -> None:
    """`config_sentence_transformers.json`."""
    whole: dict[str, Any] = {}
    if dice.happens(0.45):
        names = dice.rng.sample(list(PROMPTS), dice.rng.choice([0, 1, 2, 2, 3]))
        whole["prompts"] = {name: PROMPTS[name] for name in names}
        drawn.prompts = tuple(names)
        dice.note(f"prompts {', '.join(names) or 'none'}")
    if dice.happens(0.25):
        known = list(drawn.prompts) or [None]
        odd = ["query", "surprise"] if dice.happens(0.2) else []
        whole["default_prompt_name"] = dice.choose("default_prompt_name", None, *known, *known, *odd)
    if dice.happens(0.08):
        whole["truncate_dim"] = dice.choose("truncate_dim", None, 8, 16, 4096)
    if dice.happens(0.2):
        whole["similarity_fn_name"] = dice.choose("similarity_fn_name", "cosine", "dot", "maxsim", None)
    if dice.happens(0.15):
        whole["model_type"] = dice.choose(
            "model_type", "SentenceTransformer", "SentenceTransformer", "SparseEncoder", "CrossEncoder"
        )
    if dice.happens(0.2):
        version = dice.choose("version", "2.0.0", "6.2.0", "99.0")
        whole["__version__"] = {"sentence_transformers": version, "transformers": "4.6.1", "pytorch": "1.8.1"}
    if dice.happens(0.03):
        whole["requirements"] = dice.choose("requirements", {"transformers": ">=99"}, {"transformers": ">=4"}, {}, None)
    if dice.happens(0.03):
        dice.note("unknown key of the whole")
        whole["surprise"] = 1
    if whole or dice.happens(0.5):
        write_json(folder / "config_sentence_transformers.json", whole)


NEW_PATHS = {
    "Transformer": "base.modules.transformer",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
    "Pooling": "sentence_transformer.modules.pooling",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Dropout": "sentence_transformer.modules.dropout",
    "WeightedLayerPooling": "sentence_transformer.modules.weighted_layer_pooling",
    "StaticEmbedding": "sentence_transformer.modules.static_embedding",
}
CUSTOM_DENSE = """
import torch
from sentence_transformers.base.modules import Dense as Stock


class Dense(Stock):
    def forward(self, features):
        features = super().forward(features)
        features["sentence_embedding"] = torch.relu(features["sentence_embedding"]) + 0.25
        return features
"""


def draw_modules(dice: Dice, folder: Path, drawn: Drawn, modules: list[Module]) -> None:
    """`modules.json`, and every module's own file."""
    if dice.happens(0.02):
        dice.note("the transformer in a folder of its own")
        modules[0].path = "0_Transformer"
        parts = [
            path for path in folder.iterdir() if path.is_file() and path.name != "config_sentence_transformers.json"
        ]
        (folder / "0_Transformer").mkdir()
        for path in parts:
            shutil.move(path, folder / "0_Transformer" / path.name)
    new = dice.happens(0.5)
    entries = []
    for place, module in enumerate(modules):
        type_ = f"sentence_transformers.models.{module.kind}"
        if new:
            type_ = f"sentence_transformers.{NEW_PATHS[module.kind]}.{module.kind}"
        entries.append({"idx": place, "name": str(place), "path": module.path, "type": type_})
        if module.config is not None:
            write_json(folder / module.path / "config.json", module.config)
    if dice.happens(0.1):
        draw_oddity(dice, folder, drawn, entries)
    write_json(folder / "modules.json", entries)


def draw_oddity(dice: Dice, folder: Path, drawn: Drawn, entries: list[dict[str, Any]]) -> None:
    last = entries[-1]
    oddity = dice.choose(
        "modules.json",
        "missing folder",
        "missing name",
        "other names",
        "same names",
        "reversed idx",
        "dotted path",
        "outside",
        "extra key",
        "kwargs",
        "unknown class",
        "custom class",
        "custom class, trusted",
        "two poolings",
        "no pooling",
        "swapped",
    )
    if oddity == "missing folder":
        shutil.rmtree(folder / last["path"], ignore_errors=True)
    elif oddity == "missing name":
        del last["name"]
    elif oddity == "other names":
        for entry in entries:
            entry["name"] = f"part {9 - entry['idx']}"
    elif oddity == "same names":
        last["name"] = entries[-2]["name"]
    elif oddity == "reversed idx":
        for entry in entries:
            entry["idx"] = len(entries) - entry["idx"]
    elif oddity == "dotted path":
        last["path"] = f"./{last['path']}"
    elif oddity == "outside":
        last["path"] = f"../{folder.name}/{last['path']}"
    elif oddity == "extra key":
        last["surprise"] = 1
    elif oddity == "kwargs":
        last["kwargs"] = ["task"]
    elif oddity == "unknown class":
        last["type"] = "sentence_transformers.models.Surprise"
    elif oddity.startswith("custom class"):
        if last["path"].endswith("_Dense"):
            (folder / "own_head.py").write_text(CUSTOM_DENSE, encoding="utf-8")
            last["type"] = "own_head.Dense"
        else:
            last["type"] = f"own_head.{last['type'].rpartition('.')[2]}"
        drawn.trust = oddity.endswith("trusted")
    elif oddity == "two poolings":
        entries.insert(2, {**entries[1], "name": "again"})
    elif oddity == "no pooling":
        del entries[1]
    elif oddity == "swapped" and len(entries) > 3:
        entries[-1], entries[-2] = entries[-2], entries[-1]


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, content | changes)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings, progress bars and log lines about odd folders."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    raise SystemExit(main())
