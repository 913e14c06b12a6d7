"""What a model would take if each operator ran on the library that is quicker at it, and going between them were free.

A bound on what choosing between two libraries' kernels can gain, however it is done. Operators that either library
computes as one are compared as one.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parallax.graph import OpGraph
from parallax.model import load_model
from parallax.profile import measure_costs

REPETITIONS = 3
"""Both libraries in turn; the median of the ratios counts, as the machine's pace changes."""
RUNS = 8


def best_kernels(
    path: Path,
    feeds: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]] | None,
    properties: Mapping[str, Any],
    *,
    threads: int,
) -> float:
    """The share of ONNX Runtime's time that the quicker kernel of each operator would take.

    Args:
        shapes: of inputs that the model leaves open.
        properties: that OpenVINO compiles the model with.
    """
    model = load_model(path, shapes=shapes)
    graph = model.inferred()
    theirs = _OpenVino(path, feeds, properties)
    groups = _groups(graph, theirs.nodes)
    ratios = []
    for _ in range(REPETITIONS):
        ours_ns = measure_costs(model, widths=[threads], feeds=feeds, runs=RUNS).node_ns(threads)
        theirs_ns = theirs.measure()
        best = sum(
            min(sum(ours_ns[node] for node in nodes), sum(theirs_ns[name] for name in names)) for nodes, names in groups
        )
        ratios.append(best / sum(ours_ns))
    return statistics.median(ratios)


class _OpenVino:
    """A model compiled twice: to see what its operators take, and what it takes itself."""

    def __init__(self, path: Path, feeds: Mapping[str, np.ndarray], properties: Mapping[str, Any]) -> None:
        import openvino  # an extra: only this benchmark needs it

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: value.shape for name, value in feeds.items()})
        self._feeds = dict(feeds)
        self._plain = core.compile_model(model, "CPU", dict(properties)).create_infer_request()
        profiled = core.compile_model(model, "CPU", {**properties, "PERF_COUNT": True})
        self._profiled = profiled.create_infer_request()
        self.nodes: dict[str, Sequence[str]] = {}
        """What it runs, by name -> the names of the model's nodes, or of their outputs, that went into it."""
        for operation in profiled.get_runtime_model().get_ordered_ops():
            name, told = operation.get_friendly_name(), operation.get_rt_info()
            origin = told["originalLayersNames"].value if "originalLayersNames" in told else ""
            self.nodes[name] = [part for part in str(origin).split(",") if part] or [name]

    def measure(self) -> Mapping[str, float]:
        """Time per node in ns, scaled so that they sum to what the whole takes without profiling."""
        samples: dict[str, list[float]] = defaultdict(list)
        whole = []
        for turn in range(2 + RUNS):
            self._profiled.infer(self._feeds)
            if turn >= 2:
                for entry in self._profiled.profiling_info:
                    samples[entry.node_name].append(entry.real_time.total_seconds() * 1e9)
        for turn in range(2 + RUNS):
            begin = time.perf_counter_ns()
            self._plain.infer(self._feeds)
            if turn >= 2:
                whole.append(time.perf_counter_ns() - begin)
        medians = {name: statistics.median(values) for name, values in samples.items()}
        scale = statistics.median(whole) / sum(medians.values())
        return defaultdict(float, {name: ns * scale for name, ns in medians.items()})


def _groups(graph: OpGraph, theirs: Mapping[str, Sequence[str]]) -> list[tuple[list[int], list[str]]]:
    """The model's nodes, and OpenVINO's that do the same: the smallest parts in which both can be compared."""
    named = {name: node.index for node in graph.nodes for name in (*node.outputs, node.name)}
    leader = list(range(len(graph.nodes)))

    def find(node: int) -> int:
        while leader[node] != node:
            node = leader[node]
        return node

    home: dict[str, int] = {}
    told: set[int] = set()
    for name, origins in theirs.items():
        nodes = [named[origin] for origin in origins if origin in named]
        for index in nodes:
            leader[find(index)] = find(nodes[0])
        if nodes:
            home[name] = nodes[0]
            told.update(nodes)
    # What OpenVINO does not name went into what reads it, or else into what it reads.
    for order, neighbours in ((reversed(graph.nodes), graph.successors), (iter(graph.nodes), graph.predecessors)):
        for node in order:
            near = [other for other in neighbours[node.index] if other in told]
            if node.index not in told and near:
                leader[find(node.index)] = find(near[0])
                told.add(node.index)
    members: dict[int, tuple[list[int], list[str]]] = defaultdict(lambda: ([], []))
    for node in graph.nodes:
        members[find(node.index)][0].append(node.index)
    for name, index in home.items():
        members[find(index)][1].append(name)
    # What has no counterpart, and what OpenVINO adds (changes of layout above all), counts nothing: it is a low bound.
    return list(members.values())
