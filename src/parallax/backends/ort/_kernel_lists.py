"""Why an execution provider left nodes out, as far as its list of kernels tells."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort._failures import RUNTIME_EXCEPTIONS
from parallax.graph import ELEMENT_TYPES, Node, OpGraph, RefusedNode, Verdict

TYPE_NAMES: Final[Mapping[int, str]] = {code: element.runtime_name for code, element in ELEMENT_TYPES.items()}
"""Element types as ONNX Runtime writes them inside "tensor(...)", by ``onnx.TensorProto.DataType``."""

_DEFAULT_DOMAINS: Final = ("", "ai.onnx")


def explain(graph: OpGraph, taken: Set[int], *, provider: str, is_plugin: bool) -> tuple[RefusedNode, ...]:
    """A reason for each node that is not in ``taken``.

    Only plugins publish their kernels. A provider that compiles whole subgraphs, or is built in, is not second-guessed.
    """
    kernels = _kernels(provider) if is_plugin else {}
    return tuple(_reason(graph, node, provider, kernels) for node in graph.nodes if node.index not in taken)


def _reason(
    graph: OpGraph, node: Node, provider: str, kernels: Mapping[tuple[str, str], frozenset[str]]
) -> RefusedNode:
    def because(reason: Verdict, detail: str) -> RefusedNode:
        return RefusedNode(node=node.index, reason=reason, detail=detail)

    if not kernels:
        return because(Verdict.UNSUPPORTED_FORM, f"{provider} does not say why")
    domain = "" if node.domain in _DEFAULT_DOMAINS else node.domain
    types = kernels.get((domain, node.op_type))
    if types is None:
        return because(Verdict.UNSUPPORTED_OPERATOR, f"{provider} has no kernel for {node.op_type}")
    # Further operands (shapes, axes) often have types of their own, which the list does not tell.
    for name in (*node.inputs[:1], *node.outputs[:1]):
        info = graph.tensors.get(name)
        if info is not None and info.dtype in TYPE_NAMES and types:
            written = f"tensor({TYPE_NAMES[info.dtype]})"
            if written not in types:
                detail = f"{provider} has no kernel of {node.op_type} for {written}, the type of {name!r}"
                return because(Verdict.UNSUPPORTED_TYPE, detail)
    return because(
        Verdict.UNSUPPORTED_FORM, f"{provider} has a kernel for {node.op_type}, but leaves this node to the processor"
    )


@functools.cache
def _kernels(provider: str) -> Mapping[tuple[str, str], frozenset[str]]:
    """(domain, operator) -> every type that some kernel of it takes anywhere; empty where the provider lists none."""
    try:
        definitions = C.get_registered_ep_kernel_defs(provider)
    except RUNTIME_EXCEPTIONS:  # it compiles subgraphs, and has no list
        return {}
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for definition in definitions:
        for types in definition.type_constraints.values():
            found[definition.domain, definition.op_name].update(types)
    return {key: frozenset(types) for key, types in found.items()}
