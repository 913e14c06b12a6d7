"""Small tables for people, as text and as HTML for notebooks.

What stands in them may come from a file that somebody else wrote: control characters, which a terminal would obey, and
markup, which a browser would, are shown and not passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LONGEST_CELL: Final = 160
"""Characters of a cell that are shown."""

_LEAST_COLUMN: Final = 12
"""A column of text is never made narrower."""

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
    """A table with what is said above and below it. All rows are shown."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    """One cell per column; no rows: the title says it all."""
    notes: tuple[str, ...] = ()

    def to_text(self, width: int | None = None) -> str:
        """Lines without a line break at the end: the title, the table in columns of equal width, the notes.

        Args:
            width: characters of a line; longer lines are broken, and columns of text cut short. None: any number.
        """
        lines = _wrapped(self.title, width)
        if self.rows:
            cells = [[column.head for column in self.columns], *self._shown()]
            widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
            fitted = self._fitted(widths, width)
            lines += [self._aligned(row, fitted) for row in cells]
        return "\n".join([*lines, *(line for note in self.notes for line in _wrapped(note, width))])

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
        parts += [f"<p>{escape(_clean(note))}</p>" for note in self.notes]
        return "".join(parts)

    def _shown(self) -> list[list[str]]:
        return [[_clean(text, _LONGEST_CELL) for text in row] for row in self.rows]

    def _fitted(self, widths: Sequence[int], width: int | None) -> list[int]:
        """The widths, with the widest columns of text made narrower until all fit."""
        fitted = list(widths)
        texts = [at for at, column in enumerate(self.columns) if not column.is_number]
        while width is not None and texts and sum(fitted) + 2 * (len(fitted) - 1) > width:
            widest = max(texts, key=lambda at: fitted[at])
            if fitted[widest] <= _LEAST_COLUMN:
                break
            fitted[widest] -= 1
        return fitted

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            text.rjust(width) if column.is_number else _cut(text, width).ljust(width)
            for text, width, column in zip(row, widths, self.columns, strict=True)
        ]
        return "  ".join(cells).rstrip()


def milliseconds(ns: int | None) -> str:
    """A duration with three decimals, or a dash where it is not known."""
    return f"{ns / 1e6:.3f}" if ns else "-"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _wrapped(text: str, width: int | None) -> list[str]:
    shown = _clean(text)
    if width is None or len(shown) <= width:
        return [shown]
    import textwrap  # few plans are shown

    return textwrap.wrap(shown, width, subsequent_indent="  ") or [""]


def _clean(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line of characters that can be shown, the others escaped as in Python, and not too long."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: longest + 1])
    return _cut(shown, longest)


Compared = tuple[str, int, int, int, int | None, str]
"""A way to run a model that was looked at: its label, segments, lanes, predicted and measured nanoseconds, a note."""

_COMPARED: Final = (
    ("plan", False),
    ("segments", True),
    ("lanes", True),
    ("predicted ms", True),
    ("measured ms", True),
    ("note", False),
)
"""What stands in a row, and whether that is a number."""

_LISTED: Final = 6


def comparison(entries: Sequence[Compared]) -> Table:
    """The quickest of what was compared, first those that were measured."""
    known = sorted(entries, key=lambda entry: (entry[4] is None, entry[4] or entry[3]))
    rows: list[tuple[str, ...]] = [
        (label, str(segments), str(lanes), milliseconds(predicted_ns), milliseconds(measured_ns), note)
        for label, segments, lanes, predicted_ns, measured_ns, note in known[:_LISTED]
    ]
    columns = [Column(head=head, is_number=is_number) for head, is_number in _COMPARED]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    more = len(entries) - len(rows)
    return Table(
        title="compared, the quickest first:",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(f"... and {more} more",) if more else (),
    )
