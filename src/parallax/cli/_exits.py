"""How a command ends when something goes wrong on purpose: one line on stderr, and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar

import typer

from parallax.errors import ParallaxError

BAD_INPUT_EXIT: Final = 2
INCONCLUSIVE_EXIT: Final = 3
"""A measurement came to no conclusion: other programs used the cores, or no round ended in time."""
INTERRUPTED_EXIT: Final = 130
"""What shells report for a process that SIGINT ended: 128 + 2."""

IS_OWN_PROCESS: Final = ContextVar[bool]("IS_OWN_PROCESS", default=False)
"""Whether this process runs nothing but the command, so that the command may end it."""

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a command raises on purpose into one line on stderr and an exit code.

    ``ParallaxError`` (what happened, where, how to fix it) exits with 2 and Ctrl-C with 130. Anything
    else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
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
