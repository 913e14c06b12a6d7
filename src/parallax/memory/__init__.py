"""Where does it live: lifetimes of boundary tensors, planned arenas, peaks of segments, budgets.

Pure: sizes and plans in, offsets and figures out; nothing here allocates.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.memory._arena import ALIGNMENT_BYTES, ArenaPlan, Effort, plan_arena
    from parallax.memory._budget import (
        DEFAULT_MARGIN,
        find_serialisation_edges,
        parse_bytes,
        peak_of_schedule,
        show_bytes,
    )
    from parallax.memory._device_memory import device_requirement, restrict_to_memory
    from parallax.memory._lifetimes import Lifetimes, find_lifetimes
    from parallax.memory._memory_model import MemoryModel, PlanCache
    from parallax.memory._peaks import PeakTable, input_symbols
    from parallax.memory._report import PEAK_RATIO, peak_of_sequence, sequential_orders
    from parallax.memory._requirement import MemoryRequirement
    from parallax.memory._reuse_edges import find_reuse_edges
    from parallax.memory._session_budget import Budget
    from parallax.memory._verify import verify_arena_plan
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_arena": "ALIGNMENT_BYTES ArenaPlan Effort plan_arena",
            "_budget": "DEFAULT_MARGIN find_serialisation_edges parse_bytes peak_of_schedule show_bytes",
            "_device_memory": "device_requirement restrict_to_memory",
            "_reuse_edges": "find_reuse_edges",
            "_lifetimes": "Lifetimes find_lifetimes",
            "_memory_model": "MemoryModel PlanCache",
            "_peaks": "PeakTable input_symbols",
            "_report": "PEAK_RATIO peak_of_sequence sequential_orders",
            "_requirement": "MemoryRequirement",
            "_session_budget": "Budget",
            "_verify": "verify_arena_plan",
        },
    )

__all__ = [
    "ALIGNMENT_BYTES",
    "DEFAULT_MARGIN",
    "PEAK_RATIO",
    "ArenaPlan",
    "Budget",
    "Effort",
    "Lifetimes",
    "MemoryModel",
    "MemoryRequirement",
    "PeakTable",
    "PlanCache",
    "device_requirement",
    "find_lifetimes",
    "find_reuse_edges",
    "find_serialisation_edges",
    "input_symbols",
    "parse_bytes",
    "peak_of_schedule",
    "peak_of_sequence",
    "plan_arena",
    "restrict_to_memory",
    "sequential_orders",
    "show_bytes",
    "verify_arena_plan",
]
