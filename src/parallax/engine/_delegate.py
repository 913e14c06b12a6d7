"""A segment on a delegate, with the runtime's CPU kernels behind it: a failing delegate costs time, never an answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.device import CompiledModel
from parallax.errors import InputError, RunCancelled

logger = logging.getLogger(__name__)

_CPU_PROVIDER: Final = "CPUExecutionProvider"

PATIENCE: Final = 3
"""Failures in a row after which a delegate is set aside for good."""


class DelegatedSession:
    """Called like ONNX Runtime's C session. Thread-safe.

    What the delegate fails at is run on the CPU, whose session is made when it is first needed; so is what the
    delegate refuses as wrong input, since users know the runtime's words for that. After `PATIENCE` failures in a row
    (a *circuit breaker*) the delegate is not asked again.

    Args:
        delegate: the compiled segment.
        fallback: makes the CPU's session for the same segment.
        described: a C session that has loaded the segment, and need not be initialised: it tells of inputs and outputs.
        name: of the segment and backend, for the log.
    """

    def __init__(self, delegate: CompiledModel, fallback: Callable[[], Any], *, described: Any, name: str) -> None:
        self._delegate: CompiledModel | None = delegate
        # What the runtime's sessions say of themselves, for those who read it there.
        self.inputs_meta = list(described.inputs_meta)
        self.outputs_meta = list(described.outputs_meta)
        self.overridable_initializers = list(described.overridable_initializers)
        self.model_meta = described.model_meta
        host = C.OrtMemoryInfo("Cpu", C.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, 0, C.OrtMemType.DEFAULT)
        self.input_meminfos = [host] * len(self.inputs_meta)
        self.output_meminfos = [host] * len(self.outputs_meta)
        self.input_epdevices = [device for device in C.get_ep_devices() if device.ep_name == _CPU_PROVIDER][:1]
        self.get_profiling_start_time_ns = 0
        self._make_fallback = fallback
        self._name = name
        self._lock = threading.Lock()
        self._fallback: Any = None  # (lock) to write
        self._failures = 0  # in a row

    @property
    def is_set_aside(self) -> bool:
        """Whether the delegate is not asked any more."""
        return self._delegate is None

    def get_providers(self) -> list[str]:
        """Where its values live: with the runtime's CPU provider."""
        return [_CPU_PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """None were set."""
        return {_CPU_PROVIDER: {}}

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """Run once, there or here. Raises: what the CPU's session raises, and RunCancelled."""
        delegate = self._delegate
        if delegate is not None:
            try:
                made = delegate.run_with_ort_values(feeds, outputs, run_options)
            except RunCancelled:
                raise
            except InputError:
                logger.debug("%s refuses its input; the CPU is to say what is wrong with it", self._name)
            except Exception as error:
                self._note(error)
            else:
                self._failures = 0
                return made
        answer: Sequence[Any] = self._cpu().run_with_ort_values(feeds, outputs, run_options)
        return answer

    def _note(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= PATIENCE:
            self._delegate = None
            logger.warning("%s failed %d times in a row and is set aside; the CPU goes on", self._name, self._failures)
        elif self._failures == 1:
            logger.warning(
                "%s failed, the CPU takes over: %s. To leave it out from the start, open the session with backends=()",
                self._name,
                error,
            )

    def _cpu(self) -> Any:
        with self._lock:
            if self._fallback is None:
                self._fallback = self._make_fallback()
            return self._fallback
