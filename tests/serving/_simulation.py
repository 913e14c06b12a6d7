"""A server in simulated time: the scheduler with lanes that take as long as a function says."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from parallax.serving.policy import Batch, BatchScheduler, Refusal, Setting, ShapeClass, Ticket, Wait


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request to come."""

    at_s: float
    shapes: ShapeClass = ShapeClass("x")  # noqa: RUF009  (frozen)
    client: str = "one"
    limit_s: float | None = None
    cancel_after_s: float | None = None


@dataclass
class Outcome:
    """What became of requests, by number."""

    ended: dict[int, float] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    dropped: dict[int, float] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    predicted: dict[int, float] = field(default_factory=dict)

    @property
    def admitted(self) -> set[int]:
        return set(self.tickets) - set(self.refused)


def serve(
    scheduler: BatchScheduler,
    settings: Sequence[Setting],
    arrivals: Sequence[Arrival],
    taken_s: Callable[[Batch], float],
    *,
    check: Callable[[float], None] = lambda now: None,
) -> Outcome:
    """Let all requests come, and everything end.

    Args:
        taken_s: how long a batch really takes.
        check: called after every event, with the time.
    """
    outcome, order = Outcome(), itertools.count()
    events: list[tuple[float, int, str, object]] = []

    def plan(at: float, kind: str, what: object) -> None:
        heapq.heappush(events, (at, next(order), kind, what))

    for number, arrival in enumerate(arrivals):
        plan(arrival.at_s, "arrival", (number, arrival))
    running: dict[int, Batch] = {}
    while events:
        now, _, kind, what = heapq.heappop(events)
        if kind == "arrival":
            assert isinstance(what, tuple)
            number, arrival = what
            deadline = None if arrival.limit_s is None else now + arrival.limit_s
            ticket = Ticket(
                number=number, shapes=arrival.shapes, client=arrival.client, arrived_s=now, deadline_s=deadline
            )
            outcome.tickets[number] = ticket
            outcome.predicted[number] = scheduler.predicted_end_s(ticket, now)
            refusal = scheduler.offer(ticket, now)
            if refusal is not None:
                outcome.refused[number] = refusal
            elif arrival.cancel_after_s is not None:
                plan(now + arrival.cancel_after_s, "cancel", number)
        elif kind == "cancel":
            assert isinstance(what, int)
            if scheduler.cancel(what):
                outcome.cancelled.add(what)
        elif kind == "end":
            assert isinstance(what, Batch)
            del running[what.number]
            scheduler.finish(what, now)
            outcome.ended.update((ticket.number, now) for ticket in what.tickets)
        while isinstance(decision := scheduler.take(now), Batch):
            running[decision.number] = decision
            outcome.batches.append(decision)
            assert len({batch.setting for batch in running.values()}) == 1, "two settings at once"
            assert len(running) <= settings[decision.setting].lanes, "more batches than lanes"
            plan(now + taken_s(decision), "end", decision)
        assert isinstance(decision, Wait)
        outcome.dropped.update((ticket.number, now) for ticket in scheduler.take_dropped())
        if decision.until_s is not None:
            assert decision.until_s > now
            plan(decision.until_s, "look", None)
        elif scheduler.waiting:
            assert running, "something waits, nothing runs, and nobody is to look again"
        check(now)
    return outcome
