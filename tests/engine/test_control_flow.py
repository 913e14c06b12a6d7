"""If, Loop and Scan run by the engine, with ONNX Runtime as the reference for every answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import RuntimeOptions
from parallax.engine import compile_plan, lane_pool
from parallax.errors import PlanError, RunCancelled, SegmentError
from parallax.model import Model, load_model
from parallax.schedule import Plan
from tests.engine._flow_models import (
    BOOL,
    EMULATED,
    FLOAT,
    INT64,
    WHOLE,
    Lowered,
    body,
    captured_weights_model,
    constant,
    counting_loop,
    info,
    lowered_plan,
    model,
    nested,
    on_device,
    scan,
    value,
)


def whole_around(source: Model) -> Plan:
    return lowered_plan(source, cut=False)


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def loop_of(rank: int, growing: bool, count: str, condition: str, cut: bool) -> Lowered:
    proto = counting_loop(rank=rank, growing=growing, count=count, condition=condition)
    return Lowered(proto, lambda source: lowered_plan(source, cut=cut))


@given(
    rank=st.integers(0, 1),
    growing=st.booleans(),
    count=st.sampled_from(["M", ""]),
    condition=st.sampled_from(["C", ""]),
    cut=st.booleans(),
    most=st.integers(-1, 9),
    go=st.booleans(),
    rows=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_loops_run_as_often_and_make_the_same(
    rank: int, growing: bool, count: str, condition: str, cut: bool, most: int, go: bool, rows: int, seed: int
) -> None:
    lowered = loop_of(rank, growing, count, condition, cut)
    assert len(lowered.lowered) == 1
    x = floats(seed, 1 if growing else rows, 3)
    lowered.check({"M": np.array(most, np.int64), "C": np.array(go), "x": x})


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scans_slice_and_stack_along_any_axis_both_ways(axis: int, cut: bool) -> None:
    for out_axis in (0, 1, -1):
        for backwards in ((0, 0), (1, 0), (1, 1)):
            proto = scan(axis=axis, out_axis=out_axis, backwards=backwards, out_backwards=backwards[0])
            lowered = Lowered(proto, lambda source: lowered_plan(source, cut=cut))
            assert len(lowered.lowered) == 1
            for length in (1, 4):
                shape = [2, 3]
                shape.insert(axis, length)
                lowered.check({"s": floats(1, 2, 3), "p": floats(2, *shape), "q": floats(3, *shape)})


@pytest.mark.parametrize("lengths", [(0, 0), (2, 3)], ids=["none", "unequal"])
def test_scans_over_nothing_or_unequal_lengths_are_refused_as_the_runtime_does(lengths: tuple[int, int]) -> None:
    lowered = Lowered(scan())
    feeds = {"s": floats(1, 2, 3), "p": floats(2, lengths[0], 2, 3), "q": floats(3, lengths[1], 2, 3)}
    with pytest.raises(C.Fail) as theirs:
        lowered.reference.run(None, feeds)
    with pytest.raises(SegmentError, match="scan") as ours:
        lowered.run(feeds)
    assert isinstance(ours.value, type(theirs.value))


@pytest.mark.parametrize("cut", [True, False])
def test_operators_inside_bodies_are_lowered_too(cut: bool) -> None:
    lowered = Lowered(nested(), lambda source: lowered_plan(source, cut=cut))
    arms = {entry.attribute: entry.plan for entry in lowered.lowered[0].bodies}
    (loop,) = (segment for segment in arms["then_branch"].segments if segment.bodies)
    assert any(segment.bodies for segment in loop.bodies[0].plan.segments)
    for most in (0, 1, 6):
        for go in (True, False):
            for seed in range(3):
                feeds = {"M": np.array(most, np.int64), "C": np.array(go), "x": np.abs(floats(seed, 4))}
                lowered.check(feeds)


def test_only_the_arm_that_is_taken_runs() -> None:
    proto = model(
        [
            helper.make_node(
                "If",
                ["C"],
                ["y"],
                then_branch=body([helper.make_node("Relu", ["x"], ["t"])], [], [info("t")]),
                # These shapes cannot be multiplied: to run it is to fail.
                else_branch=body([helper.make_node("MatMul", ["x", "w"], ["e"])], [], [info("e")]),
                name="choose",
            )
        ],
        [info("C", BOOL, []), info("x", FLOAT, None), info("w", FLOAT, None)],
        [info("y")],
    )
    lowered = Lowered(proto)
    feeds = {"C": np.array(True), "x": floats(0, 2, 3), "w": floats(1, 2, 3)}
    lowered.check(feeds)
    with pytest.raises(SegmentError, match=r"else_branch.*MatMul.*choose") as failure:
        lowered.run({**feeds, "C": np.array(False)})
    assert failure.value.nodes == ("choose",)
    assert isinstance(failure.value, C.InvalidArgument | C.Fail | C.RuntimeException)
    lowered.check(feeds)


def handing_through(*, count: int) -> Any:
    """A Loop that swaps two states, hands a third through and returns a constant and one tensor twice."""
    looped = body(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["c"], ["go"])],
        [info("i", INT64, []), info("c", BOOL, []), info("a"), info("b"), info("same"), info("d"), info("e")],
        [info("go", BOOL), info("b"), info("sum"), info("same"), info("sum"), info("fixed"), info("fixed")],
        [constant("fixed", [7.0, 8.0])],
    )
    return model(
        [
            helper.make_node(
                "Loop", ["M", "", "x", "y", "x", "y", "y"], ["p", "q", "r", "s", "t", "u"], name="loop", body=looped
            )
        ],
        [info("M", INT64, []), info("x", FLOAT, [2]), info("y", FLOAT, [2])],
        [info(name) for name in "pqrstu"],
    )


def test_what_is_handed_through_is_right_and_no_output_is_anybody_elses_memory() -> None:
    proto = handing_through(count=3)
    source = load_model(proto)
    executor = compile_plan(source, lowered_plan(source), RuntimeOptions())
    reference = onnxruntime.InferenceSession(proto.SerializeToString())
    for most in (1, 2, 5):
        feeds = {"M": np.array(most, np.int64), "x": np.float32([1, 2]), "y": np.float32([3, 5])}
        values = {name: value(array) for name, array in feeds.items()}
        expected = reference.run(None, feeds)
        made = executor.run(values, list("pqrstu"))
        for one, other in zip(made, expected, strict=True):
            assert one.numpy().tobytes() == other.tobytes()
        addresses = [entry.data_ptr() for entry in (*values.values(), *made)]
        assert len(set(addresses)) == len(addresses)


def test_zero_iterations_return_a_copy_of_what_was_fed() -> None:
    looped = body(
        [helper.make_node("Neg", ["v"], ["w"]), helper.make_node("Identity", ["c"], ["go"])],
        [info("i", INT64, []), info("c", BOOL, []), info("v")],
        [info("go", BOOL), info("w")],
    )
    proto = model(
        [helper.make_node("Loop", ["M", "", "x"], ["y"], body=looped)],
        [info("M", INT64, []), info("x", FLOAT, [2])],
        [info("y")],
    )
    source = load_model(proto)
    executor = compile_plan(source, lowered_plan(source), RuntimeOptions())
    x = value(np.float32([1, 2]))
    (y,) = executor.run({"M": value(np.array(0, np.int64)), "x": x}, ["y"])
    assert y.numpy().tolist() == [1, 2]
    assert y.data_ptr() != x.data_ptr()


def test_loop_state_is_handed_on_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = Lowered(counting_loop(condition=""), whole_around)
    (segment,) = (part for part in lowered.executor.segments if hasattr(part.session, "executors"))
    inner = segment.session.executors["body"]
    fed: list[int] = []
    returned: list[int] = []
    run = inner.run

    def watched(feeds: Any, outputs: Any, *rest: Any, **more: Any) -> Any:
        fed.append(feeds["v"].data_ptr())
        made = run(feeds, outputs, *rest, **more)
        returned.append(made[list(outputs).index("v_out")].data_ptr())
        return made

    monkeypatch.setattr(inner, "run", watched)
    lowered.run({"M": np.array(4, np.int64), "C": np.array(True), "x": floats(0, 2, 3)})
    assert len(fed) == 4
    assert fed[1:] == returned[:-1]


@pytest.mark.parametrize("cut", [True, False])
def test_captured_constants_need_not_be_fed_and_may_be_where_the_model_allows_it(cut: bool) -> None:
    lowered = Lowered(captured_weights_model(), lambda source: lowered_plan(source, cut=cut))
    assert len(lowered.lowered) == 1
    x = floats(0, 2, 64)
    first = lowered.run({"x": x})
    np.testing.assert_allclose(first[0], lowered.reference.run(None, {"x": x})[0], rtol=1e-6)
    other = {"x": x, "bias": floats(1, 64)}
    np.testing.assert_allclose(lowered.run(other)[0], lowered.reference.run(None, other)[0], rtol=1e-6)


def test_terminate_stops_a_loop_that_would_not_end() -> None:
    endless = counting_loop(count="", condition="", limit=2**62)
    looped = Lowered(endless, whole_around)
    options = C.RunOptions()
    timer = threading.Timer(0.2, lambda: setattr(options, "terminate", True))
    timer.start()
    try:
        with pytest.raises(RunCancelled, match="stopped"):
            looped.run({"C": np.array(True), "M": np.array(0, np.int64), "x": floats(0, 1, 3)}, options)
    finally:
        timer.join()
    assert lane_pool().statistics().free_cores == lane_pool().cores


def test_an_iteration_that_makes_another_shape_is_refused() -> None:
    looped = body(
        [
            helper.make_node("Concat", ["v", "v"], ["w"], axis=0),
            helper.make_node("Identity", ["w"], ["row"]),
            helper.make_node("Identity", ["c"], ["go"]),
        ],
        [info("i", INT64, []), info("c", BOOL, []), info("v")],
        [info("go", BOOL), info("w"), info("row")],
    )
    proto = model(
        [helper.make_node("Loop", ["M", "", "x"], ["y", "rows"], name="doubling", body=looped)],
        [info("M", INT64, []), info("x", FLOAT, [1])],
        [info("y"), info("rows")],
    )
    lowered = Lowered(proto)
    one, two = ({"M": np.array(count, np.int64), "x": floats(0, 1)} for count in (1, 2))
    lowered.check(one)
    with pytest.raises(C.Fail):
        lowered.reference.run(None, two)
    with pytest.raises(SegmentError, match="iteration made a tensor of shape"):
        lowered.run(two)
    lowered.check(one)


def test_threads_share_a_lowered_model() -> None:
    lowered = Lowered(nested(), whole_around)
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            feeds = {
                "M": np.array(rng.integers(0, 5), np.int64),
                "C": np.array(rng.random() < 0.7),
                "x": rng.normal(size=rng.integers(1, 6)).astype(np.float32),
            }
            expected = lowered.reference.run(lowered.outputs, feeds)
            made = lowered.run(feeds)
            if any(one.tobytes() != other.tobytes() for one, other in zip(made, expected, strict=True)):
                wrong.append(feeds)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    statistics = lane_pool().statistics()
    assert statistics.free_cores == statistics.cores
    assert statistics.idle_lanes == statistics.lanes


def test_a_body_works_on_the_cores_of_its_segment() -> None:
    lowered = Lowered(counting_loop(), whole_around)
    (segment,) = lowered.lowered
    assert segment.width == 2
    assert segment.bodies[0].plan.cores == 2
    pool = lane_pool()
    lease = pool.lease(pool.cores)  # somebody else's: a body needs no cores beyond those of its segment
    try:
        lowered.check({"M": np.array(3, np.int64), "C": np.array(True), "x": floats(0, 2, 3)})
        assert pool.statistics().free_cores == 0
    finally:
        pool.give_back(lease)


def test_a_plan_for_another_model_is_refused() -> None:
    source = load_model(counting_loop())
    plan = lowered_plan(source)
    (segment,) = (segment for segment in plan.segments if segment.bodies)
    renamed = replace(segment, bodies=(replace(segment.bodies[0], attribute="then_branch"),))
    for broken, match in (
        (replace(segment, nodes=(0,)), "0 operators with bodies"),
        (renamed, "are not those of its bodies"),
    ):
        segments = tuple(broken if entry is segment else entry for entry in plan.segments)
        with pytest.raises(PlanError, match=match):
            compile_plan(source, replace(plan, segments=segments), RuntimeOptions())


# --- Whole models, with regions inside bodies ---------------------------------------------------------

PLACEMENTS = {
    "cpu": lambda source: lowered_plan(source),
    "device": lambda source: on_device(source, lowered_plan(source)),
    "queue": lambda source: on_device(source, lowered_plan(source), queue=True),
}


def backends_inside(plan: Plan) -> set[str]:
    return {part.backend for segment in plan.segments for entry in segment.bodies for part in entry.plan.segments}


def check_whole(name: str, placement: str, count: int) -> None:
    make, feeds_for = WHOLE[name]
    lowered = Lowered(make(), PLACEMENTS[placement])
    assert len(lowered.lowered) == 1
    if placement != "cpu":
        assert EMULATED in backends_inside(lowered.plan), "no region inside a body"
    rng = np.random.default_rng(5)
    met = set()
    for _ in range(count):
        made = lowered.check(feeds_for(rng), rtol=1e-5)
        met.add(tuple(array.shape for array in made))
    assert len(met) >= min(8, count // 3), "sizes were to depend on the data"


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", WHOLE)
def test_detector_decoder_and_switch_answer_as_the_runtime_does(name: str, placement: str) -> None:
    check_whole(name, placement, 24)


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", WHOLE)
def test_500_random_inputs_through_regions_inside_bodies(name: str, placement: str) -> None:
    check_whole(name, placement, 500)


def test_the_detector_meets_both_arms() -> None:
    make, feeds_for = WHOLE["detector"]
    lowered = Lowered(make(), PLACEMENTS["device"])
    rng = np.random.default_rng(5)
    counts = [len(lowered.check(feeds_for(rng), rtol=1e-5)[2]) for _ in range(24)]
    assert 0 in counts
    assert max(counts) > 1
