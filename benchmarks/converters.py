"""What the converters that fixed shapes are for make of a profile: is it converted as it lies, and does it agree?

    matexport export JOB.toml --target rknn --out FAMILY       # with max_tokens in [readout]
    python benchmarks/converters.py FAMILY L02-D064-fp32

In an environment of one converter: rknn-toolkit2 (its simulator of an RK3588, in half precision), or onnx2tf with
ai-edge-litert. Both pin packages that matexport's export does without, so families are made elsewhere; here matexport's
base alone is needed. A converter that is not installed is left out, and named; a profile's result is kept beside those
of other environments. The probes are run in onnxruntime and in what was made, each text alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import Bar, Report, finish, make_parser, print_bars, say

#: An RK3588 computes all of a graph in half precision: the floor of fp16 (spec/tolerance.py, FLOORS), and not that of
#: engines that multiply halves as float32, 5e-4, which it misses. LiteRT has float32: the floor between engines.
BARS = {
    "rknn": ("cosine_min", Bar("rknn-toolkit2, simulated: least cosine to onnxruntime", 0.999, at_least=True)),
    "litert": ("max_abs", Bar("LiteRT: largest difference of a coordinate from onnxruntime", 1e-6)),
}
PACKAGES = {"rknn": ("rknn-toolkit2",), "litert": ("onnx2tf", "ai-edge-litert", "tensorflow")}
PLATFORM = "rk3588"

Feeds = dict[str, Any]
Run = Callable[[Feeds], Any]


def open_rknn(graph: Path, _scratch: Path) -> Run:
    from rknn.api import RKNN

    model = RKNN(verbose=False)
    model.config(target_platform=PLATFORM)
    for failed in (model.load_onnx(model=str(graph)), model.build(do_quantization=False), model.init_runtime()):
        if failed:
            raise SystemExit(f"rknn-toolkit2 refuses {graph}")
    return lambda feeds: model.inference(inputs=[feeds["input_ids"], feeds["attention_mask"]])[0]


def open_litert(graph: Path, scratch: Path) -> Run:
    import onnx2tf
    from ai_edge_litert.interpreter import Interpreter

    onnx2tf.convert(
        input_onnx_file_path=str(graph),
        output_folder_path=str(scratch),
        not_use_onnxsim=True,  # there is nothing left to simplify
        not_use_opname_auto_generate=True,  # it would write the graph anew, without the shapes that it says
        keep_shape_absolutely_input_names=["input_ids", "attention_mask"],  # no channels that could be moved
        replace_to_pseudo_operators=["Erf"],  # LiteRT has none
        copy_onnx_input_output_names_to_tflite=True,
        verbosity="error",
    )
    model = Interpreter(model_path=str(next(scratch.glob("*_float32.tflite"))))
    model.allocate_tensors()
    (output,) = model.get_output_details()

    def run(feeds: Feeds) -> Any:
        for detail in model.get_input_details():
            name = next(name for name in feeds if name in detail["name"])
            model.set_tensor(detail["index"], feeds[name].astype(detail["dtype"]))
        model.invoke()
        return model.get_tensor(output["index"])

    return run


OPENERS = {"rknn": open_rknn, "litert": open_litert}


def compare(name: str, family: Path, profiles: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each profile, how far what the converter made is from onnxruntime on the same graph, over all probes."""
    import numpy as np

    from matexport import Embedder
    from matexport.family.proof import load_probes, open_proof

    for profile in profiles:
        with Embedder(family, profile, threads=1) as embedder, tempfile.TemporaryDirectory() as scratch:
            inputs = embedder.inputs
            rows = [inputs.prepare_probe(probe) for probe in load_probes(open_proof(embedder.family))]
            expected = np.concatenate([embedder.run([row]) for row in rows]).astype(np.float64)
            facts = embedder.family.profile_facts(profile)
            for file in (facts.graph, facts.weights):  # a copy: onnx2tf writes over the file that it is given
                shutil.copyfile(family / file, Path(scratch, file))
            run = OPENERS[name](Path(scratch, facts.graph), Path(scratch, "out"))
            found = np.concatenate([run(inputs.feed([row])) for row in rows]).astype(np.float64)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((found * expected).sum(axis=1) / lengths).min())
        yield profile, {"max_abs": float(np.abs(found - expected).max()), "cosine_min": cosine, "probes": len(rows)}


def main() -> int:
    parser = make_parser("converters", __doc__, repeats=1)
    parser.add_argument("family", type=Path, help="of the target rknn or litert")
    parser.add_argument("profile", nargs="+", help="such as L02-D064-fp32")
    options = parser.parse_args()
    modules = {"rknn": "rknn", "litert": "ai_edge_litert"}
    here = [name for name, module in modules.items() if importlib.util.find_spec(module)]
    if not here:
        print("converters: neither rknn-toolkit2 nor onnx2tf with ai-edge-litert is installed here", file=sys.stderr)
        return 2
    print_bars(BARS[name][1] for name in here)
    measured: dict[str, Any] = {}
    if options.out.is_file():  # of other environments
        measured = json.loads(options.out.read_text(encoding="utf-8"))["measured"]
    held = []
    for name in here:
        versions = {package: importlib.metadata.version(package) for package in PACKAGES[name]}
        found = dict(compare(name, options.family, options.profile))
        say(f"{name}: {json.dumps(found)}")
        measured[name] = {"versions": versions, "profiles": found}
        key, bar = BARS[name]
        held.append((bar, (min if bar.at_least else max)(one[key] for one in found.values())))
    settings = {"family": options.family.name, "platform": PLATFORM, "here": here}
    return finish("converters", options, Report(held, measured, settings))


if __name__ == "__main__":
    sys.exit(main())
