"""What runs took against what was predicted for them, per processor, read from the events of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from parallax.adapt._state import processor_of
from parallax.events import Event, RunAdmitted, RunEnded, RunOutcome, SegmentEnded
from parallax.schedule import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredRun:
    """Describes one run that ended well."""

    plan: Plan
    """That it followed."""
    duration_ns: int
    """From its admission to its end."""
    segment_ns: Mapping[int, int]
    """Segment -> how long its lane took for it; without those that another backend than planned computed."""
    input_bytes: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Segment -> bytes of what it was given; of the same segments."""
    concurrent: int = 1
    """Runs that were in flight at once while this one was, itself included; the most that were seen."""

    def ratios(self, cost_ns: Sequence[int] | None = None) -> dict[str, float]:
        """Processor -> observed over predicted time of its segments together.

        Runs that are in flight together wait for each other. As much of a ratio above 1 as that explains is left out:
        a processor is slow by what others do to it, not by what its own runs do.

        Args:
            cost_ns: what each segment takes in the nominal state, in place of the plan's own predictions. Segments
                without a prediction (0) tell nothing.
        """
        observed: dict[str, int] = defaultdict(int)
        predicted: dict[str, int] = defaultdict(int)
        for index, took_ns in self.segment_ns.items():
            segment = self.plan.segments[index]
            expected = segment.cost_ns if cost_ns is None else cost_ns[index]
            if expected > 0 and took_ns > 0:
                processor = processor_of(segment)
                observed[processor] += took_ns
                predicted[processor] += expected
        ratios = {processor: observed[processor] / predicted[processor] for processor in observed}
        return {
            processor: ratio if ratio <= 1 else max(1.0, ratio / self.concurrent) for processor, ratio in ratios.items()
        }


@dataclass(slots=True)
class _RunInFlight:
    plan: Plan
    admitted_ns: int
    segment_ns: dict[int, int] = field(default_factory=dict)
    input_bytes: dict[int, int] = field(default_factory=dict)
    concurrent: int = 1


class RunMeter:
    """Reads events in the order in which they come, and gives each run that ended well. Not thread-safe.

    Runs inside runs (bodies of control flow) belong to the segment that holds them and are not counted by themselves.
    """

    def __init__(self) -> None:
        self._runs: dict[int, _RunInFlight] = {}

    def read(self, event: Event) -> MeteredRun | None:
        """The run that this event ends, if it ends one, and all went as planned in it."""
        if isinstance(event, RunAdmitted):
            if event.parent is None:
                self._runs[event.run] = _RunInFlight(event.plan, event.time_ns)
                for flying in self._runs.values():
                    flying.concurrent = max(flying.concurrent, len(self._runs))
        elif isinstance(event, SegmentEnded):
            run = self._runs.get(event.run)
            # What ran as the fallback of a backend that failed says nothing of how fast that backend is.
            if run is not None and event.failure is None and self._is_as_planned(run.plan, event):
                run.segment_ns[event.segment] = event.duration_ns
                run.input_bytes[event.segment] = event.input_bytes
        elif isinstance(event, RunEnded):
            run = self._runs.pop(event.run, None)
            if run is not None and event.outcome is RunOutcome.DONE:
                return MeteredRun(
                    plan=run.plan,
                    duration_ns=event.time_ns - run.admitted_ns,
                    segment_ns=run.segment_ns,
                    input_bytes=run.input_bytes,
                    concurrent=run.concurrent,
                )
        return None

    @staticmethod
    def _is_as_planned(plan: Plan, event: SegmentEnded) -> bool:
        return event.backend == plan.segments[event.segment].backend
