"""What zeros are worth: prices follow a measurement below 0.97, and nothing else; measured once, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from parallax.backends import open_backend
from parallax.errors import ConfigError
from parallax.graph import CostModel
from parallax.model import load_model
from parallax.planner import PlanDevice, PlanningContext
from parallax.planner._placing import plan_on_devices
from parallax.planner._request import PlanRequest
from parallax.planner._shared import plan_shared
from parallax.profile import Cache, estimate_costs, fusion_safe_tensors
from parallax.schedule import CPU_BACKEND
from parallax.schedule.placement import Placement, PlacementProblem
from parallax.sparsity import (
    WORTHWHILE,
    ZeroForm,
    ZeroTiming,
    ZeroWorth,
    keep_worth,
    kept_worths,
    measure_zero_worth,
    price_factor,
    priced_costs,
)
from parallax.sparsity._measure import with_zeros
from parallax.sparsity._worth import CONVOLUTION, ELEMENTWISE, PRODUCT, ZEROS_PERMILLE
from tests.model._models import model, node, value, weight
from tests.planner.test_placers import PHONE


def timing(kind: str, form: ZeroForm, ratio: float, *, high: float | None = None) -> ZeroTiming:
    return ZeroTiming(
        operator=kind,
        form=form.value,
        zeros_permille=ZEROS_PERMILLE[form],
        ratio_permille=round(1000 * ratio),
        low_permille=round(1000 * ratio),
        high_permille=round(1000 * (ratio if high is None else high)),
    )


def worth(*timings: ZeroTiming) -> ZeroWorth:
    return ZeroWorth(backend="a", version="1", timings=timings)


HALVED = worth(timing(PRODUCT, ZeroForm.SCATTERED_50, 0.8), timing(PRODUCT, ZeroForm.SCATTERED_90, 0.4))


@pytest.mark.parametrize(("ratio", "factor"), [(0.3, 0.3), (0.9699, 0.9699), (0.97, 1), (1.0, 1), (1.2, 1)])
def test_a_price_changes_only_below_the_bound(ratio: float, factor: float) -> None:
    assert WORTHWHILE == 0.97
    assert price_factor(ratio) == factor


def test_a_median_that_a_quarter_of_the_rounds_contradict_changes_none() -> None:
    assert timing(PRODUCT, ZeroForm.ROWS, 0.9, high=0.99).factor == 0.9
    assert timing(PRODUCT, ZeroForm.ROWS, 0.9, high=1.01).factor == 1


def test_between_what_was_measured_the_price_is_linear() -> None:
    for zeros, factor in [(0, 1), (0.25, 0.9), (0.5, 0.8), (0.7, 0.6), (0.9, 0.4), (1, 0.4)]:
        assert HALVED.factor("MatMul", zeros) == pytest.approx(factor)
        assert HALVED.factor("Gemm", zeros) == pytest.approx(factor)
        assert HALVED.factor("Conv", zeros) == 1
        assert HALVED.factor("Softmax", zeros) == 1


def test_whole_rows_alone_are_no_price_for_zeros_that_may_be_scattered() -> None:
    rows = worth(timing(PRODUCT, ZeroForm.ROWS, 0.5), timing(PRODUCT, ZeroForm.SCATTERED_90, 1.0))
    assert rows.factor("MatMul", 0.9) == 1


def two_products() -> bytes:
    half, full = weight((64, 64), 1), weight((64, 64), 2)
    half.reshape(-1)[::2] = 0
    proto = model(
        [
            node("MatMul", "x half", "h", name="a"),
            node("Erf", "h", "e", name="b"),
            node("MatMul", "e full", "y", name="c"),
        ],
        [value("x", (8, 64))],
        [value("y", (8, 64))],
        {"half": half, "full": full},
    )
    return proto.SerializeToString()


def test_costs_of_a_model_follow_the_zeros_of_each_of_its_weights() -> None:
    context = PlanningContext(load_model(two_products()), cores=2, zero_worths={CPU_BACKEND: HALVED})
    before = estimate_costs(context.graph, cores=2)
    after = context.costs
    for width in (1, 2):
        first, middle, last = zip(before.node_ns(width), after.node_ns(width), strict=True)
        assert first[1] == pytest.approx(0.8 * first[0], abs=1)
        assert middle[0] == middle[1]
        assert last[0] == last[1]


def test_costs_are_the_same_where_nothing_is_worth_anything() -> None:
    loaded = load_model(two_products())
    nothing = worth(*(timing(kind, form, 1.0) for kind in (CONVOLUTION, PRODUCT, ELEMENTWISE) for form in ZeroForm))
    assert nothing.is_nothing

    class Unread(Mapping[str, float]):
        """Weights that must not be read: it would take a while for nothing."""

        def __getitem__(self, name: str) -> float:
            raise AssertionError(name)

        def __iter__(self):
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

    assert nothing.node_factors(loaded.graph, Unread()) is None
    costs = estimate_costs(loaded.inferred(), cores=2)
    assert priced_costs(costs, None) is costs
    context = PlanningContext(loaded, cores=2, zero_worths={CPU_BACKEND: nothing})
    assert context.costs == costs
    # No zeros, no change, whatever they would be worth.
    assert HALVED.node_factors(loaded.graph, {"half": 0.0, "full": 0.0}) is None


def test_measured_costs_are_not_priced_twice() -> None:
    loaded = load_model(two_products())
    measured = CostModel(
        source="measured",
        widths=(1,),
        durations_ns=((5, 6, 7),),
        latencies_ns=(18,),
        scales=(1.0,),
        known_fraction=1.0,
    )
    context = PlanningContext(loaded, cores=1, costs=measured, zero_worths={CPU_BACKEND: HALVED})
    assert context.costs is measured


class Noting:
    """A placer that keeps what it was asked."""

    def __init__(self) -> None:
        self.problems: list[PlacementProblem] = []

    def propose(self, problem: PlacementProblem) -> Sequence[Placement]:
        self.problems.append(problem)
        return []


def test_placers_see_what_zeros_are_worth_and_prices_with_it() -> None:
    loaded = load_model(two_products())
    devices = {PHONE: PlanDevice(backend=open_backend(PHONE))}
    problems = []
    for worths in ({}, {CPU_BACKEND: HALVED}, {PHONE: HALVED}):
        placer = Noting()
        context = PlanningContext(loaded, cores=2, fusion_safe=fusion_safe_tensors(loaded), zero_worths=worths)
        plan_shared(context, devices, placer, name="noting")
        problems += placer.problems
    plain, here, there = problems
    assert plain.zero_worth == {}
    assert here.zero_worth == {"MatMul": pytest.approx(0.6)}
    assert max(plain.sparsity) == 0.5
    assert here.cpu_ns[0] < plain.cpu_ns[0]
    assert here.cpu_ns[1:] == plain.cpu_ns[1:]
    assert here.devices[0].device_ns == plain.devices[0].device_ns
    assert there.cpu_ns == plain.cpu_ns
    assert there.devices[0].device_ns[0] < plain.devices[0].device_ns[0]
    assert there.devices[0].device_ns[1:] == plain.devices[0].device_ns[1:]


def test_what_was_measured_is_kept_and_found_by_whoever_plans(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cpu = open_backend(CPU_BACKEND)
    assert kept_worths(cache, {CPU_BACKEND: cpu}) == {}
    measured = ZeroWorth(backend=cpu.info.name, version=cpu.info.version, timings=HALVED.timings)
    assert keep_worth(cache, measured)
    assert kept_worths(cache, {CPU_BACKEND: cpu}) == {CPU_BACKEND: measured}
    assert kept_worths(cache, {"phone": open_backend(PHONE)}) == {}
    problems = []
    for folder in (tmp_path, tmp_path / "empty"):
        placer = Noting()
        plan_on_devices(
            PlanRequest(
                model=load_model(two_products()),
                cores=2,
                placer=placer,
                policy="noting",
                devices={PHONE: PlanDevice(backend=open_backend(PHONE))},
                cache_dir=folder,
            )
        )
        problems += placer.problems
    assert problems[0].cpu_ns[0] < problems[1].cpu_ns[0]
    # Another version's figures, and damaged ones, count as none.
    for entry in tmp_path.glob("*.json"):
        entry.write_text(entry.read_text().replace("ratio_permille", "ratio"))
    assert kept_worths(cache, {CPU_BACKEND: cpu}) == {}


# Measuring --------------------------------------------------------------------------------------------


def by_zeros(quicker: str) -> Callable[[Mapping[str, Callable[[], object]]], Mapping[str, Sequence[float]]]:
    """Runs everything once, and says of one form that it takes half of the time."""

    def compare(calls: Mapping[str, Callable[[], object]]) -> Mapping[str, Sequence[float]]:
        for call in calls.values():
            call()
        return {label: [5.0, 10.0] if label == quicker else [10.0, 20.0] for label in calls}

    return compare


def test_every_class_and_form_runs_on_the_backend_and_is_compared_round_by_round() -> None:
    told: list[tuple[int, int]] = []
    cpu = open_backend(CPU_BACKEND)
    found = measure_zero_worth(
        cpu, by_zeros(ZeroForm.BLOCKS.value), progress=lambda done, total: told.append((done, total))
    )
    assert found.backend == cpu.info.name
    assert {(entry.operator, entry.form) for entry in found.timings} == {
        (kind, form.value) for kind in (CONVOLUTION, PRODUCT, ELEMENTWISE) for form in ZeroForm
    }
    for entry in found.timings:
        assert entry.ratio_permille == (500 if entry.form == ZeroForm.BLOCKS.value else 1000)
        assert entry.low_permille == entry.high_permille == entry.ratio_permille
    assert not found.is_nothing
    assert found.factor("MatMul", 0.9) == 1
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_is_emulated_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="emulated"):
        measure_zero_worth(open_backend(PHONE), by_zeros(""))


@pytest.mark.parametrize("output_axis", [0, 1])
@pytest.mark.parametrize("form", [form for form in ZeroForm if form is not ZeroForm.INPUT_90])
def test_weights_have_zeros_of_the_form_that_is_said(form: ZeroForm, output_axis: int) -> None:
    shape = (64, 96) if output_axis == 0 else (96, 64)
    made = with_zeros(np.ones(shape, np.float32), form, output_axis=output_axis)
    rows = made if output_axis == 0 else made.T
    assert np.mean(made == 0) == pytest.approx(ZEROS_PERMILLE[form] / 1000, abs=0.02)
    if form is ZeroForm.BLOCKS:
        blocks = rows.reshape(4, 16, 6, 16).swapaxes(1, 2).reshape(24, -1)
        assert sorted(blocks.mean(axis=1)) == [0.0] * 12 + [1.0] * 12
    else:
        assert (~rows.any(axis=1)).sum() == (32 if form is ZeroForm.ROWS else 0)
        assert (~rows.any(axis=0)).sum() == (48 if form is ZeroForm.COLUMNS else 0)
