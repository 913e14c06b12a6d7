"""Run a plan: compiled segments, lanes, the executor that drives the dispatcher, and the trace.

Refuses to decide anything: what may start is the dispatcher's decision, what is a segment the plan's.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.engine._compile import compile_plan
    from parallax.engine._declared import Declaration, declared_outputs, restore_declaration, store_declaration
    from parallax.engine._executor import Executor
    from parallax.engine._failures import (
        FOREIGN_EXCEPTIONS,
        OPENING_EXCEPTIONS,
        RUNTIME_EXCEPTIONS,
        both,
        load_failure,
        open_failure,
        run_failure,
    )
    from parallax.engine._interrupt import run_interruptibly
    from parallax.engine._lanes import lane_pool
    from parallax.engine._mapped_weights import MappedWeights
    from parallax.engine._ort import CPU_DEVICE, RuntimeOptions, make_mapped_session, save_optimised
    from parallax.engine._run import RunBudget
    from parallax.engine._segment import CompiledSegment
    from parallax.engine._shared_allocator import shrink_shared_allocator, use_shared_allocator
    from parallax.engine._shared_pool import share_thread_pool, shared_threads, use_shared_pool
    from parallax.engine._sketch import sketch_outline, stated_type
    from parallax.engine._trace import (
        SegmentSpan,
        SinkHolder,
        TraceRecorder,
        TraceSink,
        trace_durations,
        write_chrome_trace,
    )
    from parallax.engine._watch import RunLastsError, run_watched
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_compile": "compile_plan",
            "_declared": "Declaration declared_outputs restore_declaration store_declaration",
            "_executor": "Executor",
            "_failures": (
                "FOREIGN_EXCEPTIONS OPENING_EXCEPTIONS RUNTIME_EXCEPTIONS both load_failure open_failure run_failure"
            ),
            "_interrupt": "run_interruptibly",
            "_lanes": "lane_pool",
            "_mapped_weights": "MappedWeights",
            "_ort": "CPU_DEVICE RuntimeOptions make_mapped_session save_optimised",
            "_run": "RunBudget",
            "_segment": "CompiledSegment",
            "_shared_allocator": "shrink_shared_allocator use_shared_allocator",
            "_shared_pool": "share_thread_pool shared_threads use_shared_pool",
            "_sketch": "sketch_outline stated_type",
            "_trace": "SegmentSpan SinkHolder TraceRecorder TraceSink trace_durations write_chrome_trace",
            "_watch": "RunLastsError run_watched",
        },
    )

__all__ = [
    "CPU_DEVICE",
    "FOREIGN_EXCEPTIONS",
    "OPENING_EXCEPTIONS",
    "RUNTIME_EXCEPTIONS",
    "CompiledSegment",
    "Declaration",
    "Executor",
    "MappedWeights",
    "RunBudget",
    "RunLastsError",
    "RuntimeOptions",
    "SegmentSpan",
    "SinkHolder",
    "TraceRecorder",
    "TraceSink",
    "both",
    "compile_plan",
    "declared_outputs",
    "lane_pool",
    "load_failure",
    "make_mapped_session",
    "open_failure",
    "restore_declaration",
    "run_failure",
    "run_interruptibly",
    "run_watched",
    "save_optimised",
    "share_thread_pool",
    "shared_threads",
    "shrink_shared_allocator",
    "sketch_outline",
    "stated_type",
    "store_declaration",
    "trace_durations",
    "use_shared_allocator",
    "use_shared_pool",
    "write_chrome_trace",
]
