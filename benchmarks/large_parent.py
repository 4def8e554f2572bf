"""Memory and time of a large parent: two shapes of 24 layers, 1024 wide, every layer a point.

``bert-large`` (vocabulary 30522, 1.3 GB) and ``xlmr-large`` (vocabulary 250002, 2.2 GB) are made with random weights
and a small padded vocabulary, in a process of their own that does not count. Each is exported in a fresh process,
which reports the peak of its resident memory when the last graph is written and at its end, after verification. From
the XLM-R family one profile is packed and the pack verified, each by the command line in a process of its own. Peaks
are the largest of the repeats, times their medians; the parents take turns.

Bars: from loading to the last graph, peak <= 1.6 x the weights' bytes + 0.5 GB; with verification <= 2 x + 1 GB. A few
short probes keep the run short; ``--shipped-probes`` takes those that every family is verified on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    GB,
    Bar,
    Finished,
    Report,
    count_repeats,
    finish,
    make_parser,
    median,
    run_export,
    run_process,
    say,
    take_turns,
)

LAYERS, WIDTH = 24, 1024
PACKED = "L04-D1024-fp32"

#: Bars as (multiple of the weights' bytes, bytes on top).
TO_FILES = (1.6, 0.5 * GB)
VERIFIED = (2.0, 1.0 * GB)

WORDS = "a the cat dog river bank of snow is in and house red small text model vector long sits"
PROBES = (
    "a cat sits in the snow",
    "the river bank",
    "a dog and a cat",
    "vector",
    "the model of a small red house is in the long text",
    "snow and snow and snow",
)


@dataclass(frozen=True)
class Shape:
    """What differs between the two parents: transformers' configuration class and its vocabulary."""

    config: str
    vocabulary: int
    special: tuple[str, ...]
    extra: Mapping[str, int]


SHAPES: Mapping[str, Shape] = {
    "bert-large": Shape("BertConfig", 30_522, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), {"max_position_embeddings": 512}),
    "xlmr-large": Shape(
        "XLMRobertaConfig",
        250_002,
        ("[CLS]", "[PAD]", "[SEP]", "[UNK]"),  # <s>, <pad>, </s>, <unk>
        {"max_position_embeddings": 514, "type_vocab_size": 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    ),
}


def main() -> int:
    parser = make_parser("large_parent", __doc__, repeats=3)
    parser.add_argument("--parent", choices=[*SHAPES, "both"], default="both", help="which shape (default: both)")
    parser.add_argument("--shipped-probes", action="store_true", help="verify on the probes that matexport ships")
    parser.add_argument("--make", nargs=2, metavar=("SHAPE", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make_parent(SHAPES[options.make[0]], Path(options.make[1]))
    kinds = list(SHAPES) if options.parent == "both" else [options.parent]
    repeats = count_repeats(options, quick=1)
    print(
        f"bar       trace to files <= {_format_bar(TO_FILES)}; with verification <= {_format_bar(VERIFIED)}", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="matexport-large-") as folder:
        runs, weights = run_all(Path(folder), kinds, repeats, shipped=options.shipped_probes)
    held = [pair for kind in kinds for pair in hold_to_bars(kind, runs[kind], weights[kind])]
    measured = {kind: summarise(runs[kind], weights[kind]) for kind in kinds}
    settings = {"repeats": repeats, "points": LAYERS, "probes": "shipped" if options.shipped_probes else len(PROBES)}
    return finish("large_parent", options, Report(held, measured, settings))


def run_all(
    folder: Path, kinds: list[str], repeats: int, *, shipped: bool
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Make the parents, then export each `repeats` times in turns: runs by kind, bytes of the weights by kind."""
    weights = {}
    for kind in kinds:
        say(f"making {kind}")
        run_process([sys.executable, __file__, "--make", kind, folder / kind])
        weights[kind] = (folder / kind / "model.safetensors").stat().st_size
    probes = folder / "probes.jsonl"
    probes.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROBES), encoding="utf-8")
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for kind in take_turns(kinds, repeats):
        run = run_one(kind, folder, None if shipped else probes)
        say(f"{kind}: {run['total_s']:.0f} s, peak {run['peak_bytes'] / GB:.2f} GB")
        runs[kind].append(run)
    return runs, weights


def run_one(kind: str, folder: Path, probes: Path | None) -> dict[str, Any]:
    """One export, and for XLM-R the pack of one profile and its verification; what they wrote is removed."""
    points = [(layers, WIDTH) for layers in range(1, LAYERS + 1)]
    family, pack = folder / "family", folder / "pack"
    spec = {"source": str(folder / kind), "points": points, "out": str(family), "probes": probes and str(probes)}
    run = run_export(spec)
    if kind == "xlmr-large":
        run["pack"] = _describe(run_process([sys.executable, "-m", "matexport", "pack", family, PACKED, pack]))
        run["pack"]["bytes"] = sum(path.stat().st_size for path in pack.iterdir() if path.is_file())
        run["verify pack"] = _describe(run_process([sys.executable, "-m", "matexport", "verify", pack]))
        shutil.rmtree(pack)
    shutil.rmtree(family)
    return run


def hold_to_bars(kind: str, runs: list[dict[str, Any]], weights: int) -> list[tuple[Bar, float]]:
    """Both bars of one parent, in GB, with the largest peak of the repeats."""
    peaks = {
        "trace to files": (TO_FILES, max(run["stages"]["cut"]["peak_bytes"] for run in runs)),
        "with verification": (VERIFIED, max(run["peak_bytes"] for run in runs)),
    }
    return [
        (Bar(f"{kind}, peak memory {name}", (factor * weights + extra) / GB, " GB"), peak / GB)
        for name, ((factor, extra), peak) in peaks.items()
    ]


def summarise(runs: list[dict[str, Any]], weights: int) -> dict[str, Any]:
    """Peaks as bytes and as multiples of the weights, and times."""
    to_files = max(run["stages"]["cut"]["peak_bytes"] for run in runs)
    verified = max(run["peak_bytes"] for run in runs)
    summary: dict[str, Any] = {
        "weights_bytes": weights,
        "peak_to_files_bytes": to_files,
        "peak_to_files_multiple": to_files / weights,
        "peak_verified_bytes": verified,
        "peak_verified_multiple": verified / weights,
        "trace_to_files_s": median(run["stages"]["cut"]["last_s"] - run["stages"]["trace"]["first_s"] for run in runs),
        "process_to_files_s": median(run["stages"]["cut"]["last_s"] for run in runs),
        "process_s": median(run["total_s"] for run in runs),
        "worst_max_abs": max(run["worst_max_abs"] for run in runs),
        "largest_graph_bytes": runs[0]["largest_graph_bytes"],
        "exporter": runs[0]["exporter"],
        "runs": runs,
    }
    for step in ("pack", "verify pack"):
        if step in runs[0]:
            summary[step] = _summarise_step([run[step] for run in runs], runs[0]["pack"]["bytes"])
    return summary


def _summarise_step(steps: list[dict[str, float]], pack_bytes: int) -> dict[str, float]:
    peak = max(step["peak_bytes"] for step in steps)
    return {
        "seconds": median(step["seconds"] for step in steps),
        "peak_bytes": peak,
        "pack_bytes": pack_bytes,
        "peak_multiple_of_pack": peak / pack_bytes,
    }


def _describe(finished: Finished) -> dict[str, Any]:
    return {"seconds": finished.seconds, "peak_bytes": finished.peak_bytes}


def _format_bar(bar: tuple[float, float]) -> str:
    return f"{bar[0]:g} x weights + {bar[1] / GB:g} GB"


def make_parent(shape: Shape, folder: Path) -> int:
    """Save a parent with random weights, as sentence-transformers lays it out."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, shape.config)(
        vocab_size=shape.vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        intermediate_size=4 * WIDTH,
        **shape.extra,
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder, max_shard_size="100GB")
    save_tokenizer(shape, folder)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    listing = [
        {"idx": index, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (name, path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listing)
    _write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    return 0


def save_tokenizer(shape: Shape, folder: Path) -> None:
    """A WordPiece tokenizer that knows a few words and letters, filled up to the size of the vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    known = [*shape.special, *dict.fromkeys([*WORDS.split(), *letters]), *(f"##{letter}" for letter in letters)]
    names = [*known, *(f"[unused{index}]" for index in range(shape.vocabulary - len(known)))]
    ids = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    ).save_pretrained(folder)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
