"""What it costs that a pack gives its vector at every token: two points of MiniLM, both forms in turns.

    python benchmarks/repeated_vector.py [--family FAMILY]

The pack for all consumers has two outputs, `last_hidden_state` and `sentence_embedding`, of which the first is the
second repeated. It runs beside the same profile as `pack --for lean` writes it, with the one output, in one process on
the same feeds and threads, each asked for all its outputs, as consumers do. Without --family, one is exported.

Bar: the median time of both outputs / of one, the worst of the shapes <= 1.03 x.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import MINILM, Bar, Report, count_repeats, finish, make_parser, median, print_bars, say, take_turns

import matexport
from matexport.runtime.engines.onnxruntime import open_session

POINTS, PRECISIONS = ((2, 64), (6, 384)), ("fp32", "int8")
SHAPES = ((1, 16), (1, 128), (16, 32), (16, 128))
BAR = Bar("vector at every token, too / one output, worst of shapes", 1.03, " x")
WARM_UP, THREADS = 3, 1


def main() -> int:
    parser = make_parser("repeated_vector", __doc__, repeats=40)
    parser.add_argument("--family", type=Path, help="a family of MiniLM with the points of this script")
    options = parser.parse_args()
    print_bars([BAR])
    repeats = count_repeats(options, quick=3)
    with tempfile.TemporaryDirectory(prefix="matexport-repeated-") as made:
        family = options.family or export_minilm(Path(made) / "family")
        ratios: dict[str, float] = {}
        for layers, dim in POINTS:
            for precision in PRECISIONS:
                name = f"L{layers:02}-D{dim:03}-{precision}"
                ratios |= compare(family, name, Path(made) / name, repeats)
    settings = {"threads": THREADS, "repeats": repeats}
    worst = max(ratios.values())
    return finish("repeated_vector", options, Report([(BAR, worst)], {"both outputs / one": ratios}, settings))


def export_minilm(out: Path) -> Path:
    say("exporting")
    job = out.with_suffix(".toml")
    pairs = [list(point) for point in POINTS]
    asked = f'precisions = ["fp32", "int8"]\n[parent]\nsource = "{MINILM}"\n[points]\npairs = {pairs}\n'
    job.write_text(asked, encoding="utf-8")
    from matexport.export import export_family

    export_family(matexport.load_job(job), out)
    return out


def compare(family: Path, name: str, folder: Path, repeats: int) -> dict[str, float]:
    """Shape -> median time of the pack for all over that of the lean one."""
    packs = {layout: matexport.pack_profile(family, name, folder / layout, layout=layout) for layout in ("all", "lean")}
    sessions = {
        layout: open_session(pack.path / pack.facts.profiles[name].graph, threads=THREADS)
        for layout, pack in packs.items()
    }
    ratios = {}
    for batch, tokens in SHAPES:
        feeds = make_feeds(batch, tokens)
        times: dict[str, list[float]] = {layout: [] for layout in sessions}
        for turn, layout in enumerate(take_turns(tuple(sessions), WARM_UP + repeats)):
            start = time.perf_counter()
            sessions[layout].run(None, feeds)
            if turn >= 2 * WARM_UP:
                times[layout].append(time.perf_counter() - start)
        ratios[f"{name} {batch}x{tokens}"] = median(times["all"]) / median(times["lean"])
        say(f"{name} {batch}x{tokens}: {ratios[f'{name} {batch}x{tokens}']:.3f}")
    return ratios


def make_feeds(batch: int, tokens: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(1000, 30_000, (batch, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


if __name__ == "__main__":
    raise SystemExit(main())
