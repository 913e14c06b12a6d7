"""What happens in runs, as records that observers are given: see ``observers=`` of `parallax.Options`.

Pure: a record holds values, and `parallax.schedule.Dispatcher` decides again from them what it decided in the run.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.events._records import (
        BackendSetAside,
        BudgetChanged,
        Event,
        Iteration,
        PlanSwapped,
        RunAdmitted,
        RunEnded,
        RunEvent,
        RunOutcome,
        SegmentEnded,
        SegmentStarted,
        TensorMoved,
    )
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_records": (
                "BackendSetAside BudgetChanged Event Iteration PlanSwapped RunAdmitted RunEnded RunEvent RunOutcome "
                "SegmentEnded SegmentStarted TensorMoved"
            ),
        },
    )

__all__ = [
    "BackendSetAside",
    "BudgetChanged",
    "Event",
    "Iteration",
    "PlanSwapped",
    "RunAdmitted",
    "RunEnded",
    "RunEvent",
    "RunOutcome",
    "SegmentEnded",
    "SegmentStarted",
    "TensorMoved",
]
