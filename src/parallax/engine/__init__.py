"""Run a plan: compiled segments, lanes, the executor that drives the dispatcher, and the trace.

Refuses to decide anything: what may start is the dispatcher's decision, what is a segment the plan's.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.engine._compile import compile_plan
    from parallax.engine._declared import Declaration, declared_outputs, restore_declaration, store_declaration
    from parallax.engine._executor import Executor
    from parallax.engine._feeds import FeedBinder, FeedSpec, is_feedable
    from parallax.engine._interrupt import run_interruptibly
    from parallax.engine._lanes import lane_pool
    from parallax.engine._observers import EventRecorder, EventStream, Observer
    from parallax.engine._run import RunBudget
    from parallax.engine._run_events import SingleRun, begin_whole_run
    from parallax.engine._segment import CompiledSegment
    from parallax.engine._sketch import sketch_outline, stated_type
    from parallax.engine._trace import (
        SegmentSpan,
        SpanObserver,
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
            "_feeds": "FeedBinder FeedSpec is_feedable",
            "_interrupt": "run_interruptibly",
            "_lanes": "lane_pool",
            "_observers": "EventRecorder EventStream Observer",
            "_run": "RunBudget",
            "_run_events": "SingleRun begin_whole_run",
            "_segment": "CompiledSegment",
            "_sketch": "sketch_outline stated_type",
            "_trace": "SegmentSpan SpanObserver TraceRecorder TraceSink trace_durations write_chrome_trace",
            "_watch": "RunLastsError run_watched",
        },
    )

__all__ = [
    "CompiledSegment",
    "Declaration",
    "EventRecorder",
    "EventStream",
    "Executor",
    "FeedBinder",
    "FeedSpec",
    "Observer",
    "RunBudget",
    "RunLastsError",
    "SegmentSpan",
    "SingleRun",
    "SpanObserver",
    "TraceRecorder",
    "TraceSink",
    "begin_whole_run",
    "compile_plan",
    "declared_outputs",
    "is_feedable",
    "lane_pool",
    "restore_declaration",
    "run_interruptibly",
    "run_watched",
    "sketch_outline",
    "stated_type",
    "store_declaration",
    "trace_durations",
    "write_chrome_trace",
]
