"""Dynamic programming along the model as if it were a chain: the least sum of work, launches and transfers."""

from __future__ import annotations

from collections.abc import Iterator

from parallax.schedule.placement._flows import CALLER, Flow
from parallax.schedule.placement._pieces import CPU_SIDE
from parallax.schedule.placement._problem import Placement, PlacementProblem


class ChainDp:
    """Fusion groups in their order, one after the other; the state is the side that ran the last one.

    Exact for a chain, of which no other placement costs less in sequence. In other graphs a tensor of an earlier group
    is taken to lie where the best way to this state made it. The classic assignment of a chain to processors (Bokhari,
    Partitioning Problems in Parallel, Pipelined, and Distributed Computing, IEEE Trans. Computers 37(1), 1988). One
    placement.
    """

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """See `ChainDp`. O((groups + edges) x devices^2), and a copy of the sides per group and state."""
        devices, features = problem.devices, problem.features
        sides = range(CPU_SIDE, len(devices))
        reads: list[list[Flow]] = [[] for _ in features]
        returns: list[list[Flow]] = [[] for _ in features]
        for flow in problem.flows:
            for reader in flow.readers:
                reads[reader].append(flow)
            if flow.is_returned:
                returns[flow.producer].append(flow)
        # Of each state: the cost, and the side of every group so far.
        states: dict[int, tuple[int, list[int]]] = {CPU_SIDE: (0, [])}
        for group, facts in enumerate(features):
            new: dict[int, tuple[int, list[int]]] = {}
            for side in sides:
                took = facts.cpu_ns if side == CPU_SIDE else facts.device_ns[side]
                if took is None:
                    continue
                for last, (cost, placed) in states.items():
                    total = cost + took
                    if side != CPU_SIDE and (last != side or not placed):
                        total += devices[side].launch_ns
                    for flow in reads[group]:
                        at = CPU_SIDE if flow.producer == CALLER else placed[flow.producer]
                        was_read = any(reader < group and placed[reader] == side for reader in flow.readers)
                        if at != side and not was_read:
                            total += sum(
                                devices[device].transfer.ns(flow.size_bytes)
                                for device in (at, side)
                                if device != CPU_SIDE
                            )
                    if side != CPU_SIDE:
                        total += sum(devices[side].transfer.ns(flow.size_bytes) for flow in returns[group])
                    if side not in new or total < new[side][0]:
                        new[side] = (total, [*placed, side])
            states = new
        _, best = min(states.values(), key=lambda state: state[0])
        yield Placement(label="dynamic program", devices=tuple(None if side == CPU_SIDE else side for side in best))
