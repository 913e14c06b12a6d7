"""What several modules of sessions' tests compare with."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest

from tests.session._calling import CPU, INPUTS, MODEL


@pytest.fixture(scope="session")
def wanted() -> list[Any]:
    """ONNX Runtime's own answers of `MODEL` to each of `INPUTS`."""
    stock = onnxruntime.InferenceSession(MODEL, providers=[CPU])
    return [stock.run(None, {"x": x})[0] for x in INPUTS]
