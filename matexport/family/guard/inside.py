"""A checked graph with its weights inside: for what reads a graph from one file or one run of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.family.graph_file import list_external, parse_graph
from matexport.family.guard.copies import locate_weights
from matexport.family.weights_file import Buffer

if TYPE_CHECKING:
    from matexport.family.integrity import Contents

#: protobuf's own bound of one message.
MAX_MESSAGE_BYTES = (1 << 31) - 1


def hold_weights(model: Any, weights: Buffer, otherwise: str) -> None:
    """Put every external tensor of a graph into it; it is changed.

    Args:
        weights: the file that all of them lie in.
        otherwise: what to do where that does not go; it ends the message.

    Raises:
        RequestError: they are more than one file of ONNX may hold.
    """
    tensors = list(list_external(model))
    ranges = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    if sum(int(where["length"]) for where in ranges) + model.ByteSize() > MAX_MESSAGE_BYTES:
        raise RequestError(f"the weights have more than 2 GB, which one ONNX file cannot hold: {otherwise}")
    for tensor, where in zip(tensors, ranges, strict=True):
        start = int(where["offset"])
        tensor.raw_data = bytes(weights[start : start + int(where["length"])])
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def read_whole(contents: Contents, graph: str, asked: str) -> Any:
    """A graph of a family as `graph_file.parse_graph` gives it, with its weights inside.

    Args:
        asked: what needs it so; it begins the message.

    Raises:
        RequestError: they are more than one file of ONNX may hold.
    """
    model = parse_graph(graph, contents.read(graph))
    location = next((entry.value for tensor in list_external(model) for entry in tensor.external_data
                     if entry.key == "location"), None)  # fmt: skip
    for name in contents.family.weights_files:
        if name in contents and locate_weights(graph, name) == location:
            try:
                hold_weights(model, contents.read(name), "take another engine")
            except RequestError as error:
                raise RequestError(f"{asked}; {error}") from None
    return model
