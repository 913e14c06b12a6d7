"""The search for the best placement, with answers that are counted out here, not solved: questions, parts, rounds."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.graph import OpGraph
from parallax.partition.regions import DeviceCosts
from parallax.schedule.placement import Machine, PlacementProblem
from parallax.schedule.placement._exact_parts import answer_divided, answer_in_parts, find_parts
from parallax.schedule.placement._exact_question import make_question
from parallax.schedule.placement._exact_search import MOST_WHOLE, ExactSearch
from parallax.schedule.placement._judge import Judge
from tests.partition._device_costs import device_costs_of, priced_graphs, sized_graph
from tests.schedule.test_coexecution import diamond
from tests.schedule.test_quick import problem_of


def ladder(rungs: int, *, launch_ns: int = 10) -> PlacementProblem:
    """Diamonds one after the other: a first node, two beside each other, a last one that is the next one's first."""
    edges = []
    for rung in range(rungs):
        first = 3 * rung
        edges += [(first, first + 1), (first, first + 2), (first + 1, first + 3), (first + 2, first + 3)]
    size = 3 * rungs + 1
    device_costs = device_costs_of(
        [False] * size, [6, 7, 8] * rungs + [6], [10, 9, 8] * rungs + [10], launch_ns=launch_ns
    )
    return problem_of(sized_graph(size, edges, [0] * size), device_costs, Machine(cores=1))


def in_sequence(question: dict[str, Any], *, lanes: int = 1) -> dict[str, Any]:
    """What a question's groups take one after the other, without launches, on the sides that take least: what a solver
    would find if nothing ran at once; or where ``lanes`` lanes always shared the work evenly, which nothing beats."""
    rows, free = question["groups"], []
    for row, fixed in zip(rows, question["fixed"], strict=True):
        there = [device for device, ns in enumerate(row["device_ns"]) if ns is not None]
        free.append([-1, *there] if fixed is None else [fixed])
    best: tuple[int, tuple[int, ...]] | None = None
    for sides in itertools.product(*free):
        if list(sides) in question["excluded"]:
            continue
        total = sum(
            min(row["cpu_ns"]) if side < 0 else row["device_ns"][side] for row, side in zip(rows, sides, strict=True)
        )
        for flow in question["flows"]:
            ends = [sides[reader] for reader in flow["readers"]]
            here = -1 if flow["producer"] < 0 else sides[flow["producer"]]
            if (here >= 0 and flow["is_returned"]) or any(end != here for end in ends):
                total += max(flow["moving_ns"])
        total //= lanes
        if best is None or total < best[0]:
            best = total, sides
    if best is None or (question["below_ns"] is not None and best[0] >= question["below_ns"]):
        return {"status": "none", "bound_ns": question["below_ns"] or 0, "found": [], "used_s": 0.0}
    found = {"sides": list(best[1]), "regions": None, "relaxed_ns": best[0]}
    return {"status": "optimal", "bound_ns": best[0], "found": [found], "used_s": 0.0}


def test_a_question_is_numbers_of_the_problem() -> None:
    device_costs = device_costs_of([1, 0, 1, 0, 1, 1], [5] * 6, [100] * 6, launch_ns=10, fixed_ns=2, ns_per_byte=0.1)
    machine = Machine(cores=2, handover_ns=3, segment_overhead_ns=4)
    question = make_question(problem_of(diamond(), device_costs, machine), seconds=1.0)
    assert question["widths"] == [1, 2]
    assert (question["launch_ns"], question["start_ns"], question["handover_ns"]) == ([10], 4, 3)
    assert [row["device_ns"] for row in question["groups"]] == [[None], [5], [None], [5], [None], [None]]
    assert question["groups"][5] == {"before": [3, 4], "cpu_ns": [100, 100], "device_ns": [None]}
    assert question["flows"][0] == {"producer": -1, "readers": [0], "moving_ns": [12], "is_returned": False}
    assert question["flows"][-1] == {"producer": 5, "readers": [], "moving_ns": [12], "is_returned": True}


def test_parts_end_where_all_paths_meet() -> None:
    parts = find_parts(make_question(ladder(3), seconds=1.0))
    assert [part.groups for part in parts] == [(0,), (0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9)]
    assert [part.is_first for part in parts] == [True, False, False, False]
    assert [part.is_last for part in parts] == [False, False, False, True]


def test_alike_parts_are_asked_about_once() -> None:
    question = make_question(ladder(6), seconds=1.0)
    asked: list[dict[str, Any]] = []

    def ask(part: dict[str, Any]) -> dict[str, Any]:
        asked.append(part)
        return in_sequence(part)

    parts = find_parts(question)
    answer = answer_in_parts(question, parts, ask)
    # The first node; a rung with each pair of sides; the last, which ends with the model, with each side ahead.
    assert len(asked) == 2 + 4 + 2
    assert answer.bound_ns == in_sequence(question)["bound_ns"]
    assert answer.sides is not None
    assert len(answer.sides) == len(question["groups"])


@settings(max_examples=60)
@given(case=priced_graphs(max_size=9), most=st.integers(1, 9))
def test_parts_never_promise_more_than_the_whole(case: tuple[OpGraph, DeviceCosts], most: int) -> None:
    """What is added up in sequence can be divided anywhere, so that the parts' sum is the whole but for what passes."""
    graph, device_costs = case
    question = make_question(problem_of(graph, device_costs, Machine(cores=1)), seconds=1.0)
    parts = find_parts(question, most=most)
    covered = [group for part in parts for group in (part.groups if part.is_first else part.groups[1:])]
    assert covered == list(range(len(question["groups"])))
    whole = in_sequence(question)["bound_ns"]
    answer = answer_in_parts(question, parts, in_sequence)
    assert answer.bound_ns <= whole
    if len(parts) == 1:
        assert answer.bound_ns == whole


def test_nothing_passes_over_where_a_ladder_is_divided_so_that_nothing_is_lost() -> None:
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6)]
    device_costs = device_costs_of([False] * 7, [6, 1, 9, 6, 9, 1, 6], [5, 9, 1, 7, 1, 9, 5], fixed_ns=2)
    question = make_question(problem_of(sized_graph(7, edges, [0] * 7), device_costs, Machine(cores=1)), seconds=1.0)
    parts = find_parts(question)
    assert len(parts) == 3
    whole = in_sequence(question)
    answer = answer_in_parts(question, parts, in_sequence)
    assert answer.bound_ns == whole["bound_ns"]
    placed = {**question, "fixed": list(answer.sides or ())}
    assert in_sequence(placed)["bound_ns"] == whole["bound_ns"]


def test_what_runs_beside_nearly_all_and_takes_next_to_nothing_is_left_out() -> None:
    """As the position of a text's end, which is read at the end of a text encoder."""
    rungs = 4
    size = 3 * rungs + 1
    edges = [edge for first in range(0, size - 1, 3) for edge in _rung(first + 1)]
    # Group 0 is the aside one; the last reads it.
    graph = sized_graph(size + 1, [*edges, (0, size)], [0] * (size + 1))
    times = [6_000, 7_000, 8_000] * rungs + [6_000]
    device_costs = device_costs_of([False] * (size + 1), [1, *times], [2, *reversed(times)], launch_ns=10)
    question = make_question(problem_of(graph, device_costs, Machine(cores=1)), seconds=1.0)
    assert len(find_parts(question)) == 1
    asked: list[int] = []

    def ask(part: dict[str, Any]) -> dict[str, Any]:
        asked.append(len(part["groups"]))
        return in_sequence(part)

    answer = answer_divided(question, ask)
    assert max(asked) == 4
    assert answer.sides is not None
    assert answer.sides[0] == -1
    whole = in_sequence({**question, "fixed": list(answer.sides)})["bound_ns"]
    assert whole - 2 == answer.bound_ns
    # Where it takes more, it belongs to the question.
    slow = make_question(
        problem_of(graph, device_costs_of([False] * (size + 1), [900, *times], [900, *times]), Machine(cores=1)),
        seconds=1.0,
    )
    assert answer_divided({**slow, "groups": slow["groups"]}, in_one_go).bound_ns == -1


def _rung(first: int) -> list[tuple[int, int]]:
    return [(first, first + 1), (first, first + 2), (first + 1, first + 3), (first + 2, first + 3)]


def in_one_go(question: dict[str, Any]) -> dict[str, Any]:
    """Tells that the question was not divided."""
    assert question["last"] is None
    assert not question["is_ahead"]
    return {"status": "unknown", "bound_ns": -1, "found": [], "used_s": 0.0}


def test_a_search_goes_on_until_nothing_is_left_that_could_be_better() -> None:
    problem = ladder(2)
    judge = Judge(problem)
    known: list[list[list[int]]] = []

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        known.append(question["excluded"])
        return in_sequence(question, lanes=2)

    search = ExactSearch(problem, judge, ask, seconds=1.0)
    for placement in search.placements():
        judge.consider(placement)
    assert search.is_closed
    assert search.asked == len(known) > 3
    # Each question but the first leaves out what was found, and the CPU alone.
    assert [len(sides) for sides in known] == [0, *range(2, len(known) + 1)]
    assert [-1] * 7 in known[1]
    below = {"excluded": known[-1], "below_ns": judge.best.makespan_ns}
    assert in_sequence({**make_question(problem, seconds=1.0), **below}, lanes=2)["status"] == "none"
    assert search.bound_ns <= judge.best.makespan_ns


def test_a_search_ends_when_its_time_is_over() -> None:
    problem = ladder(2)
    judge = Judge(problem)
    given: list[float] = []

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        given.append(question["seconds"])
        return {**in_sequence(question, lanes=2), "used_s": 0.6}

    search = ExactSearch(problem, judge, ask, seconds=1.0, share=0.5)
    for placement in search.placements():
        judge.consider(placement)
    assert given == [0.5, 0.4]
    assert not search.is_closed


def test_large_models_are_asked_about_in_parts() -> None:
    problem = ladder(MOST_WHOLE)
    judge = Judge(problem)
    search = ExactSearch(problem, judge, in_sequence, seconds=1.0)
    labels = [placement.label for placement in search.placements() if judge.consider(placement) or True]
    assert labels == ["exact", "exact, cut early"]
    assert search.bound_ns > 0
