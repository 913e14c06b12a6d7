"""What ONNX Runtime makes of a case, and how far another library's answer may be from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.conformance._onnx_suite import Case


def expectations(
    proto: onnx.ModelProto, case: Case
) -> tuple[dict[str, np.ndarray[Any, Any]], Sequence[np.ndarray[Any, Any]]] | None:
    """Feeds, and what ONNX Runtime's own provider makes of them; None where it refuses, or not all are tensors."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    inputs, _ = case.read_data(proto)[0]
    feeds = {info.name: array for info, array in zip(proto.graph.input, inputs, strict=False) if array is not None}
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in feeds.values()):
        return None
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, feeds)
    except Exception:  # the suite has cases for newer operators than ONNX Runtime's
        return None
    plain = all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in expected)
    return ({key: np.array(array, order="C") for key, array in feeds.items()}, expected) if plain else None


def difference_of(
    expected: Sequence[np.ndarray[Any, Any]], made: Sequence[np.ndarray[Any, Any]], case: Case
) -> str | None:
    for want, got in zip(expected, made, strict=True):
        if (want.dtype, want.shape) != (got.dtype, got.shape):
            return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
        if want.dtype.kind != "f":
            if not np.array_equal(want, got):
                return f"{got.ravel()[:8]} instead of {want.ravel()[:8]}"
            continue
        # Sums of large terms that cancel are as inexact as the terms.
        scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        absolute = (1e-2 if want.dtype == np.float16 else max(case.atol, 1e-4)) * scale
        if not np.allclose(got, want, rtol=max(case.rtol, 1e-3), atol=absolute, equal_nan=True):
            return f"{got.ravel()[:8]} instead of {want.ravel()[:8]}"
    return None
