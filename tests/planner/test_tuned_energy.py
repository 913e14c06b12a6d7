"""Measured plans compared by joules: of meters that cover what runs, else modelled from measured times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from parallax.energy import Band, PowerModel
from parallax.errors import BackendError
from parallax.machine import Counts, EnergyMeter, FoundMeter, MeterInfo, find_meters
from parallax.model import load_model
from parallax.planner import PlanRequest, whole_plan
from parallax.planner import _tuned_energy as tuned
from parallax.planner._measuring import Variant
from parallax.planner._power import ModelledMachine
from parallax.planner._tuned_energy import (
    MeteredJudge,
    ModelledJudge,
    confirms,
    decide,
    energy_judge,
    is_confirmed,
    judging_meters,
)
from tests.energy.test_model import plan_of
from tests.machine.test_energy import LAPTOP, ORIN, tree
from tests.planner.test_by_energy import opened, transposes
from tests.session.test_devices import CPU, SIZE, two_branches

MS = 1_000_000


class Counter:
    """A counter of joules that goes up when a plan runs, by what the plan is said to draw."""

    def __init__(self, name: str = "rapl:package-0") -> None:
        self.joules = 0.0
        self.fails = False
        self._name = name

    @property
    def info(self) -> MeterInfo:
        return MeterInfo(name=self._name, covers="the processor", counts=Counts.ENERGY)

    @property
    def range_joules(self) -> float | None:
        return None

    def read(self) -> float:
        if self.fails:
            raise BackendError("it went away")
        return self.joules

    def variant(self, label: str, joules: float, *, width: int = 2) -> Variant:
        """A plan whose every run draws so much."""

        def run() -> None:
            self.joules += joules

        return Variant(label=label, run=run, plan=whole_plan(None, label, cores=2, width=width), spins=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "STRETCH_S", 0.005)


def test_a_meter_judges_if_it_covers_what_runs(tmp_path: Path) -> None:
    laptop = find_meters(root=tree(tmp_path / "laptop", LAPTOP))
    board = find_meters(root=tree(tmp_path / "orin", ORIN))

    def names(found: tuple[FoundMeter, ...], *, has_devices: bool) -> list[str]:
        return [meter.info.name for meter in judging_meters(found, has_devices=has_devices)]

    assert set(names(laptop, has_devices=False)) == {"rapl:package-0"}
    assert names(laptop, has_devices=True) == []
    assert names(board, has_devices=False) == names(board, has_devices=True) == ["ina3221:VDD_IN"]
    assert names((), has_devices=False) == []


def test_packages_are_added_and_nothing_is_counted_twice() -> None:
    meters: list[EnergyMeter] = [Counter("rapl:package-0"), Counter("rapl:package-1"), Counter("rapl:core")]
    found = [FoundMeter(info=meter.info, meter=meter) for meter in meters]
    assert judging_meters(found, has_devices=False) == tuple(meters[:2])


def test_of_measured_plans_the_one_of_the_least_metered_joules_is_kept() -> None:
    counter = Counter()
    variants = [counter.variant("whole", 2.0), counter.variant("hungry", 3.0), counter.variant("frugal", 1.0)]
    times = [[10 * MS] * 5, [2 * MS] * 5, [20 * MS] * 5]
    judge = MeteredJudge([counter], with_delay=False)
    decision = decide(judge, variants, times, objective="energy", is_noisy=False)
    assert decision.winner == 2
    assert "1e+03 mJ" in decision.reasons[2]
    assert "measured by rapl:package-0" in decision.reasons[2]
    assert "modelled" not in decision.reasons[2]
    assert confirms(judge, [variants[0], variants[2]], times)
    assert not confirms(judge, [variants[0], variants[1]], times)
    busy = decide(judge, variants, times, objective="energy", is_noisy=True)
    assert busy.winner == 0, "the machine was busy"


def test_a_meter_that_fails_decides_nothing() -> None:
    counter = Counter()
    variants = [counter.variant("whole", 2.0), counter.variant("frugal", 1.0)]
    judge = MeteredJudge([counter], with_delay=False)
    counter.fails = True
    with pytest.raises(BackendError, match="was not read to the end"):
        decide(judge, variants, [[MS] * 5] * 2, objective="energy", is_noisy=False)
    assert not confirms(judge, variants, [[MS] * 5] * 2)


MACHINE = ModelledMachine(
    power=PowerModel(
        static_w=Band(low=0.5, typical=1.0, high=2.0),
        core_w=Band(low=1.0, typical=2.0, high=3.0),
        device_w={"gpu": Band(low=0.5, typical=1.0, high=1.5)},
    ),
    what="a test",
)


def modelled(*, with_delay: bool = False) -> ModelledJudge:
    return ModelledJudge(MACHINE, {"gpu"}, touched=0, with_delay=with_delay)


def test_without_a_meter_measured_times_are_turned_into_joules() -> None:
    counter = Counter()
    variants = [counter.variant("whole, 2", 0.0), counter.variant("whole, 1", 0.0, width=1)]
    # One thread takes as long as two: it draws less at all constants within their bands.
    decision = decide(modelled(), variants, [[10 * MS] * 9] * 2, objective="energy", is_noisy=False)
    assert decision.winner == 1
    assert "modelled from measured times, on a test" in decision.reasons[1]
    assert "never above a baseline" in decision.reasons[1]
    # Twice as long: nothing is gained for certain.
    decision = decide(modelled(), variants, [[10 * MS] * 9, [20 * MS] * 9], objective="energy", is_noisy=False)
    assert decision.winner == 0
    decision = decide(
        modelled(with_delay=True), variants, [[10 * MS] * 9, [14 * MS] * 9], objective="edp", is_noisy=False
    )
    assert decision.winner == 0, "the product with the delay prefers what is quick"


def test_a_devices_own_placement_is_a_yardstick_and_other_libraries_use_the_processor() -> None:
    counter = Counter()
    whole = counter.variant("whole model, 2 threads", 0.0)
    device = replace(whole, label="greedy on gpu", plan=plan_of(in_turn=True))
    library = replace(
        whole,
        label="whole model, openvino",
        plan=replace(whole.plan, segments=(replace(whole.plan.segments[0], backend="openvino"),)),
    )
    judge = modelled()
    times = [[10 * MS] * 9, [11 * MS] * 9, [8 * MS] * 9]
    costs = judge.costs([whole, device, library], times)
    assert min(costs[0]) > 1, "the device draws less than the processor"
    assert costs[2][0] < costs[0][0], "the same kernels' threads, for less time"
    notes = judge.notes([whole, device, library], times, costs)
    assert all("mJ" in note for note in notes.values())


@pytest.mark.parametrize(
    ("other", "kept"), [([90] * 9, True), ([99] * 9, False), ([80, 130] * 4 + [80], False), ([110] * 9, False)]
)
def test_a_plan_must_cost_clearly_less_in_most_rounds(other: list[float], kept: bool) -> None:
    assert is_confirmed([100.0] * 9, other) is kept


def test_where_nothing_is_known_of_a_device_joules_do_not_decide() -> None:
    request = PlanRequest(
        model=load_model(two_branches()),
        cores=2,
        objective="energy",
        tune=True,
        devices={"emulated:pixel-6-gpu": opened("emulated:pixel-6-gpu", speed=3.0)},
    )
    assert "set by hand" in str(energy_judge(request, {}))


def test_tuned_sessions_keep_a_plan_for_each_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "find_meters", lambda: ())
    monkeypatch.setattr("parallax.planner._tuning.NOISY_SHARE", 1e9)
    monkeypatch.setattr("parallax.planner._measuring.PATIENCE_S", 0.1)
    given: dict[str, Any] = {"threads": 2, "cache_dir": tmp_path, "backends": ()}
    model = transposes()
    session = parallax.InferenceSession(model, tune=True, objective="energy", **given)
    told = session.plan.provenance
    assert told.source == "measured"
    assert told.reason.startswith('objective="energy": whole model, ')
    assert "modelled from measured times" in told.reason
    assert any("mJ" in entry.note for entry in told.candidates)
    x = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
    # It is remembered for its objective, and for no other.
    again = parallax.InferenceSession(model, objective="energy", **given)
    assert again.plan.provenance.reason == told.reason
    assert parallax.InferenceSession(model, objective="edp", **given).plan.provenance.source == "energy"
    assert parallax.InferenceSession(model, **given).plan.provenance.source == "default"


def test_tuning_compares_joules_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "find_meters", lambda: ())
    monkeypatch.setattr("parallax.planner._tuning.NOISY_SHARE", 1e9)
    monkeypatch.setattr("parallax.planner._measuring.PATIENCE_S", 0.1)
    phone = ("emulated:pixel-6-gpu", {"host_flops": "6e10"})
    session = parallax.InferenceSession(
        two_branches(), providers=[phone, CPU], threads=2, tune=True, objective="energy", cache_dir=tmp_path
    )
    told = session.plan.provenance
    assert told.source == "measured"
    assert told.reason.startswith('objective="energy": ')
    assert "Pixel 6" in told.reason
    labels = {entry.label: entry.note for entry in told.candidates}
    assert "mJ" in labels["greedy on emulated:pixel-6-gpu"]
