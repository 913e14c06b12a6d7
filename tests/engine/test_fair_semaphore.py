"""A semaphore that is handed on in the order of arrival."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from parallax.engine._fair_semaphore import FairSemaphore

LIMIT_S = 60


def wait_for(semaphore: FairSemaphore, waiting: int) -> None:
    end = time.monotonic() + LIMIT_S
    while len(semaphore._waiting) < waiting:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("places", [1, 3])
def test_so_many_are_in_at_a_time_and_all_get_in(places: int) -> None:
    semaphore, inside, most, done = FairSemaphore(places), list[None](), list[int](), list[None]()

    def work() -> None:
        for _ in range(200):
            with semaphore:
                inside.append(None)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()
        done.append(None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(done) == 8
    assert max(most) <= places
    assert semaphore._free == places


def test_they_get_in_in_the_order_of_arrival_and_one_that_leaves_goes_to_the_end() -> None:
    semaphore, order, threads = FairSemaphore(1), list[int](), list[threading.Thread]()

    def work(number: int) -> None:
        with semaphore:
            order.append(number)

    with semaphore:
        for number in range(6):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            wait_for(semaphore, number + 1)
    with semaphore:
        order.append(6)
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == list(range(7))


def test_a_place_is_free_again_after_an_error() -> None:
    semaphore = FairSemaphore(1)
    with pytest.raises(ValueError, match="wrong"), semaphore:
        raise ValueError("wrong")
    with semaphore:
        assert semaphore._free == 0


def test_a_thread_that_is_in_enters_again_without_waiting() -> None:
    semaphore, order = FairSemaphore(1), list[str]()

    def work() -> None:
        with semaphore:
            order.append("other")

    with semaphore:
        other = threading.Thread(target=work)
        other.start()
        wait_for(semaphore, 1)
        with semaphore:
            order.append("again")
        time.sleep(0.01)
        order.append("still in")
    other.join(LIMIT_S)
    assert order == ["again", "still in", "other"]
    assert semaphore._free == 1
    assert not semaphore._inside


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_an_interrupted_wait_takes_no_place() -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    semaphore, is_over, main = FairSemaphore(1), threading.Event(), threading.get_ident()

    def hold() -> None:
        with semaphore:
            wait_for(semaphore, 1)
            signal.pthread_kill(main, signal.SIGINT)
            is_over.wait(LIMIT_S)

    holder = threading.Thread(target=hold)
    holder.start()
    end = time.monotonic() + LIMIT_S
    while semaphore._free and time.monotonic() < end:
        time.sleep(0.001)
    try:
        with pytest.raises(KeyboardInterrupt), semaphore:
            pass
    finally:
        signal.signal(signal.SIGINT, former)
    assert not semaphore._waiting
    is_over.set()
    holder.join(LIMIT_S)
    assert semaphore._free == 1
    with semaphore:
        assert semaphore._free == 0
