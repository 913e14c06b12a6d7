"""Load on a batcher: an open loop, in which requests come whether the last ones were answered or not, and a closed one.

An open loop is what a server sees. A closed one, in which a caller waits for its answer before it asks again, hides
overload, and is used only to find out how much can be served.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parallax import DeadlineMissed, Overloaded
from parallax.serving import Batcher

Feeds = Mapping[str, np.ndarray]

BURST = 16
"""Requests of a burst, which come at once."""


def arrivals(kind: str, *, rate: float, seconds: float, seed: int) -> list[float]:
    """When requests come: "poisson", or "bursts" of `BURST`, which come as a Poisson process themselves."""
    draw, now, moments = random.Random(seed), 0.0, []
    size = 1 if kind == "poisson" else BURST
    while (now := now + draw.expovariate(rate / size)) < seconds:
        moments += [now] * size
    return moments


def servable(moments: Sequence[float], *, capacity: float, limit_s: float) -> int:
    """How many requests that come at these moments could be served in time at all.

    By a server that serves ``capacity`` a second one by one, knows what comes, and so takes what ends within the limit.
    """
    free = 0.0
    served = 0
    for moment in moments:
        end = max(free, moment) + 1 / capacity
        if end <= moment + limit_s:
            free, served = end, served + 1
    return served


@dataclass(slots=True)
class Slice:
    """What became of the requests of some seconds."""

    seconds: float
    servable: int = 0
    """See `servable`."""
    offered: int = 0
    refused: int = 0
    dropped: int = 0
    failed: int = 0
    wrong: int = 0
    lost: int = 0
    """Without an answer long after the end."""
    times_s: list[float] = field(default_factory=list)
    """From when a request was handed over to its answer."""
    lags_s: list[float] = field(default_factory=list)
    """How much later than it was to come a request was handed over: the batcher's threads have Python's lock, too."""
    refusals_s: list[float] = field(default_factory=list)
    """What refusals took."""

    @property
    def admitted(self) -> int:
        return self.offered - self.refused

    def in_time(self, limit_s: float) -> int:
        """Answers within the limit."""
        return sum(taken <= limit_s for taken in self.times_s)


class Answers:
    """Requests to draw from, with the answers that they have to get."""

    def __init__(self, feeds: Sequence[Feeds], run: Callable[[Feeds], Sequence[Any]]) -> None:
        self.feeds = list(feeds)
        for fed in self.feeds:
            for array in fed.values():
                array.flags.writeable = False  # as a server's own buffers: nothing is copied
        self._wanted = [run(fed) for fed in self.feeds]

    def is_right(self, number: int, answer: Sequence[Any]) -> bool:
        """Whether this is the answer to request ``number``, and nearer to it than to any other."""
        return all(
            np.allclose(got, want, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(want).max())))
            for got, want in zip(answer, self._wanted[number], strict=True)
        )

    def are_unlike(self) -> bool:
        """Whether no two requests have answers that could be taken for each other."""
        return not any(
            self.is_right(one, self._wanted[other])
            for one in range(len(self._wanted))
            for other in range(len(self._wanted))
            if one != other
        )


def open_loop(batcher: Batcher, answers: Answers, moments: Sequence[float], *, seconds: float, seed: int) -> Slice:
    """Send a request at each of these moments, and wait for all answers."""
    draw, result = random.Random(seed), Slice(seconds)
    pending: list[tuple[int, float, Future[Any]]] = []
    ends: dict[Future[Any], float] = {}
    begin = time.perf_counter()

    def note(done: Future[Any]) -> None:
        ends[done] = time.perf_counter()

    for moment in moments:
        ahead = begin + moment - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        number = draw.randrange(len(answers.feeds))
        result.offered += 1
        asked = time.perf_counter()
        result.lags_s.append(asked - begin - moment)
        try:
            future = batcher.submit(answers.feeds[number], client=number % 4)
        except Overloaded:
            result.refusals_s.append(time.perf_counter() - asked)
            result.refused += 1
            continue
        future.add_done_callback(note)
        pending.append((number, asked, future))
    for number, asked, future in pending:
        try:
            answer = future.result(60)
        except DeadlineMissed:
            result.dropped += 1
        except TimeoutError:
            result.lost += 1
        except Exception:
            result.failed += 1
        else:
            # The callback may be a moment later than the result.
            result.times_s.append(ends.get(future, time.perf_counter()) - asked)
            result.wrong += not answers.is_right(number, answer)
    return result


def served_by_batcher(batcher: Batcher, answers: Answers, *, seconds: float, ahead: int = 96) -> float:
    """Requests a second with ``ahead`` of them always under way."""
    room, done = threading.Semaphore(ahead), threading.Semaphore(0)
    counted = 0
    lock = threading.Lock()

    def note(future: Future[Any]) -> None:
        nonlocal counted
        with lock:
            counted += future.exception() is None
        room.release()
        done.release()

    sent, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        room.acquire()
        batcher.submit(answers.feeds[sent % len(answers.feeds)]).add_done_callback(note)
        sent += 1
    for _ in range(sent):
        done.acquire()
    return counted / (time.perf_counter() - begin)


def served_by_callers(run: Callable[[Feeds], object], answers: Answers, *, seconds: float, callers: int) -> float:
    """Requests a second of so many threads that call the session itself."""
    counts = [0] * callers
    begin = time.perf_counter()

    def call(caller: int) -> None:
        turn = caller
        while time.perf_counter() - begin < seconds:
            run(answers.feeds[turn % len(answers.feeds)])
            counts[caller] += 1
            turn += callers

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stress:
    """What became of requests of eight threads that cancel and are closed upon."""

    requests: int
    right: int
    cancelled: int
    refused: int
    wrong: int
    lost: int


def stress(open_batcher: Callable[[], Batcher], answers: Answers, *, requests: int, drain: bool, seed: int) -> Stress:
    """Eight threads send, cancel one in ten, and the batcher is closed while they do."""
    batcher = open_batcher()
    counts = {"right": 0, "cancelled": 0, "refused": 0, "wrong": 0, "lost": 0}
    lock, half = threading.Lock(), threading.Barrier(9)

    def caller(number: int) -> None:
        draw = random.Random(seed + number)
        pending = []
        for turn in range(requests // 8):
            if turn == requests // 16:
                half.wait()
            which = draw.randrange(len(answers.feeds))
            try:
                pending.append((which, batcher.submit(answers.feeds[which], client=number)))
            except Exception:  # it is full, or closed
                with lock:
                    counts["refused"] += 1
                continue
            if draw.random() < 0.1:
                pending[-1][1].cancel()
        for which, future in pending:
            try:
                word = "right" if answers.is_right(which, future.result(60)) else "wrong"
            except CancelledError:
                word = "cancelled"
            except TimeoutError:
                word = "lost"
            with lock:
                counts[word] += 1

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    half.wait()
    batcher.close(drain=drain)
    for thread in threads:
        thread.join()
    return Stress(requests=8 * (requests // 8), **counts)
