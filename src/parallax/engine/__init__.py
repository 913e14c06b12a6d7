"""Run a plan: compiled segments, lanes, the executor that drives the dispatcher, and the trace.

Refuses to decide anything: what may start is the dispatcher's decision, what is a segment the plan's.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.engine._background import run_in_background
    from parallax.engine._compile import compile_plan
    from parallax.engine._counted_runs import CallCount, CountedRunner, SideBySideRunner
    from parallax.engine._declared import Declaration, declare_outputs, declared_outputs, store_declaration
    from parallax.engine._delegate import DelegatedSession, refused_segments
    from parallax.engine._durations import RunDurations
    from parallax.engine._executor import Executor
    from parallax.engine._feeds import FeedBinder, FeedSpec, is_feedable
    from parallax.engine._forks import FORKS
    from parallax.engine._interrupt import run_interruptibly
    from parallax.engine._lanes import lane_pool
    from parallax.engine._observers import EventRecorder, EventStream, Observer
    from parallax.engine._run import RunBudget
    from parallax.engine._run_options import why_run_needs_whole
    from parallax.engine._runner import Estimator, Runner, RunnerHandle, WholeRunner, nothing_open, run_whole
    from parallax.engine._segment import CompiledSegment
    from parallax.engine._shape_forms import ShapeForm, ShapeForms
    from parallax.engine._split_runner import ModelInterface, SplitRunner
    from parallax.engine._stated_types import memory_model_from_types, proven_type, stated_type
    from parallax.engine._trace import (
        SegmentSpan,
        SpanObserver,
        TraceRecorder,
        TraceSink,
        trace_durations,
        write_chrome_trace,
    )
    from parallax.engine._transfers import find_transfers
    from parallax.engine._trimmed import trim_feeds, trimmed_runner
    from parallax.engine._watch import RunLastsError, run_watched
    from parallax.engine._work import kept_outputs, segment_works, static_shapes
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_background": "run_in_background",
            "_compile": "compile_plan",
            "_counted_runs": "CallCount CountedRunner SideBySideRunner",
            "_declared": "Declaration declare_outputs declared_outputs store_declaration",
            "_delegate": "DelegatedSession refused_segments",
            "_durations": "RunDurations",
            "_executor": "Executor",
            "_feeds": "FeedBinder FeedSpec is_feedable",
            "_forks": "FORKS",
            "_interrupt": "run_interruptibly",
            "_lanes": "lane_pool",
            "_observers": "EventRecorder EventStream Observer",
            "_run": "RunBudget",
            "_run_options": "why_run_needs_whole",
            "_runner": "Estimator Runner RunnerHandle WholeRunner nothing_open run_whole",
            "_segment": "CompiledSegment",
            "_shape_forms": "ShapeForm ShapeForms",
            "_stated_types": "proven_type memory_model_from_types stated_type",
            "_split_runner": "ModelInterface SplitRunner",
            "_trace": "SegmentSpan SpanObserver TraceRecorder TraceSink trace_durations write_chrome_trace",
            "_transfers": "find_transfers",
            "_trimmed": "trim_feeds trimmed_runner",
            "_watch": "RunLastsError run_watched",
            "_work": "kept_outputs segment_works static_shapes",
        },
    )

__all__ = [
    "FORKS",
    "CallCount",
    "CompiledSegment",
    "CountedRunner",
    "Declaration",
    "DelegatedSession",
    "Estimator",
    "EventRecorder",
    "EventStream",
    "Executor",
    "FeedBinder",
    "FeedSpec",
    "ModelInterface",
    "Observer",
    "RunBudget",
    "RunDurations",
    "RunLastsError",
    "Runner",
    "RunnerHandle",
    "SegmentSpan",
    "ShapeForm",
    "ShapeForms",
    "SideBySideRunner",
    "SpanObserver",
    "SplitRunner",
    "TraceRecorder",
    "TraceSink",
    "WholeRunner",
    "compile_plan",
    "declare_outputs",
    "declared_outputs",
    "find_transfers",
    "is_feedable",
    "kept_outputs",
    "lane_pool",
    "memory_model_from_types",
    "nothing_open",
    "proven_type",
    "refused_segments",
    "run_in_background",
    "run_interruptibly",
    "run_watched",
    "run_whole",
    "segment_works",
    "stated_type",
    "static_shapes",
    "store_declaration",
    "trace_durations",
    "trim_feeds",
    "trimmed_runner",
    "why_run_needs_whole",
    "write_chrome_trace",
]
