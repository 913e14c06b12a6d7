"""How long batches of a model take, measured briefly when a batcher is made."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

LEAST_GAIN: Final = 0.03
"""Of the time per request: what a larger batch, or another setting, has to save to be worth it."""

_PATIENCE: Final = 2
"""Sizes in a row that save nothing, after which no larger one is tried. One alone may have a slow kernel, or have been
measured while other work had the cores."""

_LEAST_RUNS: Final = 4
_MOST_RUNS: Final = 64
_WARM_UPS: Final = 1


def measure_setting(
    run: Callable[[int], object],
    *,
    lanes: int,
    sizes: Sequence[int],
    after: Sequence[tuple[int, float]] = (),
    budget_s: float = 0.15,
    most_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[tuple[int, float], ...]:
    """Time batches of these sizes, until two larger ones in a row save nothing any more.

    Args:
        run: runs a batch of a size; called from several threads at once where there are several lanes.
        lanes: that run at the same time.
        sizes: ascending.
        after: what was measured of smaller ones.
        budget_s: for each size; it is run four times at least, and once beforehand.
        most_s: no batch is tried that would take longer.

    Returns: (size, median seconds of a batch with all lanes busy) of what was measured now.

    Raises: what ``run`` raises.
    """
    points = list(after)
    best, vain = best_point(points) if points else None, 0
    for size in sizes:
        if points and most_s is not None and points[-1][1] * size / points[-1][0] > most_s:
            break
        point = size, _median_s(run, size, lanes=lanes, budget_s=budget_s, clock=clock)
        points.append(point)
        if best is None or _is_cheaper(point, best):
            best, vain = point, 0
            continue
        vain += 1
        if vain == _PATIENCE:
            break
    return tuple(points[len(after) :])


def best_point(points: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """That with the least time per request; of those that are as good, the smallest."""
    best = points[0]
    for point in points[1:]:
        if _is_cheaper(point, best):
            best = point
    return best


def best_size(points: Sequence[tuple[int, float]]) -> int:
    """The size of `best_point`."""
    return best_point(points)[0]


def request_s(points: Sequence[tuple[int, float]], lanes: int) -> float:
    """Return the seconds per request at the best size, with all lanes busy."""
    size = best_size(points)
    return dict(points)[size] / (size * lanes)


def _is_cheaper(point: tuple[int, float], other: tuple[int, float]) -> bool:
    return point[1] / point[0] < (1 - LEAST_GAIN) * other[1] / other[0]


def _median_s(
    run: Callable[[int], object], size: int, *, lanes: int, budget_s: float, clock: Callable[[], float]
) -> float:
    for _ in range(_WARM_UPS):
        run(size)
    if lanes == 1:
        return statistics.median(_times(run, size, budget_s, clock))
    samples: list[list[float]] = [[] for _ in range(lanes)]
    errors: list[BaseException] = []
    together = threading.Barrier(lanes)

    def lane(number: int) -> None:
        try:
            together.wait()
            samples[number] = _times(run, size, budget_s, clock)
        except BaseException as error:  # raised where it is waited for
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=lane, args=(number,), daemon=True) for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return statistics.median([sample for lane_samples in samples for sample in lane_samples])


def _times(run: Callable[[int], object], size: int, budget_s: float, clock: Callable[[], float]) -> list[float]:
    times: list[float] = []
    end = clock() + budget_s
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and clock() < end):
        begin = clock()
        run(size)
        times.append(clock() - begin)
    return times
