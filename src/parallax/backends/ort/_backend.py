"""Every execution provider of ONNX Runtime, built in or from a plugin library, through one adapter."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends._protocol import (
    DEFAULT_OPTIONS,
    HOST_MEMORY,
    BackendInfo,
    CompileOptions,
    DeviceKind,
    DeviceSpeed,
    Interface,
    MemoryDomain,
    Place,
)
from parallax.backends.ort._failures import FOREIGN_EXCEPTIONS, RUNTIME_EXCEPTIONS, compile_error, run_error
from parallax.backends.ort._kernel_lists import explain
from parallax.backends.ort._sessions import CPU_PROVIDER, RuntimeOptions, lend_weights, make_session, set_threads
from parallax.backends.ort._shared_allocator import AllocatorUser
from parallax.errors import BackendError, InputError
from parallax.graph import Capability, Price, Work

if TYPE_CHECKING:
    from parallax.model import Model, SegmentModel

_HOST_DEVICE: Final = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)

_KINDS: Final = {
    CPU_PROVIDER: DeviceKind.CPU,
    "DnnlExecutionProvider": DeviceKind.CPU,
    "XnnpackExecutionProvider": DeviceKind.CPU,
    "ACLExecutionProvider": DeviceKind.CPU,
    "CUDAExecutionProvider": DeviceKind.GPU,
    "TensorrtExecutionProvider": DeviceKind.GPU,
    "NvTensorRTRTXExecutionProvider": DeviceKind.GPU,
    "MIGraphXExecutionProvider": DeviceKind.GPU,
    "DmlExecutionProvider": DeviceKind.GPU,
    "WebGpuExecutionProvider": DeviceKind.GPU,
    "JsExecutionProvider": DeviceKind.GPU,
    "QNNExecutionProvider": DeviceKind.NPU,
    "VitisAIExecutionProvider": DeviceKind.NPU,
    "CANNExecutionProvider": DeviceKind.NPU,
    "VSINPUExecutionProvider": DeviceKind.NPU,
    "RknpuExecutionProvider": DeviceKind.NPU,
}
"""What providers compute on. Those that choose by themselves (CoreML, NNAPI, OpenVINO) are not here."""

_CUDA_MEMORY: Final = MemoryDomain(name="Cuda:0", is_host=False)
_DEVICE_MEMORY: Final = {
    "CUDAExecutionProvider": _CUDA_MEMORY,
    "TensorrtExecutionProvider": _CUDA_MEMORY,
    "NvTensorRTRTXExecutionProvider": _CUDA_MEMORY,
    "MIGraphXExecutionProvider": MemoryDomain(name="Hip:0", is_host=False),
    "DmlExecutionProvider": MemoryDomain(name="DML:0", is_host=False),
    "CANNExecutionProvider": MemoryDomain(name="Cann:0", is_host=False),
}
"""Built-in providers with memory of their own, by the name of their allocator; all others work on the processor's."""


_NHWC: Final = "com.ms.internal.nhwc"
_RELAID: Final = re.compile(r"_token_[0-9]+$")
"""A provider that asks for channels last is given nodes of this domain, named after the originals with such an end."""


class OnnxRuntimeBackend:
    """One execution provider, with its options.

    Args:
        provider: its name, such as "CUDAExecutionProvider".
        provider_options: as ``providers=`` of ``onnxruntime.InferenceSession`` takes them.
        devices: for a plugin's provider, its entries of ``onnxruntime.get_ep_devices()``; none for a built-in one.
        speed: what to price by, or None.
    """

    def __init__(
        self,
        provider: str,
        *,
        provider_options: Mapping[str, Any] | None = None,
        devices: Sequence[Any] = (),
        speed: DeviceSpeed | None = None,
    ) -> None:
        self._provider = provider
        self._options = {str(key): str(value) for key, value in (provider_options or {}).items()}
        self._devices = tuple(devices)
        self._speed = speed
        self._info = self._describe()

    @property
    def info(self) -> BackendInfo:
        """What it is."""
        return self._info

    @property
    def host_flops(self) -> None:
        """Nothing: its prices are measured on the device itself."""
        return None

    def with_speed(self, speed: DeviceSpeed) -> OnnxRuntimeBackend:
        """The same, priced by ``speed``."""
        return OnnxRuntimeBackend(self._provider, provider_options=self._options, devices=self._devices, speed=speed)

    def capability(self, model: Model) -> Capability:
        """Ask the provider: open the model unoptimised, so that each node is one of the model's, and see who got it.

        Costs memory for the weights on the device, while it lasts.

        Raises: BackendError if ONNX Runtime cannot open the model with this provider.
        """
        graph = model.graph
        whole = model.extract_whole()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = self._open(whole, width=1, options=options, exclusive=False)
            assignment = session.get_provider_graph_assignment_info()
        except FOREIGN_EXCEPTIONS as error:
            raise BackendError(
                f"cannot ask {self._provider} what it takes: {error}",
                where=None if model.path is None else str(model.path),
                fix="leave this provider out",
            ) from error
        index = {node.name: node.index for node in graph.nodes}
        taken: set[int] = set()
        for part in assignment:
            if part.ep_name == self._provider:
                # What the runtime made itself (functions it inlined) has no name of the model's.
                names = (_RELAID.sub("", node.name) if node.domain == _NHWC else node.name for node in part.get_nodes())
                taken.update(index[name] for name in names if name in index)
        return Capability(
            backend=self.info.name,
            taken=tuple(sorted(taken)),
            refused=explain(graph, taken, provider=self._provider, is_plugin=bool(self._devices)),
        )

    def price(self, work: Work) -> Price | None:
        """By the speed it was made with; None without."""
        return None if self._speed is None else self._speed.price(work)

    def transfer_ns(self, size_bytes: int) -> int | None:
        """By the speed it was made with; 0 where it works on the processor's memory."""
        if self._info.memory.is_host:
            return 0
        return None if self._speed is None else self._speed.transfer_ns(size_bytes)

    def compile(
        self, segment: SegmentModel, *, width: int, options: CompileOptions = DEFAULT_OPTIONS
    ) -> OnnxRuntimeModel:
        """A session with this provider first and the processor after it. Its own threads park when a run ends.

        Raises: BackendError with the segment's name.
        """
        settings = RuntimeOptions() if options.session_options is None else options.session_options
        try:
            if self._provider == CPU_PROVIDER:
                session = make_session(segment, width=width, options=settings, provider_options=self._options)
            else:
                made = settings.to_session_options()
                session = self._open(segment, width=width, options=made, exclusive=options.exclusive)
        except FOREIGN_EXCEPTIONS as error:
            raise compile_error(error, backend=self._provider, segment=segment.name) from error
        return OnnxRuntimeModel(session, backend=self._info, weights=segment.weights)

    def _open(self, segment: SegmentModel, *, width: int, options: Any, exclusive: bool) -> Any:
        set_threads(options, width)
        exclusive = exclusive and self._provider != CPU_PROVIDER
        if exclusive:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        lend_weights(options, segment)
        providers: list[str] = []
        provider_options: list[dict[str, str]] = []
        if self._devices:
            options.add_provider_for_devices(list(self._devices), self._options)
        else:
            providers.append(self._provider)
            provider_options.append(self._options)
        if not exclusive and self._provider != CPU_PROVIDER and not self._devices:
            providers.append(CPU_PROVIDER)
            provider_options.append({})
        session = C.InferenceSession(options, segment.proto, False, False)
        # The runtime adds the processor by itself where a plugin's provider was added to the options.
        session.initialize_session(providers, provider_options, set())
        if self._provider not in session.get_providers():
            # It does so in silence where a provider's own library cannot be loaded.
            raise RuntimeError(f"{self._provider} could not be started; the runtime's log says why")
        return session

    def _describe(self) -> BackendInfo:
        memory = _DEVICE_MEMORY.get(self._provider, HOST_MEMORY)
        device, version = "", onnxruntime.__version__
        kind = _KINDS.get(self._provider, DeviceKind.OTHER)
        if self._devices:
            first = self._devices[0]
            memory = _domain(first.memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT))
            device = f"{first.device.vendor} {first.device.type.name}".strip()
            version = f"{version}, {first.ep_metadata.get('version', first.ep_vendor)}"
            if self._provider not in _KINDS:
                kind = DeviceKind.__members__.get(first.device.type.name, DeviceKind.OTHER)
        elif kind is DeviceKind.CPU:
            device = "processor"
        return BackendInfo(
            name=self._provider, kind=kind, device=device, version=version, memory=memory, leaves_rest_to_cpu=True
        )


@functools.cache
def cpu_backend() -> OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider: what runs every segment that is planned for the CPU, or falls back to it."""
    return OnnxRuntimeBackend(CPU_PROVIDER)


class OnnxRuntimeModel:
    """A session of ONNX Runtime's C extension, with the weights it reads. ``session`` is the session itself."""

    def __init__(
        self, session: Any, *, backend: BackendInfo, weights: Mapping[str, npt.NDArray[np.generic]] | None = None
    ) -> None:
        self.session = session
        self._backend = backend
        self._weights = weights
        self._required = tuple(
            str(entry.name) for entry in session.inputs_meta if not entry.type.startswith("optional(")
        )
        self._memory = self._output_memory()
        self._device = self._ort_device()
        self._allocator_user: AllocatorUser | None = None
        """From the first run on: what was not run here has taken nothing from the shared allocator."""

    @property
    def interface(self) -> Interface:
        """What the session says of itself."""
        told = self.session
        return Interface(
            inputs=tuple(told.inputs_meta),
            overridable=tuple(told.overridable_initializers),
            outputs=tuple(told.outputs_meta),
        )

    @property
    def memory(self) -> MemoryDomain:
        """Where its outputs are made: the device's memory only if all of them are made there."""
        return self._memory

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        """See `CompiledModel`."""
        options = C.RunOptions() if run_options is None else run_options
        self._check_fed(feeds)
        try:
            fetched: Sequence[Any] = self.session.run_with_ort_values(feeds, outputs, options)
        except Exception as error:
            raise run_error(error, backend=self._backend.name) from error
        return fetched

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        """See `CompiledModel`."""
        self._check_fed(feeds)
        try:
            binding = C.SessionIOBinding(self.session)
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, value)
            for name, target in targets.items():
                if target is None:
                    binding.bind_output(name, self._device)
                elif target is Place.HOST:
                    binding.bind_output(name, _HOST_DEVICE)
                else:
                    binding.bind_ortvalue_output(name, target)
            binding.synchronize_inputs()
            self.session.run_with_iobinding(binding, C.RunOptions() if run_options is None else run_options)
            binding.synchronize_outputs()
            return dict(zip(targets, binding.get_outputs(), strict=True))
        except Exception as error:
            raise run_error(error, backend=self._backend.name) from error

    def _check_fed(self, feeds: Mapping[str, Any]) -> None:
        if self._allocator_user is None:
            self._allocator_user = AllocatorUser()
        # The runtime leaves it to the kernels to notice, and some providers' crash the process instead.
        for name in self._required:
            if name not in feeds:
                raise InputError(
                    f"input {name!r} is missing",
                    where=f"backend {self._backend.name}",
                    fix=f"feed {list(self._required)}",
                )

    def _output_memory(self) -> MemoryDomain:
        try:
            domains = {_domain(info) for info in self.session.output_meminfos}
        except RUNTIME_EXCEPTIONS:  # not every provider can say
            return HOST_MEMORY
        return domains.pop() if len(domains) == 1 else HOST_MEMORY

    def _ort_device(self) -> Any:
        if self._memory.is_host:
            return _HOST_DEVICE
        info = self.session.output_meminfos[0]
        kind = C.OrtDevice.npu() if self._backend.kind is DeviceKind.NPU else C.OrtDevice.gpu()
        return C.OrtDevice(kind, C.OrtDevice.default_memory(), info.device_vendor_id, info.device_id)


def _domain(info: Any) -> MemoryDomain:
    """The memory that an ``OrtMemoryInfo`` speaks of; the processor's for None."""
    if info is None or info.name == "Cpu":
        return HOST_MEMORY
    return MemoryDomain(name=f"{info.name}:{info.device_id}", is_host=False)
