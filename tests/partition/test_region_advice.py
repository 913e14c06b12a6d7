"""Advice names what falls back, what to do about it, and what that would gain; the most first."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings

from parallax.graph import OpGraph, Rejection, Verdict
from parallax.partition import group_fusions
from parallax.partition.regions import DeviceCosts, advise, find_regions
from tests.partition._device_costs import device_costs_of, priced_graphs
from tests.partition._graphs import op_graph


def test_operator_that_parts_a_region_is_the_first_advice() -> None:
    graph = op_graph(
        [
            ("a", "Conv", ["x"], ["t_a"]),
            ("b", "Erf", ["t_a"], ["t_b"]),
            ("c", "Conv", ["t_b"], ["t_c"]),
            ("d", "TopK", ["t_c"], ["t_d"]),
        ],
        outputs=["t_d"],
        shapes=dict.fromkeys(("x", "t_a", "t_b", "t_c", "t_d"), (25,)),
    )
    device_costs = device_costs_of([0, 1, 0, 1], [5, 5, 5, 5], [100, 20, 100, 4], launch_ns=30, ns_per_byte=0.1)
    groups = group_fusions(graph, tiny_elements=0)
    (erf,) = advise(graph, groups, device_costs)
    # With Erf on the device one launch and two transfers go, and 15 ns of it; TopK there would gain nothing.
    assert (erf.op_type, erf.nodes, erf.gain_ns) == ("Erf", (1,), 30 + 20 + 15)
    assert erf.remedy == (
        "Erf, 1 nodes (the device has no such operator): replace the operator by ones the device has; "
        "would save 0.1 of 0.1 us"
    )


@settings(max_examples=40)
@given(case=priced_graphs(max_size=25))
def test_each_gain_is_that_of_a_placement_without_the_obstacle(case: tuple[OpGraph, DeviceCosts]) -> None:
    graph, device_costs = case
    kinds = [verdict for verdict in Verdict if verdict.is_refusal]
    declined = tuple(
        None if answer is None else Rejection(verdict=kinds[index % len(kinds)], detail="")
        for index, answer in enumerate(device_costs.declined)
    )
    device_costs = dataclasses.replace(device_costs, declined=declined)
    groups = group_fusions(graph, tiny_elements=0)
    advice = advise(graph, groups, device_costs, most=100)
    gains = [entry.gain_ns for entry in advice]
    assert gains == sorted(gains, reverse=True)
    for entry in advice:
        assert entry.gain_ns > 0
        assert {declined[node].verdict for node in entry.nodes} == {entry.verdict}  # type: ignore[union-attr]
        without = tuple(None if node in entry.nodes else answer for node, answer in enumerate(declined))
        then = find_regions(graph, groups, dataclasses.replace(device_costs, declined=without))
        assert (entry.now_ns, entry.then_ns) == (find_regions(graph, groups, device_costs).chosen_ns, then.chosen_ns)
