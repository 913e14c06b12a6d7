"""Where does it live: lifetimes of boundary tensors, planned arenas, peaks of segments, budgets.

Pure: sizes and plans in, offsets and figures out; nothing here allocates.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.memory._arena import ALIGNMENT_BYTES, ArenaPlan, ArenaSlot, Effort, placement_order, plan_arena
    from parallax.memory._budget import (
        DEFAULT_MARGIN,
        BudgetNeed,
        admission_budget,
        keep_apart,
        least_budget,
        parse_bytes,
        peak_of_schedule,
        show_bytes,
    )
    from parallax.memory._device_room import DeviceNeed, device_need, fit_offer
    from parallax.memory._handover import HandOver, hand_over
    from parallax.memory._lifetimes import Lifetimes, dispatch_order, find_lifetimes, fixed_order
    from parallax.memory._outline import CacheStatistics, MemoryOutline, MemoryPlan, PlanCache
    from parallax.memory._peaks import GroupPeak, PeakTable, input_symbols
    from parallax.memory._protocols import PlanLike, SegmentLike
    from parallax.memory._report import PEAK_RATIO, MemoryReport, peak_of_sequence, report_memory, sequential_orders
    from parallax.memory._verify import verify_arena_plan
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_arena": "ALIGNMENT_BYTES ArenaPlan ArenaSlot Effort placement_order plan_arena",
            "_budget": (
                "DEFAULT_MARGIN BudgetNeed admission_budget keep_apart least_budget parse_bytes peak_of_schedule "
                "show_bytes"
            ),
            "_device_room": "DeviceNeed device_need fit_offer",
            "_handover": "HandOver hand_over",
            "_lifetimes": "Lifetimes dispatch_order find_lifetimes fixed_order",
            "_outline": "CacheStatistics MemoryOutline MemoryPlan PlanCache",
            "_peaks": "GroupPeak PeakTable input_symbols",
            "_protocols": "PlanLike SegmentLike",
            "_report": "PEAK_RATIO MemoryReport peak_of_sequence report_memory sequential_orders",
            "_verify": "verify_arena_plan",
        },
    )

__all__ = [
    "ALIGNMENT_BYTES",
    "DEFAULT_MARGIN",
    "PEAK_RATIO",
    "ArenaPlan",
    "ArenaSlot",
    "BudgetNeed",
    "CacheStatistics",
    "DeviceNeed",
    "Effort",
    "GroupPeak",
    "HandOver",
    "Lifetimes",
    "MemoryOutline",
    "MemoryPlan",
    "MemoryReport",
    "PeakTable",
    "PlanCache",
    "PlanLike",
    "SegmentLike",
    "admission_budget",
    "device_need",
    "dispatch_order",
    "find_lifetimes",
    "fit_offer",
    "fixed_order",
    "hand_over",
    "input_symbols",
    "keep_apart",
    "least_budget",
    "parse_bytes",
    "peak_of_schedule",
    "peak_of_sequence",
    "placement_order",
    "plan_arena",
    "report_memory",
    "sequential_orders",
    "show_bytes",
    "verify_arena_plan",
]
