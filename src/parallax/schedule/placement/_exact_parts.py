"""A question about a placement in parts that follow each other, so that each is small enough to be answered.

Where a fusion group comes after or before every other one, nothing of before it runs beside anything of after it. So
what a model takes is at least the sum of what its parts between such groups take, each given the sides of the groups
at its ends; and the cheapest choice of these sides is found by a shortest path. What passes over such a group, without
being made by it, is taken to move for nothing, which keeps this a lower bound; groups are chosen over which little
passes. Deep models are long rows of such parts, most of them alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

ASIDE: Final = 500
"""Groups beside most others are left out where all of them together take one part in so many, or less."""

MOST_GROUPS: Final = 24
"""Larger parts are divided further, whatever passes over the group at which they are."""

Question = dict[str, Any]
Ask = Callable[[Question], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Fusion groups between two that all others come after or before."""

    groups: tuple[int, ...]
    """Ascending. The first has ended before this part begins, unless the model begins with it."""
    is_first: bool
    is_last: bool
    """Whether the model ends with it; else it ends with the last of its groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of a whole question."""

    bound_ns: int
    """No schedule of any placement takes less."""
    sides: tuple[int, ...] | None
    """The placement that the parts' answers make; -1 is the CPU. None where a part had no answer in time."""
    regions: tuple[tuple[int, ...], ...] | None
    """Its regions, where all parts knew theirs."""


def find_parts(question: Question, *, most: int = MOST_GROUPS) -> list[Part]:
    """Divide a question: where nothing more is lost, and then where least is, until no part is too large. About
    O(V² + V E)."""
    size = len(question["groups"])
    moving_ns = [max(flow["moving_ns"]) for flow in question["flows"]]
    passing = _passing(question)
    lost: set[int] = set()
    cuts: set[int] = set()

    def loses(group: int) -> int:
        return sum(moving_ns[flow] for flow in passing[group] - lost)

    while True:
        cuts.update(group for group in passing if not loses(group))
        ends = [-1, *sorted(cuts), size - 1]
        begin, end = max(pairwise(ends), key=lambda pair: pair[1] - pair[0])
        inside = [group for group in passing if begin < group < end]
        if end - begin <= most or not inside:
            break
        cuts.add(best := min(inside, key=lambda group: (loses(group), abs(begin + end - 2 * group))))
        lost |= passing[best]
    return [
        Part(groups=tuple(range(max(0, begin), end + 1)), is_first=begin < 0, is_last=end == size - 1)
        for begin, end in pairwise(ends)
    ]


def answer_divided(question: Question, ask: Ask, *, most: int = MOST_GROUPS) -> Answer:
    """`answer_in_parts`, without what runs beside nearly all of the model; that is on the CPU then."""
    smaller, kept = _without_side_groups(question)
    answer = answer_in_parts(smaller, find_parts(smaller, most=most), ask)
    if answer.sides is None:
        return answer
    sides = [-1] * len(question["groups"])
    for group, side in zip(kept, answer.sides, strict=True):
        sides[group] = side
    regions = answer.regions and tuple(tuple(kept[place] for place in region) for region in answer.regions)
    return Answer(bound_ns=answer.bound_ns, sides=tuple(sides), regions=regions)


def answer_in_parts(question: Question, parts: Sequence[Part], ask: Ask) -> Answer:
    """A bound of the whole and a placement, from the answers about its parts; alike parts are asked about once."""
    known: dict[str, dict[str, Any]] = {}
    bounds: dict[int | None, int] = {None: 0}
    # Per side of the last group so far: the relaxed time of the best placement found, and what it is made of.
    found: dict[int | None, tuple[int, tuple[dict[str, Any], ...]]] = {None: (0, ())}
    for part in parts:
        next_bounds: dict[int | None, int] = {}
        next_found: dict[int | None, tuple[int, tuple[dict[str, Any], ...]]] = {}
        for begin, end in _ends(question, part):
            if begin not in bounds:
                continue
            asked = _part_question(question, part, begin, end)
            key = json.dumps(asked)
            if key not in known:
                known[key] = ask(asked)
            answer = known[key]
            bound = bounds[begin] + answer["bound_ns"]
            next_bounds[end] = min(bound, next_bounds.get(end, bound))
            if answer["found"] and begin in found:
                best = answer["found"][0]
                total = found[begin][0] + best["relaxed_ns"]
                if end not in next_found or total < next_found[end][0]:
                    next_found[end] = total, (*found[begin][1], best)
        bounds, found = next_bounds, next_found
    if None not in found:
        return Answer(bound_ns=bounds[None], sides=None, regions=None)
    sides, regions = _joined(parts, found[None][1])
    return Answer(bound_ns=bounds[None], sides=sides, regions=regions)


def _relatives(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Per group how many come before it, and how many after."""
    above: list[int] = []  # sets of bits
    below = [0] * len(rows)
    for row in rows:
        bits = 0
        for before in row["before"]:
            bits |= above[before] | 1 << before
        above.append(bits)
    for group, bits in enumerate(above):
        for before in range(group):
            below[before] += bits >> before & 1
    return [bits.bit_count() for bits in above], below


def _without_side_groups(question: Question) -> tuple[Question, list[int]]:
    """The question without what runs beside most of the model and takes next to nothing, such as the position of a
    text's end; and the groups that are left. It can only take less: what these groups read moves for nothing."""
    rows = question["groups"]
    above, below = _relatives(rows)
    least = [min([*row["cpu_ns"], *(ns for ns in row["device_ns"] if ns is not None)]) for row in rows]
    aside = {group for group in range(len(rows)) if 2 * (above[group] + below[group]) < len(rows)}
    if not aside or ASIDE * sum(least[group] for group in aside) > sum(least):
        return question, list(range(len(rows)))
    kept = [group for group in range(len(rows)) if group not in aside]
    at = {group: place for place, group in enumerate(kept)}
    before: list[set[int]] = []  # per group those that are left, through those that are not
    for row in rows:
        direct = ({other} if other in at else before[other] for other in row["before"])
        before.append(set().union(*direct))
    groups = [{**rows[group], "before": sorted(at[other] for other in before[group])} for group in kept]
    flows = [
        {
            **flow,
            "producer": at.get(flow["producer"], flow["producer"]),
            "readers": [at[reader] for reader in flow["readers"]],
        }
        for flow in question["flows"]
        if flow["producer"] not in aside and aside.isdisjoint(flow["readers"])
    ]
    return {**question, "groups": groups, "flows": flows, "fixed": [None] * len(kept)}, kept


def _passing(question: Question) -> dict[int, frozenset[int]]:
    """Per group, but the last, that all others come after or before: which tensors pass over it, made before and read
    after."""
    rows = question["groups"]
    above, below = _relatives(rows)
    spans = []
    for number, flow in enumerate(question["flows"]):
        if flow["readers"]:
            begin = flow["readers"][0] - 1 if flow["producer"] < 0 else flow["producer"]
            spans.append((begin, flow["readers"][-1], number))
    # All before such a group have lower numbers, and all after it higher ones.
    return {
        group: frozenset(number for begin, end, number in spans if begin < group < end)
        for group in range(len(rows) - 1)
        if above[group] == group and below[group] == len(rows) - 1 - group
    }


def _ends(question: Question, part: Part) -> Iterator[tuple[int | None, int | None]]:
    """Sides of the group ahead and of the last one; None where there is none."""

    def sides(group: int) -> list[int | None]:
        row = question["groups"][group]["device_ns"]
        return [-1, *(device for device, ns in enumerate(row) if ns is not None)]

    for begin in [None] if part.is_first else sides(part.groups[0]):
        for end in [None] if part.is_last else sides(part.groups[-1]):
            yield begin, end


def _part_question(question: Question, part: Part, begin: int | None, end: int | None) -> Question:
    groups = part.groups
    at = {group: place for place, group in enumerate(groups)}
    ahead = None if part.is_first else groups[0]
    last = None if part.is_last else groups[-1]
    rows = []
    for group in groups:
        row = question["groups"][group]
        if group == ahead:
            nothing = [None if ns is None else 0 for ns in row["device_ns"]]
            rows.append({"before": [], "cpu_ns": [0] * len(row["cpu_ns"]), "device_ns": nothing})
        else:
            before = [at[other] for other in row["before"] if other in at] or ([] if ahead is None else [0])
            rows.append({"before": before, "cpu_ns": row["cpu_ns"], "device_ns": row["device_ns"]})
    flows = []
    for flow in question["flows"]:
        producer, is_returned = flow["producer"], flow["is_returned"]
        is_callers = producer < 0 and flow["readers"] and flow["readers"][0] in at and flow["readers"][0] != ahead
        if producer not in at and not is_callers:
            continue
        if producer == ahead and is_returned and begin is not None and begin >= 0:
            continue  # it went back when it was made
        readers = [at[reader] for reader in flow["readers"] if reader in at and reader != ahead]
        if producer == last:
            readers = []  # of the next part
        is_returned = is_returned and producer != ahead
        if readers or is_returned:
            flows.append(
                {
                    "producer": producer if producer < 0 else at[producer],
                    "readers": readers,
                    "moving_ns": flow["moving_ns"],
                    "is_returned": is_returned,
                }
            )
    fixed: list[int | None] = [None] * len(groups)
    if last is not None:
        fixed[-1] = end
    if ahead is not None:
        fixed[0] = begin
    return {
        **question,
        "groups": rows,
        "flows": flows,
        "fixed": fixed,
        "is_ahead": ahead is not None,
        "last": None if last is None else len(groups) - 1,
        "below_ns": None,
        "excluded": [],
        "hint": None,
        "regions": has_few_pairs(rows, question["most_pairs"]),
    }


def has_few_pairs(rows: Sequence[dict[str, Any]], most: int) -> bool:
    """Whether devices take at most so many pairs of groups."""
    counts = [sum(ns is not None for ns in taken) for taken in zip(*(row["device_ns"] for row in rows), strict=True)]
    return sum(count * (count - 1) // 2 for count in counts) <= most


def _joined(
    parts: Sequence[Part], answers: Sequence[dict[str, Any]]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...] | None]:
    """The placement of the whole, and its regions: those that hold the group between two parts are one."""
    size = max(parts[-1].groups, default=-1) + 1
    sides = [-1] * size
    region_of: dict[int, list[int]] = {}
    regions: list[list[int]] | None = []
    for part, answer in zip(parts, answers, strict=True):
        for group, side in zip(part.groups, answer["sides"], strict=True):
            sides[group] = side
        if answer["regions"] is None or regions is None:
            regions = None
            continue
        for members in answer["regions"]:
            inside = [part.groups[place] for place in members]
            joins = region_of.get(inside[0])
            if joins is None:
                joins = []
                regions.append(joins)
            for group in inside:
                if group not in region_of:
                    region_of[group] = joins
                    joins.append(group)
    return tuple(sides), None if regions is None else tuple(map(tuple, regions))
