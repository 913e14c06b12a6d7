"""What several modules of sessions' tests compare with, and what they have trials decide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import onnxruntime
import pytest

from tests.session._calling import CPU, INPUTS, MODEL, decide_trials


@pytest.fixture(scope="session")
def wanted() -> list[Any]:
    """ONNX Runtime's own answers of `MODEL` to each of `INPUTS`."""
    stock = onnxruntime.InferenceSession(MODEL, providers=[CPU])
    return [stock.run(None, {"x": x})[0] for x in INPUTS]


@pytest.fixture
def sharing_decided(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets that no replica may hold weights of its own unless it must, and what a trial decides."""
    return partial(decide_trials, monkeypatch, most_growth=1.0)
