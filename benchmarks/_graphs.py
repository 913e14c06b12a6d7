"""Synthetic models: serial chains that no thread pool can speed up, trivial chains, random DAGs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 21
_IR_VERSION = 10


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "synthetic", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _float(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def serial_chains(*, chains: int = 4, links: int = 12, size: int = 640) -> onnx.ModelProto:
    """``chains`` independent chains over one input of shape (size, size), joined at the end.

    Each link is a CumSum, which ONNX Runtime computes on one thread however many it has, and each of them
    sums the other way, so that no optimiser can merge neighbours. The factor keeps the values finite.
    """
    nodes = []
    initializers = [
        numpy_helper.from_array(np.array(0, np.int64), "axis_0"),
        numpy_helper.from_array(np.array(1, np.int64), "axis_1"),
        numpy_helper.from_array(np.array([0], np.int64), "axis_0_only"),
    ]
    ends = []
    for chain in range(chains):
        factor = f"factor_{chain}"
        initializers.append(numpy_helper.from_array(np.array((chain + 1) * 1e-3, np.float32), factor))
        current = f"chain_{chain}_start"
        nodes.append(helper.make_node("Mul", ["x", factor], [current], name=current))
        for link in range(links):
            name = f"chain_{chain}_link_{link}"
            # Exclusive-reverse and plain alternate, as do the axes: no two links in a row are alike.
            nodes.append(
                helper.make_node(
                    "CumSum", [current, f"axis_{link % 2}"], [f"{name}_sum"], name=name, reverse=link // 2 % 2
                )
            )
            scaled = f"{name}_scaled"
            nodes.append(helper.make_node("Mul", [f"{name}_sum", factor], [scaled], name=scaled))
            current = scaled
        end = f"chain_{chain}_end"
        # Small ends, so that joining the chains is no work.
        nodes.append(helper.make_node("ReduceMax", [current, "axis_0_only"], [end], name=end))
        ends.append(end)
    nodes.append(helper.make_node("Concat", ends, ["y"], name="join", axis=0))
    return _model(nodes, [_float("x", (size, size))], [_float("y", (chains, size))], initializers)


def trivial_chain(length: int) -> onnx.ModelProto:
    """``length`` operators on 8 floats, one after the other: all cost is overhead."""
    nodes = [
        helper.make_node("Sin" if link % 2 else "Cos", [f"t{link}"], [f"t{link + 1}"], name=f"link_{link}")
        for link in range(length)
    ]
    return _model(nodes, [_float("t0", (8,))], [_float(f"t{length}", (8,))])


def product_chain(length: int, *, size: int = 256) -> onnx.ModelProto:
    """``length`` products, one after the other, of a (size, size) input with matrices of that shape."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for link in range(length):
        weight = generator.standard_normal((size, size)).astype(np.float32) / np.float32(np.sqrt(size))
        weights.append(numpy_helper.from_array(weight, f"w{link}"))
        nodes.append(helper.make_node("MatMul", [f"t{link}", f"w{link}"], [f"t{link + 1}"], name=f"link_{link}"))
    shape = (size, size)
    return _model(nodes, [_float("t0", shape)], [_float(f"t{length}", shape)], weights)


def random_dag(nodes: int, *, seed: int = 0, window: int = 64, fan_in: int = 2) -> onnx.ModelProto:
    """A DAG of ``nodes`` elementwise operators on (1, 32, 8, 8) floats; each reads from the last ``window`` tensors.

    About half of the nodes have two predecessors, so branches, layers and joins are many. Leaves are
    summed into the output, so no node is dead.
    """
    generator = random.Random(seed)
    shape = (1, 32, 8, 8)
    made: list[onnx.NodeProto] = []
    names = ["x"]
    unread: dict[str, None] = {}
    for index in range(nodes - 1):
        name = f"n{index}"
        recent = names[-window:]
        reads = generator.sample(recent, min(len(recent), generator.randint(1, fan_in)))
        op_type = "Add" if len(reads) > 1 else generator.choice(("Relu", "Sigmoid", "Tanh"))
        made.append(helper.make_node(op_type, reads, [name], name=name))
        for read in reads:
            unread.pop(read, None)
        unread[name] = None
        names.append(name)
    made.append(helper.make_node("Sum", list(unread), ["y"], name="join"))
    return _model(made, [_float("x", shape)], [_float("y", shape)])
