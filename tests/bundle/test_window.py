"""What is read and dropped when there is not room for all weights: decisions alone, nothing is mapped here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.bundle._window import BUFFERED, Act, Step, Window, settle

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12)


class World:
    """Memory as the steps leave it, kept apart from what the window believes."""

    def __init__(self, sizes: Sequence[int], budget: int) -> None:
        self.sizes = sizes
        self.window = Window(sizes, budget)
        self.held: set[int] = set()
        self.running: list[int] = []
        self.read_bytes = 0
        self.most_bytes = 0

    def step(self) -> Step | None:
        step = self.window.next()
        if step is not None:
            if step.act is Act.READ:
                assert step.segment not in self.held, "nothing is read that is there"
                self.held.add(step.segment)
                self.read_bytes += self.sizes[step.segment]
                self.most_bytes = max(self.most_bytes, self.bytes)
            else:
                assert step.segment in self.held
                assert step.segment not in self.running, "nothing in use is dropped"
                self.held.discard(step.segment)
            self.window.done(step)
            assert self.window.held_bytes == self.bytes
        return step

    @property
    def bytes(self) -> int:
        return sum(self.sizes[segment] for segment in self.held)

    def settle(self) -> None:
        """Do all there is to do."""
        for _ in range(10 * len(self.sizes) + 10):
            if self.step() is None:
                return
        pytest.fail("it never comes to rest")

    def start(self, segment: int) -> None:
        self.window.start(segment)
        self.running.append(segment)
        for _ in range(10 * len(self.sizes) + 10):
            if self.window.is_present(segment):
                assert segment in self.held or not self.sizes[segment]
                return
            assert self.step() is not None, "a segment that is to run is left waiting"
        pytest.fail("the weights of a segment never come")

    def end(self, segment: int) -> None:
        self.window.end(segment)
        self.running.remove(segment)

    def run(self) -> None:
        for segment in range(len(self.sizes)):
            self.start(segment)
            self.settle()
            self.end(segment)
        self.settle()


@given(SIZES, st.integers(0, 120))
def test_every_segment_that_starts_gets_its_weights_and_the_budget_is_kept(sizes: list[int], budget: int) -> None:
    world = World(sizes, budget)
    for _ in range(3):
        world.run()
    assert world.most_bytes <= max(budget, max(sizes)), "only what runs may exceed the budget, and only if it must"


@given(SIZES, st.data())
def test_runs_side_by_side_never_wait_for_each_other(sizes: list[int], data: st.DataObject) -> None:
    world = World(sizes, data.draw(st.integers(0, 60)))
    places = [-1, -1, -1]  # per run the segment it runs
    for _ in range(40):
        run = data.draw(st.integers(0, 2))
        if places[run] >= 0:
            world.end(places[run])
        places[run] = (places[run] + 1) % len(sizes)
        world.start(places[run])
        for _ in range(data.draw(st.integers(0, 4))):
            world.step()
        if data.draw(st.integers(0, 9)) == 0:
            world.window.set_budget(data.draw(st.integers(0, 60)))
    world.settle()


@given(SIZES, st.integers(0, 120))
def test_what_fits_is_read_once(sizes: list[int], spare: int) -> None:
    world = World(sizes, sum(sizes) + spare)
    for _ in range(3):
        world.run()
    assert world.read_bytes == sum(sizes)


@given(st.integers(5, 40), st.integers(0, 39))
def test_what_does_not_fit_is_read_again_but_for_what_stays(count: int, budget: int) -> None:
    world = World([1] * count, budget)
    world.run()
    before = world.read_bytes
    runs = 5
    for _ in range(runs):
        world.run()
    missing = max(0, count - budget)
    read = (world.read_bytes - before) / runs
    assert missing <= read <= min(count, missing + BUFFERED + 1) if missing else read == 0


def test_the_next_segment_is_asked_for_while_one_runs() -> None:
    world = World([1] * 10, 3)
    world.start(0)
    world.settle()
    assert world.held == {0, 1, 2}


def test_what_stays_is_spread_over_the_cycle() -> None:
    kept = sorted(settle([1] * 40, 20 + BUFFERED))
    assert len(kept) in (19, 20)
    assert max(after - before for before, after in itertools.pairwise(kept)) <= 3


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 200))
def test_what_stays_leaves_room_for_what_passes(sizes: list[int], budget: int) -> None:
    kept = settle(sizes, budget)
    if sum(sizes) <= budget:
        assert kept == frozenset(range(len(sizes)))
    else:
        assert sum(sizes[segment] for segment in kept) <= max(0, budget - BUFFERED * max(sizes))


def test_a_segment_found_to_need_less_makes_room() -> None:
    world = World([4, 4], 4)
    world.start(0)
    world.sizes = [1, 4]
    world.window.resize(0, 1)
    assert world.window.held_bytes == 1
    world.end(0)
    world.window.resize(1, 0)
    assert world.window.is_present(1)
    assert world.window.next() is None


@given(SIZES, st.integers(0, 60))
def test_a_budget_that_shrinks_is_soon_kept_again(sizes: list[int], budget: int) -> None:
    world = World(sizes, sum(sizes))
    world.run()
    world.window.set_budget(budget)
    world.settle()
    assert world.bytes <= budget
