"""From a plan to compiled segments: extract each segment's sub-model and give it to the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from parallax.backends import (
    DEFAULT_POLICY,
    Backend,
    CompileOptions,
    Complaints,
    FaultPolicy,
    compile_guarded,
    open_backend,
)
from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, both, cpu_backend, load_session
from parallax.engine._control_flow import CompileBody, compile_control_flow
from parallax.engine._delegate import DelegatedSession
from parallax.engine._executor import Executor
from parallax.engine._lanes import Lanes, lane_pool
from parallax.engine._prefetcher import WeightPrefetcher
from parallax.engine._segment import CompiledSegment
from parallax.engine._view_ops import find_view_ops
from parallax.engine._work import kept_outputs, segment_works, static_shapes
from parallax.errors import BackendError
from parallax.graph import OpGraph, Work
from parallax.memory import MemoryModel
from parallax.model import Body, Model, SegmentModel
from parallax.schedule import CPU_BACKEND, Plan, Segment

Progress = Callable[[int, int], None]
"""Called with (segments done, segments in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """What a segment on another backend is compiled with."""

    backend: Backend
    work: Work | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of its inputs, as planned."""
    kept: frozenset[str] = frozenset()
    """Outputs that may stay in the backend's memory, being written to by nobody."""
    faults: FaultPolicy = DEFAULT_POLICY
    complaints: Complaints = field(default_factory=Complaints)
    """Shared by the segments that are to warn of a backend once between them."""


def compile_segment(
    model: Model,
    segment: Segment,
    options: RuntimeOptions,
    delegation: Delegation | None = None,
    *,
    compile_body: CompileBody | None = None,
) -> CompiledSegment:
    """Compile one segment at its planned width, for the backend it is planned for.

    What another backend than the runtime's CPU kernels fails at, now or in any run, those do.

    Args:
        delegation: for a segment on another backend; by default the backend of that name as it comes.
        compile_body: compiles the bodies of a segment that has plans for them; by default as they come.

    Raises:
        BackendError: the runtime refuses it; names the segment and its nodes.
        ConfigError: there is no such backend here.
    """
    if segment.bodies:
        return compile_control_flow(model, segment, options, compile_body=compile_body or _compile_body)
    extracted = model.extract(segment.nodes, segment.inputs, segment.outputs, name=segment.name)
    node_names = tuple(model.graph.nodes[index].name for index in segment.nodes)
    session: Any
    try:
        if segment.backend == CPU_BACKEND:
            session = _compile_on_cpu(extracted, width=segment.width, options=options)
        else:
            given = Delegation(backend=open_backend(segment.backend)) if delegation is None else delegation
            guarded = compile_guarded(
                given.backend,
                extracted,
                fallback=cpu_backend(),
                width=segment.width,
                options=CompileOptions(session_options=options, work=given.work, shapes=given.shapes),
                policy=given.faults,
                complaints=given.complaints,
            )
            session = DelegatedSession(guarded, described=load_session(extracted.proto), kept=given.kept)
    except FOREIGN_EXCEPTIONS as error:
        raise both(BackendError, type(error))(
            f"the runtime refuses a part of the model: {error}",
            where=f"segment {segment.name!r}, nodes {', '.join(node_names[:8])}",
            fix='run the model whole with split="never"',
        ) from error
    return CompiledSegment(
        name=segment.name,
        node_names=node_names,
        width=segment.width,
        session=session,
        inputs=segment.inputs,
        outputs=segment.outputs,
        weights=extracted.weights,
    )


def _compile_on_cpu(extracted: SegmentModel, *, width: int, options: RuntimeOptions) -> Any:
    """The runtime's own session, which can be bound to arenas. Raises: whatever the runtime raises for it."""
    try:
        return cpu_backend().compile(extracted, width=width, options=CompileOptions(session_options=options)).session
    except BackendError as error:
        # Of the same failure more can be said here: which nodes these are.
        raise (error.__cause__ or error) from None


def _delegations(
    model: Model, plan: Plan, backends: Mapping[str, Backend], planned: OpGraph | None, faults: FaultPolicy
) -> dict[int, Delegation]:
    """By segment."""
    delegated = [segment for segment in plan.segments if segment.backend != CPU_BACKEND]
    if not delegated:
        return {}
    graph = model.inferred() if planned is None else planned
    works = segment_works(plan, graph, [segment.index for segment in delegated])
    on_host = {segment.backend for segment in delegated if backends[segment.backend].info.memory.is_host}
    kept = kept_outputs(plan, graph.output_names, on_host)
    complaints = Complaints()
    return {
        segment.index: Delegation(
            backend=backends[segment.backend],
            work=works[segment.index],
            shapes=static_shapes(graph, segment.inputs),
            kept=kept[segment.index],
            faults=faults,
            complaints=complaints,
        )
        for segment in delegated
    }


def _open_backends(plan: Plan, given: Mapping[str, Backend]) -> dict[str, Backend]:
    """Each backend that the plan or one of its bodies' names, by name; one for all, so that they share its queue."""
    # Segments name a backend as it names itself, which may not be how it was asked for.
    opened = {**given, **{backend.info.name: backend for backend in given.values()}}
    stack = [plan]
    while stack:
        for segment in stack.pop().segments:
            stack.extend(body.plan for body in segment.bodies)
            if segment.backend != CPU_BACKEND and segment.backend not in opened:
                opened[segment.backend] = open_backend(segment.backend)
    return opened


def _compile_body(
    body: Body[Model],
    plan: Plan,
    options: RuntimeOptions,
    lanes: Lanes,
    *,
    backends: Mapping[str, Backend] | None = None,
    faults: FaultPolicy = DEFAULT_POLICY,
) -> Executor:
    # Sizes may change with every iteration, and planning an arena takes longer than the allocator.
    is_static = all(info.is_static for info in body.model.graph.inputs)
    return compile_plan(body.model, plan, options, backends=backends, faults=faults, lanes=lanes, has_arenas=is_static)


def compile_plan(
    model: Model,
    plan: Plan,
    options: RuntimeOptions,
    *,
    progress: Progress | None = None,
    memory_model: MemoryModel | None = None,
    prefetcher: WeightPrefetcher | None = None,
    backends: Mapping[str, Backend] | None = None,
    planned: OpGraph | None = None,
    faults: FaultPolicy = DEFAULT_POLICY,
    lanes: Lanes | None = None,
    has_arenas: bool = True,
) -> Executor:
    """Compile every segment of ``plan`` and return an executor on this process's lanes.

    Args:
        progress: told as segments are done.
        backends: those that segments name, by name; others are opened.
        planned: the graph with types in the shapes that were planned for, where the model leaves them open.
        faults: what is done about backends that fail; each is warned of once.
        memory_model: of the plan, if the caller has one (made with ``place_outputs=False``).
        prefetcher, has_arenas: see `Executor`.
        lanes: others than this process's.
    """
    opened = _open_backends(plan, backends or {})
    delegations = _delegations(model, plan, opened, planned, faults)
    compile_body = partial(_compile_body, backends=opened, faults=faults)
    segments = []
    for done, segment in enumerate(plan.segments, start=1):
        delegation = delegations.get(segment.index)
        segments.append(compile_segment(model, segment, options, delegation, compile_body=compile_body))
        if progress is not None:
            progress(done, len(plan.segments))
    graph = model.graph
    if memory_model is None and has_arenas and not plan.is_whole:
        # Without the nodes: what segments need inside is of no matter to arenas, and costs most of a memory model.
        bare = replace(plan, segments=tuple([replace(segment, nodes=()) for segment in plan.segments]))
        memory_model = MemoryModel(bare, model.inferred(), place_outputs=False)
    return Executor(
        plan,
        segments,
        inputs=[info.name for info in (*graph.inputs, *graph.overridable)],
        outputs=[info.name for info in graph.outputs],
        pool=lane_pool() if lanes is None else lanes,
        memory_model=memory_model,
        prefetcher=prefetcher,
        view_ops=() if plan.is_whole else find_view_ops(graph, plan),
        has_arenas=has_arenas,
    )
