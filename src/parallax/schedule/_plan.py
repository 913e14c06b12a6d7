"""The plan: a frozen, serialisable value that says what runs, in which order, on how many threads.

It is the centre of the package: everything before it is a pure function from values to values,
everything after it is mechanism. ``Plan.to_json`` and ``Plan.from_json`` are exact inverses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a policy needs to know of a segment: its dependencies and what it costs.

    ``cost_ns[w]`` is the duration at width ``w``; every task has at least width 1.
    """

    index: int
    predecessors: tuple[int, ...]
    cost_ns: tuple[tuple[int, int], ...]
    """(width, duration) pairs, ascending in width."""
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A policy's decision for one segment."""

    segment: int
    width: int
    priority: int
    """Higher starts first among those that are ready; ties fall to the lower segment index."""
    lane: int | None = None
    """A fixed lane, or None to let the dispatcher choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A policy's answer: one assignment per task, in task order.

    ``backfill`` lets a lower-priority segment that fits start before a higher one that does not.
    """

    policy: str
    cores: int
    lanes: int
    assignments: tuple[Assignment, ...]
    backfill: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Nodes that one backend runs in one call, on one lane. Convex."""

    index: int
    name: str
    nodes: tuple[int, ...]
    """Indices into ``OpGraph.nodes``, ascending."""
    inputs: tuple[str, ...]
    """Boundary tensors and model inputs it reads (not initializers that are not overridable)."""
    outputs: tuple[str, ...]
    """Tensors read by other segments, or outputs of the model."""
    predecessors: tuple[int, ...]
    width: int
    priority: int
    lane: int | None
    cost_ns: int
    """Predicted duration at ``width``."""
    peak_bytes: int = 0
    """Bytes it holds while it runs; 0 where nothing was estimated."""
    reason: str
    """Why this is a segment of its own, with the costs compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One alternative the search looked at; durations in ns, measured None when only simulated."""

    label: str
    segments: int
    lanes: int
    simulated_ns: int
    measured_ns: int | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a plan comes from: what was compared, and by how much the winner won.

    ``source`` is "tables" (predicted from cost tables), "measured" (searched and timed), "forced"
    (the caller set ``min_gain``) or "default" (nothing promised a gain).
    """

    source: str
    uncut_ns: int | None
    chosen_ns: int | None
    candidates: tuple[Candidate, ...]
    runtime_version: str
    machine: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What runs where. ``segments`` in a topological order; one segment means the model is uncut."""

    format_version: int
    structure_digest: str
    policy: str
    cores: int
    lanes: int
    backfill: bool
    segments: tuple[Segment, ...]
    provenance: Provenance

    @property
    def is_uncut(self) -> bool:
        return len(self.segments) <= 1
