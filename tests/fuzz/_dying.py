"""A child of `tests.fuzz._chunks` in which some models end the process: with Parallax, or with ONNX Runtime already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.fuzz import _chunks
from tests.fuzz._counts import Counts
from tests.fuzz._models import Made

WITH_PARALLAX = 1_000_001
WITH_STOCK = 1_000_003


def _try_model(seed: int, made: Made, folder: Path, counts: Counts) -> None:
    if seed in (WITH_PARALLAX, WITH_STOCK):
        os.abort()
    counts.models += 1


if __name__ == "__main__":
    if sys.argv[1] == "stock":
        if int(sys.argv[2]) == WITH_STOCK:
            os.abort()
    else:
        _chunks.main(*sys.argv[1:], trying=_try_model)
