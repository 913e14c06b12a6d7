"""What of a caller's ``onnxruntime.RunOptions`` segments cannot follow, so that the whole model's session has to run.

Segments are run with the caller's options, each of them. An adapter's tensors are inputs of the model, though, which
most segments lack.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import onnxruntime

from parallax.backends.ort import IDENTITY, RUNTIME_EXCEPTIONS, open_quietly

_probe: Any = None
_SHRINK_KEY: Final = "memory.enable_memory_arena_shrinkage"
_ONE_BYTE = np.zeros(1, np.uint8)


def why_run_needs_whole(run_options: Any, *, has_arena: bool) -> str | None:
    """Why a run with these options is for the whole model's session, or None. Takes microseconds.

    Args:
        has_arena: whether the session's CPU allocator is an arena, which a run may shrink.
    """
    if not isinstance(run_options, onnxruntime.RunOptions):
        return f"run options are an onnxruntime.RunOptions, not {type(run_options).__name__}"
    if run_options.terminate:
        return None
    if not has_arena and _reads(run_options, _SHRINK_KEY):
        return f"the run option {_SHRINK_KEY} is for sessions with an arena"
    try:
        # The binding does not tell of active adapters, but a model that lacks their inputs refuses them.
        _probing_session().run(["y"], {"x": _ONE_BYTE}, run_options)
    except RUNTIME_EXCEPTIONS as error:
        return None if run_options.terminate else f"the run options are more than a part of the model takes: {error}"
    return None


def _reads(run_options: Any, key: str) -> str | None:
    try:
        return str(run_options.get_run_config_entry(key))
    except RuntimeError:  # how the binding says "not set"
        return None


def _probing_session() -> Any:
    global _probe
    if _probe is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        _probe = open_quietly(options, IDENTITY)
    return _probe


def _forget_probe_after_fork() -> None:
    global _probe
    _probe = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_probe_after_fork)
