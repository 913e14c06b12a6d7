"""What computes: the protocol of a backend, the backends there are, and the guard around each."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends._fault_policy import DEFAULT_POLICY, FaultPolicy
    from parallax.backends._guard import Complaints, compile_guarded
    from parallax.backends._probing import measure_speed
    from parallax.backends._protocol import (
        HOST_MEMORY,
        Backend,
        BackendInfo,
        CompiledModel,
        CompileOptions,
        DeviceKind,
        DeviceSpeed,
        Interface,
        MemoryDomain,
        Place,
        TensorArgument,
        UnfitFeedsError,
    )
    from parallax.backends._registry import (
        BackendFactory,
        FoundBackend,
        find_backends,
        has_provider,
        is_backend_name,
        missing_extra,
        open_backend,
    )
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_fault_policy": "DEFAULT_POLICY FaultPolicy",
            "_guard": "Complaints compile_guarded",
            "_probing": "measure_speed",
            "_protocol": (
                "HOST_MEMORY Backend BackendInfo CompileOptions CompiledModel DeviceKind DeviceSpeed Interface "
                "MemoryDomain Place TensorArgument UnfitFeedsError"
            ),
            "_registry": (
                "BackendFactory FoundBackend find_backends has_provider is_backend_name missing_extra open_backend"
            ),
        },
        packages=("emulated", "openvino", "ort"),
    )

__all__ = [
    "DEFAULT_POLICY",
    "HOST_MEMORY",
    "Backend",
    "BackendFactory",
    "BackendInfo",
    "CompileOptions",
    "CompiledModel",
    "Complaints",
    "DeviceKind",
    "DeviceSpeed",
    "FaultPolicy",
    "FoundBackend",
    "Interface",
    "MemoryDomain",
    "Place",
    "TensorArgument",
    "UnfitFeedsError",
    "compile_guarded",
    "find_backends",
    "has_provider",
    "is_backend_name",
    "measure_speed",
    "missing_extra",
    "open_backend",
]
