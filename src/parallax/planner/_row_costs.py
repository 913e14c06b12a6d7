"""What a model split by rows should cost, by the costs of the model as it is: so that a search measures no split."""

from __future__ import annotations

from dataclasses import replace

from parallax.graph import Node, OpGraph
from parallax.model import Model, RowSplit
from parallax.planner._candidates import PlanningContext
from parallax.profile import estimate_costs


def context_of_rows(context: PlanningContext, split: RowSplit) -> PlanningContext:
    """The same question about a context's model split by rows, at costs that follow from the context's.

    Measured costs of an operator are divided as tables divide it. What is fused in the model as it is, is taken to be
    fused in each part. O(V + E).
    """
    made, cores = split.model, context.cores
    home = _Origins(context.model, split)
    known = context.known_fusion_safe
    fusion_safe = None if known is None else home.fusion_safe(known)
    costs = context.costs
    if costs.source == "tables":
        worths = context.zero_worths
        return PlanningContext(made, cores=cores, fusion_safe=fusion_safe, zero_worths=worths)
    whole, parts = (estimate_costs(graph, cores=cores) for graph in (context.graph, made.inferred()))
    rows = []
    for width, durations in zip(costs.widths, costs.durations_ns, strict=True):
        listed, own = whole.node_ns(width), list(parts.node_ns(width))
        for node in made.graph.nodes:
            origin = home.of(node)
            if origin is not None:
                own[node.index] = round(durations[origin] * own[node.index] / max(1, listed[origin]))
        rows.append(tuple(own))
    divided = replace(costs, durations_ns=tuple(rows), latencies_ns=(None,) * len(rows), fusion_safe=fusion_safe)
    return PlanningContext(made, cores=cores, costs=divided, zero_worths=context.zero_worths)


class _Origins:
    """Which node of a model one of the model split by rows is, or is a part of."""

    def __init__(self, model: Model, split: RowSplit) -> None:
        self._graph: OpGraph = model.graph
        self._split = split
        self._cut = set(split.origins.values())

    def of(self, node: Node) -> int | None:
        """Its index there; None for what cuts and joins."""
        origin = self._split.origins.get(node.name)
        if origin is not None:
            return origin
        found = {self._graph.producers.get(name) for name in node.outputs if name}
        whole = found.pop() if len(found) == 1 else None
        # What joins the parts of a tensor makes it under its own name.
        return None if whole in self._cut else whole

    def fusion_safe(self, known: frozenset[str]) -> frozenset[str]:
        """Tensors of the split model that the runtime would leave in its graph, given those of the model."""
        found = {info.name for info in self._graph.inputs if info.name in known}
        for node in self._split.model.graph.nodes:
            origin = self.of(node)
            if origin is None:
                found.update(name for name in node.outputs if name)
                continue
            before = self._graph.nodes[origin].outputs
            found.update(name for name, old in zip(node.outputs, before, strict=True) if name and old in known)
        return frozenset(found)
