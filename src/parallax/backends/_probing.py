"""How fast a backend is, from a handful of probes.

MAPLE-Edge (arXiv 2204.12950) adapts a cost model to a new device by ten measurements. `DeviceSpeed` has four numbers,
and each has a probe that it dominates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from parallax.backends._protocol import Backend, CompiledModel, CompileOptions, DeviceSpeed
from parallax.backends.ort import empty_host_value, host_bytes
from parallax.errors import BackendError
from parallax.model import Probe, probe_model

_FLOAT: Final = 1
_RUNS: Final = 5
_LONG_ENOUGH_NS: Final = 3_000_000
"""A probe grows until a run takes this long, so that neither launch nor clock matter, on devices of any speed."""
_NOISE: Final = 0.1
_LARGEST_STREAM: Final = 1 << 24
_LARGEST_MATRIX: Final = 4096

Clock = Callable[[], int]


def measure_speed(backend: Backend, *, width: int = 1, clock: Clock = time.perf_counter_ns) -> DeviceSpeed:
    """Measure a backend on the device it has: less than a second, where the device is no emulation.

    Args:
        width: threads of the processor that it may use.
        clock: nanoseconds, monotonic.

    Raises: BackendError if it cannot run the probes.
    """
    options = CompileOptions(exclusive=True)
    stream = backend.compile(probe_model(Probe.STREAM), width=width, options=options)
    product = backend.compile(probe_model(Probe.PRODUCT), width=width, options=options)
    launch_ns = _timed(stream, {"a": _filled(1)}, clock)

    # The result is always fetched: a device's queue answers before the device is done. The feed is there already ...
    size = 1 << 12
    while True:
        host = {"a": _filled(size)}
        one_way_ns = _timed(stream, _resident(stream, host), clock)
        if one_way_ns >= _LONG_ENOUGH_NS or size >= _LARGEST_STREAM:
            break
        size *= 4
    # ... and then not, which adds the way there.
    link = math.inf
    if not stream.memory.is_host:
        way_there_ns = _timed(stream, host, clock) - one_way_ns
        # What drowns in the noise is no transfer: the device shares the processor's memory.
        if way_there_ns > _NOISE * one_way_ns:
            link = 4 * size / _seconds(way_there_ns)
    own_s = _seconds(one_way_ns - launch_ns) - 4 * size / link
    # Where the link hides it, memory is no bottleneck.
    memory = 8 * size / own_s if own_s > _NOISE * one_way_ns / 1e9 else math.inf

    side = 64
    while True:
        matrices = _resident(product, {"a": _filled(side, side), "b": _filled(side, side)})
        product_ns = _timed(product, matrices, clock)
        if product_ns >= _LONG_ENOUGH_NS or side >= _LARGEST_MATRIX:
            break
        side *= 2
    return DeviceSpeed(
        launch_ns=launch_ns,
        flops_per_s=2 * side**3 / _seconds(round(product_ns - launch_ns - 4e9 * side**2 / link)),
        memory_bytes_per_s=memory,
        link_bytes_per_s=link,
    )


def _timed(model: CompiledModel, feeds: Mapping[str, Any], clock: Clock) -> int:
    model.run_with_ort_values(feeds, ["y"])  # programs and buffers for this size are made
    durations = []
    for _ in range(_RUNS):
        begin = clock()
        model.run_with_ort_values(feeds, ["y"])
        durations.append(clock() - begin)
    return round(statistics.median(durations))


def _resident(model: CompiledModel, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """The feeds where the model computes: as outputs of a part that runs there."""
    if model.memory.is_host:
        return feeds
    (first, *_) = feeds.values()
    made = model.run_bound(feeds, {"y": None})["y"]
    if list(made.shape()) != list(first.shape()):
        raise BackendError("a probe's result has another shape than its feed")
    return dict.fromkeys(feeds, made)


def _filled(*shape: int) -> Any:
    value = empty_host_value(shape, _FLOAT)
    host_bytes(value)[:] = 0
    return value


def _seconds(duration_ns: int) -> float:
    """Never nothing: a clock may be coarser than a device is quick."""
    return max(1, duration_ns) / 1e9
