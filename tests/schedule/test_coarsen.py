"""Tasks that follow each other are joined, and nothing comes later for it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.schedule import AdaptivePolicy, RegionTasks, Schedule, Task, simulate
from parallax.schedule._coarsen import coarsen
from parallax.schedule._simulate import SimulatedRun

CORES = 2


def made_of(tasks: list[Task], regions: set[int]) -> RegionTasks:
    return RegionTasks(
        tasks=tuple(tasks),
        groups=tuple((task.index,) for task in tasks),
        region_of=tuple(task.index if task.index in regions else None for task in tasks),
    )


def scheduled(made: RegionTasks, *, overhead_ns: int = 0) -> tuple[Schedule, SimulatedRun]:
    policy = AdaptivePolicy(segment_overhead_ns=overhead_ns)
    schedule = policy.assign(made.tasks, cores=CORES, lanes=CORES + 1)
    return schedule, simulate(made.tasks, schedule, segment_overhead_ns=overhead_ns)


def cpu(index: int, before: tuple[int, ...], ns: int) -> Task:
    return Task(index=index, predecessors=before, cost_ns=((1, ns), (2, ns)))


def device(index: int, before: tuple[int, ...], ns: int) -> Task:
    return Task(index=index, predecessors=before, cost_ns=((0, ns),))


def test_a_chain_becomes_one_task() -> None:
    made = made_of([cpu(0, (), 10), cpu(1, (0,), 20), cpu(2, (1,), 30)], set())
    coarse, _ = coarsen(made, *scheduled(made))
    assert [(task.predecessors, task.cost_ns) for task in coarse.tasks] == [((), ((1, 60), (2, 60)))]
    assert coarse.groups == ((0, 1, 2),)


def test_a_chain_is_not_joined_beyond_what_the_device_waits_for() -> None:
    # 0 -> 1 -> 3 on the CPU, and the device waits for 0 alone.
    made = made_of([cpu(0, (), 10), cpu(1, (0,), 50), device(2, (0,), 50), cpu(3, (1, 2), 10)], {2})
    coarse, _ = coarsen(made, *scheduled(made))
    assert (0,) in coarse.groups
    assert coarse.region_of.count(2) == 1


def test_what_waits_for_the_device_does_not_make_what_is_before_it_wait() -> None:
    made = made_of([device(0, (), 50), cpu(1, (), 10), cpu(2, (0, 1), 10)], {0})
    coarse, _ = coarsen(made, *scheduled(made))
    assert len(coarse.tasks) == 3


@st.composite
def graphs(draw: st.DrawFn) -> RegionTasks:
    size = draw(st.integers(1, 30))
    tasks, regions = [], set()
    for index in range(size):
        before = tuple(sorted(draw(st.sets(st.integers(0, index - 1), max_size=3)))) if index else ()
        ns = draw(st.integers(0, 50))
        if draw(st.sampled_from([True, False, False])):
            regions.add(index)
            tasks.append(device(index, before, ns))
        else:
            tasks.append(
                Task(index=index, predecessors=before, cost_ns=((1, 2 * ns), (2, ns + draw(st.integers(0, ns)))))
            )
    return made_of(tasks, regions)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(0, 20))
def test_joined_tasks_cover_all_in_a_topological_order(made: RegionTasks, overhead_ns: int) -> None:
    schedule, run = scheduled(made, overhead_ns=overhead_ns)
    coarse, kept = coarsen(made, schedule, run)
    assert sorted(group for inside in coarse.groups for group in inside) == list(range(len(made.tasks)))
    home = {group: number for number, inside in enumerate(coarse.groups) for group in inside}
    for task in made.tasks:
        for before in task.predecessors:
            assert home[before] <= home[task.index]
            if home[before] != home[task.index]:
                assert home[before] in coarse.tasks[home[task.index]].predecessors
    for number, inside in enumerate(coarse.groups):
        region = coarse.region_of[number]
        assert (region is None) or inside == (region,)
        for place, (width, ns) in enumerate(coarse.tasks[number].cost_ns):
            assert ns == sum(made.tasks[group].cost_ns[place][1] for group in inside)
            assert all(made.tasks[group].cost_ns[place][0] == width for group in inside)
    simulate(coarse.tasks, kept, segment_overhead_ns=overhead_ns)
