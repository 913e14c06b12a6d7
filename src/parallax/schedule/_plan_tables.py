"""A plan as tables: what runs where, and what was compared. Loaded where a plan is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from parallax.schedule._show import Column, Table, milliseconds

if TYPE_CHECKING:
    from parallax.schedule._plan import Plan, Segment

_SCREEN: Final = 80
"""Columns of a terminal."""

_LISTED_SEGMENTS: Final = 12
_LISTED_IN_HTML: Final = 40
_LISTED_CANDIDATES: Final = 6

_COLUMNS: Final = (
    ("segment", False),
    ("operators", True),
    ("runs on", False),
    ("threads", True),
    ("lane", True),
    ("ms", True),
    ("why", False),
)
"""What stands in a row, and whether that is a number."""

_COMPARED: Final = (
    ("plan", False),
    ("segments", True),
    ("lanes", True),
    ("predicted ms", True),
    ("measured ms", True),
    ("note", False),
)


def plan_text(plan: Plan) -> str:
    """What runs where, on how many threads, why, and what was compared: for people, on one screen."""
    tables = (_segments(plan, _LISTED_SEGMENTS), _comparison(plan))
    return "\n\n".join(table.to_text(_SCREEN) for table in tables if table is not None)


def plan_html(plan: Plan) -> str:
    """The same in HTML, which notebooks show, with more segments."""
    tables = (_segments(plan, _LISTED_IN_HTML), _comparison(plan))
    return f"<div>{''.join(table.to_html() for table in tables if table is not None)}</div>"


def _segments(plan: Plan, listed: int) -> Table:
    """The segments, ``listed`` of them at most: those that take longest."""
    provenance = plan.provenance
    segments = () if plan.is_whole else plan.segments
    longest = sorted(segments, key=lambda segment: segment.cost_ns, reverse=True)[:listed]
    rows = [_row(segment, milliseconds(segment.cost_ns)) for segment in sorted(longest, key=lambda one: one.index)]
    notes = []
    if len(segments) > listed:
        notes.append(f"... and {len(segments) - listed} more, which are predicted to take no longer than these")
    if len(segments) > 1:
        notes.append(f"on {_count(plan.cores, 'core')}: {_totals(segments)}")
    if provenance.whole_ns and provenance.chosen_ns and not plan.is_whole:
        kind = "measured" if provenance.source == "measured" else "predicted"
        chosen, whole = milliseconds(provenance.chosen_ns), milliseconds(provenance.whole_ns)
        notes.append(f"{kind}: {chosen} ms, and {whole} ms for the whole model on the CPU")
    if plan.rows_permille is not None:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in plan.rows_shapes)
        rounds = "" if plan.rows_rounds == 1 else f", {plan.rows_rounds} times over"
        whole = f", {_count(len(plan.rows_whole), 'layer')} left whole" if plan.rows_whole else ""
        notes.append(
            f"of the model with layers split by rows, {plan.rows_permille} thousandths in the first part"
            f"{rounds}{whole}" + (f", for {shapes}" if shapes else "")
        )
    if plan.constants_shapes is not None:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in plan.constants_shapes)
        notes.append("of the model with its constants computed" + (f", for {shapes}" if shapes else ""))
    if plan.stretches:
        most = max(stretch.slices for stretch in plan.stretches)
        notes.append(f"of the model with {_count(len(plan.stretches), 'part')} computed in slices, {most} at most")
    if not provenance.is_conclusive:
        notes.append("nothing was concluded: tuning measures again when a session is opened with tune=True")
    return Table(
        title=plan.summary,
        columns=tuple([Column(head=head, is_number=is_number) for head, is_number in _COLUMNS]),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _comparison(plan: Plan) -> Table | None:
    """What was compared; None where nothing was."""
    candidates = plan.provenance.candidates
    if not candidates:
        return None
    known = sorted(candidates, key=lambda entry: (entry.measured_ns is None, entry.measured_ns or entry.simulated_ns))
    rows: list[tuple[str, ...]] = [
        (
            entry.label,
            str(entry.segments),
            str(entry.lanes),
            milliseconds(entry.simulated_ns),
            milliseconds(entry.measured_ns),
            entry.note,
        )
        for entry in known[:_LISTED_CANDIDATES]
    ]
    columns = [Column(head=head, is_number=is_number) for head, is_number in _COMPARED]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    more = len(candidates) - len(rows)
    return Table(
        title="compared, the quickest first:",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(f"... and {more} more",) if more else (),
    )


def _totals(segments: Sequence[Segment]) -> str:
    """Of each backend: its segments, their operators and their time."""
    parts = []
    for backend in dict.fromkeys(segment.backend for segment in segments):
        own = [segment for segment in segments if segment.backend == backend]
        operators = sum(len(segment.nodes) for segment in own)
        busy_ns = sum(segment.cost_ns for segment in own)
        parts.append(
            f"{_count(operators, 'operator')} in {_count(len(own), 'segment')} on {backend}"
            + (f", {busy_ns / 1e6:.3f} ms in all" if busy_ns else "")
        )
    return "; ".join(parts)


def _row(segment: Segment, predicted_ms: str) -> tuple[str, ...]:
    bodies = "".join(f"; {body.attribute}: {body.plan.summary}" for body in segment.bodies)
    return (
        segment.name,
        str(len(segment.nodes)),
        segment.backend,
        str(segment.width) if segment.width else "queue",
        "any" if segment.lane is None else str(segment.lane),
        predicted_ms,
        segment.reason + bodies,
    )


def _count(number: int, thing: str) -> str:
    """``1 lane``, ``2 lanes``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
