"""What a solver is asked about a placement problem: numbers alone, as JSON has them.

The solver runs in a process of its own, without this package: see `parallax.planner._exact_worker`, which says what
it makes of them, and why its answers bound what the simulator can say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from parallax.schedule.placement._exact_parts import has_few_pairs
from parallax.schedule.placement._problem import PlacementProblem

MOST_PAIRS: Final = 300
"""Where devices take more pairs of fusion groups, regions are no wholes for the solver, whose model is quadratic in
them."""


def make_question(problem: PlacementProblem, *, seconds: float, kept: int = 1) -> dict[str, Any]:
    """The question which placement of a problem takes least. Linear in the problem.

    Args:
        seconds: of the solver, as it counts its own work; at most about four times as long on the clock.
        kept: how many placements to answer with, at most.
    """
    widths = problem.widths
    by_width = [problem.group_ns(problem.costs.node_ns(width)) for width in widths]
    there = [problem.group_ns(device.device_ns) for device in problem.devices]
    groups = [
        {
            "before": list(problem.groups.dag.predecessors[group]),
            "cpu_ns": [group_ns[group] for group_ns in by_width],
            "device_ns": [
                group_ns[group] if taken[group] else None for group_ns, taken in zip(there, problem.takes, strict=True)
            ],
        }
        for group in range(len(problem.groups))
    ]
    return {
        "cores": problem.machine.cores,
        "widths": list(widths),
        "launch_ns": [device.launch_ns for device in problem.devices],
        "start_ns": problem.machine.segment_overhead_ns,
        "handover_ns": problem.machine.handover_ns,
        "groups": groups,
        "flows": [
            {
                "producer": flow.producer,
                "readers": list(flow.readers),
                "moving_ns": [device.transfer.ns(flow.size_bytes) for device in problem.devices],
                "is_returned": flow.is_returned,
            }
            for flow in problem.flows
        ],
        "fixed": [None] * len(groups),
        "is_ahead": False,
        "last": None,
        "below_ns": None,
        "excluded": [],
        "hint": None,
        "kept": kept,
        "seconds": seconds,
        "most_pairs": MOST_PAIRS,
        "regions": has_few_pairs(groups, MOST_PAIRS),
    }


def as_sides(devices: Sequence[int | None]) -> list[int]:
    """A placement as numbers; -1 is the CPU."""
    return [-1 if device is None else device for device in devices]


def narrowed(question: dict[str, Any], *, below_ns: int, excluded: Collection[Sequence[int]]) -> dict[str, Any]:
    """The same for what takes less than ``below_ns``, but for placements that are known."""
    return {**question, "below_ns": below_ns, "excluded": sorted(map(list, excluded)), "hint": None}
