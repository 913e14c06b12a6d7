"""How a command ends when something goes wrong on purpose: one line on stderr, and an exit code."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

import typer

from parallax.errors import ParallaxError

BAD_INPUT_EXIT: Final = 2
INCONCLUSIVE_EXIT: Final = 3
"""Nothing was concluded: other programs used the cores while plans were measured, or no round ended in time."""
INTERRUPTED_EXIT: Final = 130
"""What shells report for a process that SIGINT ended: 128 + 2."""

IS_OWN_PROCESS: Final = ContextVar[bool]("IS_OWN_PROCESS", default=False)
"""Whether this process is there for the command alone, and may be ended with it."""

BEGAN_S: Final = ContextVar[float | None]("BEGAN_S", default=None)
"""When the command that runs now began, by the monotonic clock: with its process, if that is its own, since Python's
start takes seconds on a busy machine; else when it was called. What it does is loaded afterwards."""

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises on purpose into one line on stderr and an exit code.

    ``ParallaxError`` (what happened, where, how to fix it) exits with 2 and Ctrl-C with 130. Anything
    else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        BEGAN_S.set(process_began_s() if IS_OWN_PROCESS.get() else time.monotonic())
        try:
            return command(*args, **kwargs)
        except ParallaxError as error:
            say(f"error: {error}")
            raise typer.Exit(BAD_INPUT_EXIT) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED_EXIT) from None

    return wrapper


def process_began_s() -> float:
    """When this process began, by the monotonic clock; where the system does not tell, no later than it did work."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            # The second field, in brackets, may hold anything; the 22nd is ticks since the machine was started.
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return now - time.process_time()


def say(text: str) -> None:
    """One line on stderr, however long."""
    # Not through rich, which takes longer to load than a wrong command line takes to refuse.
    typer.echo(text, err=True)
