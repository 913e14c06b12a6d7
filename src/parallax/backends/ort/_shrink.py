"""Have ONNX Runtime give back what a session's arena holds for later.

Its one way to that is an option of a run ("memory.enable_memory_arena_shrinkage" in
``onnxruntime_run_options_config_keys.h``), acted on when the run is over, even one that was told to stop
(``terminate``) before its first operator. So that is the run that is made here: it computes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort._failures import FOREIGN_EXCEPTIONS
from parallax.graph import RUNTIME_TYPES


def shrink_arena(session: Any) -> bool:
    """Shrink the arena of a C session; whether it could be asked to. Runs in flight keep what they use.

    Not where an input is no tensor of a type that numpy has, or the session has no arena.
    """
    feeds = {}
    for argument in session.inputs_meta:
        element = RUNTIME_TYPES.get(argument.type)
        if element is None or element.dtype is None:
            return False
        # Not written to, so large ones take no memory; any size will do where it is open.
        shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in argument.shape]
        feeds[argument.name] = np.zeros(shape, element.dtype)
    options = C.RunOptions()
    options.terminate = True
    options.log_severity_level = 4  # that it was stopped is no news
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        session.run([session.outputs_meta[0].name], feeds, options)
    except FOREIGN_EXCEPTIONS as error:
        return "terminate flag" in str(error)
    return True
