"""The records that the scheduler of a batcher takes and gives. Times are seconds on the caller's clock."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum


class Sizing(Enum):
    """How the size of a batch is chosen."""

    FITTED = "fitted"
    """By the fitted time of a batch; by trial only where that fit is bad."""
    TRIAL = "trial"
    """By additive increase and multiplicative decrease alone, as in Clipper (Crankshaw et al., NSDI 2017, 4.3.1)."""
    WINDOW = "window"
    """All that came within a fixed time since the oldest request, as in most servers."""


@dataclass(frozen=True, slots=True)
class ShapeClass:
    """Requests that may run together: all have these shapes.

    Args:
        key: what is equal among them: names, element types, shapes.
        elements: that one request feeds; costs of a class that never ran are scaled by it.
        rows: of the batch axis that one request takes.
        may_join: whether requests of this class may run together at all.
    """

    key: Hashable
    elements: int = 1
    rows: int = 1
    may_join: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One request, as far as scheduling goes."""

    number: int
    """Unique; later requests have higher ones."""
    shapes: ShapeClass
    client: Hashable = None
    arrived_s: float
    deadline_s: float | None = None
    """When it has to have ended; None: whenever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to run batches: so many at once, each on so many threads.

    Batches of one setting may run at the same time; those of two settings do not, since both count on all cores.
    """

    threads: int
    lanes: int
    """Batches that may run at once."""
    measured: tuple[tuple[int, float], ...]
    """(requests in a batch, seconds that it took), with all lanes busy; at least one, for batches of one."""
    sizes: tuple[int, ...] = ()
    """The only sizes of batches that it can run, ascending from 1; (): any."""
    best_size: int = 1
    """Of those that were measured, the one with the least time per request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Requests that are to run together now."""

    number: int
    setting: int
    """Index of the setting."""
    tickets: tuple[Ticket, ...]
    started_s: float
    predicted_s: float
    """Seconds that it will take with a probability of 95%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is to start before that time, unless a request comes or a batch ends. ``until_s`` None: not at all."""

    until_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not taken."""

    is_full: bool
    """The queue is full; else the request could not end in time."""
    waiting: int
    predicted_end_s: float | None
    """When it would have ended, with a probability of 95%; None where it has no deadline."""
    late_s: float
    """By how much that is past its deadline; 0 where the queue is full."""
