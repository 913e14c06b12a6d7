"""From what a session was given to what it runs: a bundle, a whole model or a plan's segments, as one record."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.opening._compile import compile
    from parallax.opening._explain import explain, open_inputs
    from parallax.opening._narrow import narrow_weight_bytes, open_narrow
    from parallax.opening._no_effect import options_of_no_effect
    from parallax.opening._opening import Opening
    from parallax.opening._plan_opening import open_prepared, prepare_plan
    from parallax.opening._shared_weights import open_shared
    from parallax.opening._sharing import Sharing
    from parallax.opening._slimming import slimming_note
    from parallax.opening._source import OpenedBundle, SessionSource, check_arrived, needs_no_threads, travelling
    from parallax.opening._state import CLOSED, NOT_OPEN, Opened, SessionState, check_transition
    from parallax.opening._usage import MemoryUsage, describe_usage, estimate_opened, watch_memory
    from parallax.opening._what_runs import plan_that_runs, threads_of
    from parallax.opening._whole_model import (
        HOLDING_ATTRIBUTES,
        OpeningRequest,
        WholeArguments,
        is_for_whole,
        open_beside,
        stock_attributes,
    )
    from parallax.opening._why_not_following import planning_request, why_not_following
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_compile": "compile",
            "_explain": "explain open_inputs",
            "_narrow": "narrow_weight_bytes open_narrow",
            "_no_effect": "options_of_no_effect",
            "_opening": "Opening",
            "_plan_opening": "open_prepared prepare_plan",
            "_shared_weights": "open_shared",
            "_sharing": "Sharing",
            "_slimming": "slimming_note",
            "_source": "OpenedBundle SessionSource check_arrived needs_no_threads travelling",
            "_state": "CLOSED NOT_OPEN Opened SessionState check_transition",
            "_usage": "MemoryUsage describe_usage estimate_opened watch_memory",
            "_what_runs": "plan_that_runs threads_of",
            "_whole_model": (
                "HOLDING_ATTRIBUTES OpeningRequest WholeArguments is_for_whole open_beside stock_attributes"
            ),
            "_why_not_following": "planning_request why_not_following",
        },
    )

__all__ = [
    "CLOSED",
    "HOLDING_ATTRIBUTES",
    "NOT_OPEN",
    "MemoryUsage",
    "Opened",
    "OpenedBundle",
    "Opening",
    "OpeningRequest",
    "SessionSource",
    "SessionState",
    "Sharing",
    "WholeArguments",
    "check_arrived",
    "check_transition",
    "compile",
    "describe_usage",
    "estimate_opened",
    "explain",
    "is_for_whole",
    "narrow_weight_bytes",
    "needs_no_threads",
    "open_beside",
    "open_inputs",
    "open_narrow",
    "open_prepared",
    "open_shared",
    "options_of_no_effect",
    "plan_that_runs",
    "planning_request",
    "prepare_plan",
    "slimming_note",
    "stock_attributes",
    "threads_of",
    "travelling",
    "watch_memory",
    "why_not_following",
]
