"""The cost rule proper: cut where running side by side on lanes is predicted to save time.

Each operator is cheap either way: on all cores, one after the other, or on one lane beside others.
Convolutions scale and lose little by going one after the other; what does not scale gains from company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallax.errors import ConfigError
from parallax.graph import bottom_levels, find_barriers
from parallax.partition.candidates._list_schedule import list_schedule
from parallax.partition.candidates._pieces import ParallelSection, Terms, cut_schedule
from parallax.partition.candidates._segments import Cause, DraftSegment, Partition, assemble

if TYPE_CHECKING:
    from parallax.partition._fusion_groups import FusionGroups


@dataclass(slots=True, kw_only=True)
class _Step:
    """One segment to be, in order of time. ``exclusive``: nothing runs beside it."""

    groups: list[int]
    lane: int
    exclusive: bool
    cause: Cause
    section: int
    """The first group of the section that was decided at once."""
    serial_ns: int
    parallel_ns: int


def by_lanes(
    groups: FusionGroups,
    cost_narrow: Sequence[int],
    cost_wide: Sequence[int],
    *,
    lanes: int,
    handover_ns: int,
    segment_overhead_ns: int,
    narrow_width: int = 1,
    wide_width: int | None = None,
    min_gain: float = 0.0,
) -> Partition:
    """Cut where the predicted time is less than that of the whole graph; whole where it is nowhere. O((V + E) log V).

    1. Barriers (groups comparable with every other) split the graph into blocks. A block runs side by side if
       its list schedule on the lanes, cut into segments and run again with their overhead and hand-overs,
       takes less time than its groups one after the other on all cores.
    2. The same is tried with barriers that only groups not worth a hand-over could run beside, and with the
       whole graph as one block, for graphs that have no barriers or cheap ones.
    3. What runs alone in the timeline gets full width; neighbours in time that do so are one segment.
    4. The best of these is kept if it beats the sum of ``cost_wide``, which is that of the whole.

    Args:
        cost_narrow: ns per group at ``narrow_width`` threads, the width of a lane.
        cost_wide: ns per group at ``wide_width`` threads (default ``lanes * narrow_width``), the whole machine.
        handover_ns: from the end of a segment to the start of one on another lane that waited for it.
        segment_overhead_ns: added to each segment's duration.
        min_gain: fraction of the serial time a cut must save, for each block and in all.

    Returns: a partition with its predicted timeline; segments in order of their predicted start. Each
        carries the two times compared for its block (for an answer that splits nothing: for the graph, where "side by
        side" is the least it could take if that alone ruled it out).
    """
    if lanes < 1 or len(cost_narrow) != len(groups) or len(cost_wide) != len(groups):
        raise ConfigError(
            f"{lanes} lanes, {len(cost_narrow)} narrow and {len(cost_wide)} wide costs for {len(groups)} groups",
            fix="give at least one lane and one cost per group",
        )
    terms = Terms(
        narrow=cost_narrow, wide=cost_wide, lanes=lanes, handover_ns=handover_ns, overhead_ns=segment_overhead_ns
    )
    width = lanes * narrow_width if wide_width is None else wide_width
    whole_ns = sum(cost_wide)
    best_ns: int | None = None
    least_ns: int | None = None
    best: tuple[list[_Step], list[int], list[int], str] | None = None
    if lanes > 1 and len(groups) > 1:
        search = _Search(groups, terms, min_gain)
        proposals = [("by blocks", _merge_exclusive(search.block_steps(search.barriers)))]
        rough = search.rough_barriers()
        if rough != search.barriers:
            proposals.append(("by rough blocks", _merge_exclusive(search.block_steps(rough))))
        if 0 < len(search.barriers) < len(groups):
            proposals.append(("as one block", _merge_exclusive(search.whole_steps())))
        least_ns = proposals[0][1][0].parallel_ns
        for label, steps in proposals:
            if len(steps) > 1:
                start, end = _replay(groups, steps, terms)
                total = max(end)
                if best_ns is None or total < best_ns:
                    best_ns, best = total, (steps, start, end, label)
    if best is None or best_ns is None or best_ns >= whole_ns * (1 - min_gain):
        return _in_one_segment(groups, width, lanes, whole_ns, least_ns if best_ns is None else best_ns)
    steps, start, end, label = best
    order = sorted(range(len(steps)), key=lambda index: (start[index], index))
    return assemble(
        groups,
        [
            DraftSegment(
                groups=tuple(sorted(steps[index].groups)),
                width=width if steps[index].exclusive else narrow_width,
                cause=steps[index].cause,
                lane=steps[index].lane,
                start_ns=start[index],
                end_ns=end[index],
                serial_ns=steps[index].serial_ns,
                parallel_ns=steps[index].parallel_ns,
            )
            for index in order
        ],
        label=f"{lanes} lanes, {label}",
        lanes=lanes,
        predicted_ns=best_ns,
        whole_ns=whole_ns,
    )


def _in_one_segment(groups: FusionGroups, width: int, lanes: int, whole_ns: int, cut_ns: int | None) -> Partition:
    segments = []
    if len(groups):
        whole = DraftSegment(
            groups=tuple(range(len(groups))),
            width=width,
            cause=Cause.WHOLE,
            start_ns=0,
            end_ns=whole_ns,
            serial_ns=None if cut_ns is None else whole_ns,
            parallel_ns=cut_ns,
        )
        segments.append(whole)
    return assemble(
        groups, segments, label=f"{lanes} lanes, whole model", lanes=lanes, predicted_ns=whole_ns, whole_ns=whole_ns
    )


def _blocks(size: int, barriers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of groups: each barrier, and what lies between two of them."""
    low = 0
    for barrier in barriers:
        if low < barrier:
            yield low, barrier
        yield barrier, barrier + 1
        low = barrier + 1
    if low < size:
        yield low, size


class _Search:
    """What both proposals share: barriers, priorities, and how fast a section could be at best."""

    def __init__(self, groups: FusionGroups, terms: Terms, min_gain: float) -> None:
        self.groups, self.terms, self.min_gain = groups, terms, min_gain
        self.barriers = find_barriers(groups.dag)
        self.priority = bottom_levels(groups.dag.predecessors, terms.narrow)
        # Whatever its width, no group takes less than this, nor less of the lanes' joint time.
        pairs = list(zip(terms.narrow, terms.wide, strict=True))
        self._shortest = [min(narrow, wide) for narrow, wide in pairs]
        self._lane_time = [min(narrow, terms.lanes * wide) for narrow, wide in pairs]
        # Most blocks between exact barriers are also blocks between rough ones.
        self._decided: dict[tuple[int, int], tuple[int, int, ParallelSection | None]] = {}

    def rough_barriers(self) -> list[int]:
        """Barriers if groups not worth a hand-over are left out of account.

        A mask or a size computed on the side then no longer hides that the rest is a sequence. Blocks remain
        ranges of a topological order, so they are legal whatever lies at their ends.
        """
        worth = self.terms.handover_ns + self.terms.overhead_ns
        return find_barriers(self.groups.dag, [cost > worth for cost in self.terms.wide])

    def block_steps(self, barriers: Sequence[int]) -> list[_Step]:
        """Each block side by side where that pays, serially elsewhere."""
        steps: list[_Step] = []
        for low, high in _blocks(len(self.groups), barriers):
            serial, parallel, section = self._decide(low, high)
            if section is not None:
                steps.extend(_section_steps(section, low, serial, parallel))
                continue
            steps.append(
                _Step(
                    groups=list(range(low, high)),
                    lane=0,
                    exclusive=True,
                    cause=Cause.SERIAL,
                    section=low,
                    serial_ns=serial,
                    parallel_ns=parallel,
                )
            )
        return steps

    def _decide(self, low: int, high: int) -> tuple[int, int, ParallelSection | None]:
        """The serial and the parallel time of a block, and how to run it side by side if that pays."""
        if high - low == 1:
            return self.terms.wide[low], self.terms.wide[low], None
        known = self._decided.get((low, high))
        if known is not None:
            return known
        serial = sum(self.terms.wide[low:high])
        allowed = serial * (1 - self.min_gain)
        best: ParallelSection | None = None
        # Side by side it is at least a segment more for the serial section it interrupts, and one of its own.
        parallel = self._least(low, high) + 2 * self.terms.overhead_ns
        if parallel < allowed:
            section = self._schedule(low, high, self.terms.narrow)
            parallel = section.makespan + self.terms.overhead_ns
            if len(section.pieces) > 1 and parallel < allowed:
                best = section
        self._decided[low, high] = serial, parallel, best
        return serial, parallel, best

    def whole_steps(self) -> list[_Step]:
        """The graph as one block; empty where that cannot pay. Barriers run alone, so they have full width."""
        size, serial = len(self.groups), sum(self.terms.wide)
        if self._least(0, size) + self.terms.overhead_ns >= serial * (1 - self.min_gain):
            return []
        costs = list(self.terms.narrow)
        for barrier in self.barriers:
            costs[barrier] = min(costs[barrier], self.terms.wide[barrier])
        section = self._schedule(0, size, costs)
        return _section_steps(section, 0, serial, section.makespan)

    def _schedule(self, low: int, high: int, costs: Sequence[int]) -> ParallelSection:
        schedule = list_schedule(
            self.groups.dag,
            costs,
            self.priority,
            low,
            high,
            lanes=self.terms.lanes,
            handover_ns=self.terms.handover_ns,
        )
        return cut_schedule(self.groups.dag, schedule, self.terms)

    def _least(self, low: int, high: int) -> int:
        """No schedule of a section takes less: its work shared by the lanes, and its longest path."""
        shared = sum(self._lane_time[low:high]) // self.terms.lanes
        successors, shortest = self.groups.dag.successors, self._shortest
        levels = [0] * (high - low)
        for group in range(high - 1, low - 1, -1):
            longest = 0
            for target in successors[group]:
                if target >= high:
                    break
                if levels[target - low] > longest:
                    longest = levels[target - low]
            levels[group - low] = longest + shortest[group]
        return max(shared, max(levels))


def _section_steps(section: ParallelSection, first: int, serial: int, parallel: int) -> list[_Step]:
    return [
        _Step(
            groups=list(piece.groups),
            lane=piece.lane,
            exclusive=piece.exclusive,
            cause=Cause.ALONE if piece.exclusive else Cause.PARALLEL,
            section=first,
            serial_ns=serial,
            parallel_ns=parallel,
        )
        for piece in section.pieces
    ]


def _merge_exclusive(steps: Sequence[_Step]) -> list[_Step]:
    """Join neighbours in time beside which nothing runs: all else is over before them or starts after them."""
    merged: list[_Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if last is None or not (last.exclusive and step.exclusive):
            merged.append(step)
            continue
        if Cause.SERIAL in (last.cause, step.cause):
            last.cause = Cause.SERIAL
            last.lane = 0
        last.groups.extend(step.groups)
        if step.section != last.section:
            last.section = step.section
            last.serial_ns += step.serial_ns
            last.parallel_ns += step.parallel_ns
    return merged


def _replay(groups: FusionGroups, steps: Sequence[_Step], terms: Terms) -> tuple[list[int], list[int]]:
    """Start and end of each step, run in the given order on its lane."""
    home = [0] * len(groups)
    for index, step in enumerate(steps):
        for group in step.groups:
            home[group] = index
    free_at = [0] * terms.lanes
    start, end = [0] * len(steps), [0] * len(steps)
    for index, step in enumerate(steps):
        # A run begins on lane 0; waking another lane is a hand-over.
        begin = max(free_at) if step.exclusive else max(free_at[step.lane], terms.handover_ns if step.lane else 0)
        for group in step.groups:
            for pred in groups.dag.predecessors[group]:
                before = home[pred]
                if before != index:
                    done = end[before] if steps[before].lane == step.lane else end[before] + terms.handover_ns
                    if done > begin:
                        begin = done
        costs = terms.wide if step.exclusive else terms.narrow
        start[index] = begin
        end[index] = begin + terms.overhead_ns + sum([costs[group] for group in step.groups])
        free_at[step.lane] = end[index]
        if step.exclusive:
            free_at = [max(each, end[index]) for each in free_at]
    return start, end
