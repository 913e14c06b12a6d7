"""A model with its constants computed by ONNX Runtime."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy.typing as npt
from onnxruntime import GraphOptimizationLevel

from parallax.backends.ort import FOREIGN_EXCEPTIONS, RuntimeOptions, make_session
from parallax.errors import BackendError
from parallax.model import ComputedModel, Model, SegmentModel, compute_constants

_ERRORS_ALONE: Final = 3

_known: weakref.WeakKeyDictionary[Model, ComputedModel | None] = weakref.WeakKeyDictionary()
"""A model is asked for several times while a session is opened."""


def with_constants(model: Model) -> ComputedModel | None:
    """The model with its constants computed by ONNX Runtime's CPU kernels; None where there are none to compute.

    Takes milliseconds for hundreds of nodes; the answer is kept as long as the model is.
    """
    if model not in _known:
        _known[model] = compute_constants(model, _run)
    return _known[model]


def _run(part: SegmentModel, fed: Mapping[str, npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
    """Raises: BackendError if the runtime refuses the part, or a value it is fed."""
    try:
        options = RuntimeOptions(
            graph_optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL, log_severity_level=_ERRORS_ALONE
        )
        session = make_session(part, width=1, options=options)
        outputs: list[npt.NDArray[Any]] = session.run([output.name for output in session.outputs_meta], dict(fed), None)
    except FOREIGN_EXCEPTIONS as error:
        raise BackendError(f"constants cannot be computed: {error!s:.300}") from error
    return outputs
