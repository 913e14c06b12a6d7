from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallax.schedule._fit_queue import EMPTY, FitQueue


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 19), st.none() | st.integers(0, 9), st.integers(-1, 10))))
def test_first_fitting_is_the_first_that_a_scan_finds(places: int, steps: list[tuple[int, int | None, int]]) -> None:
    queue = FitQueue(places)
    held: dict[int, int] = {}
    for place, size, limit in steps:
        if place < places:
            queue.put(place, EMPTY if size is None else size)
            held.pop(place, None)
            if size is not None:
                held[place] = size
        assert queue.first_fitting(limit) == min((p for p, s in held.items() if s <= limit), default=-1)
        assert queue.held == tuple(sorted(held))
        assert queue.smallest == min(held.values(), default=EMPTY)


def test_queue_without_places_holds_nothing() -> None:
    queue = FitQueue(0)
    assert queue.held == ()
    assert queue.first_fitting(1 << 62) == -1
