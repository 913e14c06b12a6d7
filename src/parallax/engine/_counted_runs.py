"""Runs that are counted while they are in flight, for a session that changes its plan with the number of its callers.

Counting costs a run a fifth of a microsecond and no lock. Sessions that do not need it have runners that do not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any, Final

from parallax._record import dataclass
from parallax.engine._fair_semaphore import FairSemaphore
from parallax.engine._runner import WholeRunner

_ALONE_S: Final = 0.05
"""A run that begins so long after runs were in flight together last is alone. Not at once: between short runs of two
callers there are moments with one in flight, and the threads of one that ran wide then would take the cores of the
others for as long as they spin."""


def _values_of(runner: WholeRunner) -> dict[str, Any]:
    return {field.name: getattr(runner, field.name) for field in fields(WholeRunner)}


class CallCount:
    """The runs of one session that are in flight. Thread-safe.

    Attributes:
        in_flight: has an entry for each run; its length is their number. CPython appends to a list, and takes from it,
            in one step, so that neither takes a lock.
        ended: runs that ended. One may be missed where two end in the same moment.
        is_watched: whether somebody looks at these numbers. Where nobody does, a run that finds another one in flight
            calls ``wake``.
        wake: called then, by the thread of that run, perhaps by several at once. It must be quick and raise nothing.
    """

    __slots__ = ("ended", "in_flight", "is_watched", "wake")

    def __init__(self) -> None:
        self.in_flight: list[None] = []
        self.ended = 0
        self.is_watched = True  # by nobody, but there is nobody to wake either
        self.wake: Callable[[], object] = _nobody

    def begin(self) -> list[None]:
        """Count a run that begins; returns what it is to be taken from when it ends."""
        in_flight = self.in_flight
        in_flight.append(None)
        if len(in_flight) > 1 and not self.is_watched:
            self.wake()
        return in_flight


def _nobody() -> None:
    """Nobody is to be woken."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountedRunner(WholeRunner):
    """Has ONNX Runtime run the whole model, as `WholeRunner`, and counts the runs in flight. See `CountedRunner.of`."""

    calls: CallCount

    @classmethod
    def of(cls, runner: WholeRunner, calls: CallCount) -> CountedRunner:
        """Make the same runner, whose runs are counted in ``calls``."""
        return cls(**_values_of(runner), calls=calls)

    # What a class with slots derives from is named in full: the class that ``super()`` would look for is another one.

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None, memory: Any = None) -> Any:
        calls = self.calls
        in_flight = calls.in_flight
        in_flight.append(None)  # as `CallCount.begin` does, which would cost as much as all of this
        if len(in_flight) > 1 and not calls.is_watched:
            calls.wake()
        try:
            return WholeRunner.run(self, output_names, input_feed, run_options, memory)
        finally:
            in_flight.pop()
            calls.ended += 1

    def run_values(
        self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None, memory: Any = None
    ) -> Any:
        calls = self.calls
        in_flight = calls.begin()
        try:
            return WholeRunner.run_values(self, output_names, input_feed, run_options, memory)
        finally:
            in_flight.pop()
            calls.ended += 1

    def run_async(
        self, output_names: Any, input_feed: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any
    ) -> None:
        calls = self.calls
        in_flight = calls.begin()

        def ended(made: Any, user_data: Any, error: str) -> None:
            in_flight.pop()
            calls.ended += 1
            callback(made, user_data, error)

        try:
            WholeRunner.run_async(self, output_names, input_feed, ended, user_data, run_options)
        except BaseException:
            in_flight.pop()
            raise


_SHORT_S: Final = 0.002
"""Runs that take less wait for no turn: to wake the thread that is next takes too large a part of them. Measured with a
model of 0.9 ms and eight callers on two cores: 0.85 to 0.92 of the runs a second, at a third of the tail."""


_NO_TURN: Final = nullcontext()


class _Seen:
    """What was seen of runs, in seconds.

    Attributes:
        overlap_s: when runs were in flight together last, on the clock of ``time.monotonic``.
        run_s: what a run took at least: others on its core make it longer, which its length should not depend on.
    """

    __slots__ = ("overlap_s", "run_s")

    def __init__(self) -> None:
        self.overlap_s = -math.inf
        self.run_s = math.inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideBySideRunner(CountedRunner):
    """Has runs go on side by side, each on the thread of its caller, for as many callers at a time as there are cores.

    The others wait in the order in which they came, unless runs are short: more runs than cores would only take turns
    on them, each taking longer and holding memory meanwhile. Where no runs overlap, they go to ``wide``. See
    `SideBySideRunner.beside`.
    """

    wide: CountedRunner
    """What runs in place of this one where no runs overlap, counted in the same ``calls``."""
    places: FairSemaphore
    seen: _Seen

    @classmethod
    def beside(cls, wide: CountedRunner, runner: WholeRunner, *, cores: int) -> SideBySideRunner:
        """Make the same as ``runner``, whose session has no threads but those of its callers.

        Args:
            cores: so many runs go on at a time.
        """
        return cls(**_values_of(runner), calls=wide.calls, wide=wide, places=FairSemaphore(cores), seen=_Seen())

    def _is_alone(self) -> bool:
        """Whether a run that begins now is to have all threads."""
        now_s = time.monotonic()
        if self.calls.in_flight:
            self.seen.overlap_s = now_s
        return now_s - self.seen.overlap_s > _ALONE_S

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around one run, once it is its turn."""
        in_flight, seen = self.calls.begin(), self.seen
        try:
            with self.places if seen.run_s >= _SHORT_S else _NO_TURN:
                begin_s = time.monotonic()
                yield
                seen.run_s = min(time.monotonic() - begin_s, 1.02 * seen.run_s)
        finally:
            in_flight.pop()
            self.calls.ended += 1
            if in_flight:
                seen.overlap_s = time.monotonic()

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None, memory: Any = None) -> Any:
        if self._is_alone():
            return self.wide.run(output_names, input_feed, run_options, memory)
        with self._counted():
            return WholeRunner.run(self, output_names, input_feed, run_options, memory)

    def run_values(
        self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None, memory: Any = None
    ) -> Any:
        if self._is_alone():
            return self.wide.run_values(output_names, input_feed, run_options, memory)
        with self._counted():
            return WholeRunner.run_values(self, output_names, input_feed, run_options, memory)

    def run_async(
        self, output_names: Any, input_feed: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any
    ) -> None:
        if self._is_alone():
            self.wide.run_async(output_names, input_feed, callback, user_data, run_options)
            return
        # Its session has no threads but those of its callers: ONNX Runtime runs nothing in the background then.
        self.check_complete(input_feed)
        from parallax.engine._background import run_in_background

        run_in_background(lambda: self.run(output_names, input_feed, run_options), callback, user_data)
