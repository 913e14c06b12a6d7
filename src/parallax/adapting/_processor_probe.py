"""A small region of its own, by whose time it is told how slow a processor is that a session's plan does not use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from parallax.backends import Backend, CompiledModel, CompileOptions, DeviceKind
from parallax.backends.ort import empty_host_value, host_bytes
from parallax.graph import OperatorWork, Work
from parallax.model import Probe, probe_model

if TYPE_CHECKING:
    from collections.abc import Mapping

_CPU_SIDE: Final = 384
"""Of the square matrices whose product is a probe of the CPU: a millisecond or two on one core."""

_DEVICE_SIDE: Final = 768
"""Of those for a device: large enough that computing takes most of the time, and not starting to."""

_FLOAT_BYTES: Final = 4

_LONG_NS: Final = 3_000_000
"""A run that takes so long is not run twice."""


class ProcessorProbe:
    """A matrix product on one processor, which is timed against what it takes when all is calm.

    Args:
        backend: of the processor.
        width: threads.

    Raises: BackendError if it cannot be run there.
    """

    def __init__(self, backend: Backend, width: int) -> None:
        side = _CPU_SIDE if backend.info.kind is DeviceKind.CPU else _DEVICE_SIDE
        self._model: CompiledModel = backend.compile(
            probe_model(Probe.PRODUCT, side=side), width=width, options=CompileOptions(exclusive=True, work=_work(side))
        )
        self._feeds: Mapping[str, Any] = {name: _zeros(side) for name in "ab"}
        self._unit_ns: float | None = None
        self._took_ns()  # programs and buffers are made

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known what it takes when all is calm."""
        return self._unit_ns is not None

    def calibrate(self, slowdown: float) -> None:
        """Note what it takes now, where the processor is known to be so slow. Raises: BackendError."""
        self._unit_ns = max(1.0, self._took_ns() / slowdown)

    def ratio(self) -> float:
        """How slow the processor is now; to be called once it is calibrated. Raises: BackendError."""
        assert self._unit_ns is not None
        return self._took_ns() / self._unit_ns

    def _took_ns(self) -> int:
        """The quicker of two runs, if they are short: of these, one may be unlucky."""
        times: list[int] = []
        while len(times) < 2 and sum(times) < _LONG_NS:
            begin = time.perf_counter_ns()
            self._model.run_with_ort_values(self._feeds, ["y"])
            times.append(time.perf_counter_ns() - begin)
        return max(1, min(times))


def _work(side: int) -> Work:
    product = OperatorWork(op_type="MatMul", flops=2 * side**3, touched_bytes=3 * _FLOAT_BYTES * side**2)
    return Work(operators=(product,))


def _zeros(side: int) -> Any:
    value = empty_host_value([side, side], 1)
    host_bytes(value)[:] = 0
    return value
