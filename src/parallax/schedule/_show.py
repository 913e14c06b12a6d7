"""Small tables for people, as text and as HTML for notebooks.

What stands in them may come from a file that somebody else wrote: control characters, which a terminal would obey, and
markup, which a browser would, are shown and not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LISTED_ROWS: Final = 40
"""Rows that are shown; a table of more says how many there are."""

_LONGEST_CELL: Final = 160
"""Characters of a cell that are shown."""

_LONGEST_LINE: Final = 2000
"""Of the title and of a note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    head: str
    is_number: bool = False
    """Its cells end at the same place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with what is said above and below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    """One cell per column; no rows: the title says it all."""
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Lines without a line break at the end: the title, the table in columns of equal width, the notes."""
        lines = [_clean(self.title)]
        if self.rows:
            cells = [[column.head for column in self.columns], *self._shown()]
            widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
            lines += [self._aligned(row, widths) for row in cells]
        return "\n".join([*lines, *map(_clean, self._all_notes())])

    def to_html(self) -> str:
        """A fragment of HTML that needs no style sheet; all text in it is escaped."""
        from html import escape  # a millisecond to import, for notebooks alone

        def cell(kind: str, text: str, column: Column) -> str:
            side = "right" if column.is_number else "left"
            return f'<{kind} style="text-align: {side}">{escape(text)}</{kind}>'

        def line(kind: str, cells: Sequence[str]) -> str:
            made = (cell(kind, text, column) for text, column in zip(cells, self.columns, strict=True))
            return f"<tr>{''.join(made)}</tr>"

        parts = [f"<p>{escape(_clean(self.title))}</p>"]
        if self.rows:
            head = line("th", [column.head for column in self.columns])
            body = "".join(line("td", row) for row in self._shown())
            parts.append(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")
        parts += [f"<p>{escape(_clean(note))}</p>" for note in self._all_notes()]
        return f"<div>{''.join(parts)}</div>"

    def _shown(self) -> list[list[str]]:
        return [[_clean(text, _LONGEST_CELL) for text in row] for row in self.rows[:LISTED_ROWS]]

    def _all_notes(self) -> list[str]:
        more = len(self.rows) - LISTED_ROWS
        return [*([f"... and {more} more"] if more > 0 else []), *self.notes]

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for text, width, column in zip(row, widths, self.columns, strict=True)
        ]
        return "  ".join(cells).rstrip()


def milliseconds(ns: int | None) -> str:
    """A duration with three decimals, or a dash where it is not known."""
    return f"{ns / 1e6:.3f}" if ns else "-"


def _clean(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line of characters that can be shown, the others escaped as in Python, and not too long."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
