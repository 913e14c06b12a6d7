"""Run ONNX models through a plan of their own: which parts run together, and on how many threads.

Parallax is a drop-in for ``onnxruntime.InferenceSession``. Every exception it raises on purpose is a
:class:`ParallaxError`; the tree is drawn in :mod:`parallax.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        UnsafeModelError,
        UnsupportedModelError,
    )
    from parallax.schedule import Plan
    from parallax.session import InferenceSession, MemoryUsage, Options, compile
else:
    from parallax import _lazy

    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "backends.ort": "share_thread_pool",
            "errors": (
                "BackendError BudgetError BundleError BundleMismatchError ConfigError DeadlineMissed "
                "ExternalDataError ExternalPathError InputError InternalError MissingExtraError ModelError "
                "ModelFileError Overloaded ParallaxError PlanError RunCancelled "
                "SegmentError UnsafeModelError UnsupportedModelError"
            ),
            "schedule": "Plan",
            "session": "InferenceSession MemoryUsage Options compile",
        },
        packages=(
            "admission",
            "backends",
            "bundle",
            "engine",
            "errors",
            "events",
            "graph",
            "machine",
            "memory",
            "model",
            "partition",
            "planner",
            "profile",
            "schedule",
            "serving",
            "session",
        ),
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
    "Plan",
    "PlanError",
    "RunCancelled",
    "SegmentError",
    "UnsafeModelError",
    "UnsupportedModelError",
    "__version__",
    "compile",
    "share_thread_pool",
]
