"""What becomes of every single operator on a device, and the same by operator type: rows of ``inspect --provider``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parallax.cli._units import milliseconds
from parallax.graph import Node, OpGraph, Verdict
from parallax.partition.regions import DeviceCosts, NodeVerdict, RegionPlan

_IN_BODIES = "inside control flow"


def explained(chosen: RegionPlan, alone: RegionPlan) -> Iterator[NodeVerdict]:
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


def describe_node(graph: OpGraph, device_costs: DeviceCosts, verdict: NodeVerdict) -> dict[str, Any]:
    node = graph.nodes[verdict.node]
    is_folded = verdict.verdict is Verdict.FOLDED
    answered = device_costs.declined[verdict.node] is None
    return {
        "node": node.name,
        "operator": node.op_type,
        "inside": None,
        "verdict": verdict.verdict.label,
        "meaning": verdict.verdict.meaning,
        "region": verdict.region,
        "detail": verdict.detail or None,
        "cpu_ms": 0.0 if is_folded else device_costs.cpu_ns[verdict.node] / 1e6,
        # Of work that the device declines, what it would take is nobody's statement.
        "device_ms": 0.0 if is_folded else device_costs.device_ns[verdict.node] / 1e6 if answered else None,
        "compared_cpu_ms": _ms(verdict.cpu_ns),
        "compared_device_ms": _ms(verdict.device_ns),
        "reason": _node_reason(verdict, device_costs.device),
    }


def _node_reason(verdict: NodeVerdict, device: str) -> str:
    text = verdict.verdict.meaning
    if verdict.detail:
        text += f": {verdict.detail}"
    if verdict.device_ns is not None and verdict.cpu_ns is not None:
        text += f" ({milliseconds(verdict.device_ns)} ms on {device}, {milliseconds(verdict.cpu_ns)} ms on the CPU)"
    return text


def held_rows(node: Node, reason: str, verdict: Verdict | None = None) -> list[dict[str, Any]]:
    """Rows for all nodes inside a node, which go where it goes; its time is theirs."""
    return [
        {**body_row(inner, reason), "inside": node.name, **({} if verdict is None else _verdict_row(verdict))}
        for _, body in node.bodies
        for _, inner in body.walk()
    ]


def _verdict_row(verdict: Verdict) -> dict[str, str]:
    return {"verdict": verdict.label, "meaning": verdict.meaning}


def body_row(node: Node, reason: str) -> dict[str, Any]:
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


def group_rows(per_node: Sequence[Mapping[str, Any]], figures: str) -> list[dict[str, Any]]:
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


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6
