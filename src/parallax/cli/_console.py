"""What a command shows: tables or JSON on stdout; notices, progress and errors on stderr.

Under ``--json`` stdout carries one JSON document and nothing else. Colour and bars need a terminal: piped output is
plain text, and progress there is a line now and then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from parallax.cli._document import document_text

# Wide enough that no table of ours wraps in a file or pipe, where there is no terminal to ask (nor COLUMNS).
_PIPED_COLUMNS = 200
_UNBOUNDED_COLUMNS = 10_000

_FIRST_LINE_S = 5.0
_LINES_S = 5.0
"""Where there is no terminal, progress is a line after so many seconds, and then every so many."""

ProgressCallback = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all), as by ``InferenceSession(progress=)``."""


class Screen:
    """One command's output. Made when the command starts, so that redirected streams are honoured."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)
        self._bars: Progress | None = None

    def show(self, report: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """Print ``report`` as JSON under ``--json``, else what ``render`` draws of it."""
        if self.as_json:
            # Not through rich: it would wrap long lines.
            sys.stdout.write(document_text(report))
        else:
            render(self.out)

    def notice(self, text: str) -> None:
        """Something the reader should know that is neither result nor failure."""
        print_line(self.err, f"note: {text}")

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """A bar per stage on stderr while the block runs; a line every few seconds where stderr is no terminal."""
        if not self.err.is_terminal:
            yield _PlainProgress(self.notice)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.err, transient=True) as bars:
            self._bars = bars
            tasks: dict[str, Any] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(escape(stage), total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield report

    def end_progress(self) -> None:
        """Remove the progress bars and show the cursor again. May be called from any thread."""
        if self._bars is not None:
            self._bars.stop()


class _PlainProgress:
    """Says where the work is, rarely: logs should show that it goes on, and not be filled by it."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._next = clock() + _FIRST_LINE_S

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + _LINES_S
            self._say(f"{stage}: {done} of {total}")


def make_table(*columns: str, left: int = 1) -> Table:
    """A plain table; the first ``left`` columns are text, the others numbers and set flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        is_text = position < left
        # On a narrow screen text wraps, and a number stays in one piece.
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def print_table(console: Console, table: Table, *, optional: Sequence[str] = ()) -> None:
    """Print a table; on a screen that is too narrow for it, without some of its columns, which are then named.

    Args:
        optional: heads of columns that may go, the first one first.
    """
    left_out: list[str] = []
    for head in optional:
        if _wanted_columns(console, table) <= console.width:
            break
        table = _without(table, head)
        left_out.append(head)
    console.print(table)
    if left_out:
        print_line(console, f"(no room for: {', '.join(left_out)}; --json has all)")


def _wanted_columns(console: Console, table: Table) -> int:
    wide = console.options.update(width=_UNBOUNDED_COLUMNS)
    return console.measure(table, options=wide).maximum


def _without(table: Table, head: str) -> Table:
    kept = [column for column in table.columns if column.header != head]
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in kept:
        made.add_column(column.header, justify=column.justify, overflow=column.overflow, no_wrap=column.no_wrap)
    for cells, row in zip(zip(*(column.cells for column in kept), strict=True), table.rows, strict=True):
        made.add_row(*cells, style=row.style)
    return made


def print_line(console: Console, text: str) -> None:
    """One line, however long: wrapping would break paths and messages that people copy."""
    console.print(text, soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    """Text is shown as it is: names of tensors and nodes hold brackets, colons and numbers that rich would style."""
    as_is: dict[str, Any] = {"stderr": stderr, "markup": False, "highlight": False, "emoji": False}
    probe = Console(**as_is)
    if probe.is_terminal or os.environ.get("COLUMNS", "").isdecimal():  # which rich goes by
        return probe
    return Console(**as_is, width=_PIPED_COLUMNS)
