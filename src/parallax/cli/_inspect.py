"""``parallax inspect``: is it worth it, what a model is made of, where it could be split; the same for a device."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parallax import zoo
from parallax.cli._answers import describe_answers
from parallax.cli._console import Screen
from parallax.cli._device import Device, open_device
from parallax.cli._feeds import check_shapes, parse_shapes
from parallax.cli._inspect_bundle import inspect_bundle
from parallax.cli._inspect_tables import render_inspection
from parallax.cli._models import ModelSource, find_model
from parallax.cli._offload import describe_offload
from parallax.cli._providers import parse_providers
from parallax.cli._session_plan import describe_session_plan
from parallax.cli._slimming import describe_slimming
from parallax.cli._types import show_shape, type_name
from parallax.errors import BackendError, ConfigError
from parallax.graph import CostModel, Dag, OpGraph, TensorInfo, node_work
from parallax.machine import available_cores
from parallax.memory import Budget
from parallax.model import Model, load_model, slim_model
from parallax.partition import (
    BranchGraph,
    CostRule,
    FusionGroups,
    NodeClass,
    PaperRule,
    RefinementRule,
    classify,
    find_branches,
)
from parallax.partition.candidates import load_layers
from parallax.planner import PlannedModel, PlanningContext, PlanRequest, is_yardstick, plan_model, whole_plan
from parallax.profile import estimate_costs, fusion_safe_tensors
from parallax.schedule import Plan


def inspect_model(
    model: str,
    *,
    shapes: Sequence[str],
    threads: int | None,
    rule: str,
    providers: Sequence[str],
    policy: str | None,
    objective: str = "latency",
    slim: bool = False,
    cache_dir: Path | None,
    screen: Screen,
) -> None:
    """Show ``model`` without running it.

    Args:
        slim: whether to show what `parallax.model.slim_model` leaves of it.
        providers: devices; of the first it is shown what it would take of the model. Of several, or with a ``policy``,
            also what plan a session with all of them makes. A baseline among policies plans for the CPU alone, too.
        objective: of that plan; one beside "latency" has it shown in any case.
    """
    if policy is not None and not providers and not is_yardstick(policy):
        raise ConfigError("--policy shares a model with devices, and none is named", fix="add --provider NAME")
    parse_providers(providers)
    given: dict[str, tuple[int, ...]] = parse_shapes(shapes)
    source = find_model(model, screen, bundles=True, cache_dir=cache_dir)
    if source.is_bundle:
        _refuse_for_bundle(
            model,
            {
                "--shape": given,
                "--provider": providers,
                "--rule paper": rule != "cost",
                "--slim": slim,
                "--objective": objective != "latency",
            },
        )
        inspect_bundle(source.path, cores=threads, screen=screen)
        return
    with screen.progress() as progress:
        progress("loading", 0, 3)
        loaded = load_model(source.path)
        check_shapes(given, {entry.name: entry for entry in (*loaded.graph.inputs, *loaded.graph.overridable)})
        concrete = _with_typical_shapes(source, loaded, given, screen)
        if concrete:
            loaded = loaded.with_shapes(concrete)
        if slim:
            loaded = slim_model(loaded)
        progress("inferring shapes", 1, 3)
        graph = loaded.inferred()
        progress("planning", 2, 3)
        cores = threads or available_cores()
        devices: list[Device] = [open_device(provider, cores=cores, progress=progress) for provider in providers]
        device = devices[0] if devices else None
        costs = _table_costs(loaded, graph, cores=cores, screen=screen)
        if device is not None:
            costs = costs.times(device.cpu_factor)
        context = PlanningContext(loaded, cores=cores, costs=costs)
        report = {
            **describe_slimming(loaded),
            **_describe_file(source, loaded, graph),
            **_describe_operators(graph),
            "memory": _describe_memory(loaded),
            "control_flow": _describe_control_flow(graph),
            "structure": _describe_structure(graph, context.groups),
            "prediction": _predict(context, rule),
        }
        if device is not None:
            offload = describe_offload(context, device, progress=progress)
            report["provider"] = {**offload, "asked": providers[0]}
        if policy is not None or len(devices) > 1 or objective != "latency":
            report["session"] = describe_session_plan(
                loaded, devices, policy or "adaptive", objective=objective, cores=cores
            )
        progress("planning", 3, 3)
        answers = describe_answers(
            shlex.join([source.label, *(f"--shape={text}" for text in shapes)]),
            _session_plan(loaded, cores=cores, cache_dir=cache_dir),
            prediction=report["prediction"],
            memory=report["memory"],
            weight_bytes=loaded.weight_bytes,
            offload=report.get("provider"),
        )
    report = {"answers": answers, **report}
    screen.show(report, lambda console: render_inspection(report, console))


def _refuse_for_bundle(model: str, given: Mapping[str, object]) -> None:
    """Raises: ConfigError for options that say how a model is to be planned: a bundle has its plan."""
    for option, value in given.items():
        if value:
            raise ConfigError(
                f"{model!r} is compiled: {option} does not apply to it",
                fix="leave it out, or inspect the model that the bundle was made from",
            )


def _session_plan(model: Model, *, cores: int, cache_dir: Path | None) -> Plan | None:
    """The plan of a session that is opened with no options; None where ONNX Runtime cannot open the model."""
    try:
        return plan_model(PlanRequest(model=model, cores=cores, cache_dir=cache_dir)).plan
    except BackendError:
        return None


def _with_typical_shapes(
    source: ModelSource, model: Model, given: Mapping[str, tuple[int, ...]], screen: Screen
) -> dict[str, tuple[int, ...]]:
    """The given shapes, and for the open inputs of a zoo model its usual ones."""
    shapes = dict(given)
    if source.zoo_name is not None:
        typical = {entry.name: entry.typical_shape for entry in zoo.info(source.zoo_name).inputs}
        filled = {
            entry.name: typical[entry.name]
            for entry in model.graph.inputs
            if not entry.is_static and entry.name not in shapes and entry.name in typical
        }
        for name, shape in filled.items():
            screen.notice(
                f"input {name!r} has open sizes: using its usual shape {show_shape(shape)} (--shape changes it)"
            )
        shapes.update(filled)
    return shapes


def _table_costs(model: Model, graph: OpGraph, *, cores: int, screen: Screen) -> CostModel:
    """Costs from tables, with the fusion-safe tensors: the places for cuts."""
    costs = estimate_costs(graph, cores=cores)
    try:
        return replace(costs, fusion_safe=fusion_safe_tensors(model))
    except BackendError as error:
        screen.notice(f"ONNX Runtime cannot open this model, so every tensor counts as a place for a split: {error}")
        return costs


# What the file says -----------------------------------------------------------------------------------


def _describe_file(source: ModelSource, model: Model, graph: OpGraph) -> dict[str, Any]:
    declared = find_dynamic_dims(model)
    return {
        "model": source.label,
        "path": str(Path(source.path)),
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        "structure_digest": model.structure_digest,
        "weight_bytes": model.weight_bytes,
        "initializers": len(graph.initializers),
        "inputs": [_describe_tensor(info) for info in graph.inputs],
        "overridable_inputs": [_describe_tensor(info) for info in graph.overridable],
        "outputs": [_describe_tensor(info) for info in graph.outputs],
        "dynamic_dims": declared,
    }


def find_dynamic_dims(model: Model) -> dict[str, list[str]]:
    """Symbolic sizes of inputs and outputs -> where each occurs, as ``x[0]``; "?" collects unnamed ones."""
    found: dict[str, list[str]] = {}
    for info in (*model.graph.inputs, *model.graph.outputs):
        for axis, dim in enumerate(info.shape or ()):
            if not isinstance(dim, int):
                found.setdefault(dim or "?", []).append(f"{info.name}[{axis}]")
    return found


def _describe_tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "type": type_name(info), "shape": None if info.shape is None else list(info.shape)}


# What the operators cost ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """Sums over the nodes of one operator type."""

    nodes: int = 0
    flops: int = 0
    bytes: int = 0
    unknown: int = 0
    """Nodes with a figure that is unknown or incomplete; such a figure counts as what is known of it."""


def _describe_operators(graph: OpGraph) -> dict[str, Any]:
    tallies: dict[str, _Tally] = {}
    for node in graph.nodes:
        name = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        tally = tallies.setdefault(name, _Tally())
        work = node_work(graph, node)
        tally.nodes += 1
        tally.flops += work.flops or 0
        tally.bytes += work.bytes or 0
        tally.unknown += work.flops is None or work.bytes is None or not work.known
    rows = [
        {
            "operator": name,
            "nodes": tally.nodes,
            "flops": tally.flops,
            "bytes": tally.bytes,
            "flops_per_byte": tally.flops / tally.bytes if tally.bytes else None,
            "nodes_with_unknown_cost": tally.unknown,
        }
        for name, tally in sorted(tallies.items(), key=lambda item: (-item[1].flops, -item[1].bytes, item[0]))
    ]
    return {
        "nodes": len(graph.nodes),
        "nodes_with_bodies_included": sum(1 for _ in graph.walk()),
        "flops": sum(tally.flops for tally in tallies.values()),
        "bytes": sum(tally.bytes for tally in tallies.values()),
        "nodes_with_unknown_cost": sum(tally.unknown for tally in tallies.values()),
        "operators": rows,
    }


def _describe_memory(model: Model) -> dict[str, Any]:
    """What a run of the whole model holds, and the budgets that would do; None where sizes are open."""
    need = PlannedModel(plan=whole_plan(model, "asked for its memory"), model=model).requirement
    least = {
        kind: Budget.of(0, weight_bytes=weight_bytes).least_bytes(need) if need.is_known else None
        for kind, weight_bytes in (("least_budget_bytes", model.weight_bytes), ("least_budget_of_bundle_bytes", 0))
    }
    return {"run_peak_bytes": need.wanted_bytes if need.is_known else None, **least}


def _describe_control_flow(graph: OpGraph) -> list[dict[str, Any]]:
    return [
        {
            "node": node.name,
            "operator": node.op_type,
            "inside": holder.name if holder is not graph else None,
            "captures": list(node.captures),
            "bodies": [{"name": name, "nodes": len(body.nodes)} for name, body in node.bodies],
        }
        for holder, node in graph.walk()
        if node.bodies
    ]


# How it hangs together --------------------------------------------------------------------------------


def _describe_structure(graph: OpGraph, groups: FusionGroups) -> dict[str, Any]:
    """Classes, branches and layers of the operators, and of the fusion groups that no cut may separate."""
    nodes = Dag.from_graph(graph)
    bodies = frozenset(node.index for node in graph.nodes if node.bodies)
    return {
        "operators": _describe_dag(nodes, bodies),
        "units": _describe_dag(groups.dag, groups.control_flow),
        "tensors_that_may_be_cut": len(groups.crossing),
    }


def _describe_dag(dag: Dag, control_flow: frozenset[int]) -> dict[str, Any]:
    classes = Counter(classify(dag, control_flow=control_flow))
    found: BranchGraph = find_branches(dag, control_flow=control_flow)
    return {
        "nodes": len(dag),
        "classes": {kind.value: classes[kind] for kind in NodeClass},
        "branches": len(found.branches),
        "layers": len(found.layers),
        "parallel_layers": found.parallel_layers,
        "widest_layer": found.max_branches,
    }


# What the tables predict ------------------------------------------------------------------------------


def _predict(context: PlanningContext, rule_name: str) -> dict[str, Any]:
    cores = context.cores
    rule: RefinementRule = PaperRule() if rule_name == "paper" else CostRule(lanes=max(2, cores), handover_ns=0)
    found = find_branches(context.groups.dag, control_flow=context.groups.control_flow)
    decisions = [
        rule.decide(layer, loads)
        for layer, loads in enumerate(load_layers(context.groups, found, context.group_costs))
        if len(loads) > 1
    ]
    return {
        "cores": cores,
        "costs": context.costs.source,
        "known_fraction": context.costs.known_fraction,
        "uncut_ms": context.whole_ns / 1e6,
        "candidates": [
            {
                "label": proposal.partition.label,
                "segments": len(proposal.partition.segments),
                "lanes": proposal.schedule.lanes,
                "simulated_ms": proposal.simulated_ns / 1e6,
                "ratio_to_uncut": proposal.simulated_ns / context.whole_ns if context.whole_ns else None,
            }
            for proposal in context.candidates()
        ],
        "rule": rule_name,
        "layers": [
            {
                "layer": decision.layer,
                "branches": len(found.layers[decision.layer]),
                "parallel": len(decision.parallel),
                "reason": decision.reason.value,
                "measured": _finite(decision.measured),
                "bound": _finite(decision.bound),
            }
            for decision in decisions
        ],
    }


def _finite(value: float) -> float | None:
    """``value``, or None for infinity, which JSON lacks (a branch without work makes a balance infinite)."""
    return value if value < float("inf") else None
