"""The scheduler of a batcher: which requests are taken, which run together, when, and which are refused or dropped."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

from parallax.errors import InternalError
from parallax.serving.policy._cost_fit import CostFit
from parallax.serving.policy._limits import BatchLimit
from parallax.serving.policy._records import Batch, Refusal, Setting, ShapeClass, Sizing, Ticket, Wait
from parallax.serving.policy._state import ClassState, Counts, Running
from parallax.serving.policy._waiting import WaitingRequests

NEGLIGIBLE_SHARE: Final = 0.05
"""A batch grows while its fixed cost is more than this share of what its requests cost."""

BATCHES_IN_LIMIT: Final = 3
"""Batches that fit into the time limit of a request."""

SWITCH_SHARE: Final = 0.9
"""Batches that run in one setting are waited for where what waits is done in less than this share of the time then."""

RECENT_S: Final = 1.0
"""Clients that sent a request in this time take turns with others; requests taken in it tell how many will be."""

PROBE_SPREAD: Final = 1.5
"""One that took at most so many times what was measured at first shows that all is as it was then."""

PROBE_S: Final = 1.0
"""Where all requests are refused, one is tried after so long without a run."""

LATE_SHARE: Final = 0.005
"""Of the requests that are taken, so many may end after their deadline."""

LATE_STEP: Final = 0.01
"""By which one that does raises the factor on what requests are predicted to wait; those in time lower it, by so much
less that `LATE_SHARE` of them keep it where it is. A quantile is tracked in this way without a model of what deviates
(Gibbs and Candes, NeurIPS 2021, arXiv 2106.00170, equation 2)."""

LEAST_CAUTION: Final = 1.0
MOST_CAUTION: Final = 1.5
"""The factor is the least at first."""

_MOST_CLASSES: Final = 256
"""Classes of shapes whose costs are remembered."""


class BatchScheduler:
    """Decides for one batcher. Not thread-safe: its user calls it under a lock, and tells it the time.

    Work-conserving but for lingering: where a lane is idle and something waits, `take` gives a batch. The batch is of
    one class of shapes, begins with the oldest request of the client whose turn it is, and has as many requests as end
    in time with a probability of 95%, as long as more of them cost less each. It lingers for the next request only
    while that costs those that wait less than it saves: ``b x E[gap] < a``.

    `offer` and `cancel` take O(1) time (and O(log n) in the number of waiting requests for deadlines), whatever waits.

    Args:
        settings: the ways to run batches, at least one. Which is used follows from what waits: that which is done with
            it first.
        max_batch: rows of a batch at most.
        max_queue: requests that may wait.
        elements: that one request fed when the settings were measured; 0: what they say holds for any size.
        sizing, window_s: how batches are sized; the latter for `Sizing.WINDOW`.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        *,
        max_batch: int,
        max_queue: int,
        elements: int = 0,
        sizing: Sizing = Sizing.FITTED,
        window_s: float = 0.0,
    ) -> None:
        if not settings:
            raise InternalError("a batcher without a way to run batches")
        self._settings = tuple(settings)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._elements = elements
        self._sizing = sizing
        self._window_s = window_s
        self._waiting = WaitingRequests()
        self._costs_s: dict[int, float] = {}
        self._backlog_s = 0.0  # sum over _costs_s
        self._running: dict[int, Running] = {}
        self._classes: OrderedDict[ShapeClass, ClassState] = OrderedDict()
        self._rate = 0.0  # requests taken a second, at _rate_at_s
        self._rate_at_s = 0.0
        self._recent: OrderedDict[Hashable, float] = OrderedDict()  # client -> when its last request was taken
        self._dropped: list[Ticket] = []
        self._probes: set[int] = set()
        self._caution = LEAST_CAUTION
        self._last_end_s = -math.inf
        self._next_batch = 0
        self.counts = Counts()

    # -- what comes in ------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket, now_s: float) -> Refusal | None:
        """Take a request, or say why not."""
        state = self._state(ticket.shapes)
        state.note_arrival(now_s)
        waiting = len(self._waiting)
        if waiting >= self._max_queue:
            self.counts = replace(self.counts, refused_full=self.counts.refused_full + 1)
            return Refusal(is_full=True, waiting=waiting, predicted_end_s=None, late_s=0.0)
        latest: float | None = None
        if ticket.deadline_s is not None:
            end = self.predicted_end_s(ticket, now_s)
            is_probe = end > ticket.deadline_s and self._may_probe(state, ticket, now_s)
            if is_probe:
                self._probes.add(ticket.number)
            elif end > ticket.deadline_s:
                self.counts = replace(self.counts, refused_late=self.counts.refused_late + 1)
                return Refusal(is_full=False, waiting=waiting, predicted_end_s=end, late_s=end - ticket.deadline_s)
            latest = None if is_probe else ticket.deadline_s - self._least_s(state)
        self._waiting.add(ticket, latest_start_s=latest)
        best, size = self._best(state, ticket)
        cost = state.fits[best].mean_s(size) / (size * self._settings[best].lanes)
        self._costs_s[ticket.number] = cost
        self._backlog_s += cost
        self._note_taken(ticket, now_s)
        self.counts = replace(self.counts, taken=self.counts.taken + 1)
        return None

    def cancel(self, number: int) -> bool:
        """Take a waiting request out; returns whether it was waiting."""
        ticket = self._waiting.remove(number)
        if ticket is None:
            return False
        self._forget(ticket)
        self.counts = replace(self.counts, cancelled=self.counts.cancelled + 1)
        return True

    def cancel_all(self) -> list[Ticket]:
        """Take all waiting requests out; returns them, the oldest first."""
        waiting = list(self._waiting)
        for ticket in waiting:
            self.cancel(ticket.number)
        return waiting

    def predicted_end_s(self, ticket: Ticket, now_s: float) -> float:
        """When a request that comes now would have ended: in so many cases that `LATE_SHARE` of those taken are late.

        Before it run, at most, as many requests of every client as its own client has waiting, and one more of each
        other: of those that wait now, and of those that come meanwhile. What runs before it is taken at its mean, with
        the deviation of a sum; the request's own batch at its 95th percentile. The wait is multiplied by what those
        that were late so far have taught.
        """
        state = self._state(ticket.shapes)
        waiting = len(self._waiting)
        ahead = self._ahead(ticket, waiting, now_s)
        if not ahead and not self._running:
            return now_s + self._least_s(state)
        best, most = self._best(state, ticket)
        fit = state.fits[best]
        lanes = self._settings[best].lanes
        # Those of the last, partial, round run together with it, or beside it.
        beside = min(ahead, self._waiting.of_class(ticket.shapes)) % (most * lanes)
        before = ahead - beside
        before_s = before * self._backlog_s / waiting if waiting else 0.0
        rounds = max(1.0, before / (most * lanes))
        before_s *= 1 + (fit.spread - 1) / math.sqrt(rounds)
        # Where that many wait, those that come meanwhile fill its batch.
        own = most if before else min(most, beside // lanes + 1)
        wait_s = self._free_s(now_s, waits=before > 0) - now_s + before_s
        return now_s + self._caution * wait_s + fit.p95_s(own)

    def _ahead(self, ticket: Ticket, waiting: int, now_s: float) -> int:
        """How many requests are expected to run before one that comes now."""
        self._forget_clients(now_s)
        own = self._waiting.of_client(ticket.client)
        recent = len(self._recent) + (0 if ticket.client in self._recent else 1)
        clients = max(recent, self._waiting.clients + (0 if own else 1))
        turns = (own + 1) * clients - 1
        there = min(waiting, turns)
        wait_s = there * self._backlog_s / waiting if waiting else 0.0
        overtaking = wait_s * self._taken_per_s(now_s) * (clients - 1) / clients
        return min(turns, there + math.ceil(overtaking))

    def _taken_per_s(self, now_s: float) -> float:
        return self._rate * math.exp((self._rate_at_s - now_s) / RECENT_S)

    def _forget_clients(self, now_s: float) -> None:
        while self._recent and next(iter(self._recent.values())) < now_s - RECENT_S:
            self._recent.popitem(last=False)

    def _note_taken(self, ticket: Ticket, now_s: float) -> None:
        self._rate, self._rate_at_s = self._taken_per_s(now_s) + 1 / RECENT_S, now_s
        self._recent[ticket.client] = now_s
        self._recent.move_to_end(ticket.client)

    # -- what is to be done -------------------------------------------------------------------------------------------

    def take(self, now_s: float) -> Batch | Wait:
        """The batch that is to start now, or until when to wait for one.

        To be called when a lane is idle: after a request came, a batch ended, or the time to wait is over. What it
        dropped meanwhile is told by `take_dropped`.
        """
        self._drop_overdue(now_s)
        first = self._next_first(now_s)
        if first is None:
            return Wait(until_s=None)
        state = self._state(first.shapes)
        setting = self._setting_for(state, first, now_s)
        if setting is None:
            return Wait(until_s=None)
        size = self._size(state, setting, first, now_s)
        if self._holds_up(state, setting, first, size):
            # One that is late already would make small batches of all that follow it, and so make those late.
            self._waiting.remove(first.number)
            self._drop(first)
            return self.take(now_s)
        until = self._linger_until_s(state, setting, first, now_s)
        if until is not None and until > now_s:
            return Wait(until_s=until)
        return self._start(state, setting, first, size, now_s)

    def take_dropped(self) -> list[Ticket]:
        """The requests that were dropped since this was last asked: they could not end in time any more."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def finish(self, batch: Batch, now_s: float, *, is_telling: bool = True) -> None:
        """A batch has ended. ``is_telling``: it did what was planned, so that its time says something of the next."""
        running = self._running.pop(batch.number, None)
        if running is None:
            raise InternalError(f"batch {batch.number} ends, but does not run")
        shapes = batch.tickets[0].shapes
        state = self._state(shapes)
        state.running -= 1
        self._last_end_s = now_s
        if not is_telling:
            return
        taken_s, size = now_s - batch.started_s, len(batch.tickets)
        fit, limit = state.fits[batch.setting], state.limits[batch.setting]
        if running.is_probe and taken_s <= fit.stated_s(size) * PROBE_SPREAD:
            fit.restart()
        late = [now_s > ticket.deadline_s for ticket in batch.tickets if ticket.deadline_s is not None]
        missed = any(late)
        if not running.is_probe:
            for was_late in late:
                self._learn_caution(was_late=was_late)
        is_trial = self._sizing is Sizing.TRIAL
        was_late = missed or (not is_trial and taken_s > batch.predicted_s)
        limit.observe(size, was_late=was_late, may_shrink=is_trial or fit.is_bad)
        fit.observe(size, taken_s)

    # -- what others may see ------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Batches that run."""
        return len(self._running)

    @property
    def running_requests(self) -> int:
        """Requests in the batches that run."""
        return sum(len(entry.batch.tickets) for entry in self._running.values())

    def fits(self) -> dict[ShapeClass, tuple[CostFit, ...]]:
        """By class, the fit in each setting."""
        return {shapes: tuple(state.fits) for shapes, state in self._classes.items()}

    # -- how it is decided --------------------------------------------------------------------------------------------

    def _state(self, shapes: ShapeClass) -> ClassState:
        state = self._classes.get(shapes)
        if state is not None:
            return state
        scale = shapes.elements / self._elements if self._elements else 1.0
        state = ClassState(
            fits=[CostFit(setting.measured, scale=scale) for setting in self._settings],
            limits=[BatchLimit(self._first_limit(setting), self._most(shapes)) for setting in self._settings],
        )
        self._classes[shapes] = state
        if len(self._classes) > _MOST_CLASSES:
            for other, known in self._classes.items():
                if other != shapes and not known.running and not self._waiting.of_class(other):
                    del self._classes[other]
                    break
        return state

    def _first_limit(self, setting: Setting) -> int:
        return 1 if self._sizing is Sizing.TRIAL else max(1, setting.best_size)

    def _most(self, shapes: ShapeClass) -> int:
        """Requests of a class in one batch at most."""
        return max(1, self._max_batch // max(1, shapes.rows)) if shapes.may_join else 1

    def _cap(self, state: ClassState, setting: int, ticket: Ticket) -> int:
        """Requests that a batch should have at most.

        Where many wait, a request that just misses a batch waits for the end of that one before its own begins, and
        both may deviate: batches of a third of the limit keep it.
        """
        most, limit = self._most(ticket.shapes), state.limits[setting].size
        if self._sizing is Sizing.WINDOW:
            return most
        if self._sizing is Sizing.TRIAL:
            return min(most, limit)
        fit = state.fits[setting]
        useful = limit
        if not fit.is_bad:
            useful = math.ceil(fit.a_s / (NEGLIGIBLE_SHARE * fit.c_s)) if fit.c_s > 0 else most
        if ticket.deadline_s is not None:
            useful = min(useful, fit.largest((ticket.deadline_s - ticket.arrived_s) / BATCHES_IN_LIMIT))
        return self._runnable(setting, max(1, min(most, limit, useful)))

    def _runnable(self, setting: int, size: int) -> int:
        """The largest size up to this one that a setting can run."""
        sizes = self._settings[setting].sizes
        return max((entry for entry in sizes if entry <= size), default=1) if sizes else size

    def _best(self, state: ClassState, ticket: Ticket) -> tuple[int, int]:
        """The setting in which a request costs least time where many wait, and the size of its batches."""
        caps = [self._cap(state, setting, ticket) for setting in range(len(self._settings))]

        def cost(setting: int) -> float:
            return state.fits[setting].mean_s(caps[setting]) / (caps[setting] * self._settings[setting].lanes)

        best = min(range(len(caps)), key=cost)
        return best, caps[best]

    def _setting_for(self, state: ClassState, first: Ticket, now_s: float) -> int | None:
        """The setting that is done first with what waits of a class; None where its lanes are busy, or others'.

        While batches run, it is theirs: those of different settings would share cores. But where another one is done
        sooner even if it waits for them, nothing more is started in theirs.
        """
        count = self._waiting.of_class(first.shapes)

        def drained_s(setting: int) -> float:
            lanes = self._settings[setting].lanes
            size = self._runnable(setting, min(self._cap(state, setting, first), -(-count // lanes)))
            return -(-count // (size * lanes)) * state.fits[setting].mean_s(size)

        wanted = min(range(len(self._settings)), key=drained_s)
        running = list(self._running.values())
        if not running:
            return wanted
        current = running[0].batch.setting
        if len(running) >= self._settings[current].lanes:
            return None
        left_s = max(0.0, max(entry.end_s for entry in running) - now_s)
        return None if left_s + drained_s(wanted) < SWITCH_SHARE * drained_s(current) else current

    def _size(self, state: ClassState, setting: int, first: Ticket, now_s: float) -> int:
        """Requests that the batch is to have, given that so many wait and so many lanes are idle."""
        count = self._waiting.of_class(first.shapes)
        cap = self._cap(state, setting, first)
        if self._sizing is not Sizing.FITTED:
            return self._runnable(setting, min(cap, count))
        idle = self._settings[setting].lanes - len(self._running)
        size = min(cap, -(-count // max(1, idle)))
        if first.deadline_s is not None:
            size = min(size, max(1, state.fits[setting].largest(first.deadline_s - now_s)))
        return self._runnable(setting, size)

    def _holds_up(self, state: ClassState, setting: int, first: Ticket, size: int) -> bool:
        """Whether the deadline of the first request allows less than half of the batch that those that wait need.

        As in Nexus (Shen et al., SOSP 2019, 6.3), which drops such requests early.
        """
        cap = self._cap(state, setting, first)
        if self._sizing is not Sizing.FITTED or first.deadline_s is None or first.number in self._probes:
            return False
        return 2 * size < cap and self._waiting.of_class(first.shapes) > cap * self._settings[setting].lanes

    def _linger_until_s(self, state: ClassState, setting: int, first: Ticket, now_s: float) -> float | None:
        """Until when to wait for the next request, in place of starting a batch of those there are; None: not."""
        count = self._waiting.of_class(first.shapes)
        if count >= self._cap(state, setting, first):
            return None
        if self._sizing is Sizing.WINDOW:
            return first.arrived_s + self._window_s
        fit = state.fits[setting]
        if self._sizing is Sizing.TRIAL or state.gap_s is None or state.last_arrival_s is None or fit.is_bad:
            return None
        if count * state.gap_s >= fit.a_s:
            return None
        until = min(state.last_arrival_s + 2 * state.gap_s, first.arrived_s + fit.a_s)
        latest = self._waiting.next_latest_start_s()
        if latest is not None:
            # What a larger batch takes beyond the least, and its deviation, have to fit as well.
            until = min(until, latest - (fit.p95_s(count + 1) - self._least_s(state)))
        return until

    def _start(self, state: ClassState, setting: int, first: Ticket, size: int, now_s: float) -> Batch:
        fit = state.fits[setting]
        tightest = math.inf

        def admits(ticket: Ticket, taken: int) -> bool:
            nonlocal tightest
            left = math.inf if ticket.deadline_s is None else ticket.deadline_s - now_s
            if taken and self._sizing is Sizing.FITTED and fit.p95_s(taken + 1) > min(tightest, left):
                return False
            tightest = min(tightest, left)
            return True

        tickets = self._waiting.take(first, size, admits)
        is_probe = any(ticket.number in self._probes for ticket in tickets)
        for ticket in tickets:
            self._forget(ticket)
        batch = Batch(
            number=self._next_batch,
            setting=setting,
            tickets=tickets,
            started_s=now_s,
            predicted_s=fit.p95_s(len(tickets)),
        )
        self._next_batch += 1
        self._running[batch.number] = Running(batch, is_probe)
        state.running += 1
        counts = self.counts
        self.counts = replace(
            counts,
            started=counts.started + len(tickets),
            batches=counts.batches + 1,
            largest=max(counts.largest, len(tickets)),
        )
        return batch

    # -- who cannot end in time ---------------------------------------------------------------------------------------

    def _least_s(self, state: ClassState) -> float:
        """What a request takes at most, alone, at best, with a probability of 95%."""
        return min(fit.p95_s(1) for fit in state.fits)

    def _drop_overdue(self, now_s: float) -> None:
        while (ticket := self._waiting.overdue(now_s)) is not None:
            self._drop(ticket)

    def _next_first(self, now_s: float) -> Ticket | None:
        """The request whose turn it is; those before it that cannot end in time, as is known by now, are dropped."""
        while (first := self._waiting.first()) is not None:
            if first.number in self._probes or first.deadline_s is None:
                return first
            if now_s + self._least_s(self._state(first.shapes)) <= first.deadline_s:
                return first
            self._waiting.remove(first.number)
            self._drop(first)
        return None

    def _learn_caution(self, *, was_late: bool) -> None:
        """A request with a deadline has ended, or was dropped."""
        step = LATE_STEP if was_late else -LATE_STEP * LATE_SHARE / (1 - LATE_SHARE)
        self._caution = min(MOST_CAUTION, max(LEAST_CAUTION, self._caution + step))

    def _drop(self, ticket: Ticket) -> None:
        self._learn_caution(was_late=True)  # only what has a deadline is dropped
        self._forget(ticket)
        self._dropped.append(ticket)
        self.counts = replace(self.counts, dropped=self.counts.dropped + 1)

    def _may_probe(self, state: ClassState, ticket: Ticket, now_s: float) -> bool:
        """Whether a request is taken though it is predicted to be late.

        Where runs were slow for a while, and so all is refused, nothing shows that they are no more. So one request is
        tried now and then, while nothing else is to do, if it had been in time as things were measured at first.
        """
        if self._running or len(self._waiting) or now_s - self._last_end_s < PROBE_S:
            return False
        return ticket.deadline_s is not None and now_s + min(fit.stated_s(1) for fit in state.fits) <= ticket.deadline_s

    def _forget(self, ticket: Ticket) -> None:
        """It waits no more."""
        self._probes.discard(ticket.number)
        self._backlog_s -= self._costs_s.pop(ticket.number, 0.0)
        if not self._costs_s:
            self._backlog_s = 0.0

    def _free_s(self, now_s: float, *, waits: bool) -> float:
        """When a lane is free: the next one, or where others wait before, on average."""
        running = list(self._running.values())
        if not running or len(running) < self._settings[running[0].batch.setting].lanes:
            return now_s
        ends = [max(now_s, entry.end_s) for entry in running]
        return sum(ends) / len(ends) if waits else min(ends)
