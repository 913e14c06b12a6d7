"""What decisions cost and come to: the last one in time counts; what is fitted has not seen what it is asked about."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from _deciding import Answer, Decision, Simulated, better_side, choose, decide, last_within, make_ready, search, within
from _figures import Verdict
from _graphs import random_dag
from _intervals import mean_over_rows
from _networks import read_networks
from _sections import publish_sections
from _threshold_predictors import GRID, Case, placed_by, predicted_ns
from decision_time import (
    ETF_DESCENT,
    SIDE,
    STORED,
    STORED_OTHERS,
    ablation_section,
    against,
    graphs,
    network_section,
    regret,
    regret_section,
    row_json,
    study,
    taken_ns,
    threshold_section,
)
from paper_sparoa import Subject

from parallax.adapt import state_grid
from parallax.model import load_model
from parallax.schedule.placement import PLACERS, Placement, PlacementProblem, find_placement
from parallax.schedule.placement._quick import QuickJudge
from tests.partition._device_costs import device_costs_of, sized_graph
from tests.planner._networks import proposer, scheduler
from tests.schedule.test_yardsticks import on_device, problem_of

BOARD = "jetson-orin-nano"


def two_chains(device_ns: int = 10) -> PlacementProblem:
    """Two chains of two: one that a device takes, and one that it does not."""
    graph = sized_graph(4, [(0, 1), (2, 3)], [1] * 4)
    return problem_of(graph, device_costs_of([False, False, True, True], [device_ns] * 4, [100] * 4), cores=1)


def test_the_last_decision_in_time_counts() -> None:
    answers = [Answer(after_s=0.001, takes_ns=30), Answer(after_s=0.01, takes_ns=20)]
    assert [within(answers, seconds) for seconds in (0.0005, 0.001, 0.005, 0.01, None)] == [None, 30, 30, 20, 20]


def test_only_decisions_that_some_budget_ends_with_are_kept() -> None:
    nowhere = Placement(label="", devices=())
    made = [Decision(after_s=after_s, placement=nowhere) for after_s in (0.1, 0.2, 0.9, 1.5, 4.0)]
    assert [decision.after_s for decision in last_within(made, [0.05, 1.0, 3.0])] == [0.9, 1.5, 4.0]
    assert last_within([], [1.0]) == []


def test_the_better_side_is_that_of_the_smaller_sum() -> None:
    assert better_side(two_chains(device_ns=10)).devices == (0, 0, 0, 0)
    assert better_side(two_chains(device_ns=1000)).devices == (None,) * 4


def test_of_several_proposals_the_quick_judges_best_is_chosen_and_of_none_the_cpu_alone() -> None:
    problem = two_chains()
    all_there = Placement.on_device(problem, "there", range(4))
    assert choose(problem, lambda asked: [asked.cpu_only, all_there]) == all_there
    assert choose(problem, lambda asked: []) == problem.cpu_only
    slow = two_chains(device_ns=1000)
    assert choose(slow, lambda asked: [all_there]) == all_there  # a single one is taken as it is
    assert choose(slow, lambda asked: [all_there, all_there]) == slow.cpu_only
    (decision,) = decide(problem, lambda asked: [all_there])
    assert decision.placement == all_there
    assert decision.after_s > 0


def test_a_search_only_ever_decides_for_what_is_predicted_to_be_better() -> None:
    problem = two_chains()
    make_ready(problem)
    found = search(problem, PLACERS["etf"]().propose, limit_s=30.0)
    judge = QuickJudge(problem, [decision.placement for decision in found])
    costs = [
        judge.cost_ns(judge.pieces.sides(decision.placement), ends_early=decision.placement.ends_early)
        for decision in found
    ]
    assert costs == sorted(set(costs), reverse=True)
    assert [decision.after_s for decision in found] == sorted(decision.after_s for decision in found)
    assert on_device(problem, found[-1].placement) == {0, 1}


def test_a_search_without_time_decides_nothing() -> None:
    assert search(two_chains(), PLACERS["etf"]().propose, limit_s=0.0) == []


def test_what_a_placement_takes_is_what_the_judge_of_sessions_says() -> None:
    problem = two_chains()
    there = Placement.on_device(problem, "there", range(4))

    class There:
        def propose(self, asked: PlacementProblem) -> list[Placement]:
            return [there]

    simulated = Simulated(problem)
    assert simulated.ns(there) == find_placement(problem, [There()]).best.makespan_ns
    assert simulated.ns(problem.cpu_only) > simulated.ns(there)
    assert simulated.ns(there) == simulated.ns(dataclasses.replace(there, label="again"))


def case(model: str, device: str, best: float, traits: tuple[float, ...] = (1.0,) * 8) -> Case:
    """Of a model that takes the longer, the farther a threshold is from the best one."""
    return Case(
        model=model,
        device=device,
        grid_ns=tuple(round(1000 * (1 + abs(log_flops - best))) for log_flops in GRID),
        traits=traits,
        closed_form=best,
    )


def test_what_is_fitted_knows_nothing_of_the_model_or_device_it_is_asked_about() -> None:
    cases = [case("a", "x", 5.0), case("a", "y", 5.0), case("b", "x", 5.0), case("c", "y", 9.0)]
    told = predicted_ns(cases)
    assert told["best of the grid"] == told["closed form"] == [1000] * 4
    # Of model c all others say 5, as does the median of the others; of device y those on x say 5.
    assert told["constant, models held out"] == [1000, 1000, 1000, 5000]
    assert told["median, devices held out"][3] == 5000


def test_a_linear_predictor_finds_what_is_linear() -> None:
    generator = np.random.default_rng(0)
    rows = generator.uniform(0, 1, size=(40, 8))
    cases = [
        case(f"model {number % 5}", "x", 4 + 2 * row[0] + row[3], tuple(map(float, row)))
        for number, row in enumerate(rows)
    ]
    told = predicted_ns(cases)
    # The grid is in steps of a quarter.
    assert max(told["linear, models held out"]) <= 1260
    assert np.mean(told["linear, models held out"]) < np.mean(told["constant, models held out"])
    assert "linear, devices held out" not in told  # there is one device


def test_the_best_threshold_is_the_middle_of_those_as_good() -> None:
    flat = dataclasses.replace(case("a", "x", 5.0), grid_ns=tuple(1 if 8 <= at <= 12 else 9 for at in range(len(GRID))))
    assert flat.best == 10


def test_a_threshold_beyond_all_work_leaves_everything_on_the_cpu() -> None:
    problem = two_chains()
    assert on_device(problem, placed_by(problem, GRID[-1])) == set()


def test_rows_of_one_family_are_drawn_together() -> None:
    values = [1.0] * 12 + [2.0] * 12
    mean, apart = mean_over_rows(values, range(24))
    _, together = mean_over_rows(values, [number // 3 for number in range(24)])
    assert mean == pytest.approx(math.sqrt(2))
    assert apart is not None
    assert together is not None
    assert together[1] - together[0] > 1.4 * (apart[1] - apart[0])
    assert apart[0] < mean < apart[1]


def test_the_interval_of_a_mean_over_rows_holds_the_true_one() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = np.exp(generator.normal(0.3, 0.2, size=25))
        _, interval = mean_over_rows(list(values), range(25))
        assert interval is not None
        held += interval[0] <= math.exp(0.3) <= interval[1]
    assert held >= 176  # a bootstrap of so few rows is somewhat too narrow


def test_few_families_have_no_interval() -> None:
    assert mean_over_rows([1.0, 2.0] * 30, ["a", "b"] * 30) == (pytest.approx(math.sqrt(2)), None)


@pytest.mark.parametrize(("models", "devices"), [(5, 5), (1, 2), (3, 2), (2, 5)])
def test_every_model_is_asked_about_on_every_device_and_all_of_them_early(models: int, devices: int) -> None:
    names, places = [f"m{number}" for number in range(models)], [f"d{number}" for number in range(devices)]
    order = graphs(names, places)
    assert sorted(order) == sorted((name, place) for name in names for place in places)
    first = order[: max(models, devices)]
    assert {name for name, _ in first} == set(names)
    assert {place for _, place in first} == set(places)


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"nothing")
    for given in (str(other), str(tmp_path / "missing.onnx"), f"a,b={other}"):
        with pytest.raises(SystemExit, match="--network"):
            read_networks([given])
    alone = scheduler(tmp_path / "scheduler.onnx", bias=1.0)
    with pytest.raises(SystemExit, match="proposer"):
        read_networks([str(alone)])


def test_a_small_model_goes_all_the_way_to_a_results_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = proposer(tmp_path / "p.onnx"), scheduler(tmp_path / "s.onnx", bias=1.0)
    trained = read_networks([f"one={path}" for path in networks] + [f"two={networks[0]}@another model"])
    states = state_grid([f"emulated:{BOARD}"])[::4]
    rows, cases = study(Subject.of("small", BOARD, load_model(random_dag(40))), states, trained)
    assert rows[0]["state"] == "all is as predicted"
    for row in rows:
        names = row["answers"].keys()
        assert {*PLACERS, ETF_DESCENT, STORED, "one", "one, alone", "one + descent"} - {"shard-rows", "descent"} <= {
            *names,
            "fixed-share",
            "parallax-paper",
        }
        assert "two" not in names  # it is asked of another model only
        assert min(taken_ns(row, name, None) for name in names if name != "fixed-share") == row["best_known_ns"]
        # Nobody has decided within no time at all, but for the better side, which stands in.
        assert {taken_ns(row, name, 0.0) for name in names} == {taken_ns(row, SIDE, None)}
    # What is fitted to all states is at least as good as what is not.
    assert regret(rows, STORED, None).mean <= regret(rows, STORED_OTHERS, None).mean + 1e-9
    assert against(rows, "etf", "etf", 10).mean == 1.0
    sections = {
        "all": regret_section(rows, "Regret", "all", {"rows": [*map(row_json, rows)]}),
        "networks": network_section(rows, trained),
        "thresholds": threshold_section(rows, cases, ["one"]),
        "ablations": ablation_section(rows, ["one"]),
    }
    assert all(figure.what.startswith("simulated") for section in sections.values() for figure in section.figures)
    bounded = [figure for figure in sections["networks"].figures if figure.bound is not None]
    assert bounded
    assert {figure.verdict for figure in bounded} == {Verdict.NOT_SHOWN}  # one graph has no interval
    publish_sections(
        "Small",
        sections,
        tmp_path / "out.md",
        {"machine": "m", "cores_used": 1, "commit": "c", "date": "d"},
        json_copy=None,
    )
    capsys.readouterr()
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    (first, *_) = written["all"]["rows"]
    after_us, takes_ns = first["answers"]["etf"].split(":")
    assert int(takes_ns) == rows[0]["answers"]["etf"][-1].takes_ns
    assert int(after_us) >= 0
    assert "one, thresholds only" in written["thresholds"]["thresholds"]
