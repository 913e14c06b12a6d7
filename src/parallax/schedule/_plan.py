"""The plan: a frozen, serialisable value that says what runs, in which order, on how many threads.

It is the centre of the package: everything before it is a pure function from values to values,
everything after it is mechanism. ``Plan.to_json`` and ``Plan.from_json`` are exact inverses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Final

from parallax._json_records import parse_json, read_record, write_record
from parallax._record import dataclass
from parallax.errors import PlanError

if TYPE_CHECKING:
    from parallax.schedule._show import Table

PLAN_FORMAT_VERSION: Final = 6
"""Of ``Plan.to_json``: raised whenever a plan written before must not be read any more."""

MAX_ROWS_ROUNDS: Final = 8
"""A model is split by rows so many times at most: each time, it has twice the nodes."""

MAX_SLICES: Final = 4096
"""Of one stretch."""

CPU_BACKEND: Final = "cpu"
"""ONNX Runtime's CPU kernels, as a segment names them."""

PAPER_POLICY: Final = "parallax-paper"
"""The policy that runs a model as the Parallax paper (arXiv 2512.11532) would: see `parallax.schedule.placement`."""


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
    """Indices of the segments that end before it starts."""
    width: int
    """Threads of its kernels; 0 on a device's queue."""
    priority: int
    """Of the segments that are ready, the one of the highest starts first."""
    lane: int | None
    """The lane it is fixed to; None: any."""
    cost_ns: int
    """Predicted duration at ``width``."""
    peak_bytes: int = 0
    """Bytes it holds while it runs; 0 where nothing was estimated."""
    backend: str = CPU_BACKEND
    """What runs it, by the name that `parallax.backends.open_backend` knows."""
    reason: str
    """Why this is a segment of its own, with the costs compared."""
    bodies: tuple[BodyPlan, ...] = ()
    """Where the engine runs its only If, Loop or Scan itself: a plan for each body. Empty: its backend does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPlan:
    """How a body of an If, Loop or Scan runs."""

    attribute: str
    """Of the operator: "then_branch", "else_branch" or "body"."""
    plan: Plan
    """Of the body as a model of its own (`parallax.model.Body`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a model that is computed in slices: all that leads from ``inputs`` to ``output``."""

    output: str
    """A tensor of the model. Its slices are joined."""
    axis: int
    """Of the output."""
    slices: int
    """2 at least. The rows of the output are divided evenly among them, up to one."""
    inputs: tuple[str, ...]
    """Tensors that are computed before, whole. Others may be as well, where operators ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Describes one alternative that the search looked at; durations in ns, measured None when only simulated."""

    label: str
    segments: int
    lanes: int
    simulated_ns: int
    measured_ns: int | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a plan comes from: what was compared, and by how much the winner won.

    ``source`` is "tables" (predicted from cost tables), "measured" (searched and timed), "energy" (of the least
    modelled joules), "forced" (the caller asked for it, with ``split="always"`` or a baseline's name), "memory" (split,
    or computed in slices, to fit) or "default" (nothing promised a gain).
    """

    STORED_NAMES: ClassVar[Mapping[str, str]] = {"whole_ns": "uncut_ns", "is_noisy": "disturbed"}  # in kept plans

    source: str
    whole_ns: int | None
    """Nanoseconds of a run of the whole model; None where unknown."""
    chosen_ns: int | None
    """Nanoseconds of a run of this plan, likewise."""
    candidates: tuple[Candidate, ...]
    runtime_version: str
    machine: str
    reason: str
    is_noisy: bool = False
    """Other processes used the cores while it was measured, so that nothing was concluded: tune again."""

    @property
    def is_conclusive(self) -> bool:
        """Whether the reason is one of the model's. False where other processes kept the machine busy while plans were
        measured: the whole model runs until a measurement succeeds, and tuning tries again each time."""
        return not self.is_noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Says what runs where: an immutable value, whose segments cover the model in a topological order.

    Raises nothing by itself: `from_json` and `verify_plan` refuse what could not run.
    """

    LATER_FIELDS: ClassVar[frozenset[str]] = frozenset({"rows_joined", "rows_whole", "stretches"})
    """What plans of this format version may lack, since some were written before it was there."""
    SPAROA_POLICY: ClassVar[str] = "sparoa"
    """The policy of sessions that follow the machine (``adapt=True``), whose plans are those of "adaptive"."""
    MOST_CORES: ClassVar[int] = 4096
    """More cores or lanes than this come from no machine, but from a damaged file."""
    ENERGY_OBJECTIVES: ClassVar = ("energy", "edp")
    """Objectives by which plans are compared in joules, or joules x seconds, instead of time."""

    format_version: int
    """`PLAN_FORMAT_VERSION` of the version that made it."""
    structure_digest: str
    """Hex digest (BLAKE2b) of the model without its large weights, and of the shapes that it is planned for."""
    policy: str
    """The name of the policy that made it."""
    cores: int
    """Cores that a run uses at most; widths of segments that run together never add up to more."""
    lanes: int
    """Threads that run segments, queues of devices included."""
    backfill: bool
    """Whether a segment that fits may start before one of higher priority that does not."""
    segments: tuple[Segment, ...]
    provenance: Provenance
    rows_permille: int | None = None
    """Nodes are those of the model split by rows (`parallax.model.split_rows`), so many thousandths of them in the
    first part; None: of the model as it is."""
    rows_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """In which shapes of its inputs the model was split by rows, as far as it leaves them open: (input, shape)."""
    rows_rounds: int = 1
    """How often it was split by rows: each time, what came out was split again."""
    rows_whole: tuple[str, ...] = ()
    """Tensors that stayed whole when it was split by rows: what makes them runs in one piece."""
    rows_joined: bool = False
    """Whether tensors that both parts need all rows of were joined once; else each part joins its own."""
    constants_shapes: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    """Nodes are those of the model with its constants computed (`parallax.model.compute_constants`), before it was
    split by rows, in these shapes of the inputs that it leaves open: (input, shape). None: they stay in the graph."""
    stretches: tuple[Stretch, ...] = ()
    """Nodes are those of the model with these stretches computed in slices (`parallax.model.slice_stretches`)."""

    @property
    def is_rewritten(self) -> bool:
        """Whether nodes are those of another model than the one that was given, which is made for one shape of each
        input: split by rows, with its constants computed, or with stretches in slices."""
        return self.rows_permille is not None or self.constants_shapes is not None or bool(self.stretches)

    @property
    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape that it was rewritten in, for inputs that the model leaves open."""
        return {**dict(self.constants_shapes or ()), **dict(self.rows_shapes)}

    @property
    def is_sliced(self) -> bool:
        """Whether the model, or parts of it, are computed in slices one after the other, so that a run holds less."""
        return self.provenance.source == "memory" and self.is_rewritten

    @property
    def is_streamed(self) -> bool:
        """Whether it is a chain of segments whose weights are read while others run, as they do not fit at once."""
        return self.provenance.source == "memory" and not self.is_rewritten

    @property
    def is_whole(self) -> bool:
        """Whether the model is whole: one segment, or none, on the CPU, run by the wrapped runtime's own session."""
        return (
            len(self.segments) <= 1
            and not self.stretches
            and all(segment.backend == CPU_BACKEND and not segment.bodies for segment in self.segments)
        )

    @property
    def has_branch_arenas(self) -> bool:
        """Whether its boundary tensors lie in an arena per branch, as in the paper whose policy made it."""
        return self.policy == PAPER_POLICY

    @property
    def summary(self) -> str:
        """Says in one line: ``whole model, 2 threads: reason``, ``whole model on openvino, 2 threads: reason`` or
        ``split into 12 segments on 2 lanes: reason``."""
        if len(self.segments) > 1:
            form = f"split into {len(self.segments)} segments on {_count(self.lanes, 'lane')}"
            on = Counter(segment.backend for segment in self.segments if segment.backend != CPU_BACKEND)
            if on:
                form += f" ({', '.join(f'{number} on {backend}' for backend, number in on.items())})"
        else:
            form = "whole model"
            for segment in self.segments:
                form += "" if segment.backend == CPU_BACKEND else f" on {segment.backend}"
                form += f", {_count(segment.width, 'thread')}" if segment.width else ""
                form += ", bodies of control flow planned one by one" if segment.bodies else ""
        return f"{form}: {self.provenance.reason}"

    def __str__(self) -> str:
        """What runs where, on how many threads, why, and what was compared: for people, on one screen."""
        tables = (self._table(_LISTED_SEGMENTS), self._comparison())
        return "\n\n".join(table.to_text(_SCREEN) for table in tables if table is not None)

    def _repr_html_(self) -> str:
        """The same in HTML, which notebooks show, with more segments."""
        tables = (self._table(_LISTED_IN_HTML), self._comparison())
        return f"<div>{''.join(table.to_html() for table in tables if table is not None)}</div>"

    def _table(self, listed: int) -> Table:
        """The segments, ``listed`` of them at most: those that take longest."""
        from parallax.schedule._show import Column, Table, milliseconds  # few plans are shown

        provenance = self.provenance
        segments = () if self.is_whole else self.segments
        longest = sorted(segments, key=lambda segment: segment.cost_ns, reverse=True)[:listed]
        rows = [_row(segment, milliseconds(segment.cost_ns)) for segment in sorted(longest, key=lambda one: one.index)]
        notes = []
        if len(segments) > listed:
            notes.append(f"... and {len(segments) - listed} more, which are predicted to take no longer than these")
        if len(segments) > 1:
            notes.append(f"on {_count(self.cores, 'core')}: {_totals(segments)}")
        if provenance.whole_ns and provenance.chosen_ns and not self.is_whole:
            kind = "measured" if provenance.source == "measured" else "predicted"
            chosen, whole = milliseconds(provenance.chosen_ns), milliseconds(provenance.whole_ns)
            notes.append(f"{kind}: {chosen} ms, and {whole} ms for the whole model on the CPU")
        if self.rows_permille is not None:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.rows_shapes)
            rounds = "" if self.rows_rounds == 1 else f", {self.rows_rounds} times over"
            whole = f", {_count(len(self.rows_whole), 'layer')} left whole" if self.rows_whole else ""
            notes.append(
                f"of the model with layers split by rows, {self.rows_permille} thousandths in the first part"
                f"{rounds}{whole}" + (f", for {shapes}" if shapes else "")
            )
        if self.constants_shapes is not None:
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.constants_shapes)
            notes.append("of the model with its constants computed" + (f", for {shapes}" if shapes else ""))
        if self.stretches:
            most = max(stretch.slices for stretch in self.stretches)
            notes.append(f"of the model with {_count(len(self.stretches), 'part')} computed in slices, {most} at most")
        if not provenance.is_conclusive:
            notes.append("nothing was concluded: tuning measures again when a session is opened with tune=True")
        return Table(
            title=self.summary,
            columns=tuple([Column(head=head, is_number=is_number) for head, is_number in _COLUMNS]),
            rows=tuple(rows),
            notes=tuple(notes),
        )

    def _comparison(self) -> Table | None:
        """What was compared; None where nothing was."""
        from parallax.schedule._show import comparison

        entries = [
            (one.label, one.segments, one.lanes, one.simulated_ns, one.measured_ns, one.note)
            for one in self.provenance.candidates
        ]
        return comparison(entries) if entries else None

    def to_json(self) -> dict[str, object]:
        """Return a value of JSON types; `from_json` is its exact inverse, also through a JSON text."""
        return write_record(self)

    @classmethod
    def from_json(cls, value: Mapping[str, object] | str | bytes) -> Plan:
        """Read a plan from what `to_json` made, or from a JSON text of it. Its source is not trusted.

        Raises: PlanError naming the field at fault, if it is of another format version, ill-typed or not
            a plan that could run (see `verify_plan`).
        """
        parsed = parse_json(value) if isinstance(value, str | bytes) else value
        version = parsed.get("format_version") if isinstance(parsed, Mapping) else None
        if type(version) is int and version != PLAN_FORMAT_VERSION:
            shown = version if abs(version) < 1_000_000 else "far beyond any"  # a huge integer cannot be printed
            raise PlanError(
                f"a plan of format version {shown}; this version of Parallax reads {PLAN_FORMAT_VERSION}",
                where="plan.format_version",
                fix="make the plan again",
            )
        plan = read_record(cls, parsed, "plan")
        verify_plan(plan)
        return plan


_SCREEN: Final = 80
"""Columns of a terminal."""

_LISTED_SEGMENTS: Final = 12
_LISTED_IN_HTML: Final = 40

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


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


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


def verify_plan(plan: Plan, n_nodes: int | None = None) -> None:
    """Judge whether a plan could run, from the plan alone; O(size of the plan).

    It must be of this format version. Each segment's index is its position, its predecessors are distinct
    lower indices, its width is 1 to ``cores`` (0 on a fixed lane: a device's queue), its fixed lane one of
    ``lanes``, its nodes ascend (a node may be in several segments: constants are replicated; or in none: dead
    nodes are left out). A segment of a cut plan names no input and no output twice. A tensor is produced by one
    segment, and whatever reads it has that segment among its predecessors. Plans of bodies are judged likewise;
    they use no more cores than their segment is wide.

    Args:
        plan: the plan.
        n_nodes: nodes of the model's graph, to check node indices against; None where it is not at hand.

    Raises: PlanError naming the segment at fault.
    """

    def refuse(what: str, segment: Segment | None = None) -> PlanError:
        where = "plan" if segment is None else f"plan.segments[{segment.index}] {segment.name!r}"
        return PlanError(what, where=where, fix="this plan cannot run: make it again")

    if plan.format_version != PLAN_FORMAT_VERSION:
        raise refuse(f"format version {plan.format_version} where {PLAN_FORMAT_VERSION} is current")
    for name, capacity in (("cores", plan.cores), ("lanes", plan.lanes)):
        if not 1 <= capacity <= Plan.MOST_CORES:
            raise refuse(f"{capacity} {name} are not within 1 to {Plan.MOST_CORES}")
    if plan.rows_permille is not None and not 0 < plan.rows_permille < 1000:
        raise refuse(f"{plan.rows_permille} thousandths of the rows are not a part of them")
    if plan.rows_shapes and plan.rows_permille is None:
        raise refuse("shapes for a split by rows, and no rows that are split")
    if not 1 <= plan.rows_rounds <= MAX_ROWS_ROUNDS or (plan.rows_rounds > 1 and plan.rows_permille is None):
        raise refuse(f"rows that are split {plan.rows_rounds} times")
    if plan.rows_whole and (plan.rows_permille is None or plan.rows_rounds > 1):
        raise refuse("tensors that stay whole, and no rows that are split once")
    if len(set(plan.rows_whole)) != len(plan.rows_whole) or not all(plan.rows_whole):
        raise refuse(f"tensors {plan.rows_whole[:8]} that stay whole are named twice, or not at all")
    if plan.rows_joined and plan.rows_permille is None:
        raise refuse("rows that are joined once, and none that are split")
    if any(size < 1 for _, shape in plan.rows_shapes for size in shape):
        raise refuse(f"shapes {plan.rows_shapes[:8]} for a split by rows are none")
    if any(size < 0 for _, shape in plan.constants_shapes or () for size in shape):
        raise refuse(f"shapes {(plan.constants_shapes or ())[:8]} to compute constants in are none")
    _verify_stretches(plan, refuse)
    producer: dict[str, int] = {}
    for position, segment in enumerate(plan.segments):
        if segment.index != position:
            raise refuse(f"index {segment.index} at position {position}", segment)
        before = segment.predecessors
        if len(set(before)) != len(before) or any(not 0 <= other < position for other in before):
            raise refuse(f"predecessors {before[:20]} are not distinct lower indices", segment)
        if not (0 if segment.lane is not None else 1) <= segment.width <= plan.cores:
            raise refuse(f"width {segment.width} is not within 1 to the plan's {plan.cores} cores", segment)
        if segment.lane is not None and not 0 <= segment.lane < plan.lanes:
            raise refuse(f"lane {segment.lane} is not one of the plan's {plan.lanes} lanes", segment)
        if not segment.backend or len(segment.backend) > 200:
            raise refuse(f"its backend {segment.backend[:200]!r} is no name", segment)
        _verify_bodies(segment, refuse)
        if segment.cost_ns < 0 or segment.peak_bytes < 0:
            raise refuse(f"cost {segment.cost_ns} ns or peak {segment.peak_bytes} bytes is negative", segment)
        nodes = segment.nodes
        if any(low >= high for low, high in pairwise(nodes)) or (nodes and nodes[0] < 0):
            raise refuse(f"nodes {nodes[:20]} are not ascending indices", segment)
        if nodes and n_nodes is not None and nodes[-1] >= n_nodes:
            raise refuse(f"node {nodes[-1]} of a graph of {n_nodes} nodes", segment)
        if not nodes and len(plan.segments) > 1:
            raise refuse("a segment of a split plan has no nodes", segment)
        for tensor in segment.outputs:
            if producer.setdefault(tensor, position) != position:
                raise refuse(f"tensor {tensor!r} is produced by segment {producer[tensor]} as well", segment)
    # A whole model may hand an input out as an output.
    for segment in () if plan.is_whole else plan.segments:
        known = set(segment.predecessors)
        for what, names in (("inputs", segment.inputs), ("outputs", segment.outputs)):
            if len(set(names)) != len(names):
                raise refuse(f"its {what} {names[:20]} name a tensor twice", segment)
        for tensor in segment.inputs:
            source = producer.get(tensor)
            if source is not None and source not in known:
                raise refuse(f"reads {tensor!r} of segment {source}, which is not among its predecessors", segment)


def _verify_stretches(plan: Plan, refuse: Callable[[str], PlanError]) -> None:
    if plan.stretches and (plan.rows_permille is not None or plan.constants_shapes is not None):
        raise refuse("stretches in slices of a model that is rewritten otherwise, too")
    if len({stretch.output for stretch in plan.stretches}) != len(plan.stretches):
        raise refuse("two stretches of one output")
    for stretch in plan.stretches:
        if not 2 <= stretch.slices <= MAX_SLICES or stretch.axis < 0:
            raise refuse(f"a stretch in {stretch.slices} slices along axis {stretch.axis}")


def _verify_bodies(segment: Segment, refuse: Callable[[str, Segment], PlanError]) -> None:
    if segment.bodies and segment.backend != CPU_BACKEND:
        raise refuse(f"plans of bodies on backend {segment.backend!r}, which runs them itself", segment)
    if len({body.attribute for body in segment.bodies}) != len(segment.bodies):
        raise refuse("two plans of one body", segment)
    for body in segment.bodies:
        try:
            verify_plan(body.plan)
        except PlanError as error:
            raise refuse(f"body {body.attribute!r}: {error.what}, {error.where}", segment) from error
        if body.plan.rows_permille is not None:
            raise refuse(f"body {body.attribute!r} is split by rows, which only whole models are", segment)
        if body.plan.stretches:
            raise refuse(f"body {body.attribute!r} has stretches in slices, which only whole models have", segment)
        if body.plan.constants_shapes is not None:
            raise refuse(f"body {body.attribute!r} is for computed constants, which whole models have", segment)
        if body.plan.cores > max(1, segment.width):
            raise refuse(
                f"body {body.attribute!r} uses {body.plan.cores} cores in a segment of width {segment.width}", segment
            )
