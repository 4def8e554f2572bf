"""Images resized inside of a graph: grey levels that are Pillow's, and the time that it takes.

    pip install -c constraints.txt -e '.[export,image]'
    python benchmarks/pixels.py

Three ways to resize, on the probes that matexport draws and on noise of long, thin and ordinary shapes, to 224 x 224
and to 30 x 50: matexport's nodes (`export.graph.pixels`), and ONNX's Resize with antialias and Pillow's cubic
coefficient, with `exclude_outside` and without. Then the whole preparation of photos of four sizes (bicubic, shorter
side 256, centre 224), in a graph and by the runtime with Pillow, turn by turn.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import PIL
from common import Bar, Report, count_repeats, finish, make_parser, median, print_bars, say, take_turns
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from matexport.export.graph.pixels import make_preparation
from matexport.export.kinds.probes.image import draw_probes
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.inputs import ImageFacts, Resampling

Array = NDArray[Any]

SAME = Bar("share of grey levels that are Pillow's, matexport's nodes", 1.0, at_least=True)
WORST = Bar("grey levels off, matexport's nodes", 1)
BARS = (SAME, WORST)
TARGETS = ((224, 224), (30, 50))
NOISE = ((1, 4000), (4000, 1), (3000, 2), (17, 2000), (223, 225), (224, 224), (2000, 3000))
PHOTOS = ((224, 224), (480, 640), (1080, 1920), (3000, 4000))
FILTERS = {Resampling.BILINEAR: "linear", Resampling.BICUBIC: "cubic"}
THREADS = 2


def draw_images() -> list[Array]:
    draws = np.random.default_rng(0)
    probes = [np.asarray(Image.open(io.BytesIO(probe.content)).convert("RGB")) for probe in draw_probes()]
    return probes + [draws.integers(0, 256, (*size, 3), np.uint8) for size in NOISE]


def open_session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def use_resize(resampling: Resampling, outside: int) -> Callable[[Array, tuple[int, int]], Array]:
    """ONNX's Resize of uint8 pixels."""
    attributes = {"cubic_coeff_a": -0.5} if resampling is Resampling.BICUBIC else {}
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode=FILTERS[resampling], antialias=1, exclude_outside=outside,
        coordinate_transformation_mode="half_pixel", **attributes,
    )  # fmt: skip
    given = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, "height", "width"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [4]),
    ]
    made = [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 3, "a", "b"])]
    model = helper.make_model(
        helper.make_graph([node], "g", given, made), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    session = open_session(model.SerializeToString())

    def resize(pixels: Array, target: tuple[int, int]) -> Array:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        made: Array = session.run(None, {"x": planes, "sizes": np.array([1, 3, *target])})[0]
        return made[0].transpose(1, 2, 0)

    return resize


def use_nodes(resampling: Resampling) -> Callable[[Array, tuple[int, int]], Array]:
    """matexport's."""
    sessions = {}
    for target in TARGETS:
        facts = ImageFacts("image", *target, target, resampling, 1.0, (0.0,) * 3, (1.0,) * 3, in_graph=True)
        sessions[target] = open_session(ir.to_proto(make_preparation(facts)).SerializeToString())

    def resize(pixels: Array, target: tuple[int, int]) -> Array:
        made: Array = sessions[target].run(None, {"image": pixels[None]})[0]
        return made[0].transpose(1, 2, 0)

    return resize


def compare(resize: Callable[[Array, tuple[int, int]], Array], resampling: Resampling) -> dict[str, float]:
    worst, same, count = 0, 0, 0
    for pixels in draw_images():
        for high, wide in TARGETS:
            filtered = Image.Resampling[resampling.upper()]
            expected = np.asarray(Image.fromarray(pixels).resize((wide, high), filtered)).astype(int)
            off = np.abs(resize(pixels, (high, wide)).round().astype(int) - expected)
            worst, same, count = max(worst, int(off.max())), same + int((off == 0).sum()), count + off.size
    return {"worst": worst, "same": same / count}


def time_photos(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a photo's whole preparation, once it is decoded."""
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    facts = ImageFacts("image", 224, 224, (256,), Resampling.BICUBIC, 1 / 255, *imagenet)
    session, inputs = open_session(ir.to_proto(make_preparation(facts)).SerializeToString()), ImageInputs(facts)
    found = {}
    for high, wide in PHOTOS:
        pixels = np.random.default_rng(1).integers(0, 256, (high, wide, 3), np.uint8)
        sides: dict[str, Callable[[], Any]] = {
            "graph": lambda pixels=pixels: session.run(None, {"image": pixels[None]}),  # type: ignore[misc]
            "pillow": lambda pixels=pixels: inputs.feed([inputs.prepare_one(pixels)]),  # type: ignore[misc]
        }
        spent: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values():
            run()
        for name in take_turns(list(sides), repeats):
            started = time.perf_counter()
            sides[name]()
            spent[name].append((time.perf_counter() - started) * 1e3)
        found[f"{wide}x{high}"] = {name: median(values) for name, values in spent.items()}
        say(f"{wide} x {high}: {found[f'{wide}x{high}']}")
    return found


def main() -> int:
    options = make_parser("pixels", __doc__, repeats=9).parse_args()
    print_bars(BARS)
    measured: dict[str, Any] = {}
    for resampling in FILTERS:
        ways = {
            "nodes": use_nodes(resampling),
            "Resize, exclude_outside": use_resize(resampling, 1),
            "Resize": use_resize(resampling, 0),
        }
        measured[resampling] = {name: compare(resize, resampling) for name, resize in ways.items()}
        say(f"{resampling}: {measured[resampling]}")
    nodes = [measured[resampling]["nodes"] for resampling in FILTERS]
    measured["ms"] = time_photos(count_repeats(options, quick=1))
    held = [(SAME, min(way["same"] for way in nodes)), (WORST, max(way["worst"] for way in nodes))]
    settings = {"threads": THREADS, "images": len(draw_images()), "targets": TARGETS}
    return finish("pixels", options, Report(held, measured, settings, {"pillow": PIL.__version__}))


if __name__ == "__main__":
    sys.exit(main())
