"""The ``parallax`` command: inspect, run, bench, tune and compile ONNX models from a terminal.

Also what its measurements rest on, for scripts that measure more: variants that take turns
(`time_interleaved`), ONNX Runtime as its documentation sets it up (`Baseline`), outputs compared, intervals of medians.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.cli._app import app
    from parallax.cli._baselines import Baseline, Difference, compare_outputs, runtime_baselines, thread_counts
    from parallax.cli._timing import Ratio, Timing, quartiles, ratio, time_interleaved, wait_until_quiet
    from parallax.cli._verdict import LEAST_SAMPLES, LEVEL, median_interval
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_app": "app",
            "_baselines": "Difference Baseline compare_outputs runtime_baselines thread_counts",
            "_timing": "Ratio Timing quartiles ratio time_interleaved wait_until_quiet",
            "_verdict": "LEAST_SAMPLES LEVEL median_interval",
        },
    )

__all__ = [
    "LEAST_SAMPLES",
    "LEVEL",
    "Baseline",
    "Difference",
    "Ratio",
    "Timing",
    "app",
    "compare_outputs",
    "main",
    "median_interval",
    "quartiles",
    "ratio",
    "runtime_baselines",
    "thread_counts",
    "time_interleaved",
    "wait_until_quiet",
]


def main() -> None:
    """Entry point of the ``parallax`` command.

    Exits with 0, 1 (outputs differ from ONNX Runtime's), 2 (bad input), 3 (a measurement came to no conclusion) or
    130 (Ctrl-C).
    """
    from parallax.cli._app import app
    from parallax.cli._exits import IS_OWN_PROCESS

    IS_OWN_PROCESS.set(True)
    try:
        app(prog_name="parallax")
    finally:
        # Python's exit looks for garbage among all objects, which takes longer than the rest of the exit.
        gc.freeze()
