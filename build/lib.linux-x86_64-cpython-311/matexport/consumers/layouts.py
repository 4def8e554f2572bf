"""What a pack may look like: one record for each kind of consumer that it is for. Data; `write` does what they say."""

from __future__ import annotations

from collections.abc import Mapping

from matexport.spec.profile import Precision
from matexport.spec.record import Record

#: What transformers.js calls the file of a precision, in ``onnx/``. By the kind of its arithmetic: its ``q8`` (which it
#: takes where a browser has no GPU) is int8 with scales that are found at run time, as ours.
NAMES: Mapping[Precision, str] = {
    Precision.FP32: "model",
    Precision.FP16: "model_fp16",
    Precision.INT8: "model_quantized",
    Precision.INT8_STATIC: "model_uint8",
    Precision.Q8: "model_int8",
    Precision.Q4: "model_q4",
    Precision.Q4_MIXED: "model_q4f16",
}


#: What it calls the precisions of these files.
DTYPES = {
    "model": "fp32", "model_fp16": "fp16", "model_quantized": "q8", "model_uint8": "uint8", "model_int8": "int8",
    "model_q4": "q4", "model_q4f16": "q4f16",
}  # fmt: skip


class Layout(Record, frozen=True):
    """One kind of folder.

    Attributes:
        summary: who reads it, in words.
        family: whether it is a pack that matexport itself reads, with a manifest and the proof.
        tokens: whether the graphs have an output ``last_hidden_state`` before ``sentence_embedding``: the vector,
            repeated for every token, so that whatever pools it gets it back.
        folders: where graphs lie: ``""`` for the folder itself, ``onnx/``.
        inside: whether the weights are inside of the graph.
        states: whether the graph gives the states of its tokens, too, as a last output ``token_embeddings``.
        configured: whether there are the files that other consumers configure themselves from.
    """

    summary: str
    family: bool = True
    tokens: bool = False
    folders: tuple[str, ...] = ("",)
    inside: bool = False
    states: bool = False
    configured: bool = True


#: As `export` wrote it: what this package alone reads.
NATIVE = "matexport"
ALL = "all"
SINGLE_FILE, TORCH = "single-file", "torch"

LAYOUTS: Mapping[str, Layout] = {
    ALL: Layout(
        "sentence-transformers (ONNX), optimum, fastembed, transformers.js, txtai, chromadb and others: one folder",
        tokens=True,
        folders=("", "onnx/"),
    ),
    "infinity": Layout("infinity, and what looks for one model.onnx only: no folder onnx/", tokens=True),
    "lean": Layout("consumers that read the first output: sentence_embedding alone"),
    SINGLE_FILE: Layout(
        "Vespa and others that take one file: the weights inside of model.onnx", family=False, tokens=True, inside=True
    ),
    TORCH: Layout("sentence-transformers and transformers with torch: the first blocks, to train on", family=False),
    NATIVE: Layout("matexport alone: the graph as it was exported", configured=False),
}
