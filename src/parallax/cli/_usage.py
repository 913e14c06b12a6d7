"""What is wrong with a command line, in the style of all other errors: one line, what is wrong; what to do."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import typer
from typer.core import TyperGroup

from parallax.cli._exits import INTERRUPTED_EXIT, say
from parallax.errors import ConfigError

_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]
_ANY_ERROR: Final[type[Exception]] = _USAGE_ERROR.__mro__[1]
"""Click's ``UsageError`` and ``ClickException``: newer typers have a copy of click of their own, and export neither."""


class OneLineErrors(TyperGroup):
    """The root of the commands: what the parser complains of is said as `guarded` says all else, and ends with 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run and, where it stands alone, exit."""
        try:
            with _without_prefix(join_words_at_colons()):
                status = super().main(
                    args=args,
                    prog_name=prog_name,
                    complete_var=complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    **extra,
                )
        except _ANY_ERROR as error:
            if not standalone_mode:
                raise
            say(describe_usage_error(error))
            raise SystemExit(getattr(error, "exit_code", 2)) from None
        except typer.Abort:
            if not standalone_mode:
                raise
            say("interrupted")
            raise SystemExit(INTERRUPTED_EXIT) from None
        if not standalone_mode:
            return status
        raise SystemExit(status if isinstance(status, int) else 0)


def describe_usage_error(error: Any) -> str:
    """One line for what click or typer raises; the help itself, where a command was called without anything."""
    text = str(error.format_message()).rstrip()
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    context = getattr(error, "ctx", None)
    command = "parallax" if context is None else context.command_path
    fix = f"see `{command} --help`"
    close = getattr(error, "possibilities", None)
    if close is not None or type(error).__name__ == "NoSuchOption":
        what = f"{command} has no option {error.option_name}"
        if close:
            fix = f"did you mean {' or '.join(sorted(close))}? {fix}"
    else:
        # "No such command 'x'. Did you mean 'y'?": the second sentence is the remedy.
        what, separator, remedy = text.partition(". Did you mean ")
        what = " ".join(what.rstrip(".").split())
        what = what[:1].lower() + what[1:]
        if separator:
            fix = f"did you mean {remedy} {fix}"
    return f"error: {what}; {fix}"


def join_words_at_colons() -> str:
    """Undo what bash does to ``zoo:yolov8n`` before it asks for completions: three words, for ``:`` ends a word there.

    Returns: what stands before the last colon of the word at the cursor, that colon included: bash puts what it is
    answered in place of what follows it. "" where no bash asks, or there is no colon.
    """
    at = os.environ.get("COMP_CWORD", "")
    if os.environ.get("_PARALLAX_COMPLETE") != "complete_bash" or not at.isdecimal():
        return ""
    words = os.environ.get("COMP_WORDS", "").split("\n")
    joined: list[str] = []
    cursor = 0
    for position, word in enumerate(words):
        # A colon, and what follows one, belongs to the word before it.
        if position > 1 and ":" in (word, words[position - 1]):
            joined[-1] += word
        else:
            joined.append(word)
        if position == int(at):
            cursor = len(joined) - 1
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(cursor)
    before, colon, _ = joined[cursor].rpartition(":")
    return before + colon


@contextlib.contextmanager
def _without_prefix(prefix: str) -> Iterator[None]:
    """Take ``prefix`` off every line that is printed meanwhile."""
    if not prefix:
        yield
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            typer.echo(line.removeprefix(prefix))


def refuse_options(given: Mapping[str, object], why: str, *, fix: str) -> None:
    """Raises: ConfigError for the first of these options that is given: neither None nor False. ``given``: by the names
    of their parameters; ``why``: what is wrong with any of them."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ConfigError(f"--{name.replace('_', '-')} {why}", fix=fix)


def budget_options(memory_budget: str | None, margin: float | None) -> dict[str, Any]:
    """The options of a memory budget, by name. Raises: ConfigError for a margin where there is no budget."""
    if memory_budget is None:
        refuse_options(
            {"margin": margin}, "is the part of a memory budget that stays free", fix="add --memory-budget SIZE"
        )
    return {"memory_budget": memory_budget} | ({} if margin is None else {"margin": margin})
