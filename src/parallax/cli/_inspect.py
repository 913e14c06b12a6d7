"""``parallax inspect``: what a model is made of, where it could be cut, what the tables predict, for a device too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from parallax import zoo
from parallax.cli._console import Screen, make_table, print_line
from parallax.cli._feeds import check_shapes, parse_shapes
from parallax.cli._models import ModelSource, find_model
from parallax.cli._offload import describe_offload, open_device, render_offload
from parallax.cli._session_plan import describe_session_plan, render_session_plan
from parallax.cli._types import show_shape, type_name
from parallax.cli._units import count, milliseconds, significant, size
from parallax.errors import BackendError, ConfigError
from parallax.graph import CostModel, Dag, OpGraph, TensorInfo, node_work
from parallax.machine import available_cores
from parallax.memory import Budget
from parallax.model import Model, load_model
from parallax.partition import (
    BranchGraph,
    CostRule,
    NodeClass,
    PaperRule,
    RefinementRule,
    UnitGraph,
    classify,
    find_branches,
    load_layers,
)
from parallax.planner import PlannedModel, PlanningContext, is_yardstick, uncut_plan
from parallax.profile import estimate_costs, surviving_tensors

# Operator types listed in the table; --json lists all.
_LISTED_OPERATORS = 24
_LISTED_CANDIDATES = 8


def inspect_model(
    model: str,
    *,
    shapes: Sequence[str],
    threads: int | None,
    rule: str,
    providers: Sequence[str],
    policy: str | None,
    screen: Screen,
) -> None:
    """Show ``model`` without running it.

    Args:
        providers: devices; of the first it is shown what it would take of the model. Of several, or with a ``policy``,
            also what plan a session with all of them makes. A yardstick among policies plans for the CPU alone, too.
    """
    if policy is not None and not providers and not is_yardstick(policy):
        raise ConfigError("--policy shares a model with devices, and none is named", fix="add --provider NAME")
    given: dict[str, tuple[int, ...]] = parse_shapes(shapes)
    source = find_model(model, screen)
    with screen.progress() as progress:
        progress("loading", 0, 3)
        loaded = load_model(source.path)
        check_shapes(given, {entry.name: entry for entry in (*loaded.graph.inputs, *loaded.graph.overridable)})
        concrete = _with_typical_shapes(source, loaded, given, screen)
        if concrete:
            loaded = loaded.with_shapes(concrete)
        progress("inferring shapes", 1, 3)
        graph = loaded.inferred()
        progress("planning", 2, 3)
        cores = threads or available_cores()
        devices = [open_device(provider, cores=cores, progress=progress) for provider in providers]
        device = devices[0] if devices else None
        costs = _table_costs(loaded, graph, cores=cores, screen=screen)
        if device is not None:
            costs = costs.times(device.cpu_factor)
        context = PlanningContext(loaded, cores=cores, costs=costs)
        report = {
            **_describe_file(source, loaded, graph),
            **_describe_operators(graph),
            "memory": _describe_memory(loaded),
            "control_flow": _describe_control_flow(graph),
            "structure": _describe_structure(graph, context.units),
            "prediction": _predict(context, rule),
        }
        progress("planning", 3, 3)
        if device is not None:
            report["provider"] = describe_offload(context, device, progress=progress)
        if policy is not None or len(devices) > 1:
            report["session"] = describe_session_plan(loaded, devices, policy or "adaptive", cores=cores)
    screen.show(report, lambda console: _render(report, console))


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
    """Costs from tables, with the tensors that survive the runtime's optimiser: the places for cuts."""
    costs = estimate_costs(graph, cores=cores)
    try:
        return replace(costs, survivors=surviving_tensors(model))
    except BackendError as error:
        screen.notice(f"ONNX Runtime cannot open this model, so every tensor counts as a place for a cut: {error}")
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
    """What a run of the uncut model holds, and the budgets that would do; None where sizes are open."""
    need = PlannedModel(plan=uncut_plan(model, "asked for its memory"), model=model).requirement
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


def _describe_structure(graph: OpGraph, units: UnitGraph) -> dict[str, Any]:
    """Classes, branches and layers of the operators, and of the units that no cut may separate."""
    nodes = Dag.from_graph(graph)
    bodies = frozenset(node.index for node in graph.nodes if node.bodies)
    return {
        "operators": _describe_dag(nodes, bodies),
        "units": _describe_dag(units.dag, units.control_flow),
        "tensors_that_may_be_cut": len(units.crossing),
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
    found = find_branches(context.units.dag, control_flow=context.units.control_flow)
    decisions = [
        rule.decide(layer, loads)
        for layer, loads in enumerate(load_layers(context.units, found, context.unit_costs))
        if len(loads) > 1
    ]
    return {
        "cores": cores,
        "costs": context.costs.source,
        "known_fraction": context.costs.known_fraction,
        "uncut_ms": context.uncut_ns / 1e6,
        "candidates": [
            {
                "label": proposal.partition.label,
                "segments": len(proposal.partition.segments),
                "lanes": proposal.schedule.lanes,
                "simulated_ms": proposal.simulated_ns / 1e6,
                "ratio_to_uncut": proposal.simulated_ns / context.uncut_ns if context.uncut_ns else None,
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


# Tables -----------------------------------------------------------------------------------------------


def _render(report: Mapping[str, Any], console: Console) -> None:
    _render_file(report, console)
    _render_operators(report, console)
    _render_memory(report["memory"], console)
    if report["control_flow"]:
        print_line(console, "\ncontrol flow")
        table = make_table("node", "operator", "bodies", "reads from outside", left=3)
        for row in report["control_flow"]:
            bodies = ", ".join(f"{body['name']} ({body['nodes']} operators)" for body in row["bodies"])
            table.add_row(row["node"], row["operator"], bodies, str(len(row["captures"])))
        console.print(table)
    _render_structure(report["structure"], console)
    _render_prediction(report["prediction"], console)
    if "provider" in report:
        render_offload(report["provider"], console)
    if "session" in report:
        render_session_plan(report["session"], console)


def _render_file(report: Mapping[str, Any], console: Console) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in report["opsets"].items())
    print_line(console, f"{report['model']}: IR version {report['ir_version']}, opsets {opsets}")
    print_line(console, f"weights: {size(report['weight_bytes'])} in {report['initializers']} initializers")
    for role, key in (("input", "inputs"), ("optional input", "overridable_inputs"), ("output", "outputs")):
        for tensor in report[key]:
            print_line(console, f"{role} {tensor['name']}: {tensor['type']} {show_shape(tensor['shape'])}")
    for name, places in report["dynamic_dims"].items():
        shown = ", ".join(places[:6]) + (", ..." if len(places) > 6 else "")
        print_line(console, f"open size {name}: {shown}")


def _render_operators(report: Mapping[str, Any], console: Console) -> None:
    print_line(console, "\noperators")
    table = make_table("type", "nodes", "FLOPs", "bytes", "FLOPs/byte", "cost unknown")
    for row in report["operators"][:_LISTED_OPERATORS]:
        intensity = row["flops_per_byte"]
        table.add_row(
            row["operator"],
            str(row["nodes"]),
            count(row["flops"]),
            size(row["bytes"]),
            "-" if intensity is None else significant(intensity),
            str(row["nodes_with_unknown_cost"] or ""),
        )
    rest = report["operators"][_LISTED_OPERATORS:]
    if rest:
        total = sum(row["nodes"] for row in rest)
        table.add_row(f"{len(rest)} more types", str(total), *(["..."] * 3), "")
    table.add_row(
        "all",
        str(report["nodes"]),
        count(report["flops"]),
        size(report["bytes"]),
        significant(report["flops"] / report["bytes"]) if report["bytes"] else "-",
        str(report["nodes_with_unknown_cost"] or ""),
        style="bold",
    )
    console.print(table)


def _render_memory(memory: Mapping[str, Any], console: Console) -> None:
    if memory["run_peak_bytes"] is None:
        print_line(console, "\nmemory: what a run holds depends on open sizes (give them with --shape)")
        return
    print_line(
        console,
        f"\nmemory: a run holds {size(memory['run_peak_bytes'])} beside weights; a budget of "
        f"{size(memory['least_budget_bytes'])} would do, {size(memory['least_budget_of_bundle_bytes'])} for a bundle",
    )


def _render_structure(structure: Mapping[str, Any], console: Console) -> None:
    kinds = [kind.value for kind in NodeClass]
    print_line(console, "\nstructure")
    table = make_table("graph of", "nodes", *kinds, "branches", "layers", "parallel layers", "widest layer")
    for name in ("operators", "units"):
        row = structure[name]
        table.add_row(
            name,
            str(row["nodes"]),
            *(str(row["classes"][kind]) for kind in kinds),
            *(str(row[key]) for key in ("branches", "layers", "parallel_layers", "widest_layer")),
        )
    console.print(table)
    print_line(
        console,
        f"Units are what no cut may separate; {structure['tensors_that_may_be_cut']} tensors lie between them.",
    )


def _render_prediction(prediction: Mapping[str, Any], console: Console) -> None:
    chosen = [layer for layer in prediction["layers"] if layer["parallel"]]
    print_line(
        console,
        f"\nThe {prediction['rule']} rule would run {len(chosen)} of {len(prediction['layers'])} layers of several "
        "branches in parallel.",
    )
    for reason, number in Counter(layer["reason"] for layer in prediction["layers"]).most_common():
        print_line(console, f"  {number} x {reason}")
    print_line(
        console,
        f"\npredicted from {prediction['costs']} for {prediction['cores']} cores "
        f"({prediction['known_fraction']:.0%} of operators known)",
    )
    table = make_table("plan", "segments", "lanes", "ms", "of uncut")
    table.add_row("uncut", "1", "1", milliseconds(prediction["uncut_ms"] * 1e6), "1.00")
    for row in prediction["candidates"][:_LISTED_CANDIDATES]:
        ratio = row["ratio_to_uncut"]
        table.add_row(
            row["label"],
            str(row["segments"]),
            str(row["lanes"]),
            milliseconds(row["simulated_ms"] * 1e6),
            "-" if ratio is None else f"{ratio:.2f}",
        )
    console.print(table)
    if not prediction["candidates"]:
        print_line(console, "No cut is worth simulating.")
