"""The parts that a batcher's scheduler is made of: the fitted time of a batch, the limit, the queue."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.serving.policy import BatchLimit, CostFit, ShapeClass, Ticket, WaitingRequests

SIZES = st.integers(1, 64)


@given(
    a=st.floats(0, 0.1),
    c=st.floats(1e-4, 0.1),
    sizes=st.lists(SIZES, min_size=60, max_size=120),
    slower=st.floats(0.2, 5),
)
def test_a_fit_finds_the_line_that_batches_keep_to_also_when_all_becomes_slower(a, c, sizes, slower):
    fit = CostFit([(1, a + c), (8, a + 8 * c)])
    for size in (*sizes, 1, 32, 1, 32):
        fit.observe(size, a + c * size)
    assert fit.mean_s(16) == pytest.approx(a + 16 * c, rel=1e-3)
    assert not fit.is_bad
    # Some hundred batches later, nothing of the old times counts.
    for size in ([*sizes, 1, 16]) * 5:
        fit.observe(size, slower * (a + c * size))
    assert fit.mean_s(16) == pytest.approx(slower * (a + 16 * c), rel=0.05)


@given(st.lists(st.tuples(SIZES, st.floats(0, 10)), max_size=80))
def test_whatever_batches_take_no_term_is_negative_and_percentiles_lie_above_the_mean(observed):
    fit = CostFit([(1, 0.01)])
    for size, seconds in observed:
        fit.observe(size, seconds)
        assert fit.a_s >= 0
        assert fit.c_s >= 0
        assert fit.p95_s(size) >= fit.mean_s(size)
        assert fit.mean_s(size + 1) >= fit.mean_s(size)


@given(st.floats(0, 0.01), st.floats(0, 0.01), st.floats(0.0001, 1))
def test_the_largest_batch_that_fits_fits_and_one_more_does_not(a, c, seconds):
    fit = CostFit([(1, a + c), (4, a + 4 * c)])
    largest = fit.largest(seconds)
    assert largest >= 0
    if largest and fit.c_s > 1e-9:
        assert fit.p95_s(largest) <= seconds * (1 + 1e-6)
    if fit.c_s > 1e-9 and largest < 10**8:
        assert fit.p95_s(largest + 1) >= seconds * (1 - 1e-6)


def test_one_size_alone_leaves_the_slope_that_was_measured():
    fit = CostFit([(1, 0.010), (8, 0.024)])
    assert (fit.a_s, fit.c_s) == pytest.approx((0.008, 0.002))
    for _ in range(200):
        fit.observe(1, 0.020)
    # Twice as slow, of the same shape.
    assert fit.mean_s(1) == pytest.approx(0.020, rel=0.01)
    assert fit.mean_s(8) == pytest.approx(0.048, rel=0.1)


def test_a_single_stall_does_not_change_what_is_expected():
    fit = CostFit([(1, 0.010), (8, 0.024)])
    for _ in range(50):
        fit.observe(1, 0.010)
    before = fit.mean_s(1)
    fit.observe(1, 1.0)
    assert fit.mean_s(1) < 1.1 * before


def test_the_95th_percentile_covers_nineteen_of_twenty_batches():
    draw = random.Random(1)
    fit = CostFit([(1, 0.011), (8, 0.018)])
    late = 0
    for number in range(2000):
        size = draw.choice([1, 2, 4, 8])
        seconds = (0.010 + 0.001 * size) * draw.lognormvariate(0, 0.2)
        late += number >= 100 and seconds > fit.p95_s(size)
        fit.observe(size, seconds)
    assert 0.03 < late / 1900 < 0.08


def test_times_that_are_no_function_of_the_size_make_a_fit_bad():
    draw = random.Random(2)
    fit = CostFit([(1, 0.01)])
    for _ in range(100):
        fit.observe(draw.choice([1, 8]), draw.choice([0.002, 0.03]))
    assert fit.is_bad


def test_a_limit_rises_by_one_after_full_batches_and_falls_by_a_tenth_after_late_ones():
    limit = BatchLimit(4, 32)
    limit.observe(3, was_late=False, may_shrink=True)
    assert limit.size == 4
    for expected in (5, 6, 7):
        limit.observe(limit.size, was_late=False, may_shrink=True)
        assert limit.size == expected
    limit.observe(7, was_late=True, may_shrink=False)
    assert limit.size == 7
    limit.observe(7, was_late=True, may_shrink=True)
    assert limit.size == 6
    for _ in range(100):
        limit.observe(1, was_late=True, may_shrink=True)
    assert limit.size == 1
    for _ in range(100):
        limit.observe(limit.size, was_late=False, may_shrink=True)
    assert limit.size == 32


# -- the queue -------------------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2), st.one_of(st.none(), st.floats(0, 10))),
        st.tuples(st.just("remove"), st.integers(0, 60)),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("overdue"), st.floats(0, 10)),
    ),
    max_size=60,
)


@given(OPERATIONS)
@settings(max_examples=300)
def test_a_queue_holds_what_was_added_and_not_taken_out_whatever_happens(operations):
    queue, present, latest = WaitingRequests(), {}, {}
    for number, operation in enumerate(operations):
        if operation[0] == "add":
            _, client, shapes, start = operation
            ticket = Ticket(number=number, shapes=ShapeClass(shapes), client=client, arrived_s=number)
            queue.add(ticket, latest_start_s=start)
            present[number], latest[number] = ticket, start
        elif operation[0] == "remove":
            assert queue.remove(operation[1]) is present.pop(operation[1], None)
        elif operation[0] == "take":
            first = queue.first()
            assert (first is None) is (not present)
            if first is not None:
                taken = queue.take(first, operation[1], lambda ticket, count: True)
                assert taken[0] is first
                assert len({ticket.shapes for ticket in taken}) == 1
                same = [ticket for ticket in present.values() if ticket.shapes == first.shapes]
                assert len(taken) == min(operation[1], len(same))
                for ticket in taken:
                    # The oldest of its client and class.
                    others = [
                        other.number for other in same if other.client == ticket.client and other in present.values()
                    ]
                    assert ticket.number == min(others)
                    del present[ticket.number]
        else:
            now = operation[1]
            while (late := queue.overdue(now)) is not None:
                assert latest[late.number] < now
                assert present.pop(late.number) is late
            assert not [number for number in present if latest[number] is not None and latest[number] < now]
        assert len(queue) == len(present)
        assert {ticket.number for ticket in queue} == set(present)
        assert queue.clients == len({ticket.client for ticket in present.values()})
        for shapes in range(3):
            assert queue.of_class(ShapeClass(shapes)) == sum(t.shapes.key == shapes for t in present.values())
        starts = [latest[number] for number in present if latest[number] is not None]
        assert queue.next_latest_start_s() == min(starts, default=None)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_clients_are_served_in_turn(clients):
    queue = WaitingRequests()
    for number, client in enumerate(clients):
        queue.add(Ticket(number=number, shapes=ShapeClass("x"), client=client, arrived_s=number), latest_start_s=None)
    served = []
    while (first := queue.first()) is not None:
        (taken,) = queue.take(first, 1, lambda ticket, count: True)
        served.append(taken.client)
    # Between two turns of a client, every other one that waits has one.
    left = {client: clients.count(client) for client in set(clients)}
    while served:
        round_length = sum(count > 0 for count in left.values())
        turn, served = served[:round_length], served[round_length:]
        assert sorted(turn) == sorted(client for client, count in left.items() if count)
        left = {client: max(0, count - 1) for client, count in left.items()}


def test_nobody_waits_twice():
    queue = WaitingRequests()
    ticket = Ticket(number=1, shapes=ShapeClass("x"), arrived_s=0)
    queue.add(ticket, latest_start_s=None)
    with pytest.raises(InternalError, match="waits already"):
        queue.add(ticket, latest_start_s=None)


def test_deadlines_of_requests_that_left_are_forgotten():
    queue = WaitingRequests()
    for number in range(10_000):
        queue.add(Ticket(number=number, shapes=ShapeClass("x"), arrived_s=0), latest_start_s=1e6 + number)
        queue.remove(number)
    assert queue.next_latest_start_s() is None
