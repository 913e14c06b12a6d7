"""Small plans for the tests of `parallax.memory`: written by hand, drawn at random, and followed step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from parallax.schedule import PLAN_FORMAT_VERSION, Plan, Provenance, Segment, verify_plan

PROVENANCE = Provenance(
    source="default", whole_ns=None, chosen_ns=None, candidates=(), runtime_version="", machine="", reason="a test"
)


def plan_of(
    rows: Sequence[tuple[Sequence[str], Sequence[str]]],
    *,
    lanes: int = 2,
    cores: int = 2,
    widths: Sequence[int] | None = None,
    priorities: Sequence[int] | None = None,
    peaks: Sequence[int] | None = None,
    backfill: bool = True,
    extra: Mapping[int, Sequence[int]] | None = None,
) -> Plan:
    """A plan from (inputs, outputs) per segment; who makes what others read precedes them, and ``extra`` besides."""
    made: dict[str, int] = {}
    segments = []
    for index, (reads, writes) in enumerate(rows):
        before = {made[name] for name in reads if name in made} | set((extra or {}).get(index, ()))
        made.update(dict.fromkeys(writes, index))
        segments.append(
            Segment(
                index=index,
                name=f"segment_{index}",
                nodes=(index,),
                inputs=tuple(reads),
                outputs=tuple(writes),
                predecessors=tuple(sorted(before)),
                width=1 if widths is None else widths[index],
                priority=0 if priorities is None else priorities[index],
                lane=None,
                cost_ns=1,
                peak_bytes=0 if peaks is None else peaks[index],
                reason="",
            )
        )
    plan = Plan(
        format_version=PLAN_FORMAT_VERSION,
        structure_digest="",
        policy="by hand",
        cores=cores,
        lanes=lanes,
        backfill=backfill,
        segments=tuple(segments),
        provenance=PROVENANCE,
    )
    verify_plan(plan)
    return plan


def chain(count: int, **settings: object) -> Plan:
    """x -> s0 -> t0 -> s1 -> t1 ..."""
    return plan_of([((f"t{i - 1}" if i else "x",), (f"t{i}",)) for i in range(count)], **settings)  # type: ignore[arg-type]


@st.composite
def plans(
    draw: st.DrawFn, *, max_segments: int = 10, max_outputs: int = 2, lanes: Sequence[int] = (1, 2, 3, 4)
) -> tuple[Plan, tuple[str, ...]]:
    """A random plan and its outputs of the model: dead tensors, pure control dependencies and all."""
    count = draw(st.integers(1, max_segments))
    made: list[str] = []
    rows: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    extra: dict[int, tuple[int, ...]] = {}
    for index in range(count):
        # Mostly what was made lately, as in models.
        near = made[-6:] if draw(st.booleans()) else made
        reads = draw(st.sets(st.sampled_from(near), max_size=3)) if near else set()
        writes = tuple(f"t{index}_{number}" for number in range(draw(st.integers(0, max_outputs))))
        rows.append((tuple(sorted(reads)) or ("x",), writes))
        if index and draw(st.integers(0, 4)) == 0:
            extra[index] = (draw(st.integers(0, index - 1)),)
        made += writes
    outputs = tuple(sorted(draw(st.sets(st.sampled_from(made), max_size=3)))) if made else ()
    alike = draw(st.booleans())
    cores = draw(st.integers(1, 4))
    plan = plan_of(
        rows,
        lanes=draw(st.sampled_from(list(lanes))),
        cores=cores,
        widths=[1 if alike else draw(st.integers(1, cores)) for _ in range(count)],
        priorities=[draw(st.integers(-2, 2)) for _ in range(count)],
        backfill=draw(st.booleans()),
        extra=extra,
    )
    return plan, outputs


def sizes_of(plan: Plan, draw: st.DrawFn, *, unknown: bool = True) -> dict[str, int | None]:
    """A size for each boundary tensor: small and large, equal ones, none, and unknown."""
    some = st.sampled_from([0, 1, 64, 65, 100, 128, 1000, 4096]) | st.integers(1, 100_000)
    size = st.none() | some | some | some if unknown else some
    return {name: draw(size) for segment in plan.segments for name in segment.outputs}


def with_peaks(plan: Plan, peaks: Sequence[int]) -> Plan:
    return replace(
        plan,
        segments=tuple(replace(item, peak_bytes=peak) for item, peak in zip(plan.segments, peaks, strict=True)),
    )


def alive_tensors(plan: Plan, outputs: Iterable[str], started: Iterable[int], done: Iterable[int]) -> frozenset[str]:
    """What must hold its bytes at a moment of a run, by definition: made (or being made), and still to be read."""
    started, done, kept = frozenset(started), frozenset(done), frozenset(outputs)
    alive = set()
    for index in started:
        for name in plan.segments[index].outputs:
            uses = {index} | {other.index for other in plan.segments if name in other.inputs}
            if name in kept or not uses <= done:
                alive.add(name)
    return frozenset(alive)


def moments(plan: Plan) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """Every (started, done) that some execution passes through, on as many lanes as the plan has segments."""
    first: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    seen = {first}
    stack = [first]
    while stack:
        started, done = stack.pop()
        yield started, done
        following = [
            (started | {item.index}, done)
            for item in plan.segments
            if item.index not in started and done.issuperset(item.predecessors)
        ]
        following += [(started, done | {index}) for index in started - done]
        for moment in following:
            if moment not in seen:
                seen.add(moment)
                stack.append(moment)
