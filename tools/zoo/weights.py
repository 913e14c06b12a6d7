"""What the exporter leaves elsewhere than in the main graph's initializers, put there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx

_LARGE_ELEMENTS = 128


def gather_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make every large float constant an initializer of the main graph, and drop shapes true at a loop's start only.

    Constant folding leaves some weights (those of a scripted LSTM) as Constant nodes or as initializers of bodies; the
    zoo condenses initializers of the main graph, which bodies may read. The shapes of values carried around a loop are
    those that scripting saw at its start; a value that grows breaks them, and ONNX Runtime warns at every iteration.

    Returns: a new model; the given one is unchanged.
    Raises: ValueError if a weight's name is used twice.
    """
    gathered = onnx.ModelProto()
    gathered.CopyFrom(model)
    main = gathered.graph
    taken = {tensor.name for tensor in main.initializer}

    def adopt(tensor: onnx.TensorProto, name: str) -> None:
        if name in taken:
            raise ValueError(f"constant {name!r} exists twice")
        taken.add(name)
        main.initializer.add().CopyFrom(tensor)
        main.initializer[-1].name = name

    _adopt_constants(main, adopt)
    for op_type, body in _bodies(main):
        for tensor in body.initializer:
            adopt(tensor, tensor.name)
        del body.initializer[:]
        _adopt_constants(body, adopt)
        if op_type == "Loop":
            del body.value_info[:]
            for value in (*body.input[2:], *body.output[1:]):
                value.type.tensor_type.ClearField("shape")
    return gathered


def _adopt_constants(graph: onnx.GraphProto, adopt: Callable[[onnx.TensorProto, str], None]) -> None:
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type != "Constant" or node.attribute[0].name != "value":
            continue
        tensor = node.attribute[0].t
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _LARGE_ELEMENTS:
            adopt(tensor, node.output[0])
            del graph.node[index]


def _bodies(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Bodies nested in a graph at any depth, with the operator each belongs to."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield node.op_type, body
                yield from _bodies(body)
