"""What runs when, where: plans, the policies that make them, and the dispatcher that carries them out.

Pure: no clock, no thread, no environment. The engine drives the `Dispatcher` with real lanes.
"""

from parallax.schedule._dispatcher import (
    LEGAL_MOVES,
    Dispatcher,
    DispatchTable,
    SegmentState,
    Start,
    verify_state,
)
from parallax.schedule._plan import Assignment, Candidate, Plan, Provenance, Schedule, Segment, Task

__all__ = [
    "LEGAL_MOVES",
    "Assignment",
    "Candidate",
    "DispatchTable",
    "Dispatcher",
    "Plan",
    "Provenance",
    "Schedule",
    "Segment",
    "SegmentState",
    "Start",
    "Task",
    "verify_state",
]
