"""What a batcher decides: who is taken, who waits, who is refused, and how many requests run together.

Values in, decisions out, with the time as an argument: no clock, no thread. `parallax.serving` drives it with real
threads, tests drive it in simulated time.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.serving.policy._cost_fit import CostFit
    from parallax.serving.policy._limits import BatchLimit
    from parallax.serving.policy._records import Batch, Refusal, Setting, ShapeClass, Sizing, Ticket, Wait
    from parallax.serving.policy._scheduler import BatchScheduler
    from parallax.serving.policy._state import Counts
    from parallax.serving.policy._waiting import WaitingRequests
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_cost_fit": "CostFit",
            "_limits": "BatchLimit",
            "_records": "Batch Refusal Setting ShapeClass Sizing Ticket Wait",
            "_scheduler": "BatchScheduler",
            "_state": "Counts",
            "_waiting": "WaitingRequests",
        },
    )

__all__ = [
    "Batch",
    "BatchLimit",
    "BatchScheduler",
    "CostFit",
    "Counts",
    "Refusal",
    "Setting",
    "ShapeClass",
    "Sizing",
    "Ticket",
    "Wait",
    "WaitingRequests",
]
