"""A family on an NVIDIA card: is it the parent there, and is it as fast as the parent in torch on the same card?

    pip install --no-index --find-links wheels onnxruntime-gpu torch sentence-transformers
    python benchmarks/gpu.py artifacts/minilm

One command, under ten minutes, for a machine that wheels were brought to. The largest and the smallest point of the
family, in fp32 and fp16, are verified on the card first (every number computed there, or it is refused), and held to
onnxruntime on the CPU. Then the whole parent is timed in batches: the family's largest point in fp32 and fp16, and the
parent in torch in fp32 and in fp16 with scaled dot product attention, turn by turn in one process. Each side goes from
token ids in the host's memory to vectors in the host's memory; float32 is multiplied as float32 on both.

Without a card, or where the provider does not come up, it says so and exits 2, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import MINILM, RESULTS, Bar, Report, count_repeats, finish, make_parser, median, print_bars, say, take_turns

from matexport.errors import MatexportError
from matexport.family.manifest import Family, load_family
from matexport.host import read_gpus
from matexport.spec.measured import Engine
from matexport.spec.profile import Precision, Profile

#: Texts of a run, and the tokens of each.
BATCHES, TOKENS = (1, 8, 32, 128), 128
#: The largest batch that counts as small.
SMALL = 8
WARM_UP = 10
#: What a coordinate of a unit vector may be off between two sides that do the same; fp16 is off by 1e-3.
AGREED = 5e-3
OURS, TORCH = ("ours fp32", "ours fp16"), ("torch fp32", "torch fp16")
PRECISIONS = {"ours fp32": Precision.FP32, "ours fp16": Precision.FP16}
BARS = {
    batch: Bar(
        f"batch {batch} of {TOKENS} tokens, texts/s of fp16 / torch fp16 with SDPA",
        1.0 if batch <= SMALL else 0.9,
        " x",
        at_least=True,
    )
    for batch in BATCHES
}
VERIFIED = Bar("profiles on the card that are off a floor", 0)


def find_obstacle(provider: str) -> str | None:
    """Why nothing can be measured here; None where it can."""
    if not read_gpus():
        return "no NVIDIA card is known to a driver here: nothing was measured"
    try:
        import torch
    except ImportError:
        return "torch is not installed here, which is timed beside: nothing was measured"
    if not torch.cuda.is_available():
        return f"this torch ({torch.__version__}) finds no card: nothing was measured"
    from matexport.runtime.engines.door import describe_engine

    try:
        describe_engine(Engine(provider=provider))
    except MatexportError as error:
        return f"{error}: nothing was measured"
    return None


def choose_profiles(family: Family) -> list[str]:
    """The smallest and the largest point in fp32 and fp16.

    Raises:
        SystemExit: the family lacks one of the two.
    """
    chosen: dict[str, None] = {}
    for precision in PRECISIONS.values():
        points = sorted(one.point for one in family.profiles if one.precision is precision)
        if not points:
            raise SystemExit(f"{family.path} has no profile in {precision}: export it with fp32 and fp16")
        chosen |= {Profile(point, precision).name: None for point in (points[0], points[-1])}
    return list(chosen)


def verify_on(family: Family, names: list[str], engine: Engine) -> dict[str, Any]:
    """Each profile's largest difference and least cosine, from the parent and from onnxruntime on the CPU."""
    from matexport.verify.judge import open_case, verify_case

    verification = verify_case(open_case(family), profiles=names, engine=engine)
    found = {}
    for verdict in verification.verdicts:
        assert verdict.engine is not None
        breach = verdict.find_breach()
        found[verdict.profile] = {
            "max_abs": verdict.worst[1].max_abs,
            "cosine_min": min(one.cosine_min for one in verdict.parity.values()),
            "from_cpu": max(one.max_abs for one in verdict.engine.parity.values()),
            "from_cpu_cosine_min": min(one.cosine_min for one in verdict.engine.parity.values()),
            "failure": f"{breach[1]} ({breach[0]})" if breach else None,
        }
    return found


def open_torch(source: str, half: bool, max_tokens: int, device: str = "cuda") -> Callable[[Mapping[str, Any]], Any]:
    """The parent on the card: arrays by input name -> (n, width) array."""
    import torch
    from sentence_transformers import SentenceTransformer

    from matexport.export.parents.folder.source import locate_parent
    from matexport.spec.job import ParentSource

    root = locate_parent(ParentSource(source), Path.cwd())
    kind = torch.float16 if half else torch.float32
    model = SentenceTransformer(
        str(root), device=device, local_files_only=True, model_kwargs={"attn_implementation": "sdpa", "dtype": kind}
    )
    model.max_seq_length = max_tokens

    def run(feeds: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            features = {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}
            return model(features)["sentence_embedding"].float().cpu().numpy()

    return run


def make_feeds(embedder: Any, batch: int) -> dict[str, Any]:
    """Rows of the family's short item, stretched to `TOKENS` tokens."""
    row = embedder.prepare([embedder.inputs.short])[0]
    return dict(embedder.feed([embedder.inputs.stretch(row, TOKENS)] * batch))


def time_sides(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each side, turn by turn."""
    for run in sides.values():
        for _ in range(WARM_UP):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name in take_turns(list(sides), repeats):
        start = time.perf_counter()
        sides[name]()
        seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(
    family: Family, parent: str, engine: Engine, repeats: int, device: str = "cuda"
) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """(batch, seconds by side) for each batch.

    Raises:
        SystemExit: the sides do not give the same vectors, so that their times say nothing of each other.
    """
    from matexport.runtime.embedder import Embedder

    torch_sides = {name: open_torch(parent, name.endswith("fp16"), family.text.max_tokens, device) for name in TORCH}
    names = choose_profiles(family)
    chosen = {side: [name for name in names if name.endswith(precision)][-1] for side, precision in PRECISIONS.items()}
    ours = {side: Embedder(family, name, engine=engine) for side, name in chosen.items()}
    for batch in BATCHES:
        say(f"batch {batch}")
        feeds = make_feeds(ours["ours fp32"], batch)
        sides: dict[str, Callable[[], Any]] = {
            **{side: partial(embedder.compute, feeds) for side, embedder in ours.items()},
            **{side: partial(run, feeds) for side, run in torch_sides.items()},
        }
        expected = sides["torch fp32"]()
        for side, run in sides.items():
            found = run()
            if found.shape != expected.shape or not abs(found - expected).max() <= AGREED:
                raise SystemExit(f"{side} does not give the vectors of torch in fp32 at {batch}x{TOKENS}")
        yield batch, time_sides(sides, repeats)


def main() -> int:
    parser = make_parser("gpu", __doc__, repeats=100)
    parser.add_argument("family", type=Path, help="directory of a family with its largest point in fp32 and fp16")
    parser.add_argument("--parent", default=MINILM, help=f"where its parent is (default: {MINILM})")
    parser.add_argument("--provider", default="cuda", help="cuda, tensorrt, tensorrt-rtx or webgpu (default: cuda)")
    options = parser.parse_args()
    obstacle = find_obstacle(options.provider)
    if obstacle:
        print(f"gpu: {obstacle}", file=sys.stderr)
        return 2
    print_bars([VERIFIED, *BARS.values()])
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Verify and measure on the card, and write the document."""
    import onnxruntime
    import torch

    from matexport.runtime.engines.door import describe_engine

    family, engine = load_family(options.family), Engine(provider=options.provider)
    verified = verify_on(family, choose_profiles(family), engine)
    for name, found in verified.items():
        say(f"{name}: {found['from_cpu']:.1e} from the CPU, {found['failure'] or 'held'}")
    repeats = count_repeats(options, quick=10)
    runs = dict(measure(family, options.parent, engine, repeats))
    texts = {
        f"{batch}x{TOKENS}": {side: batch / median(seconds) for side, seconds in sides.items()}
        for batch, sides in runs.items()
    }
    held = [(VERIFIED, float(sum(one["failure"] is not None for one in verified.values())))]
    held += [
        (BARS[batch], texts[f"{batch}x{TOKENS}"]["ours fp16"] / texts[f"{batch}x{TOKENS}"]["torch fp16"])
        for batch in BATCHES
    ]
    ran_on = describe_engine(engine)
    report = Report(
        held=held,
        measured={
            "verified": verified,
            "texts_per_s": texts,
            "runs": {f"{batch}x{TOKENS}": sides for batch, sides in runs.items()},
        },
        settings={
            "family": family.path.name,
            "provider": options.provider,
            "engine": ran_on.summary,
            "device": torch.cuda.get_device_name(),
            "repeats": repeats,
            "from": "token ids in the host's memory to vectors there",
        },
        extra_versions={"onnxruntime": onnxruntime.__version__, "cuda": str(torch.version.cuda)},
    )
    return finish("gpu", options, report)


if __name__ == "__main__":
    if not RESULTS.is_dir():
        raise SystemExit("run it from its checkout: benchmarks/results is missing")
    sys.exit(main())
