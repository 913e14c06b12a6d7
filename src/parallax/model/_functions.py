"""Inline a model's local functions, after making sure that this ends and stays small."""

from __future__ import annotations

import onnx
import onnx.inliner

from parallax.errors import ModelError, UnsupportedModelError

_MOST_NODES = 10_000_000
"""Limit on nodes after inlining: functions calling each other twice, 40 deep, would fill any memory."""


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions; the same object when it has none.

    Uses onnx's inliner (``onnx.inliner.inline_local_functions``), which renames what would clash.

    Raises:
        ModelError: functions call each other in a circle, or the inliner refuses the model.
        UnsupportedModelError: the inlined graph would be too large.
    """
    if not model.functions:
        return model
    _check_expansion(model)
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as exc:  # the binding raises RuntimeError, ValueError or protobuf's own errors
        raise ModelError(
            f"its local functions cannot be inlined: {exc}", fix="export the model without functions, or report this"
        ) from exc


def _check_expansion(model: onnx.ModelProto) -> None:
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    calls = {key: _calls(list(function.node)) for key, function in functions.items()}
    sizes: dict[tuple[str, str, str], int] = {}
    for root in functions:
        stack = [root]
        on_path: set[tuple[str, str, str]] = set()
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            callees = [callee for callee in calls[key] if callee in functions]
            pending = [callee for callee in dict.fromkeys(callees) if callee not in sizes]
            if not pending:
                sizes[key] = sum(sizes[callee] if callee in functions else 1 for callee in calls[key])
                on_path.discard(key)
                stack.pop()
                continue
            on_path.add(key)
            if circle := [callee for callee in pending if callee in on_path]:
                raise ModelError(
                    f"function {circle[0][1]!r} of domain {circle[0][0]!r} calls itself, directly or through others",
                    fix="ONNX functions must not be recursive: mend the exporter",
                )
            stack.extend(pending)
    total = sum(sizes.get(callee, 1) for callee in _calls(list(model.graph.node)))
    if total > _MOST_NODES:
        raise UnsupportedModelError(
            f"the model has {total} nodes once its functions are inlined; the limit is {_MOST_NODES}",
            fix="export the model with fewer nested functions",
        )


def _calls(nodes: list[onnx.NodeProto]) -> list[tuple[str, str, str]]:
    """Operators called by these nodes and all bodies in them."""
    out = []
    stack = nodes
    while stack:
        node = stack.pop()
        out.append((node.domain, node.op_type, node.overload))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                stack.extend(attribute.g.node)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    stack.extend(graph.node)
    return out
