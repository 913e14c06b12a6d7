"""A model that does nothing but declare tensors, to keep what a runtime says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx


def declaring_model(tensors: Iterable[tuple[str, int, Sequence[int | str | None]]]) -> bytes:
    """The serialised model whose inputs have these names, element types and shapes, and which computes nothing.

    A runtime that loads it describes its inputs as it described these tensors.
    """
    inputs = [onnx.helper.make_tensor_value_info(name, element, list(shape)) for name, element, shape in tensors]
    # Inputs that nothing reads are left out of what is described.
    nodes = [onnx.helper.make_node("Identity", [value.name], [f"{number}"]) for number, value in enumerate(inputs)]
    outputs = [
        onnx.ValueInfoProto(name=node.output[0], type=value.type) for node, value in zip(nodes, inputs, strict=True)
    ]
    taken = {value.name for value in inputs}
    for node, output in zip(nodes, outputs, strict=True):
        while node.output[0] in taken:
            node.output[0] += "_"
        output.name = node.output[0]
    graph = onnx.helper.make_graph(nodes, "declared", inputs, outputs)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())
