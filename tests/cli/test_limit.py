"""`bench` within its time: what is told where no round ends in it, by whom, and with which exit status."""

from __future__ import annotations

import contextvars
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallax.cli import _bench
from parallax.cli._bench_opening import open_ours
from parallax.cli._bench_rounds import End
from parallax.cli._exits import IS_OWN_PROCESS
from parallax.cli._limit import END_SHARE, Limit, begin_limit, process_began_s, tell_nothing
from parallax.cli._timing import InterleavedRounds
from tests.cli._models import affine, invoke

MODEL = "m.onnx"


def limit_at(now: float, *, seconds: float = 30.0, cpu_s: float = 0.0) -> Limit:
    """One that began at 0, now, in a process that has used so much CPU time since."""
    used = iter([0.0])
    return Limit(seconds, began_s=0.0, clock=lambda: now, cpu=lambda: next(used, cpu_s))


# How long the end may take ----------------------------------------------------------------------------


@pytest.mark.parametrize(("loading_s", "reserve_s"), [(0.0, 0.1), (0.8, 0.4), (4.0, 2.0), (20.0, 5.0)])
def test_the_end_is_left_half_as_long_as_loading_took_up_to_a_sixth(loading_s: float, reserve_s: float) -> None:
    limit = limit_at(loading_s)
    assert limit.reserve_s == END_SHARE * 30 == 5.0
    limit.note_loaded(30.0)
    assert limit.reserve_s == pytest.approx(reserve_s)
    assert limit.work_s == pytest.approx(30.0 - reserve_s)
    assert limit.work_s < limit.cut_s < 30.0


def test_a_limit_that_is_known_only_when_all_is_loaded_counts_from_the_same_beginning() -> None:
    limit = limit_at(2.0)
    limit.note_loaded(50.0)
    assert (limit.seconds, limit.work_s, limit.elapsed_s) == (50.0, 49.0, 2.0)


def test_the_beginning_of_a_process_is_known() -> None:
    began_s = process_began_s()
    assert began_s <= time.monotonic()
    if sys.platform == "linux":  # elsewhere it is a guess
        lasted_s = time.time() - psutil.Process().create_time()
        assert began_s == pytest.approx(time.monotonic() - lasted_s, abs=2.0)  # psutil's is of whole seconds


# Who tells --------------------------------------------------------------------------------------------


def test_work_that_does_not_return_is_cut_off_with_what_is_known() -> None:
    limit = limit_at(29.0)
    told: list[str] = []
    left: list[int] = []

    def conclude() -> int:
        told.append(limit.stage)
        return 3

    limit.conclude = conclude
    limit.stage = "a model ran"
    limit.enforce(left.append).join()
    assert (told, left) == (["a model ran"], [3])


def test_a_process_whose_report_fails_ends_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    limit = limit_at(29.0)
    left: list[int] = []

    def conclude() -> int:
        raise BrokenPipeError("nobody reads")

    limit.conclude = conclude
    limit.enforce(left.append).join()
    assert left == [1]
    assert "nobody reads" in capfd.readouterr().err


def test_work_that_ends_in_time_is_told_by_itself_alone() -> None:
    limit = limit_at(1.0)
    left: list[int] = []
    watching = limit.enforce(left.append)
    limit.take()
    watching.join()
    assert left == []


@pytest.mark.parametrize(("is_own", "is_watched"), [(True, True), (False, False)])
def test_only_a_process_of_the_commands_own_is_ended(
    is_own: bool, is_watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Limit] = []
    monkeypatch.setattr(Limit, "enforce", lambda limit: watched.append(limit))

    def begin() -> None:
        IS_OWN_PROCESS.set(is_own)
        begin_limit(MODEL, 10.0, as_json=False)

    contextvars.copy_context().run(begin)
    assert bool(watched) is is_watched


# What is told where nothing ran -----------------------------------------------------------------------


def test_a_time_too_short_for_opening_is_bad_input_where_the_machine_did_what_it_can(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit = limit_at(1.6, seconds=2.0, cpu_s=1.5)
    limit.stage = "the model was opened"
    assert tell_nothing(limit, MODEL, as_json=True, tunes=True) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: --max-time 2 is too short: time ran out after 1.6 s, while the model was opened, and nothing was "
        "measured; give --max-time 60, or --no-tune\n"
    )


def test_a_machine_that_kept_it_waiting_is_no_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    limit = limit_at(25.0, cpu_s=0.4)
    assert tell_nothing(limit, MODEL, as_json=False) == 3
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "Inconclusive: no round, in which each runs once, ended within --max-time 30: time ran out while Parallax was "
        "loaded; this process got 0.4 s of CPU time in 25 s.",
        "nothing was measured",
    ]
    assert err == (
        "inconclusive: no round ended in time; run this again when the machine is idle, or with --max-time 100\n"
    )


def test_programs_get_one_document_where_nothing_ran(capsys: pytest.CaptureFixture[str]) -> None:
    limit = limit_at(25.0, cpu_s=20.0)
    assert tell_nothing(limit, MODEL, as_json=True, others="other programs used 1.9 of 2 cores") == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["runs"], report["timings"]) == (MODEL, 0, [])
    assert report["verdict"]["outcome"] == "inconclusive"
    assert report["verdict"]["why"].endswith("; other programs used 1.9 of 2 cores")
    assert (report["elapsed_s"], report["max_time_s"], report["cpu_s"]) == (25.0, 30.0, 20.0)


# What is told where something ran, and no round ended -------------------------------------------------


def bench_without_a_round(path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """A bench whose time is over before the first round; all have run once, and been warmed up."""
    monkeypatch.setattr(_bench, "measure_rounds", lambda *_, **__: End.TIME)
    monkeypatch.setattr(_bench, "await_idle_cores", lambda *_, **__: 1.5)
    return invoke("bench", path, "--threads", 2, "--max-time", 500, *arguments)


def test_first_runs_are_shown_and_nothing_is_concluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "b.json"
    result = bench_without_a_round(affine(tmp_path / MODEL), monkeypatch, "--json", "--save", saved)
    assert result.exit_code == 3, result.output
    report = json.loads(result.stdout)
    assert json.loads(saved.read_text()) == report
    assert report["runs"] == 0
    assert (report["verdict"]["outcome"], report["verdict"]["ratio"]) == ("inconclusive", None)
    assert "time ran out while the first round was measured" in report["verdict"]["why"]
    assert "other programs used 1.5 of 2 cores" in report["verdict"]["why"]
    assert [row["label"] for row in report["timings"]][:2] == ["Parallax", "ONNX Runtime, 1 thread"]
    for row in report["timings"]:
        assert row["timed_runs"] == 1 + 3  # the first run, and three that warm up
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["max_ms"]
    assert all(row["outputs"]["identical"] for row in report["timings"][1:])
    assert 0 < report["opening_s"] <= report["elapsed_s"]
    assert "inconclusive: no round ended in time; run this again when the machine is idle" in result.stderr


def test_people_see_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bench_without_a_round(affine(tmp_path / MODEL), monkeypatch)
    assert result.exit_code == 3, result.output
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith("Inconclusive: no round, in which each runs once, ended within --max-time 500: ")
    assert "no round in" in second
    assert "until all was opened" in second
    assert any(line.startswith("Parallax ") for line in rest)
    assert "these are first runs" in result.stdout
    assert "outputs: equal to ONNX Runtime's, bit for bit" in result.stdout


def test_outputs_that_differ_are_said_to_though_no_round_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallax.cli._bench_course.TOLERANCE", -1.0)
    monkeypatch.setattr("parallax.cli._baselines._same_array", lambda *_: False)
    result = bench_without_a_round(affine(tmp_path / MODEL), monkeypatch)
    assert result.exit_code == 1
    assert "outputs differ from ONNX Runtime's" in result.stderr


@pytest.mark.parametrize(("arguments", "is_left_out"), [((), True), (("--tune",), False), (("--no-tune",), False)])
def test_a_search_that_others_would_spoil_is_left_out_unless_it_is_asked_for(
    arguments: tuple[str, ...], is_left_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool | None] = []
    opened = open_ours

    def note(subject: Any, options: Any, *rest: Any) -> Any:
        asked.append(options.tune)
        return opened(subject, replace(options, tune=False), *rest)

    monkeypatch.setattr(_bench, "open_ours", note)
    result = bench_without_a_round(affine(tmp_path / MODEL), monkeypatch, *arguments)
    assert asked == [arguments == ("--tune",)]
    assert ("would spoil the search for the best plan" in result.stderr) is is_left_out
    assert ("or --no-tune" in result.stderr) is (arguments == ("--tune",))


def test_runs_are_logged_before_the_first_round_and_in_one_that_is_given_up(tmp_path: Path) -> None:
    logged: list[tuple[str, int]] = []
    rounds = InterleavedRounds(
        {"a": lambda: None, "b": lambda: None}, warmups=2, log=lambda label, runs: logged.append((label, len(runs)))
    )
    assert logged == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    answers = iter([False, True])
    assert rounds.measure(is_over=lambda: next(answers)) is None
    assert [label for label, _ in logged[4:]] == ["a"]
