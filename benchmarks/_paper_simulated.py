"""The Parallax paper's models on phones, simulated: one model, one phone, one set of assumptions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from _phones import DEFAULT_PARTITIONS, Split, Study, best_split
from _sensitivity import Assumption

from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._profiles import DeviceProfile, load_profile
from parallax.graph import CostModel, OpGraph
from parallax.model import Model, RowSplit, load_model
from parallax.partition import FusionGroups, find_branches
from parallax.partition.regions import RegionPlan, RegionRule, find_regions
from parallax.profile import estimate_costs
from parallax.schedule.placement import Machine
from parallax.schedule.placement._judge import JudgedPlacement

CORES = 4
"""Equal cores that stand for the phone's eight unequal ones; together they are as fast."""

HANDOVER_NS = 30_000
SEGMENT_OVERHEAD_NS = 10_000
PHONE = Machine(cores=CORES, handover_ns=HANDOVER_NS, segment_overhead_ns=SEGMENT_OVERHEAD_NS)
"""A hand-over between lanes on a phone, and the start of a segment: of the order of 20 to 60 us for fork and join."""


PAPER_MS: Mapping[tuple[str, str], tuple[int | None, ...]] = {
    ("yolov8n", "pixel-6-gpu"): (77, None, 63, 54),
    ("whisper-tiny-encoder", "pixel-6-gpu"): (397, 486, 350, 323),
    ("swinv2-t", "pixel-6-gpu"): (82, 1107, 64, 69),
    ("clip-text", "pixel-6-gpu"): (13, 15, 11, None),
    ("distilbert", "pixel-6-gpu"): (14, 19, 17, None),
    ("yolov8n", "p30-pro-gpu"): (127, None, 101, 91),
    ("whisper-tiny-encoder", "p30-pro-gpu"): (412, None, 340, None),
    ("swinv2-t", "p30-pro-gpu"): (128, 987, 109, 107),
    ("clip-text", "p30-pro-gpu"): (17, None, 15, None),
    ("distilbert", "p30-pro-gpu"): (17, None, 14, None),
    ("yolov8n", "redmi-k50-gpu"): (98, None, 91, 84),
    ("whisper-tiny-encoder", "redmi-k50-gpu"): (496, 634, 317, None),
    ("swinv2-t", "redmi-k50-gpu"): (83, 1046, 54, 53),
    ("clip-text", "redmi-k50-gpu"): (16, 14, 16, None),
    ("distilbert", "redmi-k50-gpu"): (15, 38, 17, None),
}
"""The paper's latencies in ms, the lower of the two it gives: the best of ONNX Runtime, ExecuTorch and TFLite on the
CPU, the better of ONNX Runtime and TFLite with an accelerator, Parallax on the CPU, and with an accelerator."""

PAPER_SHAPES: Mapping[str, str] = {
    "yolov8n": "480/120/69/6 > 5/6/2/2 > 4/4/1/2",
    "whisper-tiny-encoder": "627/75/19/8 > 202/184/10/5 > 367/57/24/8",
    "swinv2-t": "1108/151/92/8 > 356/270/28/8 > 674/143/52/8",
    "clip-text": "635/90/53/4 > 216/173/19/3 > 446/74/49/4",
    "distilbert": "353/53/28/4 > 123/115/23/2 > 211/49/17/4",
}
"""The paper's graphs: as they are, after greedy delegation, after Parallax; for Pixel 6."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A graph as the paper's table counts it."""

    nodes: int
    layers: int
    parallel_layers: int
    branches: int

    def __str__(self) -> str:
        return f"{self.nodes}/{self.layers}/{self.parallel_layers}/{self.branches}"


def phone_costs(graph: OpGraph, profile: DeviceProfile, *, cores: int = CORES) -> CostModel:
    """The tables' durations, at the speed of the profile's processor. ``cores``: equal ones that stand for its own."""
    table = estimate_costs(graph, cores=cores)
    factor = _table_gemm_flops(cores) / profile.cpu_gemm_flops
    rows = tuple(tuple(round(ns * factor) for ns in row) for row in table.durations_ns)
    return dataclasses.replace(table, durations_ns=rows)


@functools.cache
def _table_gemm_flops(cores: int) -> float:
    """What the tables take a large matrix product to run at on that many cores, by asking them."""
    from onnx import helper

    size = 2048
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info(name, 1, [size, size]) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", 1, [size, size])],
    )
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    (duration,) = estimate_costs(model.inferred(), cores=cores).node_ns(cores)
    return 2 * size**3 / duration * 1e9


def shape_of(groups: FusionGroups, plan: RegionPlan | None) -> Shape:
    """Nodes, layers, layers of more than one branch, widest layer; with regions contracted."""
    dag = groups.dag if plan is None else plan.dag
    regions = frozenset() if plan is None else frozenset(plan.region_clusters)
    flow = groups.control_flow if plan is None else {plan.cluster_of[group] for group in groups.control_flow}
    found = find_branches(dag, control_flow=flow, regions=regions)
    return Shape(
        nodes=len(dag), layers=len(found.layers), parallel_layers=found.parallel_layers, branches=found.max_branches
    )


def simulate_row(name: str, phone: str, model: Model, assumption: Assumption, *, flips: int) -> dict[str, Any]:
    """What each policy takes, in ns. Deterministic.

    Args:
        flips: branches that the search may move to the other side, one by one.
    """
    profile = assumption.profile(load_profile(phone))
    machine = assumption.machine(PHONE)
    study = Study.of(model, phone_costs(model.inferred(), profile), EmulatedBackend(profile, speed=1.0), machine)

    def costs_of(made: RowSplit) -> CostModel:
        return phone_costs(made.model.inferred(), profile)

    greedy = study.regions(RegionRule.GREEDY)
    partitions = DEFAULT_PARTITIONS[profile.coverage.name]
    found = study.coexecution(flips=flips)
    split = best_split(study, costs_of, found)
    _, _, heft_ns = study.heft(greedy)
    sequential = find_regions(study.graph, study.groups, study.device_costs, join_siblings=True)
    return {
        "model": name,
        "phone": phone,
        "cpu_only_ns": found.cpu_only_ns,
        "greedy_ns": study.hosted_ns(greedy),
        "greedy_kept_ns": greedy.chosen_ns,
        "greedy_default_ns": study.hosted_ns(study.largest(greedy, partitions)),
        "paper_rule_ns": study.regions(RegionRule.PAPER).chosen_ns,
        "in_sequence_ns": sequential.chosen_ns,
        "heft_ns": heft_ns,
        **ours(study, found.best, split),
        "fragments": len(greedy.regions),
        "shape_original": str(shape_of(study.groups, None)),
        "shape_greedy": str(shape_of(study.groups, greedy)),
        "shape_regions": str(shape_of(study.groups, found.best.plan)),
        "paper_ms": PAPER_MS.get((name, phone)),
        "paper_shapes": PAPER_SHAPES.get(name) if phone == "pixel-6-gpu" else None,
    }


def ours(study: Study, regions: JudgedPlacement, split: Split | None) -> dict[str, Any]:
    """Regions beside the CPU, and with rows shared where that is better."""
    rows = None if split is None else split.found.best
    best = regions if rows is None or regions.makespan_ns <= rows.makespan_ns else rows
    return {
        "regions_ns": regions.makespan_ns,
        "rows_ns": None if rows is None else rows.makespan_ns,
        "rows_share": None if split is None else split.share,
        "rows_whole": None if split is None else split.whole,
        "rows_everywhere_ns": None if split is None else split.everywhere_ns,
        "ours_ns": best.makespan_ns,
        "ours_regions": len(best.plan.regions),
    }
