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


SHARE = 1e-4
"""Of a tensor's magnitude: how far another library's answer may be from ONNX Runtime's, as the README says."""
FLOAT16_SHARE = 1e-2
"""The same where numbers have eleven bits: some ten times the distance between neighbours."""


def difference_of(expected: Sequence[np.ndarray[Any, Any]], made: Sequence[np.ndarray[Any, Any]]) -> str | None:
    """What is wrong with the answers ``made``; None if nothing is. The suite's own tolerances are wider."""
    for want, got in zip(expected, made, strict=True):
        if (want.dtype, want.shape) != (got.dtype, got.shape):
            return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
        if want.dtype.kind != "f":
            if not np.array_equal(want, got):
                return f"{got.ravel()[:8]} instead of {want.ravel()[:8]}"
            continue
        # Sums of large terms that cancel are as inexact as the terms.
        scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        share = FLOAT16_SHARE if want.dtype == np.float16 else SHARE
        if not np.allclose(got, want, rtol=0, atol=share * scale, equal_nan=True):
            off = ~np.isclose(got, want, rtol=0, atol=share * scale, equal_nan=True)
            return f"{got[off][:8]} instead of {want[off][:8]}, {np.count_nonzero(off)} of {want.size}"
    return None
