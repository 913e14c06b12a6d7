from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from parallax.cli import Rival, Timing, _timing, compare_outputs, ratio, runtime_rivals, thread_counts, time_interleaved
from parallax.machine import CoreMeter, LoadMeter
from parallax.machine._load import Reading
from tests.cli._models import affine, branching, invoke


def test_a_bench_times_every_rival_and_compares_outputs(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    result = invoke(
        *("bench", path, "--runs", 2, "--threads", 2, "--no-tune", "-s", "x=4,8"),
        "--json",
        "--save",
        tmp_path / "b.json",
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    labels = [row["label"] for row in report["timings"]]
    assert labels == ["Parallax", *(rival.label for rival in runtime_rivals(2))]
    for row in report["timings"]:
        low, high = row["quartiles_ms"]
        assert 0 < row["min_ms"] <= low <= row["median_ms"] <= high <= row["max_ms"]
    for row in report["timings"][1:]:
        assert row["outputs"]["identical"] is True
        assert row["ours_over_this"]["median"] > 0
    assert report["best_of_onnxruntime"] in labels
    assert json.loads((tmp_path / "b.json").read_text()) == report


def test_the_table_says_how_it_compares_with_the_best(tmp_path: Path) -> None:
    result = invoke("bench", affine(tmp_path / "m.onnx"), "--runs", 1, "--threads", 1, "--no-tune")
    assert result.exit_code == 0
    assert "of the time of the best (ONNX Runtime, 1 thread)" in result.stdout
    assert "plan: uncut: " in result.stdout


def test_rivals_take_turns_in_rotating_order() -> None:
    calls: list[str] = []
    rivals = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = time_interleaved(rivals, rounds=3, warmups=1)
    assert [len(timings[name].samples_ns) for name in "abc"] == [3, 3, 3]
    turns = [name for name, before in zip(calls[3:], [None, *calls[3:]], strict=False) if name != before]
    assert "".join(turns) == "abc" + "bca" + "cab"


def test_all_rivals_have_one_sample_per_round_in_turns_that_begin_where_the_last_began_later() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        if not order or order[-1] != name:
            order.append(name)

    timings = time_interleaved({name: (lambda name=name: call(name)) for name in "ab"}, rounds=3)
    assert [len(timing.samples_ns) for timing in timings.values()] == [3, 3]
    # Warm-up, then rounds a b, b a, a b: equal neighbours are one turn after another of the same rival.
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_progress_counts_rounds() -> None:
    seen: list[tuple[int, int]] = []
    time_interleaved({"a": lambda: None}, rounds=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_rounds_that_other_processes_disturbed_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_rival_has_the_threads_and_mode_of_its_label() -> None:
    import onnxruntime

    options = Rival(label="", threads=3, inter_op_threads=4).options()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 4
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert Rival(label="", threads=3).options().execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


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
