"""Where a model can run: what this machine lets the process use, and the backends that compute."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.device._backend import (
        HOST_MEMORY,
        Backend,
        BackendInfo,
        CompiledModel,
        CompileOptions,
        DeviceKind,
        DeviceSpeed,
        MemoryDomain,
        Place,
        TensorArgument,
        UnfitFeedsError,
    )
    from parallax.device._cores import available_cores, current_core, move_to_first_core
    from parallax.device._coverage import Coverage, Gap, OperatorRule, Uncovered
    from parallax.device._emulated import EmulatedBackend, EmulatedModel
    from parallax.device._fault_policy import DEFAULT_POLICY, FaultPolicy
    from parallax.device._figures import Basis, Figure
    from parallax.device._guard import Complaints, GuardedModel, compile_guarded
    from parallax.device._heap import trim_heap
    from parallax.device._load import DISTURBED_SHARE, CoreMeter, LoadMeter, offered_cores
    from parallax.device._memory import free_memory_bytes, memory_limit_bytes, private_bytes
    from parallax.device._onnxruntime import OnnxRuntimeBackend, OnnxRuntimeModel
    from parallax.device._openvino import OpenVinoBackend
    from parallax.device._openvino_table import openvino_table_digest
    from parallax.device._ort_values import empty_host_value, host_bytes
    from parallax.device._pressure import PressureMonitor, PressureReading, read_pressure
    from parallax.device._probing import measure_speed
    from parallax.device._profiles import CpuCluster, DeviceProfile, DeviceRates, load_profile, profile_names
    from parallax.device._registry import (
        ENTRY_POINTS,
        BackendFactory,
        FoundBackend,
        find_backends,
        forget_backends,
        has_provider,
        is_backend_name,
        missing_extra,
        open_backend,
        open_providers,
    )
    from parallax.device._stock import StockSession
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": (
                "HOST_MEMORY Backend BackendInfo CompileOptions CompiledModel DeviceKind DeviceSpeed MemoryDomain "
                "Place TensorArgument UnfitFeedsError"
            ),
            "_cores": "available_cores current_core move_to_first_core",
            "_coverage": "Coverage Gap OperatorRule Uncovered",
            "_emulated": "EmulatedBackend EmulatedModel",
            "_fault_policy": "DEFAULT_POLICY FaultPolicy",
            "_figures": "Basis Figure",
            "_guard": "Complaints GuardedModel compile_guarded",
            "_heap": "trim_heap",
            "_load": "DISTURBED_SHARE CoreMeter LoadMeter offered_cores",
            "_memory": "free_memory_bytes memory_limit_bytes private_bytes",
            "_onnxruntime": "OnnxRuntimeBackend OnnxRuntimeModel",
            "_openvino": "OpenVinoBackend",
            "_openvino_table": "openvino_table_digest",
            "_ort_values": "empty_host_value host_bytes",
            "_pressure": "PressureMonitor PressureReading read_pressure",
            "_probing": "measure_speed",
            "_profiles": "CpuCluster DeviceProfile DeviceRates load_profile profile_names",
            "_registry": (
                "ENTRY_POINTS BackendFactory FoundBackend find_backends forget_backends has_provider "
                "is_backend_name missing_extra open_backend open_providers"
            ),
            "_stock": "StockSession",
        },
    )

__all__ = [
    "DEFAULT_POLICY",
    "DISTURBED_SHARE",
    "ENTRY_POINTS",
    "HOST_MEMORY",
    "Backend",
    "BackendFactory",
    "BackendInfo",
    "Basis",
    "CompileOptions",
    "CompiledModel",
    "Complaints",
    "CoreMeter",
    "Coverage",
    "CpuCluster",
    "DeviceKind",
    "DeviceProfile",
    "DeviceRates",
    "DeviceSpeed",
    "EmulatedBackend",
    "EmulatedModel",
    "FaultPolicy",
    "Figure",
    "FoundBackend",
    "Gap",
    "GuardedModel",
    "LoadMeter",
    "MemoryDomain",
    "OnnxRuntimeBackend",
    "OnnxRuntimeModel",
    "OpenVinoBackend",
    "OperatorRule",
    "Place",
    "PressureMonitor",
    "PressureReading",
    "StockSession",
    "TensorArgument",
    "Uncovered",
    "UnfitFeedsError",
    "available_cores",
    "compile_guarded",
    "current_core",
    "empty_host_value",
    "find_backends",
    "forget_backends",
    "free_memory_bytes",
    "has_provider",
    "host_bytes",
    "is_backend_name",
    "load_profile",
    "measure_speed",
    "memory_limit_bytes",
    "missing_extra",
    "move_to_first_core",
    "offered_cores",
    "open_backend",
    "open_providers",
    "openvino_table_digest",
    "private_bytes",
    "profile_names",
    "read_pressure",
    "trim_heap",
]
