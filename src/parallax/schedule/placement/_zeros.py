"""How many zeros the weights of some operators hold together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from parallax.graph import OpGraph


def weight_zeros(graph: OpGraph, nodes: Iterable[int], zeros: Mapping[str, float]) -> float:
    """The share of exact zeros among the elements of the weights that these nodes read, 0 to 1; 0 where none is known.

    Args:
        nodes: indices of nodes. A weight that several of them read counts once.
        zeros: the share per weight, by name; of those that it does not have, nothing is known.
    """
    found = elements = 0.0
    for name in dict.fromkeys(name for node in nodes for name in graph.nodes[node].inputs):
        info = graph.initializers.get(name)
        share = None if info is None else zeros.get(name)
        if info is None or share is None or not info.is_static:
            continue
        size = math.prod(dim for dim in info.shape or () if isinstance(dim, int))
        elements += size
        found += share * size
    return found / elements if elements else 0.0
