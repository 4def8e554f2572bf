"""Accuracy or speed of several graphs in a process of its own, for `precisions.py`.

Takes one JSON object as its argument: ``task`` (``accuracy`` or ``speed``), ``family`` (whose tokenizer all use),
``models`` (name -> graph), ``library`` (see `kernels`), and what the task needs; see the functions. Prints one JSON
line, in which ``kernels`` says which kernels onnxruntime chose from. Holds nothing to a bar: the script that starts it
does.

Graphs without pooling (those of the peers) are pooled here by the mean and scaled to unit length. Their times leave
that out, which favours them: matexport's graphs contain it.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import median
from kernels import read_kernels
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from matexport.family.manifest import Family, load_family
from matexport.family.modality import TOKENIZER
from matexport.io.texts import load_probes
from matexport.runtime.batches import split_batches
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.inputs.text import Tokens, pad_rows, tokenize_texts
from matexport.runtime.inputs.tokenizer import load_tokenizer
from matexport.spec.facts import OUTPUT_NAME
from matexport.spec.inputs import PaddingSide

REFERENCE = "fp32"

#: Texts per batch, in the order of the data set.
BATCH = 32
#: About as many texts, spread over the data set, are also run alone, and of those as many beside a text of the
#: parent's full length.
ALONE_TEXTS = 700
PADDED_TEXTS = 3 * (BATCH - 1)

WARM_UP = 2
#: Models without a bar run in every third turn.
SELDOM = 3

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """The texts to embed, and pairs of them with the similarity that people saw."""

    texts: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    scores: Sequence[float]


def main() -> int:
    spec = json.loads(sys.argv[1])
    tasks = {"accuracy": measure_accuracy, "speed": measure_speed}
    result = tasks[spec["task"]](spec)
    print(json.dumps({"kernels": read_kernels(spec["library"]), **result}))
    return 0


def measure_accuracy(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How far each model is from fp32, and from itself in other batches.

    Reads ``stsb`` (a CSV file of sentence, sentence, score; the shipped probes without), ``limit`` (that many texts
    only; 0 for all), ``vectors`` (a file to write them to) and ``compare`` (such a file of another process, or none).
    """
    texts = load_texts(spec["stsb"], spec["limit"])
    family = load_family(Path(spec["family"]))
    rows = tokenize(family, texts.texts)
    vectors, models = {}, {}
    for name, graph in spec["models"].items():  # one session at a time: some are large
        session = open_session(Path(graph))
        vectors[name], models[name] = embed_all(session, family, rows)
        del session
    for name, found in models.items():
        found |= compare_with_reference(vectors[name], vectors[REFERENCE], texts.texts)
        if texts.pairs:
            found["spearman"] = correlate(vectors[name]["batched"], texts)
    np.savez(spec["vectors"], **{name: found["batched"] for name, found in vectors.items()})
    result: dict[str, Any] = {"models": models}
    if spec["compare"]:
        with np.load(spec["compare"]) as others:
            result["other_kernels_max_abs"] = {
                name: float(np.abs(found["batched"] - others[name]).max()) for name, found in vectors.items()
            }
    return result


def embed_all(
    session: onnxruntime.InferenceSession, family: Family, rows: Sequence[Tokens]
) -> tuple[dict[str, Vectors], dict[str, Any]]:
    """Vectors of all texts in batches and of some alone, and the largest difference that a batch makes to a text."""
    (longest,) = tokenize(family, ["long " * family.text.max_tokens])
    every = max(1, len(rows) // ALONE_TEXTS)
    alone_rows = rows[::every]
    every_of_those = max(1, len(alone_rows) // PADDED_TEXTS)
    padded_rows = alone_rows[::every_of_those]
    batched = embed(session, family, [[rows[index] for index in batch] for batch in split_batches(len(rows), BATCH)])
    alone = embed(session, family, [[row] for row in alone_rows])
    beside = [[padded_rows[index] for index in batch] for batch in split_batches(len(padded_rows), BATCH - 1)]
    padded = np.concatenate([embed(session, family, [[*batch, longest]])[:-1] for batch in beside])
    found = {
        "max_abs_difference": {
            "batched": float(np.abs(batched[::every] - alone).max()),
            "padded": float(np.abs(padded - alone[::every_of_those]).max()),
        },
        "texts": {"batched": len(batched), "alone": len(alone), "padded": len(padded)},
    }
    return {"batched": batched, "alone": alone}, found


def embed(session: onnxruntime.InferenceSession, family: Family, batches: Iterable[Sequence[Tokens]]) -> Vectors:
    """One run per batch; (n, dim) of unit length."""
    facts = family.text
    names = [value.name for value in session.get_inputs()]
    output = session.get_outputs()[0].name
    vectors = []
    for batch in batches:
        feeds = pad_rows(batch, PaddingSide.RIGHT, facts.pad_token_id)
        (values,) = session.run([output], {name: feeds[name] for name in names})
        vectors.append(values if output == OUTPUT_NAME else pool(values, feeds["attention_mask"]))
    return np.concatenate(vectors)


def pool(states: Vectors, mask: NDArray[np.int64]) -> Vectors:
    """Mean over the tokens and unit length, as sentence-transformers' modules do for this parent."""
    weights = mask[:, :, None].astype(np.float32)
    means = (states * weights).sum(axis=1) / weights.sum(axis=1)
    unit: Vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit


def compare_with_reference(
    ways: Mapping[str, Vectors], reference: Mapping[str, Vectors], texts: Sequence[str]
) -> dict[str, Any]:
    """Cosines to what fp32 gives: of all texts, with the one that suffers most, and of those that were run alone."""
    all_cosines, alone = (
        (normalise(ways[way]) * normalise(reference[way])).sum(axis=1) for way in ("batched", "alone")
    )
    return {
        "cosine_mean": float(all_cosines.mean()),
        "cosine_min": float(all_cosines.min()),
        "worst_text": texts[int(all_cosines.argmin())],
        "alone": {"cosine_mean": float(alone.mean()), "cosine_min": float(alone.min())},
    }


def normalise(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


def correlate(vectors: Vectors, texts: Texts) -> float:
    """Spearman's correlation of the cosine of each pair with its score."""
    unit = normalise(vectors)
    left, right = (unit[[pair[side] for pair in texts.pairs]] for side in (0, 1))
    return float(spearmanr((left * right).sum(axis=1), texts.scores).statistic)


def load_texts(path: str | None, limit: int) -> Texts:
    """Each sentence of an STS-B file once, in its order; without a file the shipped probes, which have no pairs."""
    if path is None:
        return Texts([probe.text for probe in load_probes(None)][: limit or None], (), ())
    with Path(path).open(encoding="utf-8", newline="") as file:
        lines = [(left, right, float(score)) for left, right, score in csv.reader(file)]
    if limit:
        lines = lines[: limit // 2]
    texts = list(dict.fromkeys(text for line in lines for text in line[:2]))
    place = {text: index for index, text in enumerate(texts)}
    return Texts(texts, [(place[left], place[right]) for left, right, _ in lines], [score for _, _, score in lines])


def tokenize(family: Family, texts: Sequence[str]) -> list[Tokens]:
    facts = family.text
    return tokenize_texts(load_tokenizer((family.path / TOKENIZER).read_bytes(), facts), texts)


def measure_speed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Median ms of a run of each model, for every shape.

    Reads ``threads``, ``shapes`` ([[batch, tokens, runs], ...]) and ``seldom`` (names of models that run in every third
    turn only). The models take turns on the same random tokens without padding.
    """
    family = load_family(Path(spec["family"]))
    words = Tokenizer.from_file(str(family.path / TOKENIZER)).get_vocab_size()
    sessions = {name: open_session(Path(graph), threads=spec["threads"]) for name, graph in spec["models"].items()}
    medians = {}
    for batch, tokens, runs in spec["shapes"]:
        ids = np.random.default_rng(0).integers(1000, words, (batch, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        medians[f"{batch}x{tokens}"] = time_models(sessions, feeds, runs, spec["seldom"])
    return {"median_ms": medians}


def time_models(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Mapping[str, NDArray[np.int64]],
    runs: int,
    seldom: Sequence[str],
) -> dict[str, float]:
    chosen = {
        name: {value.name: feeds[value.name] for value in session.get_inputs()} for name, session in sessions.items()
    }
    outputs = {name: [session.get_outputs()[0].name] for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for name, session in sessions.items():
        for _ in range(WARM_UP):
            session.run(outputs[name], chosen[name])
    for name in order_runs([name for name in sessions if name not in seldom], seldom, runs):
        started = time.perf_counter()
        sessions[name].run(outputs[name], chosen[name])
        times[name].append(1e3 * (time.perf_counter() - started))
    return {name: median(values) for name, values in times.items()}


def order_runs(often: Sequence[str], seldom: Sequence[str], runs: int) -> Iterator[str]:
    """Turns forwards and backwards, each pair of them beginning one model later.

    What ends one turn begins the next and finds its weights in the cache; so this falls to every model alike.
    """
    for turn in range(runs):
        names = [*often, *(seldom if turn % SELDOM == 0 else ())]
        first = (turn // 2) % len(names)
        names = names[first:] + names[:first]
        yield from names if turn % 2 == 0 else reversed(names)


if __name__ == "__main__":
    raise SystemExit(main())
