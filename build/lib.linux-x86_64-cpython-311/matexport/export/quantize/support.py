"""Can the installed onnxruntime run a precision? Found out on a model of one table and one matrix, before any work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from matexport.errors import FamilyError, RequestError
from matexport.export.graph.edit import make_constant, write_graph
from matexport.export.graph.traced import Traced
from matexport.export.quantize.make import Material, make_precision, observe_products
from matexport.export.quantize.observe import Sample
from matexport.io.files import explain_os_errors
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.inputs.array import ArrayInputs
from matexport.spec.facts import BATCH_AXIS, SEQUENCE_AXIS
from matexport.spec.inputs import ArrayFacts
from matexport.spec.probe import Dtype
from matexport.spec.profile import Point, Precision, Target

WIDTH, TOKENS = 64, 512
OPSET, IR_VERSION = 20, 10


def check_runtime(precision: Precision, target: Target = Target.ONNXRUNTIME) -> None:
    """Make a tiny model in a precision, for a target, and run it once.

    Raises:
        RequestError: onnxruntime refuses its operators, or cannot run them.
        DestinationError: there is no room for temporary files.
    """
    inputs = ArrayInputs(ArrayFacts("input_ids", (4,), Dtype.INT64))
    items = inputs.prepare([[1, 2, 3, 0], [4, 5, 6, 7]])
    with explain_os_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        traced, sample = Traced(_make_toy(), ("state_0", "state_1")), Sample(items, inputs, folder)
        rows = observe_products([precision], traced, sample, folder)
        material = Material(traced, [Point(1, WIDTH)], sample, "", rows, target)
        model, _ = make_precision(precision, material, lambda _stage, _done, _total: None)
        write_graph(model, folder / "toy.onnx")
        try:
            session = open_session(folder / "toy.onnx")
            session.run(None, {"input_ids": np.array([[1, 2, 3]], dtype=np.int64)})
        except FamilyError as error:
            problem: object = str(error).partition(": ")[2]
        except Exception as error:  # onnxruntime's own exception classes share no base but Exception
            problem = error
        else:
            return
    raise RequestError(
        f"the precision {precision} was asked; the installed onnxruntime {onnxruntime.__version__} cannot run it "
        f"({str(problem).splitlines()[0][:200]}): install a newer one, or ask for another precision"
    )


def _make_toy() -> ir.Model:
    """input_ids -> Gather -> MatMul -> mean over the tokens, with the names that the precisions look for."""
    rng = np.random.default_rng(0)

    ids = ir.Value(name="input_ids", shape=ir.Shape([BATCH_AXIS, SEQUENCE_AXIS]), type=ir.TensorType(ir.DataType.INT64))
    table = make_constant("table", rng.standard_normal((TOKENS, WIDTH)).astype(np.float32))
    matrix = make_constant("matrix", rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))
    over = make_constant("axis", np.array([1], dtype=np.int64))
    nodes = [ir.node("Gather", [table, ids], {"axis": 0})]
    nodes.append(ir.node("MatMul", [nodes[0].outputs[0], matrix]))
    nodes.append(ir.node("ReduceMean", [nodes[1].outputs[0], over], {"keepdims": 0}))
    for index, node in enumerate(nodes):
        out = node.outputs[0]
        out.name = f"state_{index}" if index < 2 else Point(1, WIDTH).name
        out.type = ir.TensorType(ir.DataType.FLOAT)
        out.shape = ir.Shape([BATCH_AXIS, SEQUENCE_AXIS, WIDTH] if index < 2 else [BATCH_AXIS, WIDTH])
    graph = ir.Graph(
        [ids],
        [nodes[2].outputs[0]],
        nodes=nodes,
        initializers=[table, matrix, over],
        opset_imports={"": OPSET},
        name="toy",
    )
    return ir.Model(graph, ir_version=IR_VERSION)
