"""What of a model a device would take, why the rest falls back, and what that costs: ``inspect --provider``.

Shown is what the planner finds out for a session. The model does not run. CPU times are the cost tables'; the
device's are its own figures, which an emulated one has from its profile, or come from a handful of probes. Each figure
says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallax.backends import DeviceSpeed
from parallax.cli._console import ProgressCallback
from parallax.cli._device import Device
from parallax.cli._offload_rows import body_row, describe_node, explained, group_rows, held_rows
from parallax.cli._units import milliseconds
from parallax.errors import BackendError, ConfigError
from parallax.graph import Node, Verdict
from parallax.memory import device_requirement
from parallax.model import Model
from parallax.partition.regions import Advice, DeviceCosts, RegionPlan, RegionRule, Traffic, advise
from parallax.planner import DEFAULT_MIN_GAIN, LOWERING_NS, DeviceStudy, PlanningContext
from parallax.profile import estimate_costs, fusion_safe_tensors


def describe_offload(context: PlanningContext, device: Device, *, progress: ProgressCallback) -> dict[str, Any]:
    """The report of one device: what the planner finds out about it for a session.

    Args:
        context: of the model; its costs are comparable with the device's prices, or the planner makes them so.

    Raises: BackendError if the device cannot be asked.
    """
    info, graph = device.backend.info, context.graph
    progress(f"asking {info.name}", 0, 3)
    study = DeviceStudy(context, device.backend, budget_bytes=device.budget_bytes)
    capability = study.capability
    progress(f"asking {info.name}", 1, 3)
    placed = _placed(study)
    placements = _placements(study, placed)
    chosen = placed.chosen
    held = device_requirement(graph, {node for region in chosen.regions for node in region.nodes})
    rest = (
        device if device.budget_bytes is None else replace(device, budget_bytes=device.budget_bytes - held.total_bytes)
    )
    progress(f"asking {info.name}", 2, 3)
    advice = advise(graph, context.groups, placed.device_costs)
    progress(f"asking {info.name}", 3, 3)
    per_node = [describe_node(graph, placed.device_costs, verdict) for verdict in explained(chosen, placed.alone)]
    bodies: list[dict[str, Any]] = []
    for verdict in chosen.verdicts:
        node = graph.nodes[verdict.node]
        if verdict.verdict is Verdict.TAKEN:
            per_node += held_rows(node, "runs on the device with the node that holds it", Verdict.TAKEN)
        elif node.bodies:
            found, rows = _describe_bodies(context, node, rest)
            bodies += found
            per_node += rows
    return {
        "name": info.name,
        "device": info.device,
        "kind": info.kind.value,
        "version": info.version,
        "figures": device.figures,
        "is_emulated": device.figures == "emulated",
        "note": device.note,
        "speed": None if device.speed is None else _describe_speed(device.speed),
        "memory": {
            "budget_bytes": device.budget_bytes,
            "held_bytes": held.total_bytes,
            "weight_bytes": held.weight_bytes,
            "tensor_bytes": held.wanted_bytes,
        },
        "nodes": {
            "all": len(per_node),
            "supported": len(capability.taken),
            "taken": sum(row["verdict"] == Verdict.TAKEN.label for row in per_node),
            "constant": sum(row["verdict"] == Verdict.FOLDED.label for row in per_node),
            "in_bodies": len(per_node) - len(graph.nodes),
        },
        "placements": [_describe_placement(placement, placements[0], device.figures) for placement in placements],
        "before": _describe_traffic(placed.greedy.after),
        "after": _describe_traffic(chosen.after),
        "gains": bool(chosen.regions) or any(body["gains"] for body in bodies),
        "reason": _reason(chosen, placements, info.name) + _bodies_reason(bodies),
        "bodies": bodies,
        "groups": group_rows(per_node, device.figures),
        "per_node": per_node,
        "advice": [_describe_advice(entry, device.figures) for entry in advice],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """What a study of a device with prices found for one graph."""

    device_costs: DeviceCosts
    greedy: RegionPlan
    """All that it takes, as runtimes place it."""
    paper: RegionPlan
    alone: RegionPlan
    """The regions that pay one after the other."""
    chosen: RegionPlan
    chosen_ns: int


def _placed(study: DeviceStudy) -> _Placed:
    greedy, paper = (study.regions_by_rule(rule) for rule in (RegionRule.GREEDY, RegionRule.PAPER))
    device_costs, alone, chosen = study.device_costs, study.regions_in_sequence, study.regions
    if device_costs is None or greedy is None or paper is None or alone is None or chosen is None:
        # `open_device` has seen to it that there are prices
        raise ConfigError(f"{study.name} has no prices", fix="name another backend")
    beside = study.coexecution if study.runs_beside else None
    chosen_ns = chosen.chosen_ns if beside is None else beside.best.makespan_ns
    return _Placed(
        device_costs=device_costs, greedy=greedy, paper=paper, alone=alone, chosen=chosen, chosen_ns=chosen_ns
    )


def _placements(study: DeviceStudy, placed: _Placed) -> list[_Placement]:
    nothing = Traffic(fragments=0, tensors=0, bytes=0)
    found = [
        _Placement("CPU only", placed.alone.cpu_only_ns, nothing),
        _Placement("greedy: all it supports", placed.greedy.chosen_ns, placed.greedy.after),
        _Placement("the paper's thresholds", placed.paper.chosen_ns, placed.paper.after),
        _Placement("ours, one at a time", placed.alone.chosen_ns, placed.alone.after),
    ]
    if study.runs_beside and study.coexecution is not None:
        overlapped_ns = min(ns for label, ns in study.coexecution.tried if label == "CPU only")
        found.insert(1, _Placement("CPU only, overlapped", overlapped_ns, nothing))
        found.append(_Placement("ours, beside the CPU", placed.chosen_ns, placed.chosen.after))
    return found


@dataclass(frozen=True, slots=True)
class _Placement:
    label: str
    ns: int
    traffic: Traffic


def _describe_placement(placement: _Placement, cpu: _Placement, figures: str) -> dict[str, Any]:
    return {
        "placement": placement.label,
        "ms": placement.ns / 1e6,
        "ratio_to_cpu_only": placement.ns / cpu.ns if cpu.ns else None,
        **_describe_traffic(placement.traffic),
        "figures": f"tables, {figures}" if placement.traffic.fragments else "tables",
    }


def _describe_traffic(traffic: Traffic) -> dict[str, Any]:
    return {
        "launches": traffic.fragments,
        "transfers": traffic.tensors,
        "transferred_bytes": traffic.bytes,
    }


def _describe_speed(speed: DeviceSpeed) -> dict[str, Any]:
    return {
        "launch_ns": speed.launch_ns,
        "flops_per_s": speed.flops_per_s,
        "memory_bytes_per_s": _finite(speed.memory_bytes_per_s),
        "link_bytes_per_s": _finite(speed.link_bytes_per_s),
    }


def _finite(value: float) -> float | None:
    """None for a rate that is no bottleneck, which JSON lacks a number for."""
    return value if value < math.inf else None


def _reason(chosen: RegionPlan, placements: Sequence[_Placement], name: str) -> str:
    """The decision with the numbers it rests on."""
    cpu, greedy, ours = placements[0], next(p for p in placements if p.label.startswith("greedy")), placements[-1]
    figures = (
        f"{milliseconds(ours.ns)} ms, against {milliseconds(cpu.ns)} ms on the CPU alone and "
        f"{milliseconds(greedy.ns)} ms with everything that {name} supports there"
    )
    if not greedy.traffic.fragments:
        return f"{name} takes no operator of this model: it stays on the CPU ({milliseconds(cpu.ns)} ms)"
    if not chosen.regions:
        return f"no region gains anything on {name}: the model stays on the CPU ({figures})"
    text = f"{chosen.counted} on {name}: {figures}"
    if cpu.ns and 1 - ours.ns / cpu.ns < DEFAULT_MIN_GAIN:
        text += f"; a session asks for {DEFAULT_MIN_GAIN:.0%} less than the CPU alone unless min_gain= says otherwise"
    return text


def _bodies_reason(bodies: Sequence[Mapping[str, Any]]) -> str:
    gaining = sum(body["gains"] for body in bodies)
    verb = "gains" if gaining == 1 else "gain"
    return f"; of its {len(bodies)} bodies, {gaining} {verb} there" if gaining else ""


def _describe_bodies(
    context: PlanningContext, node: Node, device: Device
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bodies of a node that stays on the CPU, planned as graphs of their own, and rows for the nodes in them."""
    model = context.model
    obstacle = model.why_no_bodies(node.index)
    if obstacle is not None:
        return [], held_rows(node, f"stays with {node.name!r}: {obstacle}")
    described: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for body, (name, original) in zip(model.bodies(node.index), node.bodies, strict=True):
        own = {inner.name for inner in original.nodes}
        entry, made = _describe_body(body.model, device, cores=context.cores)
        described.append({"inside": node.name, "body": name, "nodes": len(own), **entry})
        rows += [{**row, "inside": node.name} for row in made if row["node"] in own]
        for inner in original.nodes:
            rows += held_rows(inner, f"inside another body, in {node.name!r}")
    return described, rows


def _describe_body(model: Model, device: Device, *, cores: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One body: figures are of one iteration, or of an arm taken once."""
    name = device.backend.info.name
    graph = model.inferred()
    costs = estimate_costs(graph, cores=cores).times(device.cpu_factor)
    try:
        context = PlanningContext(model, cores=cores, costs=replace(costs, fusion_safe=fusion_safe_tensors(model)))
        study = DeviceStudy(context, device.backend, budget_bytes=device.budget_bytes)
        capability = study.capability
    except BackendError as error:
        cpu_ns = sum(costs.node_ns(cores))
        rows = [body_row(node, f"{name} cannot be asked about its body: {error.what}") for node in graph.nodes]
        return {"supported": 0, "gains": False, "cpu_ms": cpu_ns / 1e6, "ours_ms": cpu_ns / 1e6, "launches": 0}, rows
    placed = _placed(study)
    cpu_ns, chosen = placed.alone.cpu_only_ns, placed.chosen
    ours_ns = placed.chosen_ns + LOWERING_NS
    gains = bool(chosen.regions) and ours_ns < cpu_ns
    entry = {
        "supported": len(capability.taken),
        "gains": gains,
        "cpu_ms": cpu_ns / 1e6,
        "ours_ms": ours_ns / 1e6,
        "launches": chosen.after.fragments,
    }
    rows = []
    for verdict in explained(chosen, placed.alone):
        if gains or verdict.verdict is not Verdict.TAKEN:
            # Its time is counted with the node that holds it.
            rows.append({**describe_node(graph, placed.device_costs, verdict), "cpu_ms": None, "device_ms": None})
        else:
            rows.append(
                body_row(
                    graph.nodes[verdict.node],
                    f"its body takes {milliseconds(cpu_ns)} ms on the CPU, and {milliseconds(ours_ns)} ms with {name}, "
                    "run by the engine",
                )
            )
    return entry, rows


def _describe_advice(advice: Advice, figures: str) -> dict[str, Any]:
    return {
        "verdict": advice.verdict.label,
        "operator": advice.op_type,
        "nodes": len(advice.nodes),
        "change": advice.change,
        "now_ms": advice.now_ns / 1e6,
        "then_ms": advice.then_ns / 1e6,
        "saves_ms": advice.gain_ns / 1e6,
        "figures": f"tables, {figures}",
    }
