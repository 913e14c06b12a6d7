"""What a command shows: tables or JSON on stdout; notices, progress and errors on stderr.

Under ``--json`` stdout carries one JSON document and nothing else. Colour and progress need a terminal:
piped output is plain text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# Wide enough that no table of ours wraps in a file or pipe, where there is no terminal to ask.
_PIPED_COLUMNS = 200

ProgressCallback = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all), as by ``InferenceSession(progress=)``."""


class Screen:
    """One command's output. Made when the command starts, so that redirected streams are honoured."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def show(self, report: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """Print ``report`` as JSON under ``--json``, else what ``render`` draws of it."""
        if self.as_json:
            # Not through rich: it would wrap long lines.
            sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
        else:
            render(self.out)

    def notice(self, text: str) -> None:
        """Something the reader should know that is neither result nor failure."""
        print_line(self.err, f"note: {text}")

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """A bar per stage on stderr while the block runs; nothing where stderr is no terminal."""
        if not self.err.is_terminal:
            yield lambda stage, done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.err, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def report(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(escape(stage), total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield report


def make_table(*columns: str, left: int = 1) -> Table:
    """A plain table; the first ``left`` columns are text, the others numbers and set flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    return table


def print_line(console: Console, text: str) -> None:
    """One line, however long: wrapping would break paths and messages that people copy."""
    console.print(text, soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    """Text is shown as it is: names of tensors and nodes hold brackets, colons and numbers that rich would style."""
    as_is: dict[str, Any] = {"stderr": stderr, "markup": False, "highlight": False, "emoji": False}
    probe = Console(**as_is)
    return probe if probe.is_terminal else Console(**as_is, width=_PIPED_COLUMNS)
