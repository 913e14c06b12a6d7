"""Joining what runs one after the other anyway: fewer and longer segments, where nothing waits for a part of them.

Tasks by branches give a scheduler all its freedom, and much of it is not used: on each lane one task follows another
that it needed, and nobody else does. As one segment they are started once, and the runtime can fuse across them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parallax.schedule._region_tasks import RegionTasks
from parallax.schedule._simulate import SimulatedRun, Span
from parallax.schedule._tasks import Assignment, Schedule, Task


def coarsen(made: RegionTasks, schedule: Schedule, run: SimulatedRun) -> tuple[RegionTasks, Schedule]:
    """Join tasks of the processor that follow each other on a lane in ``run``. O(tasks log tasks + edges).

    A task joins those before it if all it needs besides them had ended when the first of them began, and if all that
    needs one of them began when it had ended. So no task of the run would begin later than it did; and in the order in
    which the joined ones begin, every edge ascends.

    Returns: the joined tasks, and the schedule that keeps their lanes and order, each as wide as its widest member.
    """
    tasks = made.tasks
    successors: list[list[int]] = [[] for _ in tasks]
    for task in tasks:
        for before in task.predecessors:
            successors[before].append(task.index)
    spans = sorted(run.timeline, key=lambda span: span.segment)
    begun = [span.start_ns for span in spans]
    ended = [span.end_ns for span in spans]
    by_lane: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns, span.segment)):
        by_lane.setdefault(span.lane, []).append(span)
    chains: list[list[int]] = []
    for lane in by_lane.values():
        chain: list[int] = []
        inside: set[int] = set()
        width = 0
        for span in lane:
            index = span.segment
            on_device = made.region_of[index] is not None
            joins = bool(chain) and not on_device and made.region_of[chain[0]] is None
            if joins:
                joins = all(
                    before in inside or ended[before] <= begun[chain[0]] for before in tasks[index].predecessors
                )
            if joins:
                joins = all(
                    after in inside or after == index or begun[after] >= span.end_ns
                    for member in chain
                    for after in successors[member]
                )
            if joins and span.width != width:
                # All of it is as wide as the widest: what runs beside it must leave the cores for that.
                wider = max(width, span.width)
                joins = wider + _beside(by_lane, span.lane, begun[chain[0]], span.end_ns) <= schedule.cores
                width = wider if joins else width
            if not joins:
                chain, inside, width = [], set(), span.width
                chains.append(chain)
            chain.append(index)
            inside.add(index)
    # A region may begin at the moment at which what it needs ends, so ends come first where beginnings are equal.
    chains.sort(key=lambda chain: (begun[chain[0]], ended[chain[-1]], chain[0]))
    of = {index: number for number, chain in enumerate(chains) for index in chain}
    joined = []
    for number, chain in enumerate(chains):
        needed = {of[pred] for index in chain for pred in tasks[index].predecessors} - {number}
        widths = [threads for threads, _ in tasks[chain[0]].cost_ns]
        costs = [dict(tasks[index].cost_ns) for index in chain]
        joined.append(
            Task(
                index=number,
                predecessors=tuple(sorted(needed)),
                cost_ns=tuple((threads, sum(cost[threads] for cost in costs)) for threads in widths),
                peak_bytes=max(tasks[index].peak_bytes for index in chain),
            )
        )
    widest = [max(chain, key=lambda index: schedule.assignments[index].width) for chain in chains]
    assignments = tuple(
        Assignment(
            segment=number,
            width=schedule.assignments[index].width,
            priority=len(chains) - number,
            lane=spans[index].lane,
        )
        for number, index in enumerate(widest)
    )
    coarse = RegionTasks(
        tasks=tuple(joined),
        groups=tuple(tuple(sorted(group for index in chain for group in made.groups[index])) for chain in chains),
        region_of=tuple(made.region_of[chain[0]] for chain in chains),
    )
    return coarse, replace(schedule, assignments=assignments)


def _beside(by_lane: Mapping[int, Sequence[Span]], lane: int, start_ns: int, end_ns: int) -> int:
    """The most cores that the other lanes use together at some moment between."""
    moments: list[tuple[int, int]] = []
    for other, spans in by_lane.items():
        if other == lane:
            continue
        # Those of one lane do not overlap, so the one that began last before the stretch is the only early one in it.
        first = max(bisect.bisect_right(spans, start_ns, key=lambda span: span.start_ns) - 1, 0)
        for span in itertools.islice(spans, first, None):
            if span.start_ns >= end_ns:
                break
            if span.end_ns > start_ns:
                moments += [(span.start_ns, span.width), (span.end_ns, -span.width)]
    used = most = 0
    for _, change in sorted(moments):
        used += change
        most = max(most, used)
    return most
