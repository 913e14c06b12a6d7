"""What of ONNX Runtime's own session options sessions and segments get, which of them keep a model whole, and what else
is asked of them whichever way a model is opened."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import onnxruntime

from parallax.backends.ort import read_entry, shared_threads, use_shared_pool
from parallax.machine import available_cores
from parallax.options._providers import why_not_on_cpu

if TYPE_CHECKING:
    from parallax.backends.ort import RuntimeOptions
    from parallax.options._options import PlanningOptions
    from parallax.schedule import Plan


_DISABLED_KEY: Final = "optimization.disable_specified_optimizers"

_JOINING_OPTIMIZERS: Final = ("CommonSubexpressionElimination", "GatherSliceToSplitFusion", "Pad_Fusion")


def runtime_options(session_options: Any) -> RuntimeOptions:
    """What segments inherit of the caller's ``onnxruntime.SessionOptions`` (None: its defaults)."""
    return _default_runtime_options() if session_options is None else _read_runtime_options(session_options)


@functools.cache
def _default_runtime_options() -> RuntimeOptions:
    """The defaults spelt out, so that they and None are the same to a cache. To read them takes a millisecond."""
    return _read_runtime_options(onnxruntime.SessionOptions())


def _read_runtime_options(session_options: Any) -> RuntimeOptions:
    from parallax.backends.ort import RuntimeOptions
    from parallax.options._config_keys import INHERITED

    entries = ((key, read_entry(session_options, key)) for key in INHERITED)
    return RuntimeOptions(
        graph_optimization_level=session_options.graph_optimization_level,
        enable_cpu_mem_arena=session_options.enable_cpu_mem_arena,
        enable_mem_pattern=session_options.enable_mem_pattern,
        enable_mem_reuse=session_options.enable_mem_reuse,
        deterministic=session_options.use_deterministic_compute,
        log_severity_level=session_options.log_severity_level,
        log_verbosity_level=session_options.log_verbosity_level,
        logid=session_options.logid,
        config=tuple((key, value) for key, value in entries if value is not None),
    )


def compiled_options(session_options: Any) -> RuntimeOptions:
    """Return the options for segments of a bundle: with the least memory where the caller has no wishes."""
    inherited = runtime_options(session_options)
    return inherited if session_options is not None else lean_options(inherited)


@contextlib.contextmanager
def lean_memory(session_options: Any) -> Iterator[Any]:
    """Options for a session that lives inside a budget: it holds what is alive, and no more.

    By default ONNX Runtime holds a block for all tensors of a run, laid out by the run before (memory patterns), and
    keeps a dead tensor's buffer for a later tensor of the same shape (memory reuse), however much later. Without
    these, what a run holds is the sum of its tensors alive, which is what a budget counts. It may be a little
    slower, as buffers in use are warmer. The caller's object is restored afterwards. Where the caller has no wishes, it
    also allocates from the allocator that segments share: that takes no more than is asked for, and gives all back.
    """
    from parallax.backends.ort import use_shared_allocator

    made = onnxruntime.SessionOptions() if session_options is None else session_options
    if session_options is None:
        use_shared_allocator(made, {})
    given = (made.enable_mem_pattern, made.enable_mem_reuse)
    made.enable_mem_pattern = made.enable_mem_reuse = False
    try:
        yield made
    finally:
        made.enable_mem_pattern, made.enable_mem_reuse = given


def lean_options(options: RuntimeOptions) -> RuntimeOptions:
    """Return the options for segments, likewise."""
    return replace(options, enable_mem_pattern=False, enable_mem_reuse=False)


def sliced_options(options: RuntimeOptions) -> RuntimeOptions:
    """Likewise for a segment that computes slices one after the other: what each computes for itself stays apart.

    Common subexpressions of slices would be computed once and held from one use to the next, and slices of one tensor
    made at once. Padding would become part of the pool that reads it, also where the runtime refuses so much of a pool
    (observed with 1.31.1): of a whole model that is for its author to see, but slices are the only reader of a tensor
    that others read too.
    """
    config = dict(options.config)
    names = [*filter(None, config.get(_DISABLED_KEY, "").split(";")), *_JOINING_OPTIMIZERS]
    config[_DISABLED_KEY] = ";".join(dict.fromkeys(names))
    return replace(options, config=tuple(config.items()))


@contextlib.contextmanager
def planned_threads(session_options: Any, threads: int | None, plan: Plan | None) -> Iterator[Any]:
    """Session options with the planned number of threads, for the time it takes to open a session.

    The caller's own setting wins. Their object is restored afterwards: a session copies what it is given.

    Args:
        threads: the ``threads=`` keyword.
        plan: one of the whole model that tuning, or what it was modelled to draw, found best at another width than the
            default, or None.
    """
    if shared_threads() is not None:
        # The caller's object may be used again with the same pool: there is nothing to restore.
        shared = onnxruntime.SessionOptions() if session_options is None else session_options
        use_shared_pool(shared)
        yield shared
        return
    given = 0 if session_options is None else int(session_options.intra_op_num_threads)
    wanted = threads or 0
    if plan is not None and plan.provenance.source in ("measured", "energy"):
        # Stated even where it is the default: the runtime pins the threads of its default pool to cores, which is
        # not what was measured, and leaves a quick model waiting whenever the caller's thread sits on theirs.
        # A caller who asks for fewer threads gets no more than those: a bundle may have been tuned with others.
        width = plan.segments[0].width
        wanted = min(threads or width, width)
    if given or not wanted:
        yield session_options
    elif session_options is None:
        made = onnxruntime.SessionOptions()
        made.intra_op_num_threads = wanted
        yield made
    else:
        session_options.intra_op_num_threads = wanted
        try:
            yield session_options
        finally:
            session_options.intra_op_num_threads = given


def has_pinned_threads(session_options: Any) -> bool:
    """Whether a session opened with these has threads that the runtime pins to cores: its default pool's."""
    if session_options is None:
        return True
    if session_options.intra_op_num_threads or not session_options.use_per_session_threads:
        return False
    return read_entry(session_options, "session.intra_op_thread_affinities") is None


def why_not_cut(session_options: Any, providers: Sequence[Any] | None) -> str | None:
    """Why these options call for the runtime's own session over the whole model, or None."""
    obstacle = why_not_compiled(session_options, providers)
    if obstacle is not None:
        return obstacle
    if shared_threads() is not None:
        return "all sessions share one thread pool, of which a lane cannot have a part"
    if session_options is None:
        return None
    if session_options.enable_profiling:
        return "profiling of the whole model was asked for"
    if session_options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL:
        return "the runtime's own parallel mode was asked for"
    if session_options.execution_order != onnxruntime.ExecutionOrder.DEFAULT:
        return f"the runtime's execution order {session_options.execution_order.name} was asked for"
    if not session_options.use_per_session_threads:
        return "threads of the runtime's own global pool were asked for"
    return None


def why_not_compiled(session_options: Any, providers: Sequence[Any] | None) -> str | None:
    """Why these options call for the model as it came, not compiled for the CPU, or None."""
    obstacle = why_not_on_cpu(providers)
    if obstacle is not None or session_options is None:
        return obstacle
    if session_options.optimized_model_filepath:
        return "the optimised model is to be written to a file"
    if session_options.has_providers():
        return "execution providers were added to the session options"
    return None


def session_cores(options: PlanningOptions, session_options: Any) -> int:
    """Cores to use: ``threads=``, else the session options' intra-op threads, else what the machine allows."""
    if options.threads is not None:
        return options.threads
    if session_options is not None and session_options.intra_op_num_threads > 0:
        return int(session_options.intra_op_num_threads)
    return available_cores()


def is_onnx_source(path: str | None, data: bytes | None, session_options: Any) -> bool:
    """Whether the base class would read this as ONNX (and not as ORT format)."""
    if session_options is not None:
        stated = read_entry(session_options, "session.load_model_format")
        if stated is not None:
            return stated.upper() == "ONNX"
    if path is not None:
        return not path.endswith(".ort")
    return data is not None and data[4:8] != b"ORTM"
