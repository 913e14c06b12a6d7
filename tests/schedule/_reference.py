"""The dispatcher's rules once more, written from their text alone: slow, obvious, and independent.

Nothing here is shared with the dispatcher but the plan's figures; the property tests compare the two,
instruction by instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallax.schedule import Schedule, Task


class Reference:
    """As `Dispatcher`; instructions are (segment, lane) pairs."""

    def __init__(
        self, tasks: Sequence[Task], schedule: Schedule, *, cores: int, lanes: int, budget: int | None
    ) -> None:
        self.tasks = tasks
        self.schedule = schedule
        self.cores = cores
        self.lanes = lanes
        self.budget = budget
        self.running: dict[int, int] = {}
        self.done: set[int] = set()
        self.stopped = False

    @property
    def finished(self) -> bool:
        return not self.running and (self.stopped or len(self.done) == len(self.tasks))

    def start(self) -> list[tuple[int, int]]:
        return self._decide(None)

    def segment_done(self, segment: int) -> list[tuple[int, int]]:
        lane = self.running.pop(segment)
        self.done.add(segment)
        return self._decide(lane)

    def segment_failed(self, segment: int) -> list[tuple[int, int]]:
        self.running.pop(segment)
        self.stopped = True
        return []

    def budget_changed(self, budget: int | None) -> list[tuple[int, int]]:
        self.budget = budget
        return self._decide(None)

    def ready(self) -> list[int]:
        waiting = [task for task in self.tasks if task.index not in self.done and task.index not in self.running]
        ready = [task.index for task in waiting if self.done.issuperset(task.predecessors)]
        return sorted(ready, key=lambda index: (-self.schedule.assignments[index].priority, index))

    def peak(self, segment: int) -> int:
        return self.tasks[segment].peak_bytes

    def allowed_lanes(self, segment: int) -> list[int]:
        fixed = self.schedule.assignments[segment].lane
        lanes = range(self.lanes) if fixed is None or fixed >= self.lanes else [fixed]
        return [lane for lane in lanes if lane not in self.running.values()]

    def fits(self, segment: int) -> bool:
        used_cores = sum(self.schedule.assignments[other].width for other in self.running)
        used_bytes = sum(self.peak(other) for other in self.running)
        return (
            used_cores + self.schedule.assignments[segment].width <= self.cores
            and (self.budget is None or used_bytes + self.peak(segment) <= self.budget)
            and bool(self.allowed_lanes(segment))
        )

    def _decide(self, reporting: int | None) -> list[tuple[int, int]]:
        starts: list[tuple[int, int]] = []
        while not self.stopped:
            ready = self.ready()
            candidates = ready if self.schedule.backfill else ready[:1]
            chosen = next((segment for segment in candidates if self.fits(segment)), None)
            if chosen is None and not self.running and ready:
                excess = {s: 0 if self.budget is None else max(0, self.peak(s) - self.budget) for s in ready}
                chosen = min(candidates, key=lambda segment: (excess[segment], ready.index(segment)))
            if chosen is None:
                break
            lanes = self.allowed_lanes(chosen)
            lane = reporting if reporting in lanes else lanes[0]
            assert lane is not None
            self.running[chosen] = lane
            starts.append((chosen, lane))
        return starts
