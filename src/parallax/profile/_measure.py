"""Costs by measuring: ONNX Runtime's own profile of the whole model, traced back to the model's nodes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from parallax.errors import BackendError, ConfigError
from parallax.graph import NUMPY_TYPES, STRING_TYPE, CostModel, OpGraph, node_work
from parallax.model import GraphOnly, Model, read_graph_only
from parallax.profile._attribution import find_covers, join_covers, split_times
from parallax.profile._cache import Cache
from parallax.profile._fingerprint import machine_fingerprint
from parallax.profile._runtime import OpenSession, OptionsFactory, default_options, open_whole

Feeds = Mapping[str, Any]
"""Input name -> array, as ``InferenceSession.run`` takes it."""

Progress = Callable[[int, int], None]
"""Called with (runs done, runs in all) after each run."""

_KERNEL = "_kernel_time"
_DEQUANTISE = "DequantizeLinear"


def measure_costs(
    model: Model,
    *,
    widths: Sequence[int],
    feeds: Feeds | None = None,
    runs: int = 10,
    warmup: int = 2,
    session_options: OptionsFactory | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> CostModel:
    """Time every node of ``model`` at every width, on this machine.

    For each width one session runs the whole model ``warmup`` times, then ``runs`` times with the
    runtime's profiler on, then ``runs`` times with it off. Kernel times (midmeans of the runs) are traced
    back to the model's nodes (see `parallax.profile._attribution`; what several nodes share is split by
    their FLOPs) and scaled so that they sum to the end-to-end median, since the profiler slows small kernels.
    What runs inside an If, Loop or Scan counts as time of that node.

    Args:
        widths: numbers of threads, each at least 1.
        feeds: inputs of typical size and content; `random_feeds` by default.
        runs: measured runs per width and kind, at least 1.
        session_options: makes the options of each session; threads and profiling are set on top.
        cache: looked up first, by the model's structure, this machine, the widths and the shapes fed (a
            result under other ``session_options`` is another result: pass no cache then), and filled.

    Raises:
        ConfigError: no width, a width below 1, no runs, or inputs that `random_feeds` cannot make.
        BackendError: the model cannot be opened or run by ONNX Runtime.
    """
    wanted = tuple(sorted(set(widths)))
    if not wanted or wanted[0] < 1:
        raise ConfigError(f"measuring at widths {tuple(widths)}", fix="give one or more widths of at least 1")
    if runs < 1 or warmup < 0:
        raise ConfigError(f"measuring with {runs} runs after {warmup} for warming up", fix="at least 1 run is needed")
    fed = random_feeds(model.graph) if feeds is None else feeds
    key = _cost_key(model, wanted, fed)
    known = _load_costs(cache, key)
    if known is not None:
        return known
    fused = _fused_graph(model)
    steps = _Steps(progress, len(wanted) * (warmup + 2 * runs))
    make_options = default_options if session_options is None else session_options
    with tempfile.TemporaryDirectory(prefix="parallax-profile-", ignore_cleanup_errors=True) as folder:
        timings = [
            _time_width(model, width, fed, runs, warmup, make_options(), Path(folder), steps) for width in wanted
        ]
        outline = read_graph_only(_graph_path(Path(folder), wanted[0]))
    costs = _attribute(model, fused, outline, wanted, timings)
    if cache is not None:
        cache.store(key, costs.to_json())
    return costs


def fusion_safe_tensors(model: Model, *, cache: Cache | None = None) -> frozenset[str]:
    """Tensors of ``model`` that still exist in the graph ONNX Runtime makes of it.

    That is its graph after fusions ("extended" optimisation) and before the layout pass, which renames
    what it rewrites. Cutting the model at one of these tensors undoes no fusion. Model inputs and outputs
    are among them where a node touches them; constants are not.

    Takes tens of milliseconds: the graph is optimised, but weights are neither packed nor written.

    Raises: BackendError if ONNX Runtime cannot open the model.
    """
    key = f"survivors|{model.structure_digest}|onnxruntime {ort.__version__}"
    stored = None if cache is None else cache.load(key)
    if stored is not None and isinstance(names := stored.get("names"), list):
        return frozenset(str(name) for name in names)
    fusion_safe = _kept_by_fusions(model.graph, _fused_graph(model))
    if cache is not None:
        cache.store(key, {"names": sorted(fusion_safe)})
    return fusion_safe


def _fused_graph(model: Model) -> OpGraph:
    """The runtime's graph after fusions, before the layout pass."""
    options = default_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="parallax-optimised-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "optimised.onnx"
        open_whole(model, width=1, options=options, saved_graph=path, runnable=False)
        return read_graph_only(path).graph


def _kept_by_fusions(graph: OpGraph, fused: OpGraph) -> frozenset[str]:
    inputs = {info.name for info in graph.inputs}
    touched = fused.producers.keys() | fused.consumers.keys()
    found = {name for name in touched if name in graph.producers or name in inputs}
    floats_left = _floats_left(fused)
    for node in graph.nodes:
        if node.op_type == _DEQUANTISE and node.outputs:
            left = floats_left[node.outputs[0]]
            is_weight = node.inputs[0] in graph.initializers or _is_constant(graph, node.inputs[0])
            if left < len(graph.consumers.get(node.outputs[0], ())) and not is_weight:
                found.discard(node.outputs[0])  # some readers became kernels that read the quantised tensor
            elif left:
                found.add(node.outputs[0])
    return frozenset(found)


def _floats_left(fused: OpGraph) -> Counter[str]:
    """By what is dequantised, how many nodes of the fused graph read it as floats.

    The runtime gives each of several readers a copy of its own, named after the first, before it fuses.
    """
    left: Counter[str] = Counter()
    for node in fused.nodes:
        if node.op_type == _DEQUANTISE:
            left[node.outputs[0].split("/duplicated")[0]] += len(fused.consumers.get(node.outputs[0], ()))
    return left


def _is_constant(graph: OpGraph, name: str) -> bool:
    producer = graph.producers.get(name)
    return producer is not None and graph.nodes[producer].op_type == "Constant"


# One width ----------------------------------------------------------------------------------------


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


_Event = tuple[str, str, int]
"""Node name, operator type, duration in ns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfiledRun:
    """``events`` in order of completion; ``total_ns`` from the runtime's own clock."""

    events: tuple[_Event, ...]
    total_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """What one width gave."""

    runs: tuple[_ProfiledRun, ...]
    latency_ns: int


def _graph_path(folder: Path, width: int) -> Path:
    return folder / f"width-{width}" / "optimised.onnx"


def _time_width(
    model: Model, width: int, feeds: Feeds, runs: int, warmup: int, options: Any, folder: Path, steps: _Steps
) -> _Timing:
    path = _graph_path(folder, width)
    path.parent.mkdir()
    opened = open_whole(model, width=width, options=options, profile_prefix=str(path.parent / "p"), saved_graph=path)
    for _ in range(warmup + runs):
        _run(opened, feeds, model)
        steps.advance()
    profile = Path(opened.session.end_profiling())
    latencies = []
    for _ in range(runs):
        latencies.append(_run(opened, feeds, model))
        steps.advance()
    profiled = _read_profile(profile)[warmup:]
    profile.unlink()
    # The profiler only adds. Where runs with it were the faster ones, those without were noisy.
    latency_ns = min(statistics.median(latencies), statistics.median(run.total_ns for run in profiled))
    return _Timing(runs=tuple(profiled), latency_ns=round(latency_ns))


def _run(opened: OpenSession, feeds: Feeds, model: Model) -> int:
    start = time.perf_counter_ns()
    try:
        opened.session.run(None, feeds)
    except Exception as error:
        raise BackendError(
            f"ONNX Runtime cannot run the model on the inputs it is measured with: {error}",
            where=None if model.path is None else str(model.path),
            fix="give feeds of the right shapes and content",
        ) from error
    return time.perf_counter_ns() - start


def _read_profile(path: Path) -> list[_ProfiledRun]:
    """What the profiler wrote, run by run. A run ends with an event of category Session named ``model_run``.

    Raises: BackendError if it cannot be read: the profiler says nothing of a disk that is full.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise BackendError(
            f"ONNX Runtime's profile cannot be read: {error}",
            where=str(path),
            fix="free space in the folder for temporary files, or name another (TMPDIR)",
        ) from error
    runs: list[_ProfiledRun] = []
    current: list[_Event] = []
    for event in written:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            current.append((name.removesuffix(_KERNEL), event["args"].get("op_name", ""), int(event["dur"]) * 1000))
        elif event.get("cat") == "Session" and name == "model_run":
            runs.append(_ProfiledRun(events=tuple(current), total_ns=int(event["dur"]) * 1000))
            current = []
    return runs


# From events to nodes -----------------------------------------------------------------------------


def _attribute(
    model: Model, fused: OpGraph, outline: GraphOnly, widths: Sequence[int], timings: Sequence[_Timing]
) -> CostModel:
    graph = model.inferred()
    covers = join_covers(find_covers(fused, outline.graph), find_covers(graph, fused))
    weights = [node_work(graph, node).flops or 0 for node in graph.nodes]
    rows, scales = [], []
    for timing in timings:
        durations, scale = _scaled(_kernel_times(outline, timing.runs), timing.latency_ns)
        rows.append(tuple(split_times(durations, covers, weights)))
        scales.append(scale)
    return CostModel(
        source="measured",
        widths=tuple(widths),
        durations_ns=tuple(rows),
        latencies_ns=tuple(timing.latency_ns for timing in timings),
        scales=tuple(scales),
        known_fraction=1.0,
        fusion_safe=_kept_by_fusions(graph, fused),
    )


def _kernel_times(outline: GraphOnly, runs: Sequence[_ProfiledRun]) -> list[float]:
    """Midmean over the runs of each optimised node's time, in ns."""
    columns = [_match_events(outline, run.events) for run in runs]
    return [_midmean([column[index] for column in columns]) for index in range(len(outline.graph.nodes))]


def _match_events(outline: GraphOnly, events: Sequence[_Event]) -> list[int]:
    """Times of the optimised graph's nodes in one run.

    The runtime runs nodes in the order in which it saved them, so events are met by walking along.
    Events in between are those of bodies, which end before the node around them does: that one's
    time contains theirs. A node whose event does not come (another execution order) has the time of the
    event with its name, if there is one.
    """
    nodes, names = outline.graph.nodes, outline.stated_names
    times = [0] * len(nodes)
    position = 0
    for name, op_type, duration in events:
        if position < len(nodes) and _is_event_of(name, op_type, names[position], nodes[position].op_type):
            times[position] = duration
            position += 1
    if position < len(nodes):
        by_name = {(name, op_type): duration for name, op_type, duration in events}
        times = [by_name.get((name, node.op_type), 0) for name, node in zip(names, nodes, strict=True)]
    return times


def _is_event_of(event_name: str, event_op: str, node_name: str, node_op: str) -> bool:
    """A node without a name is reported as ``<operator>_<number>``."""
    if event_op != node_op:
        return False
    return event_name == node_name if node_name else event_name.startswith(f"{node_op}_")


def _midmean(values: Sequence[int]) -> float:
    """Mean of the middle half: as steady as the median, without its grain (the profiler counts whole µs)."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def _scaled(times: Sequence[float], latency_ns: int) -> tuple[list[int], float]:
    """``times`` multiplied to sum to ``latency_ns`` exactly, in whole ns, and the factor."""
    total = sum(times)
    if total <= 0:
        return [0] * len(times), 1.0
    scale = latency_ns / total
    scaled: list[int] = []
    running, given = 0.0, 0
    for spent in times:
        running += spent
        upto = round(running * scale)
        scaled.append(upto - given)
        given = upto
    return scaled, scale


# Inputs and keys ----------------------------------------------------------------------------------


def random_feeds(graph: OpGraph, *, seed: int = 0, unknown_dim: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Inputs to measure with: standard normal floats, zeros for whole numbers (they may be indices), True.

    Args:
        unknown_dim: size of dimensions that the model leaves open.

    Raises: ConfigError for inputs that are no tensors of numpy's numbers.
    """
    random = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for info in graph.inputs:
        if info.kind != "tensor" or (info.dtype not in NUMPY_TYPES and info.dtype != STRING_TYPE):
            raise ConfigError(
                f"cannot make up input {info.name!r} (a {info.kind}, element type {info.dtype})", fix="give feeds"
            )
        shape = tuple(dim if isinstance(dim, int) else unknown_dim for dim in info.shape or ())
        if info.dtype == STRING_TYPE:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        elif (dtype := NUMPY_TYPES[info.dtype]).kind == "f":
            feeds[info.name] = np.asarray(random.standard_normal(shape), dtype=dtype)
        else:
            feeds[info.name] = np.full(shape, dtype.kind == "b", dtype=dtype)
    return feeds


def _cost_key(model: Model, widths: Sequence[int], feeds: Feeds) -> str:
    shapes = {name: list(np.shape(value)) for name, value in sorted(feeds.items())}
    return f"costs|{model.structure_digest}|{machine_fingerprint()}|{list(widths)}|{json.dumps(shapes)}"


def _load_costs(cache: Cache | None, key: str) -> CostModel | None:
    value = None if cache is None else cache.load(key)
    if value is None:
        return None
    try:
        return CostModel.from_json(value)
    except ConfigError:
        return None  # of another version: measured anew and replaced
