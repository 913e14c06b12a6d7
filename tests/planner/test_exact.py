"""The placer that asks a solver: never worse than trying everything, its bound never above, and what goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.errors import BackendError, ConfigError, MissingExtraError
from parallax.graph import CostModel
from parallax.planner import _exact as exact
from parallax.planner import _exact_worker, open_placer, placer_names, policy_name
from parallax.planner._exact import PYTHON_VARIABLE, Exact, Solver, find_exact_python
from parallax.schedule.placement import Machine, Placement, PlacementProblem, find_placement
from parallax.schedule.placement._exact_parts import answer_divided
from parallax.schedule.placement._exact_question import make_question
from parallax.schedule.placement._exact_search import ExactSearch
from parallax.schedule.placement._judge import Judge
from tests.partition._device_costs import device_costs_of, sized_graph
from tests.planner.test_yardstick_sessions import FAST
from tests.schedule.test_coexecution import finest
from tests.session.test_devices import CPU, expected, feeds, two_branches

REASON = "OR-Tools is not installed: make exact"


@pytest.fixture(scope="module")
def solver() -> Iterator[Solver]:
    try:
        found = Solver()
    except MissingExtraError:
        pytest.skip(REASON)
    with found:
        yield found


def drawn(seed: int, *, size: int, devices: int = 1) -> PlacementProblem:
    """A random graph and machine; every cost of the simulator is there in some of them."""
    draw = random.Random(seed)
    edges = [(a, b) for a in range(size) for b in range(a + 1, size) if draw.random() < 2.2 / size]
    graph = sized_graph(size, edges, [draw.randint(0, 20) for _ in range(size)])
    cores = draw.choice([1, 2, 4])
    narrow = [(draw.randint(0, 100), draw.uniform(0.3, 1)) for _ in range(size)]
    rows = tuple(tuple(round(ns / (1 + (width - 1) * gain)) for ns, gain in narrow) for width in range(1, cores + 1))
    costs_of_devices = tuple(
        device_costs_of(
            [draw.random() < 0.25 for _ in range(size)],
            [draw.randint(0, 50) for _ in range(size)],
            rows[-1],
            launch_ns=draw.choice([0, 10, 40]),
            fixed_ns=draw.choice([0, 3]),
            ns_per_byte=draw.choice([0.0, 0.1, 0.5]),
        )
        for _ in range(devices)
    )
    costs = CostModel(
        source="tables",
        widths=tuple(range(1, cores + 1)),
        durations_ns=rows,
        latencies_ns=(None,) * cores,
        scales=(1.0,) * cores,
        known_fraction=1.0,
    )
    machine = Machine(
        cores=cores,
        handover_ns=draw.choice([0, 3, 15]),
        segment_overhead_ns=draw.choice([0, 2, 8]),
        contention=draw.choice([1.0, 1.0, 1.2]),
        wide_start_ns=draw.choice([0, 4]),
        crossing_ns_per_byte=draw.choice([0.0, 0.1]),
    )
    return PlacementProblem(graph=graph, groups=finest(graph), devices=costs_of_devices, costs=costs, machine=machine)


def by_trying_all(problem: PlacementProblem) -> int:
    """The least that any placement takes, with regions as large as can be or ended early."""
    options = [
        [None, *(device for device, takes in enumerate(problem.takes) if takes[group])]
        for group in range(len(problem.groups))
    ]
    judge = Judge(problem)
    for devices in itertools.product(*options):
        for ends_early in (False, True):
            judge.consider(Placement(label="tried", devices=devices, ends_early=ends_early))
    return judge.best.makespan_ns


@pytest.mark.parametrize(
    ("seed", "size", "devices"), [*((seed, 3 + seed % 4, 1) for seed in range(14)), (91, 4, 2), (92, 5, 2), (93, 8, 1)]
)
def test_nothing_is_better_than_what_is_found_and_no_bound_is_above_it(
    solver: Solver, seed: int, size: int, devices: int
) -> None:
    problem = drawn(seed, size=size, devices=devices)
    least = by_trying_all(problem)
    judge = Judge(problem)
    search = ExactSearch(problem, judge, solver.ask, seconds=60.0)
    for placement in search.placements():
        judge.consider(placement)
    assert search.bound_ns <= least
    assert search.is_closed
    # It may be better: the solver's regions need not be connected pieces.
    assert search.bound_ns <= judge.best.makespan_ns <= least


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("regions", [False, True])
def test_neither_model_is_above_what_the_judge_says_of_a_placement(solver: Solver, seed: int, regions: bool) -> None:
    problem = drawn(1000 + seed, size=7, devices=1 + seed % 2)
    draw = random.Random(seed)
    question = make_question(problem, seconds=20.0)
    for _ in range(3):
        sides = [
            draw.choice([-1, *(device for device, takes in enumerate(problem.takes) if takes[group])])
            for group in range(len(problem.groups))
        ]
        devices = tuple(None if side < 0 else side for side in sides)
        judge = Judge(problem)
        alone = judge.best.makespan_ns
        judge.consider(Placement(label="drawn", devices=devices))
        taken = judge.best.makespan_ns if len(judge.tried) > 2 else alone
        answer = solver.ask({**question, "fixed": sides, "regions": regions})
        if taken < alone:
            assert answer["bound_ns"] <= taken
        assert answer["status"] == "optimal"
        assert answer["found"][0]["sides"] == sides


def test_in_parts_the_bound_is_no_higher_than_on_the_whole(solver: Solver) -> None:
    for seed in range(6):
        problem = drawn(2000 + seed, size=8)
        question = make_question(problem, seconds=20.0)
        assert answer_divided(question, solver.ask, most=2).bound_ns <= by_trying_all(problem)


def test_the_same_question_has_the_same_answer(solver: Solver) -> None:
    question = make_question(drawn(5, size=8), seconds=20.0, kept=4)
    assert solver.ask(question) == solver.ask(question)


def test_as_a_policy_it_is_judged_like_any_other(solver: Solver) -> None:
    problem = drawn(7, size=8)
    placer = open_placer("exact,seconds=30")
    assert placer is not None
    found = find_placement(problem, (placer,)).best
    assert found.makespan_ns <= by_trying_all(problem)
    proposed = list(placer.propose(problem))
    assert proposed == list(placer.propose(problem))


def test_answers_of_a_session_are_right(solver: Solver) -> None:
    made = two_branches(batch=512)
    session = parallax.InferenceSession(made, providers=[FAST, CPU], policy="exact,seconds=2", threads=2)
    want = expected(made, feeds(512))[0]
    np.testing.assert_allclose(session.run(None, feeds(512))[0], want, rtol=1e-4, atol=1e-4)


def test_what_is_no_question_is_said_and_ends_the_process(solver: Solver) -> None:
    del solver
    with Solver() as other, pytest.raises(BackendError, match="did not understand: KeyError"):
        other.ask({"seconds": 1})


def test_models_that_are_too_large_are_refused_with_the_size_that_is_taken() -> None:
    problem = drawn(1, size=8)
    with pytest.raises(ConfigError, match=r'8 fusion groups are too many for the policy "exact", which takes 7'):
        list(Exact(groups=7).propose(problem))


def test_it_has_a_name_with_settings_that_is_told_again() -> None:
    assert "exact" in placer_names()
    placer = open_placer("exact,seconds=3,groups=40")
    assert placer == Exact(seconds=3, groups=40)
    assert policy_name(placer) == "exact,seconds=3,groups=40"
    assert policy_name(Exact()) == "exact"
    assert pickle.loads(pickle.dumps(placer)) == placer
    for wrong in ("seconds=0", "seconds=nan", "groups=True"):
        with pytest.raises(ConfigError, match="of the policy"):
            open_placer(f"exact,{wrong}")


def test_a_model_without_a_device_asks_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    made = two_branches(batch=8)
    session = parallax.InferenceSession(made, policy="exact")
    np.testing.assert_allclose(session.run(None, feeds(8))[0], expected(made, feeds(8))[0], rtol=1e-4, atol=1e-4)


# -- without OR-Tools ---------------------------------------------------------------------------------------------


def script(folder: Path, *lines: str) -> str:
    """A program in the place of the other Python, that writes these lines, and after its hello reads one."""
    path = folder / "python"
    body = "".join(
        f"print({line!r}, flush=True)\n" + ("sys.stdin.readline()\n" if "ortools" in line else "") for line in lines
    )
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


on_posix = pytest.mark.skipif(os.name == "nt", reason="scripts are started by their first line")


def test_a_python_that_is_named_and_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(MissingExtraError, match=r"/nowhere/python' is no file; run \"make exact\""):
        list(Exact().propose(drawn(1, size=4)))


def test_without_any_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(exact, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"environment of its own; run \"make exact\".*ortools>=9\.15"):
        find_exact_python()
    made = tmp_path / ".venv-exact" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made.parent.mkdir(parents=True)
    made.touch()
    assert find_exact_python() == str(made)


def test_the_worker_says_what_it_lacks_and_imports_nothing_of_this_package() -> None:
    """A Python without any packages runs it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", _exact_worker.__file__],
        input="",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == '{"error": "No module named \'ortools\'"}\n'


@on_posix
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (('{"error": "No module named \'ortools\'"}',), "has no OR-Tools: No module named 'ortools'"),
        (('{"ortools": "9.14.1"}',), "has OR-Tools 9.14.1, which is too old"),
        (('{"ortools": "x"}',), "has OR-Tools x, which is too old"),
    ],
)
def test_what_a_python_lacks_is_said(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(MissingExtraError, match=words) as missing:
        Solver(script(tmp_path, *lines))
    assert missing.value.fix is not None
    assert "make exact" in missing.value.fix


@on_posix
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("Python 3.11",), "wrote no JSON"),
        (("[1]",), "wrote no record"),
        ((), r"gave no answer \(it had"),
        (('{"ortools": "9.15"}', '{"error": "ValueError: no"}'), "did not understand: ValueError: no"),
        (('{"ortools": "9.15"}', "nonsense"), "wrote no JSON"),
        (('{"ortools": "9.15"}',), r"gave no answer \(it had"),
    ],
)
def test_a_process_that_does_not_answer_as_it_should_is_ended_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, script(tmp_path, *lines))
    with pytest.raises(BackendError, match=rf"the solver's process {words}") as failed:
        list(Exact().propose(drawn(1, size=4)))
    assert failed.value.where == str(tmp_path / "python")


@on_posix
def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("no program")
    with pytest.raises(MissingExtraError, match="cannot be started"):
        Solver(str(path))


@on_posix
def test_an_interrupt_ends_both_processes(tmp_path: Path) -> None:
    """The solver's process writes its number, says hello, and is asked something that it never answers."""
    other = tmp_path / "python"
    other.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        'print(\'{"ortools": "9.15"}\', flush=True)\n'
        f"sys.stdin.readline()\nopen({str(tmp_path / 'number')!r}, 'w').write(str(os.getpid()) + '\\n')\n"
        "time.sleep(600)\n"
    )
    other.chmod(0o755)
    program = textwrap.dedent(
        f"""
        from parallax.planner._exact import Solver
        try:
            with Solver({str(other)!r}) as solver:
                print("asked", flush=True)
                solver.ask({{"seconds": 100}})
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    asking = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "asked\n"
    number = tmp_path / "number"
    while not (number.exists() and number.read_text().endswith("\n")):
        assert asking.poll() is None
    asking.send_signal(signal.SIGINT)
    rest, _ = asking.communicate(timeout=60)
    assert rest == "interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_a_question_is_what_json_holds() -> None:
    question: dict[str, Any] = make_question(drawn(3, size=5, devices=2), seconds=1.5)
    assert json.loads(json.dumps(question)) == question
