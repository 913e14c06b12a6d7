"""Who may run now: what the runs of one session hold together stays within its memory budget.

Knows neither models nor sessions: requirements in, reservations out.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.admission._controller import AdmissionController, Reservation
    from parallax.admission._session_memory import IDLE_TRIM_S, SessionMemory, shapes_of
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_controller": "AdmissionController Reservation",
            "_session_memory": "IDLE_TRIM_S SessionMemory shapes_of",
        },
    )

__all__ = [
    "IDLE_TRIM_S",
    "AdmissionController",
    "Reservation",
    "SessionMemory",
    "shapes_of",
]
