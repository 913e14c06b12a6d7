"""Runs of a model of two milliseconds on two cores that a dozen busy processes wanted too, as they were recorded.

MobileNetV3-S by three plans, each for some seconds; none of their runs that were watched is left out. Most are not
disturbed at all, and some take ten times as long, since their thread had to wait for its turn. Each number is the
observed over the predicted time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_RUNS: Final = json.loads(Path(__file__).with_name("recorded_runs.json").read_text(encoding="utf-8"))

WIDE: Final = tuple(map(float, _RUNS["wide"]))
"""The model on both cores."""

NARROW: Final = tuple(map(float, _RUNS["narrow"]))
"""On one core."""

DEVICE: Final = tuple(map(float, _RUNS["device"]))
"""On an emulated device: the thread that waits for it sleeps, and has to be woken."""
