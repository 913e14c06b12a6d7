"""Inline a model's local functions, after making sure that this ends, stays small and changes nothing.

onnx's inliner renames what would clash, but it knows nothing of defaults of attributes, and it loses track of names in
some functions that are legal. The former are written into the calls first; models with the latter are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner

from parallax.errors import UnsafeModelError
from parallax.model._nested import graphs_inside, walk_nodes

MOST_NODES = 500_000
"""Limit on nodes after inlining: functions calling each other twice, 40 deep, would fill any memory."""

MOST_DEPTH = 1000
"""Limit on calls inside each other. The runtime expands them by recursion, and some 3000 overflow its stack."""

_INLINED_DEPTH = 100
"""What onnx's inliner goes along with."""

_BUILT_IN = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"})

_Key = tuple[str, str, str]
_Functions = Mapping[_Key, onnx.FunctionProto]


def inline_functions(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """The model without local functions, and None; or the model as it is, and why its functions stay.

    Functions that nothing calls are dropped. The given message is changed.

    Raises: UnsafeModelError if a function calls itself, or the calls are too many or too deep.
    """
    if not model.functions:
        return model, None
    called, depth = _check_expansion(model)
    kept = [function for key, function in _by_key(model).items() if key in called]
    if len(kept) < len(model.functions):
        copies = [onnx.FunctionProto.FromString(function.SerializeToString()) for function in kept]
        del model.functions[:]
        model.functions.extend(copies)
    functions = _by_key(model)
    obstacle = _why_not_inlined(model, functions, depth)
    if obstacle is not None:
        return model, obstacle
    for nodes in (model.graph.node, *(function.node for function in functions.values())):
        _write_defaults(nodes, functions)
    for function in functions.values():
        # Types that held for one call may not hold for another.
        del function.value_info[:]
    try:
        inlined = onnx.inliner.inline_local_functions(model)
    except Exception as exc:  # the binding raises RuntimeError, ValueError or protobuf's own errors
        return model, f"its functions cannot be inlined: {exc}"
    return (model, "its functions cannot all be inlined") if inlined.functions else (inlined, None)


def _by_key(model: onnx.ModelProto) -> dict[_Key, onnx.FunctionProto]:
    return {(_domain(f.domain), f.name, f.overload): f for f in model.functions}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _key(node: onnx.NodeProto) -> _Key:
    return _domain(node.domain), node.op_type, node.overload


# -- how large ------------------------------------------------------------------------------------------------


def _check_expansion(model: onnx.ModelProto) -> tuple[set[_Key], int]:
    """The functions that are called, at any distance, and how deep."""
    functions = _by_key(model)
    calls = {key: [_key(node) for node in walk_nodes(function.node)] for key, function in functions.items()}
    main = [_key(node) for node in walk_nodes(model.graph.node)]
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for root in dict.fromkeys(key for key in main if key in functions):
        stack = [root]
        on_path: set[_Key] = set()
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            callees = [callee for callee in calls[key] if callee in functions]
            pending = [callee for callee in dict.fromkeys(callees) if callee not in sizes]
            if not pending:
                sizes[key] = sum(sizes[callee] if callee in functions else 1 for callee in calls[key])
                depths[key] = 1 + max((depths[callee] for callee in callees), default=0)
                on_path.discard(key)
                stack.pop()
                continue
            on_path.add(key)
            if circle := [callee for callee in pending if callee in on_path]:
                raise UnsafeModelError(
                    f"function {circle[0][1]!r} of domain {circle[0][0]!r} calls itself, directly or through others",
                    fix="ONNX functions must not be recursive: fix the exporter",
                )
            stack.extend(pending)
    total = sum(sizes.get(callee, 1) for callee in main)
    if sizes and total > MOST_NODES:
        raise UnsafeModelError(
            f"the model has {total} nodes once its functions are inlined; the limit is {MOST_NODES}",
            fix="export the model with fewer nested functions",
        )
    depth = max(depths.values(), default=0)
    if depth > MOST_DEPTH:
        raise UnsafeModelError(
            f"the model's functions call each other {depth} deep; the limit is {MOST_DEPTH}",
            fix="export the model with fewer nested functions",
        )
    return set(sizes), depth


# -- whether it is safe ---------------------------------------------------------------------------------------


def _why_not_inlined(model: onnx.ModelProto, functions: _Functions, depth: int) -> str | None:
    if depth > _INLINED_DEPTH:
        return f"its functions call each other {depth} deep"
    if len(functions) < len(model.functions):
        return "it defines a function twice"
    imports = {_domain(entry.domain): entry.version for entry in model.opset_import}
    for function in functions.values():
        obstacle = _why_function_stays(function, functions, imports)
        if obstacle is not None:
            return f"function {function.name!r} {obstacle}"
    for node in walk_nodes(model.graph.node):
        called = functions.get(_key(node))
        if called is not None and any(map(_has_graph, node.attribute)):
            return f"function {called.name!r} is given a graph"
    return None


def _why_function_stays(function: onnx.FunctionProto, functions: _Functions, imports: Mapping[str, int]) -> str | None:
    if function.domain in _BUILT_IN:
        return f"stands for an operator of domain {function.domain or 'ai.onnx'!r}"
    for entry in function.opset_import:
        if imports.get(_domain(entry.domain), entry.version) != entry.version:
            return f"works on version {entry.version} of {entry.domain or 'ai.onnx'}, the model on another"
    if any(map(_has_graph, function.attribute_proto)):
        return "has a graph for a default"
    if not _is_closed(function.node, set(function.input), function.output):
        return "reads or returns what it does not compute before"
    defaults = {attribute.name for attribute in function.attribute_proto}
    for node in walk_nodes(function.node):
        called = functions.get(_key(node))
        if called is None:
            continue
        if any(map(_has_graph, node.attribute)):
            return "hands a graph on"
        own = {attribute.name for attribute in called.attribute_proto}
        if any(a.name in own and a.ref_attr_name and a.ref_attr_name not in defaults for a in node.attribute):
            # Where a call leaves the outer one out, the inner default holds, which depends on the call.
            return f"may leave an attribute of {called.name!r} to its default"
    return None


def _has_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _is_closed(nodes: Iterable[onnx.NodeProto], known: set[str], outputs: Iterable[str]) -> bool:
    """Whether each name is defined before it is read, and each output by a node: what the inliner takes for granted."""
    computed: set[str] = set()
    for node in nodes:
        if any(name and name not in known for name in node.input):
            return False
        for graph in graphs_inside(node):
            fed = [value.name for value in graph.input]
            constants = [tensor.name for tensor in graph.initializer]
            if set(fed) & set(constants) or graph.sparse_initializer:
                return False
            if not _is_closed(graph.node, {*known, *fed, *constants}, [value.name for value in graph.output]):
                return False
        known.update(node.output)
        computed.update(node.output)
    return all(name in computed for name in outputs)


# -- defaults -------------------------------------------------------------------------------------------------


def _write_defaults(nodes: Iterable[onnx.NodeProto], functions: _Functions) -> None:
    """Give each call of a function the defaults of the attributes that it leaves out."""
    for node in walk_nodes(nodes):
        called = functions.get(_key(node))
        if called is not None and called.attribute_proto:
            given = {attribute.name for attribute in node.attribute}
            node.attribute.extend([a for a in called.attribute_proto if a.name not in given])
