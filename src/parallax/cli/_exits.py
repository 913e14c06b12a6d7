"""How a command ends when something goes wrong on purpose: one line on stderr, and an exit code."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

import typer

from parallax.errors import ParallaxError

BAD_INPUT_EXIT: Final = 2
INCONCLUSIVE_EXIT: Final = 3
"""Nothing was concluded: other programs used the cores while plans were measured."""
INTERRUPTED_EXIT: Final = 130
"""What shells report for a process that SIGINT ended: 128 + 2."""

BEGAN_S: Final = ContextVar[float | None]("BEGAN_S", default=None)
"""When the command that runs now was called, by the monotonic clock: what it does is loaded afterwards, which takes
seconds on a busy machine."""

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises on purpose into one line on stderr and an exit code.

    ``ParallaxError`` (what happened, where, how to mend it) exits with 2 and Ctrl-C with 130. Anything
    else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        BEGAN_S.set(time.monotonic())
        try:
            return command(*args, **kwargs)
        except ParallaxError as error:
            say(f"error: {error}")
            raise typer.Exit(BAD_INPUT_EXIT) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED_EXIT) from None

    return wrapper


def say(text: str) -> None:
    """One line on stderr, however long."""
    # Not through rich, which takes longer to load than a wrong command line takes to refuse.
    typer.echo(text, err=True)
