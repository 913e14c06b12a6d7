"""How long a session's runs take, and what follows for the next: whether it is called so that Ctrl-C can stop it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_INTERRUPTIBLE_NS: Final = 100_000_000
"""A run longer than this is worth the hand-over that lets Ctrl-C stop it (see engine._interrupt)."""

_SLOW_WEIGHT_BYTES: Final = 256 << 20
"""Nothing is known of a first run but the weights it reads. Below this size it rarely takes a second, and another
thread would cost it some ten milliseconds: a core is shared until the system notices that the next one idles."""


class RunDurations:
    """Learns from each run of one session how the next one had better be called.

    Threads that run at the same time may overwrite what the others learned: that costs a run its short way, or its
    answer to Ctrl-C, once.

    Attributes:
        may_be_long: the next run had better be one that Ctrl-C can stop.
    """

    def __init__(self, *, weight_bytes: int | None, is_unbounded: bool) -> None:
        # Of an unbounded model: whether all runs so far were short. None before the first; False once one has lasted.
        self._usually_short: bool | None = None
        self._is_unbounded = False
        self.may_be_long = True
        self.expect(weight_bytes=weight_bytes, is_unbounded=is_unbounded)

    def expect(self, *, weight_bytes: int | None, is_unbounded: bool) -> None:
        """A model was opened.

        Args:
            weight_bytes: None where they are not known.
            is_unbounded: how long a run takes depends on data, so that the last one says nothing of the next.
        """
        self._is_unbounded = is_unbounded
        self.may_be_long = weight_bytes is None or is_unbounded or weight_bytes >= _SLOW_WEIGHT_BYTES

    def note(self, duration_ns: int) -> None:
        """A run ended after so long."""
        if duration_ns > _INTERRUPTIBLE_NS:
            self.may_be_long = True
            self._usually_short = False
        elif not self._is_unbounded:
            self.may_be_long = False
        elif self._usually_short is None:
            self._usually_short = True

    def run_stoppably(self, run: Callable[[Any], Any], run_options: Any, *, may_watch: bool) -> Any:
        """Call ``run`` with run options, in a way that Ctrl-C can stop, at the price of a hand-over.

        Args:
            may_watch: where runs were short so far, it may be called without that price, and begun again if it lasts.
        """
        if may_watch and self._usually_short and run_options is None:
            from parallax.engine._watch import RunLastsError, run_watched

            try:
                return run_watched(run)
            except RunLastsError:
                self._usually_short = False
        from parallax.engine._interrupt import run_interruptibly

        return run_interruptibly(run, run_options)
