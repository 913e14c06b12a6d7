"""From what a backend says to `DeviceCosts`: its capability and its prices, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from parallax.errors import ConfigError
from parallax.graph import Capability, OpGraph, Price, Rejection, Work, operator_work
from parallax.partition.regions._plan import DeviceCosts, TransferCost

_PROBE_BYTES: Final = 1 << 24


class Pricing(Protocol):
    """The part of `parallax.backends.Backend` that prices; pure."""

    def price(self, work: Work) -> Price | None:
        """What running ``work`` should cost, or None where nothing is known."""
        ...

    def transfer_ns(self, size_bytes: int) -> int | None:
        """What moving so many bytes should cost, or None where nothing is known."""
        ...


def estimate_device_costs(
    graph: OpGraph, capability: Capability, pricing: Pricing, *, cpu_ns: Sequence[int]
) -> DeviceCosts | None:
    """What a graph would cost on a backend, or None where it cannot price. Linear in the graph.

    A node whose shapes are not known is priced as its dispatch alone: what cannot be known promises nothing, as the
    tables of `parallax.profile.estimate_costs` have it for the CPU too.

    Args:
        graph: with types, as `Model.inferred` gives it.
        capability: the backend's answer for that model.
        pricing: the backend, or what stands for it.
        cpu_ns: time of each node on the CPU, at the width at which it would run there.

    Raises: ConfigError if capability or costs are for another number of nodes.
    """
    size = len(graph.nodes)
    if len(capability.taken) + len(capability.refused) != size or len(cpu_ns) != size:
        raise ConfigError(
            f"a capability for {len(capability.taken) + len(capability.refused)} nodes and costs for {len(cpu_ns)}, "
            f"where the graph has {size}",
            fix="ask the backend, and estimate the costs, for this graph",
        )
    idle = pricing.price(Work(operators=()))
    fixed, moved = pricing.transfer_ns(0), pricing.transfer_ns(_PROBE_BYTES)
    if idle is None or fixed is None or moved is None:
        return None
    declined: list[Rejection | None] = [None] * size
    for refused in capability.refused:
        declined[refused.node] = Rejection(verdict=refused.reason, detail=refused.detail)
    device_ns = [0] * size
    flops = [0] * size
    for node in graph.nodes:
        operator = operator_work(graph, node)
        flops[node.index] = operator.flops
        price = pricing.price(Work(operators=(operator,)))
        if price is None:
            return None
        device_ns[node.index] = price.compute_ns
    return DeviceCosts(
        device=capability.backend,
        declined=tuple(declined),
        device_ns=tuple(device_ns),
        cpu_ns=tuple(cpu_ns),
        flops=tuple(flops),
        launch_ns=idle.launch_ns,
        transfer=TransferCost(fixed_ns=fixed, ns_per_byte=(moved - fixed) / _PROBE_BYTES),
    )
