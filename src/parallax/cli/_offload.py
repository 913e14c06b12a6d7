"""What of a model a device would take, why the rest falls back, and what that costs: ``inspect --provider``.

Shown is what the planner finds out for a session. The model does not run. CPU times are the cost tables'; the
device's are its own figures, which an emulated one has from its profile, or come from a handful of probes. Each figure
says which.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from parallax.backends import Backend, DeviceSpeed, measure_speed, open_backend
from parallax.cli._console import ProgressCallback, make_table, print_line
from parallax.cli._open import parse_provider
from parallax.cli._units import milliseconds, size
from parallax.errors import BackendError, ConfigError
from parallax.graph import Node, OpGraph, Verdict, Work
from parallax.memory import device_need
from parallax.model import Model
from parallax.partition import (
    Advice,
    NodeVerdict,
    Offer,
    RegionPlan,
    RegionRule,
    Traffic,
    advise,
)
from parallax.planner import DEFAULT_MIN_GAIN, LIFT_NS, DeviceStudy, PlanningContext
from parallax.profile import estimate_costs, product_flops, surviving_tensors
from parallax.schedule import CPU_BACKEND
from parallax.session import make_device

_LISTED_OPERATORS = 8
"""Rows per verdict in the table; --json has them all."""
_LISTED_ADVICE = 6

_IN_BODIES = "inside control flow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device to place work on, with prices."""

    name: str
    """It was asked for by."""
    opened: Backend
    """As a session that is not tuned has it."""
    backend: Backend
    """The same, with prices."""
    figures: str
    """Where its prices are from: "emulated", "probed" or "stated" (by the backend itself)."""
    note: str
    """The same for people, in a sentence."""
    cpu_factor: float = 1.0
    """What the tables' CPU times are to be multiplied by, to be comparable with the device's; what an emulated device
    asks for is the planner's affair."""
    speed: DeviceSpeed | None = None
    """As it was probed."""
    room_bytes: int | None = None
    """What it may hold of the model; None: as much as it likes."""


def open_device(text: str, *, cores: int, progress: ProgressCallback) -> Device:
    """The backend of that name (and options, as `parse_provider` reads them), opened as a session opens it, with
    prices: its own, or by probing it, which runs small models on it.

    Raises: as `parallax.backends.open_backend`; ConfigError for the CPU itself; BackendError if probes fail.
    """
    asked = make_device(*parse_provider(text))
    name, room_bytes = asked.name, asked.memory_bytes
    backend = open_backend(name, asked.options)
    if backend.info.name == open_backend(CPU_BACKEND).info.name:
        raise ConfigError(
            f"{name!r} is the CPU, which all others are compared with",
            fix="name another backend; `parallax devices` lists those there are",
        )
    if backend.info.is_emulated:
        factor = 1.0 if backend.host_flops is None else product_flops(cores) / backend.host_flops
        note = (
            f"Emulated: device figures are from the profile {backend.info.name.partition(':')[2]!r}, scaled to this "
            f"processor, and CPU times are the tables' times {factor:.2f}, as a matrix product on this CPU shows. They "
            "are a model, not measurements."
        )
        return Device(name=name, opened=backend, backend=backend, figures="emulated", note=note, room_bytes=room_bytes)
    nothing = Work(operators=())
    if backend.price(nothing) is not None and backend.transfer_ns(0) is not None:
        note = f"Device figures are those that {backend.info.name} states of itself."
        return Device(name=name, opened=backend, backend=backend, figures="stated", note=note, room_bytes=room_bytes)
    progress(f"probing {backend.info.name}", 0, 2)
    speed = measure_speed(backend, width=cores)
    progress(f"probing {backend.info.name}", 1, 2)
    here = measure_speed(open_backend(CPU_BACKEND), width=cores)
    progress(f"probing {backend.info.name}", 2, 2)
    factor = product_flops(cores) / here.flops_per_s
    note = (
        "Probed: device figures are from a few small probes run just now, and CPU times are the tables' "
        f"times {factor:.2f}, as a matrix product on this CPU shows. Tune to measure the model itself."
    )
    return Device(
        name=name,
        opened=backend,
        backend=backend.with_speed(speed),
        figures="probed",
        note=note,
        cpu_factor=factor,
        speed=speed,
        room_bytes=room_bytes,
    )


def describe_offload(context: PlanningContext, device: Device, *, progress: ProgressCallback) -> dict[str, Any]:
    """The report of one device: what the planner finds out about it for a session.

    Args:
        context: of the model; its costs are comparable with the device's prices, or the planner makes them so.

    Raises: BackendError if the device cannot be asked.
    """
    info, graph = device.backend.info, context.graph
    progress(f"asking {info.name}", 0, 3)
    study = DeviceStudy(context, device.backend, room_bytes=device.room_bytes)
    capability = study.capability
    progress(f"asking {info.name}", 1, 3)
    placed = _placed(study)
    placements = _placements(study, placed)
    chosen = placed.chosen
    held = device_need(graph, {node for region in chosen.regions for node in region.nodes})
    rest = device if device.room_bytes is None else replace(device, room_bytes=device.room_bytes - held.total_bytes)
    progress(f"asking {info.name}", 2, 3)
    advice = advise(graph, context.units, placed.offer)
    progress(f"asking {info.name}", 3, 3)
    per_node = [_describe_node(graph, placed.offer, verdict) for verdict in _explained(chosen, placed.alone)]
    bodies: list[dict[str, Any]] = []
    for verdict in chosen.verdicts:
        node = graph.nodes[verdict.node]
        if verdict.verdict is Verdict.TAKEN:
            per_node += _held(node, "runs on the device with the node that holds it", Verdict.TAKEN)
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
            "budget_bytes": device.room_bytes,
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
        "groups": _group(per_node, device.figures),
        "per_node": per_node,
        "advice": [_describe_advice(entry, device.figures) for entry in advice],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """What a study of a device with prices found for one graph."""

    offer: Offer
    greedy: RegionPlan
    """All that it takes, as runtimes place it."""
    paper: RegionPlan
    alone: RegionPlan
    """The regions that pay one after the other."""
    chosen: RegionPlan
    chosen_ns: int


def _placed(study: DeviceStudy) -> _Placed:
    greedy, paper = (study.regions_by_rule(rule) for rule in (RegionRule.GREEDY, RegionRule.PAPER))
    offer, alone, chosen = study.offer, study.regions_in_sequence, study.regions
    if offer is None or greedy is None or paper is None or alone is None or chosen is None:
        # `open_device` has seen to it that there are prices
        raise ConfigError(f"{study.name} has no prices", fix="name another backend")
    beside = study.coexecution if study.runs_beside else None
    chosen_ns = chosen.chosen_ns if beside is None else beside.best.makespan_ns
    return _Placed(offer=offer, greedy=greedy, paper=paper, alone=alone, chosen=chosen, chosen_ns=chosen_ns)


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


# Node by node -----------------------------------------------------------------------------------------


def _explained(chosen: RegionPlan, alone: RegionPlan) -> Iterator[NodeVerdict]:
    """The verdicts of the placement chosen; where a search only left a node out, what speaks against it by cost."""
    for verdict, other in zip(chosen.verdicts, alone.verdicts, strict=True):
        if verdict.verdict is not Verdict.BALANCED_TO_CPU:
            yield verdict
        elif other.verdict is Verdict.TAKEN:
            # It would pay, one thing after the other: the costs are those of the region it would be in.
            yield NodeVerdict(
                node=verdict.node, verdict=Verdict.BALANCED_TO_CPU, device_ns=other.device_ns, cpu_ns=other.cpu_ns
            )
        else:
            yield other


def _describe_node(graph: OpGraph, offer: Offer, verdict: NodeVerdict) -> dict[str, Any]:
    node = graph.nodes[verdict.node]
    is_folded = verdict.verdict is Verdict.FOLDED
    answered = offer.declined[verdict.node] is None
    return {
        "node": node.name,
        "operator": node.op_type,
        "inside": None,
        "verdict": verdict.verdict.label,
        "meaning": verdict.verdict.meaning,
        "region": verdict.region,
        "detail": verdict.detail or None,
        "cpu_ms": 0.0 if is_folded else offer.cpu_ns[verdict.node] / 1e6,
        # Of work that the device declines, what it would take is nobody's statement.
        "device_ms": 0.0 if is_folded else offer.device_ns[verdict.node] / 1e6 if answered else None,
        "compared_cpu_ms": _ms(verdict.cpu_ns),
        "compared_device_ms": _ms(verdict.device_ns),
        "reason": _node_reason(verdict, offer.device),
    }


def _node_reason(verdict: NodeVerdict, device: str) -> str:
    text = verdict.verdict.meaning
    if verdict.detail:
        text += f": {verdict.detail}"
    if verdict.device_ns is not None and verdict.cpu_ns is not None:
        text += f" ({milliseconds(verdict.device_ns)} ms on {device}, {milliseconds(verdict.cpu_ns)} ms on the CPU)"
    return text


def _held(node: Node, reason: str, verdict: Verdict | None = None) -> list[dict[str, Any]]:
    """Rows for all nodes inside a node, which go where it goes; its time is theirs."""
    return [
        {**_in_body(inner, reason), "inside": node.name, **({} if verdict is None else _verdict_row(verdict))}
        for _, body in node.bodies
        for _, inner in body.walk()
    ]


def _verdict_row(verdict: Verdict) -> dict[str, str]:
    return {"verdict": verdict.label, "meaning": verdict.meaning}


def _describe_bodies(
    context: PlanningContext, node: Node, device: Device
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bodies of a node that stays on the CPU, planned as graphs of their own, and rows for the nodes in them."""
    model = context.model
    obstacle = model.why_no_bodies(node.index)
    if obstacle is not None:
        return [], _held(node, f"stays with {node.name!r}: {obstacle}")
    described: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for body, (name, original) in zip(model.bodies(node.index), node.bodies, strict=True):
        own = {inner.name for inner in original.nodes}
        entry, made = _describe_body(body.model, device, cores=context.cores)
        described.append({"inside": node.name, "body": name, "nodes": len(own), **entry})
        rows += [{**row, "inside": node.name} for row in made if row["node"] in own]
        for inner in original.nodes:
            rows += _held(inner, f"inside another body, in {node.name!r}")
    return described, rows


def _describe_body(model: Model, device: Device, *, cores: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One body: figures are of one iteration, or of an arm taken once."""
    name = device.backend.info.name
    graph = model.inferred()
    costs = estimate_costs(graph, cores=cores).times(device.cpu_factor)
    try:
        context = PlanningContext(model, cores=cores, costs=replace(costs, survivors=surviving_tensors(model)))
        study = DeviceStudy(context, device.backend, room_bytes=device.room_bytes)
        capability = study.capability
    except BackendError as error:
        cpu_ns = sum(costs.node_ns(cores))
        rows = [_in_body(node, f"{name} cannot be asked about its body: {error.what}") for node in graph.nodes]
        return {"supported": 0, "gains": False, "cpu_ms": cpu_ns / 1e6, "ours_ms": cpu_ns / 1e6, "launches": 0}, rows
    placed = _placed(study)
    cpu_ns, chosen = placed.alone.cpu_only_ns, placed.chosen
    ours_ns = placed.chosen_ns + LIFT_NS
    gains = bool(chosen.regions) and ours_ns < cpu_ns
    entry = {
        "supported": len(capability.taken),
        "gains": gains,
        "cpu_ms": cpu_ns / 1e6,
        "ours_ms": ours_ns / 1e6,
        "launches": chosen.after.fragments,
    }
    rows = []
    for verdict in _explained(chosen, placed.alone):
        if gains or verdict.verdict is not Verdict.TAKEN:
            # Its time is counted with the node that holds it.
            rows.append({**_describe_node(graph, placed.offer, verdict), "cpu_ms": None, "device_ms": None})
        else:
            rows.append(
                _in_body(
                    graph.nodes[verdict.node],
                    f"its body takes {milliseconds(cpu_ns)} ms on the CPU, and {milliseconds(ours_ns)} ms with {name}, "
                    "run by the engine",
                )
            )
    return entry, rows


def _in_body(node: Node, reason: str) -> dict[str, Any]:
    """The row of a node that stays with the one that holds it."""
    return {
        "node": node.name,
        "operator": node.op_type,
        "inside": None,
        "verdict": _IN_BODIES,
        "meaning": "control flow: stays with the node that holds it, on the CPU",
        "region": None,
        "detail": None,
        "cpu_ms": None,
        "device_ms": None,
        "compared_cpu_ms": None,
        "compared_device_ms": None,
        "reason": f"control flow: {reason}",
    }


def _group(per_node: Sequence[Mapping[str, Any]], figures: str) -> list[dict[str, Any]]:
    """By verdict and operator, verdicts and operators with the largest CPU time first."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in per_node:
        groups.setdefault(row["verdict"], {}).setdefault(row["operator"], []).append(row)
    rows = [
        {
            "verdict": verdict,
            **_sums([row for members in operators.values() for row in members]),
            "why": _compared(verdict, [row for members in operators.values() for row in members], figures),
            "operators": sorted(
                (
                    {"operator": operator, **_sums(members), "why": _why(members)}
                    for operator, members in operators.items()
                ),
                key=lambda entry: (-(entry["cpu_ms"] or 0.0), -entry["nodes"], entry["operator"]),
            ),
        }
        for verdict, operators in groups.items()
    ]
    return sorted(rows, key=lambda entry: (-(entry["cpu_ms"] or 0.0), -entry["nodes"], entry["verdict"]))


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "nodes": len(rows),
        "cpu_ms": _total([row["cpu_ms"] for row in rows]),
        "device_ms": _total([row["device_ms"] for row in rows]),
    }


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _why(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the device says of each, the most frequent first."""
    said = Counter(row["detail"] for row in rows if row["detail"])
    return sorted(said, key=lambda text: (-said[text], text))


def _compared(verdict: str, rows: Sequence[Mapping[str, Any]], figures: str) -> str:
    """What a verdict means; where costs were compared, those of the largest piece."""
    meaning = str(rows[0]["meaning"]).removeprefix(verdict).lstrip(",: ")
    pieces = {row["compared_cpu_ms"]: row["compared_device_ms"] for row in rows if row["compared_cpu_ms"] is not None}
    if not pieces or rows[0]["region"] is not None:
        return meaning
    cpu_ms = max(pieces)
    piece = "" if len(pieces) == 1 else f"largest of {len(pieces)} pieces: "
    there, here = milliseconds(pieces[cpu_ms] * 1e6), milliseconds(cpu_ms * 1e6)
    return f"{meaning} ({piece}{there} ms there, {figures}; {here} ms here)"


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


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


# Tables -----------------------------------------------------------------------------------------------


def render_offload(report: Mapping[str, Any], console: Console) -> None:
    """The same for people."""
    mark = report["figures"]
    device = f" ({report['device']})" if report["device"] else ""
    print_line(console, f"\non {report['name']}{device}")
    console.print(report["note"])
    nodes = report["nodes"]
    inside = f" and {nodes['in_bodies']} inside control flow" if nodes["in_bodies"] else ""
    print_line(
        console,
        f"\nIt supports {nodes['supported']} of {nodes['all'] - nodes['in_bodies']} operators{inside}; it would be "
        f"given {nodes['taken']}.",
    )
    memory = report["memory"]
    allowed = "" if memory["budget_bytes"] is None else f" of {size(memory['budget_bytes'])} allowed"
    if memory["held_bytes"] or allowed:
        print_line(
            console,
            f"Of its memory that takes {size(memory['held_bytes'])}{allowed}: weights {size(memory['weight_bytes'])}, "
            f"tensors of a run {size(memory['tensor_bytes'])} (estimated).",
        )
    console.print(f"{report['reason'][0].upper()}{report['reason'][1:]}.")
    print_line(console, "")
    table = make_table("predicted", "ms", "of CPU", "launches", "transfers", "moved", "from")
    for row in report["placements"]:
        ratio = row["ratio_to_cpu_only"]
        launched = row["launches"]
        table.add_row(
            row["placement"],
            milliseconds(row["ms"] * 1e6),
            "-" if ratio is None else f"{ratio:.2f}",
            str(launched) if launched else "-",
            str(row["transfers"]) if launched else "-",
            size(row["transferred_bytes"]) if launched else "-",
            row["figures"],
        )
    console.print(table)
    before, after = report["before"], report["after"]
    print_line(
        console,
        f"Fragments: {before['launches']} greedy > {after['launches']} ours; transfers: {before['transfers']} "
        f"({size(before['transferred_bytes'])}) > {after['transfers']} ({size(after['transferred_bytes'])}).",
    )
    if report["bodies"]:
        _render_bodies(report["bodies"], mark, console)
    _render_groups(report["groups"], mark, console)
    _render_advice(report["advice"], mark, console)


def _render_bodies(bodies: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    print_line(console, "\nbodies, as graphs of their own (once through)")
    table = make_table("inside", "body", "verdict", "nodes", "supported", "CPU ms", f"ours ms ({mark})", left=3)
    for row in bodies:
        table.add_row(
            row["inside"],
            row["body"],
            "gains" if row["gains"] else "stays on the CPU",
            str(row["nodes"]),
            str(row["supported"]),
            milliseconds(row["cpu_ms"] * 1e6),
            milliseconds(row["ours_ms"] * 1e6),
        )
    console.print(table)


def _render_groups(groups: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    print_line(console, "")
    table = make_table("what becomes of them", "why", "nodes", "CPU ms", f"{mark} ms", left=2)
    for group in groups:
        table.add_row(group["verdict"], group["why"], *_figures(group), style="bold")
        for row in group["operators"][:_LISTED_OPERATORS]:
            table.add_row(f"  {row['operator']}", _first_of(row["why"]), *_figures(row))
        rest = group["operators"][_LISTED_OPERATORS:]
        if rest:
            table.add_row(f"  and {len(rest)} more", "", str(sum(row["nodes"] for row in rest)), "", "")
    console.print(table)


def _first_of(reasons: Sequence[str]) -> str:
    return "".join(reasons[:1]) + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str]:
    times = (row["cpu_ms"], row["device_ms"])
    cpu, device = ("-" if ms is None else milliseconds(ms * 1e6) for ms in times)
    return str(row["nodes"]), cpu, device


def _render_advice(advice: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    if not advice:
        print_line(console, "\nNo single reason for falling back stands in the way of a gain.")
        return
    print_line(console, "\nwhat to change to gain most (one thing after the other)")
    table = make_table("operator", "change", "nodes", f"saves ms ({mark})", "of ms", left=2)
    for row in advice[:_LISTED_ADVICE]:
        table.add_row(
            row["operator"],
            row["change"],
            str(row["nodes"]),
            milliseconds(row["saves_ms"] * 1e6),
            milliseconds(row["now_ms"] * 1e6),
        )
    console.print(table)
