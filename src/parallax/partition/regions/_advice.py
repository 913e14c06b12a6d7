"""What to change in a model to gain most from a device: reasons for fallbacks, and what goes with each of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallax.graph import OpGraph, Verdict
from parallax.partition.regions._plan import DeviceCosts
from parallax.partition.regions._regions import find_regions

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One reason for which operators of one kind fall back. Times are of a run one thing after the other."""

    verdict: Verdict
    op_type: str
    nodes: tuple[int, ...]
    """Those that fall back for it, ascending."""
    now_ns: int
    then_ns: int
    """The placement as it is, and the best if the device took these nodes at the price it gives for such work."""

    @property
    def gain_ns(self) -> int:
        """What would be gained; 0 where it would change nothing."""
        return self.now_ns - self.then_ns

    @property
    def change(self) -> str:
        """What to do, for people."""
        return self.verdict.remedy

    @property
    def remedy(self) -> str:
        """What to do where, and what for, for people."""
        return (
            f"{self.op_type}, {len(self.nodes)} nodes ({self.verdict.meaning}): {self.change}; would save "
            f"{self.gain_ns / 1e3:.1f} of {self.now_ns / 1e3:.1f} us"
        )


def advise(
    graph: OpGraph,
    groups: FusionGroups,
    device_costs: DeviceCosts,
    *,
    most: int = 12,
) -> tuple[Advice, ...]:
    """For each reason and operator that falls back what taking it would gain, the most first; gains only.

    One placement for each of up to ``most`` reasons, those on which the CPU spends most.
    """
    now = find_regions(graph, groups, device_costs)
    by_reason: dict[tuple[Verdict, str], list[int]] = {}
    for found in now.verdicts:
        if found.verdict.is_refusal:
            by_reason.setdefault((found.verdict, graph.nodes[found.node].op_type), []).append(found.node)
    ranked = sorted(
        by_reason, key=lambda key: (-sum(device_costs.cpu_ns[node] for node in by_reason[key]), key[0].name, key[1])
    )
    advice: list[Advice] = []
    for verdict, op_type in ranked[:most]:
        nodes = by_reason[verdict, op_type]
        allowed = set(nodes)
        declined = tuple(None if node in allowed else answer for node, answer in enumerate(device_costs.declined))
        then = find_regions(graph, groups, dataclasses.replace(device_costs, declined=declined))
        if then.chosen_ns < now.chosen_ns:
            advice.append(
                Advice(
                    verdict=verdict,
                    op_type=op_type,
                    nodes=tuple(nodes),
                    now_ns=now.chosen_ns,
                    then_ns=then.chosen_ns,
                )
            )
    return tuple(sorted(advice, key=lambda found: (-found.gain_ns, found.op_type, found.verdict.name)))
