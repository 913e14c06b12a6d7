"""What a backend compiled, in the place of a session of the runtime's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends import CompiledModel, Place

_CPU_PROVIDER: Final = "CPUExecutionProvider"


class StandInSession:
    """Asked like ONNX Runtime's C session.

    Args:
        described: a C session that has loaded the same segment, and need not be initialised: it tells of inputs and
            outputs.
    """

    def __init__(self, described: Any) -> None:
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

    def get_providers(self) -> list[str]:
        """Where its values live: with the runtime's CPU provider."""
        return [_CPU_PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """None were set."""
        return {_CPU_PROVIDER: {}}


class DelegatedSession(StandInSession):
    """Called and asked like ONNX Runtime's C session. Thread-safe.

    Args:
        model: runs it.
        described: see `StandInSession`.
        kept: outputs that stay where the model makes them: whoever reads them can do so there, and nobody writes.
    """

    def __init__(self, model: CompiledModel, *, described: Any, kept: Collection[str] = ()) -> None:
        super().__init__(described)
        self.model = model
        self._kept = frozenset(kept)

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`; outputs that are kept come where the model makes them."""
        if not self._kept:
            return self.model.run_with_ort_values(feeds, outputs, run_options)
        targets = {name: None if name in self._kept else Place.HOST for name in outputs}
        made = self.model.run_bound(feeds, targets, run_options)
        return [made[name] for name in outputs]
