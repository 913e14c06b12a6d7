"""Loading errors in both worlds: a ParallaxError that is also what ONNX Runtime would have raised."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine import both
from parallax.errors import ExternalDataError, ModelError, ModelFileError, UnsupportedModelError


def as_runtime_error(error: ModelError, source: object) -> ModelError:
    """``error`` as an instance of its own class and of ONNX Runtime's for the same fault.

    Args:
        error: what `parallax.model.load_model` raised.
        source: what was to be loaded; tells a missing file from an unreadable one.
    """
    if isinstance(error, ModelFileError):
        missing = isinstance(source, str) and not Path(source).exists()
        theirs = C.NoSuchFile if missing else C.InvalidProtobuf
    elif isinstance(error, ExternalDataError | UnsupportedModelError):
        theirs = C.Fail
    else:
        theirs = C.InvalidGraph
    translated = both(type(error), theirs)(error.what, where=error.where, fix=error.fix)
    assert isinstance(translated, ModelError)
    return translated
