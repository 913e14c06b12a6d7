"""Run ONNX models through a plan of their own: which parts run together, and on how many threads.

Parallax is a drop-in for ``onnxruntime.InferenceSession``, and this module one for ``onnxruntime``: what that exports
and is not defined here comes from there (``import parallax as ort``). Every exception it raises on purpose is a
:class:`ParallaxError`; the tree is drawn in :mod:`parallax.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # As they are called in programs that have `import parallax as ort`; see `otherwise` below.
    from onnxruntime import AdapterFormat as AdapterFormat
    from onnxruntime import ExecutionMode as ExecutionMode
    from onnxruntime import ExecutionOrder as ExecutionOrder
    from onnxruntime import GraphOptimizationLevel as GraphOptimizationLevel
    from onnxruntime import IOBinding as IOBinding
    from onnxruntime import LoraAdapter as LoraAdapter
    from onnxruntime import ModelCompiler as ModelCompiler
    from onnxruntime import ModelMetadata as ModelMetadata
    from onnxruntime import NodeArg as NodeArg
    from onnxruntime import OrtAllocatorType as OrtAllocatorType
    from onnxruntime import OrtArenaCfg as OrtArenaCfg
    from onnxruntime import OrtDevice as OrtDevice
    from onnxruntime import OrtEpDevice as OrtEpDevice
    from onnxruntime import OrtExecutionProviderDevicePolicy as OrtExecutionProviderDevicePolicy
    from onnxruntime import OrtHardwareDevice as OrtHardwareDevice
    from onnxruntime import OrtHardwareDeviceType as OrtHardwareDeviceType
    from onnxruntime import OrtMemoryInfo as OrtMemoryInfo
    from onnxruntime import OrtMemType as OrtMemType
    from onnxruntime import OrtSparseFormat as OrtSparseFormat
    from onnxruntime import OrtValue as OrtValue
    from onnxruntime import RunOptions as RunOptions
    from onnxruntime import SessionIOBinding as SessionIOBinding
    from onnxruntime import SessionOptions as SessionOptions
    from onnxruntime import SparseTensor as SparseTensor
    from onnxruntime import copy_tensors as copy_tensors
    from onnxruntime import create_and_register_allocator as create_and_register_allocator
    from onnxruntime import disable_telemetry_events as disable_telemetry_events
    from onnxruntime import enable_telemetry_events as enable_telemetry_events
    from onnxruntime import get_all_providers as get_all_providers
    from onnxruntime import get_available_providers as get_available_providers
    from onnxruntime import get_build_info as get_build_info
    from onnxruntime import get_device as get_device
    from onnxruntime import get_ep_devices as get_ep_devices
    from onnxruntime import get_version_string as get_version_string
    from onnxruntime import register_execution_provider_library as register_execution_provider_library
    from onnxruntime import set_default_logger_severity as set_default_logger_severity
    from onnxruntime import set_default_logger_verbosity as set_default_logger_verbosity
    from onnxruntime import set_global_thread_pool_sizes as set_global_thread_pool_sizes
    from onnxruntime import set_seed as set_seed
    from onnxruntime import unregister_execution_provider_library as unregister_execution_provider_library

    from parallax.backends.ort import share_thread_pool
    from parallax.errors import (
        BackendError,
        BudgetError,
        BundleError,
        BundleMismatchError,
        ConfigError,
        DeadlineMissed,
        ExternalDataError,
        ExternalPathError,
        InputError,
        InternalError,
        MissingExtraError,
        ModelError,
        ModelFileError,
        Overloaded,
        ParallaxError,
        PlanError,
        RunCancelled,
        SegmentError,
        SessionClosedError,
        UnsafeModelError,
        UnsupportedModelError,
    )
    from parallax.opening import MemoryUsage, compile
    from parallax.options import Options
    from parallax.patching import Patch, patch, unpatch
    from parallax.schedule import Plan
    from parallax.session import InferenceSession
else:
    from parallax import _lazy

    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "backends.ort": "share_thread_pool",
            "errors": (
                "BackendError BudgetError BundleError BundleMismatchError ConfigError DeadlineMissed "
                "ExternalDataError ExternalPathError InputError InternalError MissingExtraError ModelError "
                "ModelFileError Overloaded ParallaxError PlanError RunCancelled SegmentError SessionClosedError "
                "UnsafeModelError UnsupportedModelError"
            ),
            "opening": "MemoryUsage compile",
            "options": "Options",
            "patching": "Patch patch unpatch",
            "schedule": "Plan",
            "session": "InferenceSession",
        },
        packages=(
            "admission",
            "backends",
            "bundle",
            "cli",
            "engine",
            "errors",
            "events",
            "graph",
            "machine",
            "memory",
            "model",
            "opening",
            "options",
            "partition",
            "patching",
            "planner",
            "profile",
            "schedule",
            "serving",
            "session",
            "types",
            "zoo",
        ),
        otherwise="onnxruntime",
    )

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BudgetError",
    "BundleError",
    "BundleMismatchError",
    "ConfigError",
    "DeadlineMissed",
    "ExternalDataError",
    "ExternalPathError",
    "InferenceSession",
    "InputError",
    "InternalError",
    "MemoryUsage",
    "MissingExtraError",
    "ModelError",
    "ModelFileError",
    "Options",
    "Overloaded",
    "ParallaxError",
    "Patch",
    "Plan",
    "PlanError",
    "RunCancelled",
    "SegmentError",
    "SessionClosedError",
    "UnsafeModelError",
    "UnsupportedModelError",
    "__version__",
    "compile",
    "patch",
    "share_thread_pool",
    "unpatch",
]
