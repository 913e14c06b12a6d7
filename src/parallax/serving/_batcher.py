"""`Batcher`: futures in front, threads behind, and the scheduler of `parallax.serving.policy` in between."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Final

from parallax import _lazy
from parallax.backends.ort import both
from parallax.errors import ConfigError, DeadlineMissed, Overloaded
from parallax.options import check_switch
from parallax.serving._requests import Request, RequestReader
from parallax.serving._runner import Answer, BatchRunner
from parallax.serving._stats import BatcherStats, ClassStats, SettingStats, percentile_ms
from parallax.serving.policy import Batch, BatchScheduler, Refusal, Sizing, Ticket

logger = _lazy.logger(__name__)

MAX_BATCH: Final = 32
MAX_QUEUE: Final = 1024
"""Requests that may wait by default."""

_KEPT_TIMES: Final = 2048
_FAILED_BATCHES: Final = 3
"""Batches in a row that fail, though each of their requests succeeds alone, after which there are no more."""

Outcome = Answer | BaseException


class Batcher:
    """Takes requests of many callers on one model, and runs them together or side by side, whichever serves more.

    Made by ``InferenceSession.batcher``, which measures beforehand what the model gains from either. Thread-safe. A
    request's arrays are copied when it is submitted, unless they are read-only. Not for other processes: one that was
    forked makes a batcher of its own.

    An idle lane takes what waits at once: no fixed window is waited for. How many requests run together follows from
    what batches took so far and from the deadline of the oldest. Clients take turns; the requests of one client are
    served in their order, as far as those of one shape go.

    Args:
        runner: runs requests.
        reader: checks them.
        slo_ms: within which requests are to be answered, unless they say another; None: no limit.
        max_batch: rows along the batch axis that run together at most.
        max_queue: requests that may wait; None: 1,024.
        sizing, window_ms: how batches are sized, and the window of `Sizing.WINDOW`; for comparisons.

    Raises: ConfigError for a limit that is none.

    Example::

        with session.batcher(slo_ms=50) as batcher:
            future = batcher.submit({"x": array})
            outputs = future.result()
    """

    def __init__(
        self,
        runner: BatchRunner,
        reader: RequestReader,
        *,
        slo_ms: float | None = None,
        max_batch: int = MAX_BATCH,
        max_queue: int | None = None,
        sizing: Sizing = Sizing.FITTED,
        window_ms: float = 0.0,
    ) -> None:
        check_limits(slo_ms=slo_ms, max_batch=max_batch, max_queue=max_queue)
        scheduler = BatchScheduler(
            runner.settings,
            max_batch=max_batch,
            max_queue=MAX_QUEUE if max_queue is None else max_queue,
            elements=runner.elements,
            sizing=sizing,
            window_s=window_ms / 1e3,
        )
        self._core = _Core(runner, reader, scheduler, slo_s=None if slo_ms is None else slo_ms / 1e3)
        # The threads hold the core, not the batcher: one that is dropped answers what it took, and ends.
        self._finalizer = weakref.finalize(self, self._core.begin_close, drain=True)
        self._core.start()

    def submit(
        self, feeds: Mapping[str, Any], deadline_ms: float | None = None, client: Hashable = None
    ) -> Future[Answer]:
        """Take a request; returns at once.

        Args:
            feeds: input name -> array, nested list or OrtValue, as ``InferenceSession.run`` takes them.
            deadline_ms: within which it is to be answered, from now; None: the batcher's ``slo_ms``.
            client: who asks; clients take turns. Any hashable value.

        Returns: its future. The result is a list of the model's outputs; ``cancel()`` removes a request that waits.
            It fails with `DeadlineMissed` if the request was taken but could not end in time any more.

        Raises:
            Overloaded: the queue is full, or the request could not end in time. It was not taken.
            InputError: as ``InferenceSession.run``, for what can be seen before it runs.
            ConfigError: the batcher is closed, or was made in another process; or the deadline is none.
            SessionClosedError: the session is closed.
        """
        return self._core.submit(feeds, deadline_ms, client)

    async def asubmit(
        self, feeds: Mapping[str, Any], deadline_ms: float | None = None, client: Hashable = None
    ) -> Answer:
        """`submit` for asyncio: returns the outputs. Cancelling the task removes a request that waits."""
        import asyncio

        return await asyncio.wrap_future(self.submit(feeds, deadline_ms, client))

    def stats(self) -> BatcherStats:
        """Return what happened so far: counts of requests, and measured times in ms and s."""
        return self._core.stats()

    def close(self, drain: bool = True) -> None:
        """Take no more requests, and return when nothing runs any more. May be called again.

        Args:
            drain: answer what waits first; else the futures of what waits are cancelled. What runs is always answered.
        """
        self._core.begin_close(drain=check_switch("drain", drain))
        self._core.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close; what waits is answered first, unless the block ended with an exception."""
        self.close(drain=kind is None)


def check_limits(*, slo_ms: float | None, max_batch: int, max_queue: int | None) -> None:
    """Raises: ConfigError for what is no limit."""
    if slo_ms is not None:
        check_milliseconds("slo_ms", slo_ms)
    for name, value in (("max_batch", max_batch), ("max_queue", 1 if max_queue is None else max_queue)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}", fix=f"give a whole number above 0, such as {name}=32")


def check_milliseconds(name: str, value: Any) -> float:
    """A time limit in milliseconds. Raises: ConfigError for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r}", fix=f"give milliseconds above 0, such as {name}=50")
    return float(value)


@dataclass(frozen=True, slots=True)
class _Entry:
    ticket: Ticket
    request: Request
    future: Future[Answer]


class _Core:
    """What the threads of a batcher share. All fields are guarded by ``_condition``, but for what runs."""

    def __init__(
        self, runner: BatchRunner, reader: RequestReader, scheduler: BatchScheduler, *, slo_s: float | None
    ) -> None:
        self._runner = runner
        self._reader = reader
        self._scheduler = scheduler
        self._slo_s = slo_s
        self._process = os.getpid()
        self._condition = threading.Condition()
        self._entries: dict[int, _Entry] = {}  # of requests that wait
        self._next_number = 0
        self._is_closing = False
        self._closed = threading.Event()
        self._completed = self._failed = self._late = 0
        self._cancelled_late = 0  # after they were taken for a batch, before it began
        self._times_s: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._failed_in_a_row = 0
        self._why_stopped = ""
        self._threads: list[threading.Thread] = []
        self._alive = 0

    def start(self) -> None:
        lanes = max(setting.lanes for setting in self._runner.settings)
        self._alive = lanes
        for number in range(lanes):
            thread = threading.Thread(target=self._work, name=f"parallax-batcher-{number}", daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError as error:
                del self._threads[number:]
                self._alive = number
                if not number:
                    raise ConfigError(f"a batcher needs a thread, and none can be started: {error}") from error
                logger.warning("a batcher has %d lanes in place of %d: %s", number, lanes, error)
                return

    # -- callers ------------------------------------------------------------------------------------------------------

    def submit(self, feeds: Mapping[str, Any], deadline_ms: float | None, client: Hashable) -> Future[Answer]:
        self._check_process()
        limit_s = self._slo_s if deadline_ms is None else check_milliseconds("deadline_ms", deadline_ms) / 1e3
        self._runner.check_open()
        try:
            hash(client)  # a tuple may hold what cannot be hashed
        except TypeError as error:
            raise both(ConfigError, TypeError)(
                f"client={client!r:.80} is not hashable", fix="give a name or a number"
            ) from error
        now = time.monotonic()
        request = self._reader.read(feeds)
        future: Future[Answer] = Future()
        with self._condition:
            if self._is_closing:
                raise ConfigError("the batcher is closed", fix="make another one with session.batcher()")
            ticket = Ticket(
                number=self._next_number,
                shapes=request.shapes,
                client=client,
                arrived_s=now,
                deadline_s=None if limit_s is None else now + limit_s,
            )
            refusal = self._scheduler.offer(ticket, time.monotonic())
            if refusal is None:
                self._next_number += 1
                self._entries[ticket.number] = _Entry(ticket, request, future)
                self._condition.notify()
        if refusal is not None:
            raise _overloaded(refusal, limit_s)
        number = ticket.number
        future.add_done_callback(lambda done: self._forget_cancelled(number, done) if done.cancelled() else None)
        return future

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ConfigError(
                "this batcher was made in another process, whose threads are not here",
                fix="make one after the fork, with session.batcher()",
            )

    def _forget_cancelled(self, number: int, future: Future[Answer]) -> None:
        with self._condition:
            if self._entries.pop(number, None) is None:
                return
            self._scheduler.cancel(number)
        _begins(future)

    def begin_close(self, *, drain: bool) -> None:
        """Take no more; cancel what waits unless it is to be answered."""
        if os.getpid() != self._process:
            return
        with self._condition:
            self._is_closing = True
            left = [] if drain else [self._entries.pop(ticket.number) for ticket in self._scheduler.cancel_all()]
            self._condition.notify_all()
        failure: BaseException | None = None
        for entry in left:
            try:
                entry.future.cancel()
            except BaseException as error:  # of a callback, or Ctrl-C: the others are cancelled all the same
                failure = error
                entry.future.cancel()  # Ctrl-C may have come before
            _begins(entry.future)
        if failure is not None:
            raise failure

    def join(self) -> None:
        """Return when nothing runs any more; at once in a thread of the batcher, where callbacks of futures run."""
        if os.getpid() == self._process and threading.current_thread() not in self._threads:
            self._closed.wait()

    def stats(self) -> BatcherStats:
        self._check_process()
        with self._condition:
            scheduler, counts = self._scheduler, self._scheduler.counts
            times = list(self._times_s)
            settings = self._runner.settings
            return BatcherStats(
                taken=counts.taken,
                refused_full=counts.refused_full,
                refused_late=counts.refused_late,
                dropped=counts.dropped,
                cancelled=counts.cancelled + self._cancelled_late,
                completed=self._completed,
                failed=self._failed,
                late=self._late,
                waiting=scheduler.waiting,
                running=scheduler.running_requests,
                batches=counts.batches,
                mean_batch=counts.started / counts.batches if counts.batches else 0.0,
                largest_batch=counts.largest,
                p50_ms=percentile_ms(times, 0.5),
                p99_ms=percentile_ms(times, 0.99),
                reason=self._why_stopped or self._runner.reason,
                settings=tuple(
                    SettingStats(
                        threads=setting.threads,
                        lanes=setting.lanes,
                        best_size=setting.best_size,
                        measured_ms=tuple((size, seconds * 1e3) for size, seconds in setting.measured),
                    )
                    for setting in settings
                ),
                classes=tuple(
                    ClassStats(
                        shapes=str(shapes.key),
                        threads=setting.threads,
                        batches=fit.observed,
                        fixed_ms=fit.a_s * 1e3,
                        request_ms=fit.c_s * 1e3,
                        spread=fit.spread,
                    )
                    for shapes, fits in scheduler.fits().items()
                    for setting, fit in zip(settings, fits, strict=True)
                    if fit.observed
                ),
            )

    # -- lanes --------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (taken := self._next()) is not None:
                batch, entries = taken
                if batch is not None:
                    self._run(batch, entries)
        finally:
            with self._condition:
                self._alive -= 1
                is_last = not self._alive
                self._condition.notify_all()
            if is_last:
                try:
                    self._runner.close()
                finally:
                    self._closed.set()

    def _next(self) -> tuple[Batch | None, list[_Entry]] | None:
        """Wait for a batch and its requests; None when there will be no more. Without a batch, some were dropped."""
        batch: Batch | None = None
        entries: list[_Entry] = []
        dropped: list[_Entry] = []
        with self._condition:
            while batch is None and not dropped:
                decision = self._scheduler.take(time.monotonic())
                dropped = [self._entries.pop(ticket.number) for ticket in self._scheduler.take_dropped()]
                if isinstance(decision, Batch):
                    batch, entries = decision, [self._entries.pop(ticket.number) for ticket in decision.tickets]
                    if self._scheduler.waiting:
                        self._condition.notify()
                elif not dropped:
                    if self._is_closing and not self._scheduler.waiting:
                        return None
                    until = decision.until_s
                    self._condition.wait(None if until is None else max(0.0, until - time.monotonic()))
        for entry in dropped:
            if _begins(entry.future):
                _settle(entry.future, _missed(entry.ticket))
        return batch, entries

    def _run(self, batch: Batch, entries: Sequence[_Entry]) -> None:
        live = [entry for entry in entries if _begins(entry.future)]
        outcomes, as_planned = self._outcomes(batch, live)
        now = time.monotonic()
        failed = sum(isinstance(outcome, BaseException) for outcome in outcomes)
        with self._condition:
            # What fails, fails early; and what was cancelled at the last moment made the batch smaller.
            self._scheduler.finish(batch, now, is_telling=as_planned and not failed and len(live) == len(entries))
            self._failed += failed
            self._cancelled_late += len(entries) - len(live)
            self._completed += len(live) - failed
            for entry, outcome in zip(live, outcomes, strict=True):
                if not isinstance(outcome, BaseException):
                    self._times_s.append(now - entry.ticket.arrived_s)
                    self._late += entry.ticket.deadline_s is not None and now > entry.ticket.deadline_s
            if self._scheduler.waiting:
                self._condition.notify()
        for entry, outcome in zip(live, outcomes, strict=True):
            _settle(entry.future, outcome)

    def _outcomes(self, batch: Batch, live: Sequence[_Entry]) -> tuple[list[Outcome], bool]:
        """What each request comes to, and whether the batch ran as it was planned."""
        if len(live) < 2:
            return [self._one(batch.setting, entry) for entry in live], True
        try:
            together = self._together(batch.setting, [entry.request for entry in live])
        except Exception as error:  # one request may be at fault: the others must not fail with it
            logger.info("a batch of %d requests failed, so they are run one by one: %s", len(live), error)
            outcomes = [self._one(batch.setting, entry) for entry in live]
            if not any(isinstance(outcome, BaseException) for outcome in outcomes):
                self._note_failed_batch(error)
            return outcomes, False
        self._failed_in_a_row = 0
        return [*together], True

    def _one(self, setting: int, entry: _Entry) -> Outcome:
        try:
            return self._runner.run_one(setting, entry.request.arrays)
        except BaseException as error:  # it is its future's
            return error

    def _together(self, setting: int, requests: Sequence[Request]) -> list[Answer]:
        arrays, padding = [request.arrays for request in requests], self._reader.padding
        if padding is None:
            return self._runner.run_together(setting, arrays)
        answers = self._runner.run_together(setting, padding.filled(arrays))
        return [padding.cut_back(answer, fed) for answer, fed in zip(answers, arrays, strict=True)]

    def _note_failed_batch(self, error: Exception) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row == _FAILED_BATCHES:
            self._why_stopped = f"{_FAILED_BATCHES} batches in a row failed whose requests succeed alone: {error}"
            self._reader.stop_joining()
            logger.warning("requests are run one by one from now on: %s", self._why_stopped)


def _begins(future: Future[Answer]) -> bool:
    """Whether a request is still to be run. Called once, by whoever took it out of those that wait: of a future that
    was cancelled, ``concurrent.futures.wait`` and ``as_completed`` hear by this alone."""
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:
        logger.warning("the future of a request was given a result by somebody else, so the request is not run")
        return False


def _settle(future: Future[Answer], outcome: Outcome) -> None:
    """Give a future its outcome. Whatever its callbacks raise, SystemExit included, the lane goes on: others wait."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        logger.warning("the future of a request was given a result by somebody else, which it keeps")
    except BaseException:
        logger.exception("a callback of a request's future failed")


def _overloaded(refusal: Refusal, limit_s: float | None) -> Overloaded:
    if refusal.is_full:
        return Overloaded(
            f"the queue is full: {refusal.waiting} requests wait",
            fix="send less, or later; or give a larger max_queue=",
        )
    assert limit_s is not None
    return Overloaded(
        f"the request would end {refusal.late_s * 1e3:.1f} ms after its deadline of {limit_s * 1e3:g} ms, "
        f"with {refusal.waiting} waiting",
        retry_after_s=refusal.late_s,
        fix="send less, or later; or give it more time with deadline_ms= or slo_ms=",
    )


def _missed(ticket: Ticket) -> DeadlineMissed:
    assert ticket.deadline_s is not None
    return DeadlineMissed(
        f"the request could not end within its {(ticket.deadline_s - ticket.arrived_s) * 1e3:g} ms any more, so it was "
        "not run",
        fix="send less, or give it more time with deadline_ms= or slo_ms=",
    )
