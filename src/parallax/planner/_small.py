"""What is too small to be split unasked.

Without measuring, a split must promise a saving that stands out from what is not known of it: what waking a parked
thread takes on a busy machine, and what a kernel's call takes, which the tables put at several times the true figure
where operators are tiny. So calls count for nothing here, only work on elements does, and a saving below
`LEAST_SAVING_NS` is none. Whoever names a ``min_gain`` has decided otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from parallax.profile import NODE_OVERHEAD_NS, most_work_ns

if TYPE_CHECKING:
    from parallax.graph import CostModel, OpGraph
    from parallax.model import Survey

LEAST_SAVING_NS: Final = 300_000
"""Of a run. Waking a lane and handing over to it takes 15 to 60 µs where the machine is idle, and several times that
where it is not; a plan has a few of these, and its costs are right within a factor of two."""


def small_at_sight(survey: Survey, *, cores: int) -> str | None:
    """Why no split of a model can save enough, from what its file states alone; None where it must be looked into.

    How long a loop takes cannot be told from the file. One loop may run beside all else, so that all else is what can
    be saved at most. Several loops may run side by side, so that there is no bound. The operators in its branches bound
    what an If takes; a single If needs no bound, since only what runs beside it can be saved. An operator that makes
    tensors larger than all that the file states (an Expand) goes unseen: such a model stays whole, which costs nothing,
    unless it is tuned or ``min_gain`` is given.
    """
    if survey.loops > 1:
        return None
    work_ns = most_work_ns(survey, with_branches=survey.with_bodies > 1)
    runs_beside_one = survey.with_bodies == 1 or survey.loops == 1
    return _why_small(work_ns if runs_beside_one else work_ns * (cores - 1) // cores)


def small_by_costs(graph: OpGraph, costs: CostModel, *, cores: int) -> str | None:
    """Likewise from the costs of its operators and the longest path through them."""
    narrow, wide = (_work_ns(costs.node_ns(width)) for width in (1, cores))
    whole = min(sum(narrow), sum(wide))
    longest = longest_path_ns(graph, [min(pair) for pair in zip(narrow, wide, strict=True)])
    return _why_small(whole - max(round(longest), sum(narrow) // cores))


def longest_path_ns(graph: OpGraph, weights_ns: Sequence[float]) -> float:
    """What a run takes at least, however many operators run at once, if each takes its weight."""
    ends: list[float] = []
    for node, weight in zip(graph.nodes, weights_ns, strict=True):
        ends.append(weight + max((ends[before] for before in graph.predecessors[node.index]), default=0.0))
    return max(ends, default=0.0)


def _work_ns(durations_ns: Sequence[int]) -> list[int]:
    return [max(0, duration - NODE_OVERHEAD_NS) for duration in durations_ns]


def _why_small(saving_ns: int) -> str | None:
    if saving_ns >= LEAST_SAVING_NS:
        return None
    return (
        f"too small to split unasked: running its operators side by side can save {max(0, saving_ns) / 1e3:.0f} µs of "
        f"work at most, and below {LEAST_SAVING_NS / 1e3:.0f} µs only measuring (tune=True) can decide"
    )
