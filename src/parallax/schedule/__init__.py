"""What runs when, where: plans, the policies that make them, and the dispatcher that carries them out.

Pure: no clock, no thread, no environment. The engine drives the `Dispatcher` with real lanes.
"""

from parallax.schedule._dispatcher import Dispatcher
from parallax.schedule._plan import Assignment, Candidate, Plan, Provenance, Schedule, Segment, Task
from parallax.schedule._table import LEGAL_MOVES, DispatchTable, SegmentState, Start
from parallax.schedule._verify_state import verify_state

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
