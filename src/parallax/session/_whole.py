"""Models that stay whole: how many cores they get, and which files they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parallax.machine import available_cores

if TYPE_CHECKING:
    from parallax.session._options import PlanningOptions


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
        try:
            stated = session_options.get_session_config_entry("session.load_model_format")
            return str(stated).upper() == "ONNX"
        except RuntimeError:  # how the binding says "not set"; then the name or the bytes decide
            pass
    if path is not None:
        return not path.endswith(".ort")
    return data is not None and data[4:8] != b"ORTM"
