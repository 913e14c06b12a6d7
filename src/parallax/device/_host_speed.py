"""How fast this machine's processor multiplies matrices: the yardstick by which emulated devices are scaled."""

from __future__ import annotations

import functools
import time

import numpy as np

_SIZE = 768
_ROUNDS = 7


@functools.cache
def host_gemm_flops() -> float:
    """FLOP/s of a large float32 matrix product through numpy, with the threads its library takes; measured once.

    The quickest of a few: others' work can only slow it down. Some tens of milliseconds.
    """
    left = np.full((_SIZE, _SIZE), 0.5, np.float32)
    product = left @ left
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        np.matmul(left, left, out=product)
        seconds.append(time.perf_counter() - begin)
    return 2.0 * _SIZE**3 / max(min(seconds), 1e-9)
