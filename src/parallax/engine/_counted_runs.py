"""Runs that are counted while they are in flight, for a session that changes its plan with the number of its callers.

Counting costs a run a fifth of a microsecond and no lock. Sessions that do not need it have runners that do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from parallax._record import dataclass
from parallax.engine._runner import WholeRunner


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
    is_alone: bool = False
    """Whether its session has no threads but those of its callers; ONNX Runtime then runs nothing in the background."""

    @classmethod
    def of(cls, runner: WholeRunner, calls: CallCount, *, is_alone: bool = False) -> CountedRunner:
        """Make the same runner, whose runs are counted in ``calls``."""
        same = {field.name: getattr(runner, field.name) for field in fields(WholeRunner)}
        return cls(**same, calls=calls, is_alone=is_alone)

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
        if self.is_alone:
            self.check_complete(input_feed)
            from parallax.engine._background import run_in_background

            run_in_background(lambda: self.run(output_names, input_feed, run_options), callback, user_data)
            return
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
