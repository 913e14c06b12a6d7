"""ONNX Runtime's logical streams, set up by hand as well as we can.

Since 1.14 its CPU provider puts every node into one stream, and ORT_PARALLEL runs streams, not nodes, at
once. ``session.node_partition_config_file`` names a JSON file that says otherwise (format: microsoft/
onnxruntime pull request 14169; the runtime writes its own assignment to that file if there is none yet)::

    {"type": "DeviceBasedPartitioner", "streams": [["node", ...], ...], "devices": ["0", ...]}

with the names of the *optimised* graph's nodes, and one device type (0: CPU) per stream.
"""

from __future__ import annotations

import heapq
import itertools
import json
import multiprocessing
import queue
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from parallax.cli import Baseline
from parallax.graph import Dag, bottom_levels
from parallax.partition import find_branches

# What a hand-over between streams may cost: the more, the fewer branches leave the stream of their producer.
_HANDOVERS_NS = (20_000, 200_000)
# A badly chosen assignment can stop for ever: each is tried in a process of its own first.
_TRIAL_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimisedNode:
    """A node of the runtime's optimised graph, under the name that a stream file knows it by."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost_ns: int


def find_best_streams(model: Path, feeds: dict[str, np.ndarray], *, threads: int, folder: Path) -> Baseline | None:
    """The fastest of a few stream assignments for ``model``, or None if none runs or there is nothing to spread.

    Branches of the optimised graph, weighed by profiled time, go to the stream that finishes them first;
    tried with as many streams as threads and one more, with hand-overs taken to be cheap and dear, with
    operators on one thread and on all, and the winner of these without spinning inter-op threads.
    """
    nodes = read_optimised_graph(model, feeds, folder=folder)
    baselines = []
    tried: list[list[list[str]]] = []
    for streams, handover_ns in itertools.product((threads, threads + 1), _HANDOVERS_NS):
        assignment = assign_streams(nodes, streams=streams, handover_ns=handover_ns)
        if len(assignment) < 2 or assignment in tried:
            continue
        tried.append(assignment)
        path = folder / f"streams-{len(tried)}.json"
        devices = ["0"] * len(assignment)
        path.write_text(json.dumps({"type": "DeviceBasedPartitioner", "streams": assignment, "devices": devices}))
        baselines += [
            Baseline(
                label=f"ONNX Runtime, hand-written streams ({len(assignment)}, {intra} intra-op)",
                threads=intra,
                inter_op_threads=max(3, len(assignment) + 1),
                streams=str(path),
            )
            for intra in sorted({1, threads})
        ]
    best = _fastest(baselines, model, feeds)
    if best is None:
        return None
    quiet = replace(best, inter_op_spinning=False, label=best.label.replace("intra-op)", "intra-op, no spinning)"))
    return _fastest([best, quiet], model, feeds)


def _fastest(baselines: Sequence[Baseline], model: Path, feeds: dict[str, np.ndarray]) -> Baseline | None:
    """The one with the lowest median in a trial of each; None if none ends."""
    taken = {baseline: ns for baseline in baselines if (ns := _try_apart(baseline, model, feeds)) is not None}
    return min(taken, key=lambda baseline: taken[baseline], default=None)


def read_optimised_graph(model: Path, feeds: dict[str, np.ndarray], *, folder: Path) -> list[OptimisedNode]:
    """The nodes the runtime really runs, in its order, with their time on one thread."""
    names_file, optimised, weights = folder / "names.json", folder / "optimised.onnx", "optimised.bin"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimised)
    # Weights go to a file of their own, which is not read here.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
    options.add_session_config_entry("session.node_partition_config_file", str(names_file))
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for _ in range(4):
        session.run(None, feeds)
    profile = Path(session.end_profiling())
    del session
    costs = _read_profile(profile)
    known_names = {name for stream in json.loads(names_file.read_text())["streams"] for name in stream}
    nodes = []
    unnamed: dict[str, int] = defaultdict(int)
    for node in onnx.load(optimised, load_external_data=False).graph.node:
        name = node.name
        if not name:
            # The runtime calls unnamed nodes by type and a counter.
            name = f"{node.op_type}{unnamed[node.op_type]}"
            unnamed[node.op_type] += 1
        if name not in known_names:
            raise RuntimeError(f"the runtime's own stream file lacks node {name!r}")
        captured = [value for attribute in node.attribute for value in _outer_reads(attribute)]
        nodes.append(
            OptimisedNode(
                name=name,
                inputs=tuple(value for value in (*node.input, *captured) if value),
                outputs=tuple(value for value in node.output if value),
                cost_ns=costs.get(node.name, 0),
            )
        )
    (folder / weights).unlink(missing_ok=True)
    return nodes


def _outer_reads(attribute: onnx.AttributeProto) -> list[str]:
    """Names that a body reads; those it defines itself do no harm, as no outer node produces them."""
    graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
    reads: list[str] = []
    while graphs:
        graph = graphs.pop()
        reads.extend(value.name for value in graph.output)
        for node in graph.node:
            reads.extend(node.input)
            for inner in node.attribute:
                graphs.extend([inner.g] if inner.type == onnx.AttributeProto.GRAPH else inner.graphs)
    return reads


def _read_profile(path: Path) -> dict[str, int]:
    """Median kernel time per node in ns, the first run left out."""
    samples: dict[str, list[int]] = defaultdict(list)
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            samples[event["name"].removesuffix("_kernel_time")].append(event["dur"] * 1000)
    path.unlink()
    return {name: round(statistics.median(values[1:] or values)) for name, values in samples.items()}


def assign_streams(nodes: Sequence[OptimisedNode], *, streams: int, handover_ns: int) -> list[list[str]]:
    """Spread branches over streams: longest path first, each to where it ends soonest. Empty streams are left out."""
    producer = {value: index for index, node in enumerate(nodes) for value in node.outputs}
    dag = Dag.from_predecessors([{producer[value] for value in node.inputs if value in producer} for node in nodes])
    found = find_branches(dag)
    costs = [sum(nodes[index].cost_ns for index in branch.nodes) for branch in found.branches]
    levels = bottom_levels(found.dag.predecessors, costs)
    waiting = [len(row) for row in found.dag.predecessors]
    ready = [(-levels[branch], branch) for branch, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    free_at = [0] * streams
    home: dict[int, int] = {}
    ends: dict[int, int] = {}
    while ready:
        _, branch = heapq.heappop(ready)

        def end_on(stream: int, branch: int = branch) -> int:
            inputs = (
                ends[pred] + (handover_ns if home[pred] != stream else 0) for pred in found.dag.predecessors[branch]
            )
            return max(free_at[stream], max(inputs, default=0)) + costs[branch]

        stream = min(range(streams), key=lambda stream: (end_on(stream), stream))
        ends[branch] = free_at[stream] = end_on(stream)
        home[branch] = stream
        for target in found.dag.successors[branch]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, (-levels[target], target))
    rows: list[list[str]] = [[] for _ in range(streams)]
    for index, node in enumerate(nodes):
        rows[home[found.branch_of[index]]].append(node.name)
    return [row for row in rows if row]


def _try_apart(baseline: Baseline, model: Path, feeds: dict[str, np.ndarray]) -> float | None:
    """Median ns of a few runs in a process of its own; None if it fails or does not end."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    process = context.Process(target=_trial, args=(baseline, str(model), feeds, answers), daemon=True)
    process.start()
    try:
        median_ns: float | None = answers.get(timeout=_TRIAL_SECONDS)
        return median_ns
    except queue.Empty:
        return None
    finally:
        process.kill()
        process.join()


def _trial(baseline: Baseline, model: str, feeds: dict[str, np.ndarray], answers: Any) -> None:
    try:
        session = baseline.open(model)
        samples = []
        for _ in range(8):
            begin = time.perf_counter_ns()
            session.run(None, feeds)
            samples.append(time.perf_counter_ns() - begin)
        answers.put(statistics.median(samples[3:]))
    except Exception:
        answers.put(None)
        raise
