"""Costs on a device come from what a backend says, node by node: refusals in our words, prices from the work."""

from __future__ import annotations

import pytest

from parallax.errors import ConfigError
from parallax.graph import Capability, Price, RefusedNode, Verdict, Work
from parallax.partition import group_fusions
from parallax.partition.regions import RegionPlacer, estimate_device_costs, find_regions
from parallax.partition.regions._plan import TransferCost
from parallax.partition.regions._verify import verify_regions
from tests.partition._device_costs import device_costs_of
from tests.partition._graphs import op_graph

GRAPH = op_graph(
    [("a", "Relu", ["x"], ["t"]), ("b", "MatMul", ["t", "w"], ["u"]), ("c", "Erf", ["u"], ["y"])],
    outputs=["y"],
    shapes={"x": (10, 20), "t": (10, 20), "w": (20, 30), "u": (10, 30), "y": (10, 30)},
    initializers=["w"],
)


class Prices:
    """Launch 7, one ns per FLOP, 100 ns and half a ns per byte for transfers."""

    def __init__(self, *, known: bool = True) -> None:
        self.known = known

    def price(self, work: Work) -> Price | None:
        return Price(launch_ns=7, compute_ns=work.flops, transfer_ns=0) if self.known else None

    def transfer_ns(self, size_bytes: int) -> int | None:
        return 100 + size_bytes // 2


def capability(*refused: RefusedNode) -> Capability:
    left_out = {entry.node for entry in refused}
    taken = tuple(node.index for node in GRAPH.nodes if node.index not in left_out)
    return Capability(backend="toy", taken=taken, refused=refused)


def test_prices_are_those_of_each_nodes_work() -> None:
    device_costs = estimate_device_costs(GRAPH, capability(), Prices(), cpu_ns=[5, 6, 7])
    assert device_costs is not None
    assert device_costs.device == "toy"
    assert device_costs.device_ns[1] == device_costs.flops[1] == 2 * 10 * 20 * 30
    assert device_costs.launch_ns == 7
    assert device_costs.transfer == TransferCost(fixed_ns=100, ns_per_byte=0.5)
    assert device_costs.cpu_ns == (5, 6, 7)


@pytest.mark.parametrize("reason", [verdict for verdict in Verdict if verdict.is_refusal])
def test_every_refusal_of_a_backend_is_the_verdict_of_its_node(reason: Verdict) -> None:
    refused = RefusedNode(node=2, reason=reason, detail="because")
    device_costs = estimate_device_costs(GRAPH, capability(refused), Prices(), cpu_ns=[0] * 3)
    assert device_costs is not None
    declined = device_costs.declined[2]
    assert declined is not None
    assert (declined.verdict, declined.detail) == (reason, "because")
    assert device_costs.declined[:2] == (None, None)


def test_refusals_that_differ_keep_differing() -> None:
    kinds = (Verdict.UNSUPPORTED_OPERATOR, Verdict.UNSUPPORTED_TYPE, Verdict.DYNAMIC_SHAPE)
    refused = [RefusedNode(node=index, reason=kind, detail="x") for index, kind in enumerate(kinds)]
    device_costs = estimate_device_costs(GRAPH, capability(*refused), Prices(), cpu_ns=[0] * 3)
    assert device_costs is not None
    assert [declined.verdict for declined in device_costs.declined if declined is not None] == [
        Verdict.UNSUPPORTED_OPERATOR,
        Verdict.UNSUPPORTED_TYPE,
        Verdict.DYNAMIC_SHAPE,
    ]


def test_backend_without_prices_makes_no_offer() -> None:
    assert estimate_device_costs(GRAPH, capability(), Prices(known=False), cpu_ns=[0] * 3) is None


def test_figures_for_another_graph_are_refused() -> None:
    with pytest.raises(ConfigError, match="the graph has 3"):
        estimate_device_costs(GRAPH, capability(), Prices(), cpu_ns=[0] * 2)
    with pytest.raises(ConfigError, match="capability for 1 nodes"):
        estimate_device_costs(GRAPH, Capability(backend="toy", taken=(0,), refused=()), Prices(), cpu_ns=[0] * 3)


def test_placement_that_is_given_is_taken_as_far_as_the_device_goes() -> None:
    groups = group_fusions(GRAPH, tiny_elements=0)
    device_costs = device_costs_of([0, 0, 1], [5, 5, 5], [1, 1, 1], launch_ns=10)
    plan = RegionPlacer(GRAPH, groups, device_costs).place(range(3))
    verify_regions(GRAPH, groups, device_costs, plan)
    assert [region.nodes for region in plan.regions] == [(0, 1)]
    assert plan.chosen_ns > plan.cpu_only_ns
    part = RegionPlacer(GRAPH, groups, device_costs).place([1])
    assert [found.verdict for found in part.verdicts] == [
        Verdict.BALANCED_TO_CPU,
        Verdict.TAKEN,
        Verdict.UNSUPPORTED_OPERATOR,
    ]


def test_regions_found_with_another_offer_are_described_with_this_one() -> None:
    groups = group_fusions(GRAPH, tiny_elements=0)
    true, eager = (device_costs_of([0, 0, 0], [5, 5, 5], [cpu] * 3, launch_ns=10) for cpu in (4, 400))
    found = find_regions(GRAPH, groups, eager)
    plan = RegionPlacer(GRAPH, groups, true).place(regions=[region.groups for region in found.regions])
    verify_regions(GRAPH, groups, true, plan)
    assert [region.groups for region in plan.regions] == [region.groups for region in found.regions]
    assert plan.cpu_only_ns == 12
