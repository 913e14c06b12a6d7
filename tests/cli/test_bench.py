from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parallax import zoo
from parallax.cli import (
    Baseline,
    Timing,
    _timing,
    compare_outputs,
    ratio,
    runtime_baselines,
    thread_counts,
    time_interleaved,
)
from parallax.cli._bench_report import percentile_ms
from parallax.cli._bench_rounds import End, Measured, counted, measure_rounds
from parallax.cli._quiet import Deadline
from parallax.cli._timing import Round, Turn
from parallax.machine import CoreMeter, LoadMeter
from parallax.machine._load import Reading
from tests.cli._models import affine, branching, invoke


def test_a_bench_times_every_baseline_and_compares_outputs(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    result = invoke(
        *("bench", path, "--runs", 2, "--threads", 2, "--no-tune", "-s", "x=4,8", "--max-time", 10),
        "--json",
        "--save",
        tmp_path / "b.json",
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    labels = [row["label"] for row in report["timings"]]
    assert labels == ["Parallax", *(baseline.label for baseline in runtime_baselines(2))]
    for row in report["timings"]:
        low, high = row["quartiles_ms"]
        assert 0 < row["min_ms"] <= low <= row["median_ms"] <= high <= row["max_ms"]
        assert row["p50_ms"] <= row["p90_ms"]
        assert row["runs_per_s"] == row["items_per_s"] > 0
    for row in report["timings"][1:]:
        assert row["outputs"]["identical"] is True
        assert row["ours_over_this"]["median"] > 0
    assert report["best_of_onnxruntime"] in labels
    assert json.loads((tmp_path / "b.json").read_text()) == report


def test_the_first_line_is_the_verdict_and_a_whole_model_is_said_to_be_onnx_runtime(tmp_path: Path) -> None:
    result = invoke(
        "bench", affine(tmp_path / "m.onnx"), "--runs", 6, "--threads", 1, "--no-tune", "--max-time", 20, "-i", "x=2"
    )
    assert result.exit_code == 0
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("The model runs whole, so that this is ONNX Runtime, on 1 thread: ")
    assert "the best of ONNX Runtime (1 thread)" in first
    assert "rounds in" in second
    assert "plan: whole model, 1 thread: " in result.stdout
    assert "outputs: equal to ONNX Runtime's, bit for bit" in result.stdout


def test_a_single_round_has_no_verdict(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    report = json.loads(
        invoke("bench", path, "--runs", 1, "--threads", 1, "--no-tune", "--max-time", 20, "--json").stdout
    )
    assert report["verdict"]["outcome"] == "inconclusive"
    assert report["verdict"]["interval"] is None
    assert "inconclusive" in report["conclusion"].lower()


def test_callers_that_do_not_pause_are_measured_by_throughput(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    arguments = ("bench", path, "--threads", 1, "--no-tune", "--callers", 2, "--duration", 0.3, "--json")
    report = json.loads(invoke(*arguments).stdout)
    assert (report["measures"], report["callers"]) == ("throughput", 2)
    for row in report["timings"]:
        assert row["timed_runs"] >= 20
        assert row["runs_per_s"] > 0
        assert row["p99_ms"] is None or row["p50_ms"] <= row["p99_ms"]
    table = invoke(*arguments[:-1]).stdout
    assert "runs/s" in table
    assert "2 callers at once" in table
    assert "in runs per second" in table


def test_a_batch_is_the_size_of_the_open_first_dimension(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    result = invoke("bench", path, "--batch", 5, "--runs", 1, "--threads", 1, "--no-tune", "--max-time", 20, "--json")
    report = json.loads(result.stdout)
    assert report["inputs"]["x"] == ["float32", [5, 8]]
    for row in report["timings"]:
        assert row["items_per_s"] == pytest.approx(5 * row["runs_per_s"])


@pytest.mark.parametrize("how", [["--portable"], []])
def test_a_bundle_is_compared_with_the_model_that_it_was_made_from(how: list[str], tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    assert invoke("compile", path, "-o", tmp_path / "m.plx", "--threads", 1, *how).exit_code == 0
    if how:
        path.unlink()
    arguments = ("bench", tmp_path / "m.plx", "--threads", 1, "--runs", 1, "--max-time", 20, "-i", "x=2")
    report = json.loads(invoke(*arguments, "--json").stdout)
    assert [row["label"] for row in report["timings"]] == ["Parallax", "ONNX Runtime, 1 thread"]
    assert report["timings"][1]["outputs"]["identical"]


def test_a_bundle_without_its_model_is_timed_alone_and_says_so(tmp_path: Path) -> None:
    path = affine(tmp_path / "m.onnx")
    assert invoke("compile", path, "-o", tmp_path / "m.plx", "--threads", 1).exit_code == 0
    arguments = ("bench", tmp_path / "m.plx", "--threads", 1, "--runs", 1, "--max-time", 20, "-i", "x=2")
    affine(path).write_bytes(branching(tmp_path / "other.onnx").read_bytes())
    changed = invoke(*arguments)
    assert changed.exit_code == 0
    assert "was changed since the bundle was compiled from it" in changed.stderr
    path.unlink()
    gone = invoke(*arguments)
    assert gone.exit_code == 0
    assert "is not there; compile with --portable" in gone.stderr
    assert "nothing to compare with" in gone.stdout
    assert "Parallax" in gone.stdout


def test_a_bundle_is_not_tuned_by_bench(tmp_path: Path) -> None:
    assert invoke("compile", affine(tmp_path / "m.onnx"), "-o", tmp_path / "m.plx").exit_code == 0
    result = invoke("bench", tmp_path / "m.plx", "--tune")
    assert result.exit_code == 2
    assert "its plan is fixed" in result.stderr


class Rounds:
    """Rounds that are noisy, or that end in Ctrl-C, as they are told; each takes a second of the clock."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.now = 0.0
        self.waits: list[float] = []

    def measure(self, *, wait_s: float = 1.0, is_over: Callable[[], bool] = lambda: False) -> Round | None:
        kind = self.script[len(self.waits) % len(self.script)]
        self.waits.append(wait_s)
        self.now += 100.0 if kind == "l" else 0.0  # a first turn that takes long
        if is_over():
            return None
        self.now += 1.0
        if kind == "^":
            raise KeyboardInterrupt
        turn = Turn(sample_ns=1e6, runs_ns=(1e6,), wall_ns=1e6)
        is_noisy = kind == "x"
        return Round(turns={"a": turn}, others_cores=2.0 * is_noisy, is_noisy=is_noisy)

    def ended(self, *, wanted: int, seconds: float = 1000.0) -> Measured:
        deadline = Deadline(seconds, lambda: self.now)
        everything: list[Round] = []
        ended_by = measure_rounds(self, everything, wanted=wanted, deadline=deadline, progress=lambda *step: None)
        return counted(everything, ended_by)


def test_noisy_rounds_are_measured_again() -> None:
    rounds = Rounds("x.x.......")
    measured = rounds.ended(wanted=8)
    assert (len(measured.rounds), measured.noisy, measured.is_spoiled) == (8, 2, False)
    assert measured.ended_by is End.ROUNDS


def test_a_machine_that_stays_busy_is_said_to_be_and_not_waited_for() -> None:
    rounds = Rounds("x")
    measured = rounds.ended(wanted=8)
    assert (len(measured.rounds), measured.noisy, measured.is_spoiled) == (16, 16, True)
    assert measured.others_cores == 2.0
    assert measured.ended_by is End.BUSY
    # Cores that others use do not come back by waiting in every turn.
    assert rounds.waits[0] > max(rounds.waits[1:])


def test_the_time_ends_it_before_a_round_that_would_not_end_in_time() -> None:
    rounds = Rounds(".")
    measured = rounds.ended(wanted=100, seconds=5.5)
    assert (len(measured.rounds), measured.ended_by) == (5, End.TIME)
    assert len(Rounds(".").ended(wanted=100, seconds=0.5).rounds) == 1
    assert len(Rounds(".").ended(wanted=100, seconds=0.0).rounds) == 0


def test_a_round_that_takes_longer_than_expected_is_given_up_when_the_time_is_over() -> None:
    measured = Rounds("...l").ended(wanted=100, seconds=10.0)
    assert (len(measured.rounds), measured.ended_by) == (3, End.TIME)


def test_ctrl_c_leaves_what_was_measured_until_then() -> None:
    measured = Rounds("...^").ended(wanted=100)
    assert len(measured.rounds) == 3
    assert measured.ended_by is End.INTERRUPT


def test_few_quiet_rounds_are_not_picked_out_of_many_noisy_ones() -> None:
    measured = Rounds("xx.xx.").ended(wanted=6)
    assert len(measured.rounds) == measured.noisy + 4 == 12
    assert measured.is_spoiled


def test_percentiles_are_given_where_there_are_runs_beyond_them() -> None:
    runs = np.arange(1, 100) * 1e6
    assert percentile_ms(runs, 50) == 50
    assert percentile_ms(runs, 90) is not None
    assert percentile_ms(runs, 99) is None
    assert percentile_ms(np.arange(1, 101) * 1e6, 99) == pytest.approx(99.01)
    assert percentile_ms(runs[:9], 90) is None


BENCH = [sys.executable, "-m", "parallax", "bench", "zoo:lstm-if-loop"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_shows_what_was_measured_and_ends_with_130() -> None:
    zoo.load("lstm-if-loop")
    command = [*BENCH, "--no-tune", "--max-time", "100", "--runs", "100000", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = ""
    while "rounds" not in line:  # from here on there is something to show
        line = process.stderr.readline()
        assert line, "it ended by itself"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    report = json.loads(out)
    assert report["interrupted"]
    assert 0 < report["runs"] < 100000


def test_variants_take_turns_in_rotating_order() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = time_interleaved(variants, rounds=3, warmups=1)
    assert [len(timings[name].samples_ns) for name in "abc"] == [3, 3, 3]
    turns = [name for name, before in zip(calls[3:], [None, *calls[3:]], strict=False) if name != before]
    assert "".join(turns) == "abc" + "bca" + "cab"


def test_all_variants_have_one_sample_per_round_in_turns_that_begin_where_the_last_began_later() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        if not order or order[-1] != name:
            order.append(name)

    timings = time_interleaved({name: (lambda name=name: call(name)) for name in "ab"}, rounds=3)
    assert [len(timing.samples_ns) for timing in timings.values()] == [3, 3]
    # Warm-up, then rounds a b, b a, a b: equal neighbours are one turn after another of the same variant.
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_progress_counts_rounds() -> None:
    seen: list[tuple[int, int]] = []
    time_interleaved({"a": lambda: None}, rounds=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_rounds_that_other_processes_made_noisy_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    # What the system has counted after each round: others took all cores in the first and the third.
    counted = iter([(0, 0), (1, cores), (2, cores), (3, 2 * cores), (4, 2 * cores), (5, 2 * cores)])
    monkeypatch.setattr(_timing, "LoadMeter", lambda: LoadMeter(lambda: Reading(*next(counted), own=0)))
    monkeypatch.setattr(_timing, "CoreMeter", lambda cores: CoreMeter(cores, lambda _: float(cores)))
    timing = time_interleaved({"a": lambda: None}, rounds=3, cores=cores)["a"]
    # What was thrown away is counted, and in the end there are as many samples as were asked for.
    assert timing.discarded_rounds == 2
    assert len(timing.samples_ns) == 3
    assert next(counted, None) is None


def test_no_more_rounds_are_measured_again_than_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    counted = ((second, second * cores) for second in itertools.count())
    monkeypatch.setattr(_timing, "LoadMeter", lambda: LoadMeter(lambda: Reading(*next(counted), own=0)))
    monkeypatch.setattr(_timing, "CoreMeter", lambda cores: CoreMeter(cores, lambda _: float(cores)))
    timing = time_interleaved({"a": lambda: None}, rounds=3, cores=cores)["a"]
    assert timing.discarded_rounds == 3
    assert len(timing.samples_ns) == 3


def test_a_ratio_compares_round_by_round() -> None:
    # The machine was ten times slower in the second round; ours took half the time in every round.
    ours = Timing(label="ours", samples_ns=(10.0, 100.0, 10.0))
    theirs = Timing(label="theirs", samples_ns=(20.0, 200.0, 20.0))
    against = ratio(ours, theirs)
    assert (against.median, against.low, against.high) == (0.5, 0.5, 0.5)


def test_statistics_of_one_sample_are_that_sample() -> None:
    timing = Timing(label="", samples_ns=(7.0,))
    assert timing.median_ns == timing.min_ns == timing.max_ns == 7
    assert timing.quartiles_ns == (7, 7)


@pytest.mark.parametrize(("threads", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_thread_counts_double_up_to_all(threads: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(threads) == counts


def test_a_baseline_has_the_threads_and_mode_of_its_label() -> None:
    import onnxruntime

    options = Baseline(label="", threads=3, inter_op_threads=4).options()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 4
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert Baseline(label="", threads=3).options().execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def _compare(ours: object, theirs: object):
    return compare_outputs({"y": ours}, {"y": theirs})


def test_equal_outputs_are_identical_nan_included() -> None:
    array = np.array([1.0, np.nan, np.inf], np.float32)
    assert _compare(array, array.copy()).identical


def test_the_difference_is_relative_to_the_largest_magnitude() -> None:
    difference = _compare(np.array([100.0, 1.0], np.float32), np.array([100.0, 2.0], np.float32))
    assert not difference.identical
    assert difference.relative == pytest.approx(0.01)
    assert difference.within(0.02)
    assert not difference.within(0.005)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (np.zeros(2, np.float32), np.zeros(3, np.float32), "not float32[3]"),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), "not float64[2]"),
        (np.array([1, 2]), np.array([1, 3]), "differs"),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "NaN or inf"),
        (np.array([1.0, np.inf]), np.array([1.0, -np.inf]), "NaN or inf"),
        ([np.zeros(2)], [np.ones(2)], "differs"),
    ],
)
def test_what_cannot_be_a_rounding_error_is_never_within_tolerance(ours: object, theirs: object, says: str) -> None:
    difference = _compare(ours, theirs)
    assert says in difference.detail
    assert not difference.within(1e9)
