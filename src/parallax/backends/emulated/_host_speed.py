"""How fast this machine's processor multiplies matrices: the measure by which emulated devices are scaled."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from parallax.backends.ort import CPU_PROVIDER, OnnxRuntimeBackend, empty_host_value, host_bytes
from parallax.machine import NOISY_SHARE, LoadMeter, available_cores

_SIZE: Final = 768
_SETTLE_S: Final = 0.06
"""Threads of a pool that ended its run just now may spin for so long yet."""
_MEASURE_S: Final = 0.25
_LEAST_ROUNDS: Final = 7
_LEAST_SHARE: Final = 0.5
_FLOAT: Final = 1


@functools.cache
def host_gemm_flops() -> float:
    """FLOP/s of a large float32 matrix product on all cores this process may use; measured once, for 0.7 seconds.

    The product is timed many times, and the quickest counts. It runs on the kernels that run models, since those of
    another library may be half as quick on one processor and as quick on another. Where other processes use the cores
    meanwhile, that time says nothing: then what one thread does in its time on a core counts for each core.
    """
    time.sleep(_SETTLE_S)
    cores = available_cores()
    meter = LoadMeter()
    together = _product_flops(cores, time.perf_counter)
    is_noisy = meter.cores_taken(cores) > NOISY_SHARE * cores
    alone = _product_flops(1, time.thread_time) if cores > 1 or is_noisy else together
    # Two threads that share a core's units do at least half of what two cores would: less was slowed down by threads of
    # this process, which no meter tells from the product's own.
    if is_noisy or together < _LEAST_SHARE * cores * alone:
        return max(together, cores * alone)
    return together


def _product_flops(width: int, clock: Callable[[], float]) -> float:
    """FLOP/s of the product on ``width`` threads, by a clock in seconds."""
    from parallax.model import Probe, probe_model  # where the speed is stated, nobody asks

    product = OnnxRuntimeBackend(CPU_PROVIDER).compile(probe_model(Probe.PRODUCT), width=width)
    value = empty_host_value((_SIZE, _SIZE), _FLOAT)
    host_bytes(value).view(np.float32)[:] = 0.5
    return _flops(lambda: product.run_with_ort_values({"a": value, "b": value}, ["y"]), clock)


def _flops(multiply: Callable[[], object], clock: Callable[[], float]) -> float:
    """Of the quickest product, by a clock in seconds."""
    quickest = float("inf")
    rounds = 0
    until = time.perf_counter() + _MEASURE_S
    while rounds < _LEAST_ROUNDS or time.perf_counter() < until:
        begin = clock()
        multiply()
        quickest = min(quickest, clock() - begin)
        rounds += 1
        time.sleep(0.001)
    return 2.0 * _SIZE**3 / max(quickest, 1e-9)
