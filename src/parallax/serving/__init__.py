"""Requests of many callers on one model: queued, run together or side by side, refused in time.

What is decided is decided in `parallax.serving.policy`, without clock or thread; this package has the threads, the
futures, the arrays and the measurements. It knows models by the small protocol `BatchRunner`, not by sessions.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.serving._batcher import Batcher, check_limits
    from parallax.serving._check import why_rows_differ
    from parallax.serving._examples import example_feeds
    from parallax.serving._many import run_in_order
    from parallax.serving._measure import LEAST_GAIN, best_size, measure_setting, request_s
    from parallax.serving._padding import Padding, find_padding
    from parallax.serving._requests import Request, RequestReader
    from parallax.serving._rows import join_rows, split_rows_of
    from parallax.serving._runner import BatchRunner
    from parallax.serving._serving import BatcherOptions, make_batcher, run_many
    from parallax.serving._stats import BatcherStats, ClassStats, SettingStats
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_batcher": "Batcher check_limits",
            "_check": "why_rows_differ",
            "_examples": "example_feeds",
            "_many": "run_in_order",
            "_measure": "LEAST_GAIN best_size measure_setting request_s",
            "_padding": "Padding find_padding",
            "_requests": "Request RequestReader",
            "_rows": "join_rows split_rows_of",
            "_runner": "BatchRunner",
            "_serving": "BatcherOptions make_batcher run_many",
            "_stats": "BatcherStats ClassStats SettingStats",
        },
        packages=("policy",),
    )

__all__ = [
    "LEAST_GAIN",
    "BatchRunner",
    "Batcher",
    "BatcherOptions",
    "BatcherStats",
    "ClassStats",
    "Padding",
    "Request",
    "RequestReader",
    "SettingStats",
    "best_size",
    "check_limits",
    "example_feeds",
    "find_padding",
    "join_rows",
    "make_batcher",
    "measure_setting",
    "request_s",
    "run_in_order",
    "run_many",
    "split_rows_of",
    "why_rows_differ",
]
