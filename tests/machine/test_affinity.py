"""Segments on all cores: the thread that runs one is moved off the cores of its pool, and is free again afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import CPU_DEVICE, RuntimeOptions, make_session
from parallax.engine import Executor
from parallax.engine._lanes import LanePool
from parallax.errors import ParallaxError
from parallax.machine import current_core
from parallax.machine._affinity import cores_of_pool, move_to_first_of, own_this_thread, unbind
from tests.engine._plans import executor, part_of, segment_model

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to cores here")


@pytest.fixture
def allowed() -> Iterator[list[int]]:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two cores")
    yield sorted(before)
    os.sched_setaffinity(0, before)


class Spy:
    """A session that notes on which cores the threads that run it may be; or fails."""

    def __init__(self, session: Any, fails: bool = False) -> None:
        self._session = session
        self.fails = fails
        self.seen: list[set[int]] = []
        self.on: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_ort_values(self, *arguments: Any) -> Any:
        self.seen.append(os.sched_getaffinity(0))
        self.on.append(-1 if current_core is None else current_core())
        if self.fails:
            raise RuntimeError("as it was told to")
        return self._session.run_with_ort_values(*arguments)


def spied(widths: tuple[int, int], cores: int) -> tuple[Executor, list[Spy]]:
    """Two segments in a row, of these widths."""
    made = executor([("Relu", ["x"], "a"), ("Neg", ["a"], "b")], ["b"], pool=LanePool(cores), cores=cores)
    spies = [Spy(segment.session) for segment in made.segments]
    plan = replace(made.plan, segments=tuple(map(with_width, made.plan.segments, widths)))
    segments = [
        replace(segment, width=width, session=spy)
        for segment, width, spy in zip(made.segments, widths, spies, strict=True)
    ]
    return Executor(plan, segments, inputs=["x"], outputs=["b"], pool=made.pool), spies


def with_width(segment: Any, width: int) -> Any:
    return replace(segment, width=width)


def run(made: Executor) -> np.ndarray[Any, Any]:
    value = C.OrtValue.ortvalue_from_numpy(np.float32([-1, 2]), CPU_DEVICE)
    result: np.ndarray[Any, Any] = made.run({"x": value}, ["b"])[0].numpy()
    return result


def from_core(made: Executor, allowed: list[int], core: int) -> None:
    """Run it from that core, free to go anywhere."""
    os.sched_setaffinity(0, {core})
    os.sched_setaffinity(0, allowed)
    np.testing.assert_array_equal(run(made), [0, -2])
    assert os.sched_getaffinity(0) == set(allowed)


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[int], int]]:
    """How the threads that run segments bind themselves: where to, and on which core they are then."""
    made: list[tuple[set[int], int]] = []
    bind = os.sched_setaffinity

    def noted(thread: int, cores: Any) -> None:
        bind(thread, cores)
        if thread == 0:
            made.append((set(cores), -1 if current_core is None else current_core()))

    monkeypatch.setattr(os, "sched_setaffinity", noted)
    return made


@pytest.fixture
def on_the_last(allowed: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """The core that threads are told they are on: the system may move them at any moment, and a test must not."""
    monkeypatch.setattr("parallax.machine._affinity.current_core", lambda: allowed[-1])
    return allowed[-1]


def test_the_thread_is_moved_to_the_core_that_the_pool_leaves(
    allowed: list[int], bindings: list[tuple[set[int], int]], on_the_last: int
) -> None:
    made, spies = spied((len(allowed), 1), len(allowed))
    run(made)
    # Where the system moves it afterwards is the system's; that it was there when it was bound there is ours.
    assert bindings[0] == ({on_the_last}, on_the_last), "for the whole run"
    assert bindings[1] == ({allowed[0]}, allowed[0]), "for the segment on all cores"
    assert bindings[2][0] == set(allowed)
    assert spies[0].seen == [set(allowed)], "free to be moved on"
    assert spies[1].seen == [{on_the_last}], "back for the segment on one"
    assert os.sched_getaffinity(0) == set(allowed)


def test_a_thread_that_is_there_already_is_left_alone(
    allowed: list[int], bindings: list[tuple[set[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Told so, for the system may move it at any moment.
    monkeypatch.setattr("parallax.machine._affinity.current_core", lambda: allowed[0])
    assert move_to_first_of(frozenset(allowed)) is None
    assert bindings == []


def test_a_run_on_every_core_stays_on_the_core_that_the_lanes_keep_off(allowed: list[int]) -> None:
    made, spies = spied((1, 1), len(allowed))
    for _ in range(3):
        from_core(made, allowed, allowed[-1])
    assert all(len(seen) == 1 for seen in spies[0].seen)


def test_a_run_on_some_of_the_cores_goes_where_it_is_put(allowed: list[int]) -> None:
    made, spies = spied((1, 1), len(allowed) + 1)  # a pool larger than the machine: nothing is known of its cores
    from_core(made, allowed, allowed[-1])
    assert spies[0].seen == [set(allowed)]


@pytest.mark.usefixtures("on_the_last")
def test_beside_another_run_the_thread_goes_where_it_is_put(
    allowed: list[int], bindings: list[tuple[set[int], int]]
) -> None:
    made, spies = spied((len(allowed), 1), len(allowed))
    other = made.pool.lease(1)
    run(made)
    made.pool.give_back(other)
    assert spies[0].seen == [set(allowed)]
    assert bindings == [], "nobody bound it"


def test_a_segment_that_fails_leaves_the_thread_free(allowed: list[int]) -> None:
    made, spies = spied((len(allowed), 1), len(allowed))
    spies[0].fails = True
    with pytest.raises(ParallaxError):
        run(made)
    assert spies[0].seen
    assert os.sched_getaffinity(0) == set(allowed)


def test_a_thread_that_its_owner_bound_elsewhere_is_left_there(allowed: list[int]) -> None:
    made, spies = spied((len(allowed), 1), len(allowed))
    os.sched_setaffinity(0, {allowed[1]})
    run(made)
    assert spies[0].seen == [{allowed[1]}]
    assert os.sched_getaffinity(0) == {allowed[1]}


def test_threads_of_ours_are_moved_from_where_they_are_bound(allowed: list[int]) -> None:
    found: list[set[int]] = []

    def lane(prepare: Callable[[], None]) -> None:
        prepare()
        os.sched_setaffinity(0, {allowed[1]})
        before = move_to_first_of(frozenset(allowed))
        found.append(os.sched_getaffinity(0))
        if before is not None:
            unbind(before)
        found.append(os.sched_getaffinity(0))

    for prepare in (own_this_thread, lambda: None):
        thread = threading.Thread(target=lane, args=(prepare,))
        thread.start()
        thread.join()
    assert found[:2] == [set(allowed), {allowed[1]}]
    assert found[2:] == [{allowed[1]}, {allowed[1]}], "only those"


def test_only_what_takes_every_core_is_given_cores(allowed: list[int]) -> None:
    count = len(allowed)
    assert cores_of_pool(count) == tuple(allowed[1:])
    assert cores_of_pool(1) == cores_of_pool(count + 1) == ()


@pytest.mark.parametrize("given", [False, True])
def test_pools_are_bound_unless_the_caller_says_how(
    allowed: list[int], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    real = onnxruntime.SessionOptions

    def options() -> Any:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    key, mine = "session.intra_op_thread_affinities", ";".join(["1"] * (len(allowed) - 1))
    config = ((key, mine),) if given else ()
    make_session(part_of(segment_model("Relu", ["x"], "y")), width=len(allowed), options=RuntimeOptions(config=config))
    expected = mine if given else ";".join(str(core + 1) for core in allowed[1:])
    assert made[0].get_session_config_entry(key) == expected
