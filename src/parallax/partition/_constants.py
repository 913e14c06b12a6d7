"""Nodes whose value, or whose cost, does not matter to a cut: constants and shape arithmetic.

Both would look like splitters and mergers of the graph although a runtime folds the former when it
loads the model and spends next to nothing on the latter.
"""

from __future__ import annotations

from parallax.graph import Node, OpGraph

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

_RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"}
)

# ONNX operators that compute sizes and indices in exported models; on a handful of elements each costs about as
# much as its dispatch.
_SHAPE_OPS = frozenset({"Shape", "Size"})
_ARITHMETIC_OPS = frozenset(
    {
        *(
            "Abs",
            "Add",
            "And",
            "Cast",
            "Ceil",
            "Concat",
            "ConstantOfShape",
            "Div",
            "Equal",
            "Expand",
            "Floor",
            "Gather",
        ),
        *("Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not"),
        *("Or", "Range", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)

MAX_COPIED_ELEMENTS = 1 << 20
"""Elements that the copies of one folded constant may have together (4 MiB of float32). Beyond, it is computed once."""

MAX_COPIES = 64
"""Readers that may have their own copy of a folded constant (``Constant`` itself has no such limit)."""


def element_count(graph: OpGraph, name: str) -> int | None:
    """Elements of a tensor, or None where its shape is not static."""
    info = graph.tensors.get(name)
    if info is None or info.kind != "tensor" or info.shape is None:
        return None
    count = 1
    for dim in info.shape:
        if not isinstance(dim, int):
            return None
        count *= dim
    return count


def find_constants(graph: OpGraph) -> frozenset[int]:
    """The nodes whose value depends on no input of the model: what a runtime may compute at load.

    A ``Constant``, or a deterministic standard operator without bodies that reads only constants and
    initializers which the caller cannot override. O(V + E).
    """
    overridable = {info.name for info in graph.overridable}
    fixed = {name for name in graph.initializers if name not in overridable}
    fixed.add("")
    found: set[int] = set()
    for node in graph.nodes:
        if node.domain not in _STANDARD_DOMAINS or node.op_type in _RANDOM_OPS or node.bodies or node.captures:
            continue
        if all(name in fixed for name in node.inputs):
            found.add(node.index)
            fixed.update(node.outputs)
    return frozenset(found)


def find_replicable(graph: OpGraph, constants: frozenset[int]) -> frozenset[int]:
    """The constants each reader may have a copy of, so that no cut runs through them and no group waits for them.

    A copy keeps a constant what it is to the runtime: an operand that can be folded, fused and packed
    ahead of time. Left out are those the model returns, those whose copies would take too much
    (`MAX_COPIED_ELEMENTS`, `MAX_COPIES`), and what reads a constant left out. O(V + E).
    """
    returned = graph.output_names
    readers: dict[int, int] = {}
    candidates: set[int] = set()
    for index in sorted(constants, reverse=True):
        node = graph.nodes[index]
        count = 0
        for name in node.outputs:
            for consumer in graph.consumers.get(name, ()):
                count += readers[consumer] if consumer in candidates else 1
        readers[index] = count
        if any(name in returned for name in node.outputs):
            continue
        if node.op_type == "Constant" or count <= 1 or (count <= MAX_COPIES and _is_small(graph, node, count)):
            candidates.add(index)
    found: set[int] = set()
    for index in sorted(candidates):
        if all(pred in found for pred in graph.predecessors[index]):
            found.add(index)
    return frozenset(found)


def _is_small(graph: OpGraph, node: Node, copies: int) -> bool:
    total = 0
    for name in node.outputs:
        count = element_count(graph, name) if name else 0
        if count is None:
            return False
        total += count
    return total * copies <= MAX_COPIED_ELEMENTS


def is_shape_arithmetic(graph: OpGraph, node: Node, max_elements: int) -> bool:
    """Whether a node computes at most ``max_elements`` from as few; ``Shape`` and ``Size`` may read any tensor."""
    if node.domain not in _STANDARD_DOMAINS or node.bodies:
        return False
    if node.op_type in _SHAPE_OPS:
        return max_elements > 0
    if node.op_type not in _ARITHMETIC_OPS:
        return False
    for name in (*node.inputs, *node.outputs):
        if name:
            count = element_count(graph, name)
            if count is None or count > max_elements:
                return False
    return True
