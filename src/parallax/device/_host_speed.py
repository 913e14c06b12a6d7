"""How fast this machine's processor multiplies matrices: the yardstick by which emulated devices are scaled."""

from __future__ import annotations

import functools
import time

import numpy as np

_SIZE = 768
_SETTLE_S = 0.06
"""Threads of a pool that ended its run just now may spin for so long yet."""
_MEASURE_S = 0.25
_ROUNDS = 7


@functools.cache
def host_gemm_flops() -> float:
    """FLOP/s of a large float32 matrix product through numpy, with the threads its library takes; measured once.

    The quickest of many, with pauses, since others' work can only slow it down. A third of a second.
    """
    left = np.full((_SIZE, _SIZE), 0.5, np.float32)
    product = left @ left
    seconds: list[float] = []
    time.sleep(_SETTLE_S)
    until = time.perf_counter() + _MEASURE_S
    while len(seconds) < _ROUNDS or time.perf_counter() < until:
        begin = time.perf_counter()
        np.matmul(left, left, out=product)
        seconds.append(time.perf_counter() - begin)
        time.sleep(0.001)
    return 2.0 * _SIZE**3 / max(min(seconds), 1e-9)
