"""What is asked of session options whichever way a model is opened: cores, the form of its file, single entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallax.machine import available_cores

if TYPE_CHECKING:
    from parallax.options._options import PlanningOptions


def session_cores(options: PlanningOptions, session_options: Any) -> int:
    """Cores to use: ``threads=``, else the session options' intra-op threads, else what the machine allows."""
    if options.threads is not None:
        return options.threads
    if session_options is not None and session_options.intra_op_num_threads > 0:
        return int(session_options.intra_op_num_threads)
    return available_cores()


def is_onnx_source(path: str | None, data: bytes | None, session_options: Any) -> bool:
    """Whether the base class would read this as ONNX (and not as ORT format)."""
    if session_options is not None:
        stated = read_entry(session_options, "session.load_model_format")
        if stated is not None:
            return stated.upper() == "ONNX"
    if path is not None:
        return not path.endswith(".ort")
    return data is not None and data[4:8] != b"ORTM"


def read_entry(session_options: Any, key: str) -> str | None:
    """The value of a config entry of an ``onnxruntime.SessionOptions``; None where it is not set.

    That one is not set takes the binding some sixty microseconds to say.
    """
    try:
        return str(session_options.get_session_config_entry(key))
    except RuntimeError:  # how the binding says "not set"
        return None
