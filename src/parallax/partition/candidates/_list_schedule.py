"""A list schedule: who would run what, when, if each fusion group ran on one lane.

It is a prediction made to decide where to cut; what runs at run time is decided by the dispatcher.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.graph import Dag


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSchedule:
    """A timeline of the groups ``low`` .. ``low + len(lane) - 1``; ``lane[i]`` is that of group ``low + i``. In ns."""

    low: int
    lane: list[int]
    start: list[int]
    finish: list[int]
    order: list[int]
    """Groups in the order they were placed: topological, and ascending in start on each lane."""


def list_schedule(
    dag: Dag, costs: Sequence[int], priority: Sequence[int], low: int, high: int, *, lanes: int, handover_ns: int
) -> ListSchedule:
    """Schedule the groups ``low`` .. ``high - 1`` on equal lanes, highest priority first. O((V + E) log V).

    Graham's list scheduling, driven by events: whenever a lane is free, the ready group of highest
    priority (its longest path, as a rule) is placed where it can start first. Data from another lane
    arrives ``handover_ns`` later; what lies before ``low`` is done at 0 on lane 0. A group that can start no
    later on the busy lane that made its last operand waits for that lane, once, so a chain of short groups
    stays together. Ties fall to the lane longest idle, then to the lower index.
    """
    size = high - low
    lane_of = [0] * size
    start = [0] * size
    finish = [0] * size
    order: list[int] = []
    waiting = [0] * size
    predecessors, successors = dag.predecessors, dag.successors
    ready: list[tuple[int, int]] = []
    for group in range(low, high):
        count = len([pred for pred in predecessors[group] if pred >= low])
        waiting[group - low] = count
        if count == 0:
            ready.append((-priority[group], group))
    heapq.heapify(ready)
    running: list[tuple[int, int]] = []
    free_at = [0] * lanes
    idle = list(range(lanes))
    waits_for: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    has_waited = [False] * size
    now = 0
    while True:
        while ready and idle:
            entry = heapq.heappop(ready)
            group = entry[1]
            # arrival of its operands: on the lane that delivers the last of them, and elsewhere
            home = last = others = 0
            for pred in predecessors[group]:
                if pred < low:
                    continue
                end, lane = finish[pred - low], lane_of[pred - low]
                if lane == home:
                    if end > last:
                        last = end
                elif end > last:
                    if last > others:
                        others = last
                    home, last = lane, end
                elif end > others:
                    others = end
            at_home = max(last, others + handover_ns if others else 0)
            if home in idle:
                chosen, begin = home, max(now, at_home)
            else:
                begin = max(now, last + handover_ns)
                if not has_waited[group - low] and max(free_at[home], at_home) <= begin:
                    has_waited[group - low] = True
                    waits_for[home].append(entry)
                    continue
                chosen = min(idle, key=lambda lane: (free_at[lane], lane))
            idle.remove(chosen)
            end = begin + max(1, costs[group])
            lane_of[group - low], start[group - low], finish[group - low] = chosen, begin, end
            free_at[chosen] = end
            order.append(group)
            heapq.heappush(running, (end, group))
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] == now:
            _, group = heapq.heappop(running)
            lane = lane_of[group - low]
            idle.append(lane)
            for entry in waits_for[lane]:
                heapq.heappush(ready, entry)
            waits_for[lane].clear()
            for target in successors[group]:
                if target < high:
                    waiting[target - low] -= 1
                    if waiting[target - low] == 0:
                        heapq.heappush(ready, (-priority[target], target))
    return ListSchedule(low=low, lane=lane_of, start=start, finish=finish, order=order)
