"""Earliest finish first: of all that is ready, what would end first is placed next, where it would end first.

A greedy list scheduler over single fusion groups, after ETF (Hwang, Chow, Anger and Lee, Scheduling Precedence Graphs
in Systems with Interprocessor Communication Times, SIAM J. Comput. 18(2), 1989), which takes the earliest start; here,
as sides differ in speed, the earliest finish counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from parallax.schedule.placement._flows import CALLER
from parallax.schedule.placement._pieces import CPU_SIDE
from parallax.schedule.placement._problem import Placement, PlacementProblem


class EarliestFinish:
    """Every fusion group where it would end first; the CPU is one side, with all cores. One placement."""

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `EarliestFinish`. O(groups x ready groups x devices)."""
        dag, features = problem.groups.dag, problem.features
        devices = problem.devices
        moved = _moved_bytes(problem)
        side_of = [CPU_SIDE] * len(features)
        end = [0] * len(features)
        free = dict.fromkeys(range(CPU_SIDE, len(devices)), 0)
        last_on: dict[int, int] = {}
        waiting = [len(preds) for preds in dag.predecessors]
        ready = [group for group, left in enumerate(waiting) if not left]

        def move_ns(group: int, side: int) -> int:
            """When all that a group reads is on a side, at the earliest."""
            moment = 0
            for producer, size in moved[group]:
                at, other = (0, CPU_SIDE) if producer == CALLER else (end[producer], side_of[producer])
                if other != side:
                    at += sum(devices[device].transfer.ns(size) for device in (other, side) if device != CPU_SIDE)
                moment = max(moment, at)
            return max([moment, *(end[before] for before in dag.predecessors[group])])

        while ready:
            best: tuple[int, int, int, int] | None = None
            for group in ready:
                for side in free:
                    took = features[group].cpu_ns if side == CPU_SIDE else features[group].device_ns[side]
                    if took is None:
                        continue
                    if side != CPU_SIDE and last_on.get(side) not in dag.predecessors[group]:
                        took += devices[side].launch_ns
                    ends = max(free[side], move_ns(group, side)) + took
                    # Of equals what has the longer way to go, then the CPU, then the first.
                    found = (ends, -problem.below_ns[group], side, group)
                    best = found if best is None else min(best, found)
            assert best is not None  # the CPU takes everything
            ends, _, side, group = best
            side_of[group], end[group], free[side], last_on[side] = side, ends, ends, group
            ready.remove(group)
            for after in dag.successors[group]:
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)
        yield Placement(label="earliest finish", devices=tuple(None if side == CPU_SIDE else side for side in side_of))


def _moved_bytes(problem: PlacementProblem) -> list[list[tuple[int, int]]]:
    """Per fusion group what it reads: (who makes it, bytes)."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(len(problem.groups))]
    for flow in problem.flows:
        for reader in flow.readers:
            found[reader].append((flow.producer, flow.size_bytes))
    return found
