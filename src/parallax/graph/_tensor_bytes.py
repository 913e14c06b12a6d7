"""How many bytes a tensor of a graph takes.

Elements of less than a byte are packed without gaps, and the whole is rounded up to whole bytes once. That is what a
file stores, what a transfer moves and what a tensor needs in memory; whoever lays tensors out adds alignment.
"""

from __future__ import annotations

from parallax.graph._elements import ELEMENT_TYPES, packed_bytes
from parallax.graph._op_graph import OpGraph


def tensor_bytes(graph: OpGraph, name: str) -> int:
    """Return the bytes of a tensor by its declared shape. O(rank).

    A dimension that is not known counts as 1, as it does where costs are estimated from shapes: so this is exact where
    the shape is static, and a lower bound where it is not. `size_expression` gives sizes that depend on dimensions.

    Returns: 0 for what is no tensor, where the type or even the rank is unknown, and for names the graph does not know.
        Of strings what their objects take, without their characters.
    """
    info = graph.tensors.get(name)
    element = None if info is None or info.kind != "tensor" else ELEMENT_TYPES.get(info.dtype)
    if info is None or info.shape is None or element is None:
        return 0
    elements = 1
    for dim in info.shape:
        elements *= dim if isinstance(dim, int) else 1
    return packed_bytes(elements, element.bits)
