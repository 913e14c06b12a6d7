"""Which of several definitions of a constant ONNX Runtime takes: it is asked.

ONNX forbids defining a tensor twice, the runtime warns and picks one. Which, depends on how large it is (observed with
1.31.1: the last of up to 127 bytes, the first of more), and on nothing that is promised. So a model that holds nothing
but the definitions is run, and those that lose are taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

_EXTERNAL = onnx.TensorProto.EXTERNAL


def settle_definitions(graph: onnx.GraphProto, unsure: Collection[str]) -> None:
    """Leave one definition of every initializer, where it is clear which one counts. In place.

    Definitions are initializers, and the values of ``Constant`` nodes, which the runtime makes initializers of.

    Args:
        unsure: names to be left alone: of tensors that lie in other files, say.
    """
    constants = [node for node in graph.node if node.op_type == "Constant" and node.domain in ("", "ai.onnx")]
    names = [tensor.name for tensor in graph.initializer]
    names += [node.output[0] for node in constants if node.output]
    if len(set(names)) == len(names):
        return
    left_alone = {*unsure, *(value.name for value in graph.input), ""}
    for name in [name for name, count in Counter(names).items() if count > 1 and name not in left_alone]:
        tensors = [tensor for tensor in graph.initializer if tensor.name == name]
        nodes = [node for node in constants if list(node.output) == [name]]
        values = [_value(node) for node in nodes]
        definitions = [*tensors, *(value for value in values if value is not None)]
        if len(definitions) < len(tensors) + len(nodes):
            continue
        winner = _winner(tensors, nodes, definitions)
        if winner is None:
            continue
        for position, definition in enumerate(definitions):
            if position != winner:
                if position < len(tensors):
                    graph.initializer.remove(definition)
                else:
                    graph.node.remove(nodes[position - len(tensors)])


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            value: onnx.TensorProto = attribute.t
            return value
    return None


def _winner(
    tensors: Sequence[onnx.TensorProto], nodes: Sequence[onnx.NodeProto], definitions: Sequence[onnx.TensorProto]
) -> int | None:
    """The position of the definition that the runtime takes; None where that cannot be told."""
    kinds = {(tensor.data_type, tuple(tensor.dims)) for tensor in definitions}
    if len(kinds) != 1 or any(tensor.data_location == _EXTERNAL for tensor in definitions):
        return None
    try:
        arrays = [numpy_helper.to_array(tensor) for tensor in definitions]
        taken = _ask(tensors, nodes, definitions[0])
    except Exception:  # of numpy, protobuf or onnxruntime, whose exception classes share no root of their own
        return None
    same = [position for position, array in enumerate(arrays) if array.tobytes() == taken.tobytes()]
    return same[0] if same else None


def _ask(
    tensors: Sequence[onnx.TensorProto], nodes: Sequence[onnx.NodeProto], one: onnx.TensorProto
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """What the runtime makes of these definitions of one name."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as C

    name = tensors[0].name if tensors else nodes[0].output[0]
    shown = onnx.helper.make_tensor_value_info("shown", one.data_type, list(one.dims))
    read = onnx.helper.make_node("Identity", [name], ["shown"])
    graph = onnx.helper.make_graph([*nodes, read], "definitions", [], [shown], list(tensors))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = C.InferenceSession(options, model.SerializeToString(), False, False)
    session.initialize_session(["CPUExecutionProvider"], [{}], set())
    return np.asarray(session.run(["shown"], {}, None)[0])
