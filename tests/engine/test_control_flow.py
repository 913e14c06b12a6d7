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
    Lifted,
    body,
    captured_weights_model,
    constant,
    counting_loop,
    info,
    lifted_plan,
    model,
    nested,
    on_device,
    scan,
    value,
)


def uncut_around(source: Model) -> Plan:
    return lifted_plan(source, cut=False)


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def loop_of(rank: int, growing: bool, count: str, condition: str, cut: bool) -> Lifted:
    proto = counting_loop(rank=rank, growing=growing, count=count, condition=condition)
    return Lifted(proto, lambda source: lifted_plan(source, cut=cut))


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
    lifted = loop_of(rank, growing, count, condition, cut)
    assert len(lifted.lifted) == 1
    x = floats(seed, 1 if growing else rows, 3)
    lifted.check({"M": np.array(most, np.int64), "C": np.array(go), "x": x})


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scans_slice_and_stack_along_any_axis_both_ways(axis: int, cut: bool) -> None:
    for out_axis in (0, 1, -1):
        for backwards in ((0, 0), (1, 0), (1, 1)):
            proto = scan(axis=axis, out_axis=out_axis, backwards=backwards, out_backwards=backwards[0])
            lifted = Lifted(proto, lambda source: lifted_plan(source, cut=cut))
            assert len(lifted.lifted) == 1
            for length in (1, 4):
                shape = [2, 3]
                shape.insert(axis, length)
                lifted.check({"s": floats(1, 2, 3), "p": floats(2, *shape), "q": floats(3, *shape)})


@pytest.mark.parametrize("lengths", [(0, 0), (2, 3)], ids=["none", "unequal"])
def test_scans_over_nothing_or_unequal_lengths_are_refused_as_the_runtime_does(lengths: tuple[int, int]) -> None:
    lifted = Lifted(scan())
    feeds = {"s": floats(1, 2, 3), "p": floats(2, lengths[0], 2, 3), "q": floats(3, lengths[1], 2, 3)}
    with pytest.raises(C.Fail) as theirs:
        lifted.reference.run(None, feeds)
    with pytest.raises(SegmentError, match="scan") as ours:
        lifted.run(feeds)
    assert isinstance(ours.value, type(theirs.value))


@pytest.mark.parametrize("cut", [True, False])
def test_operators_inside_bodies_are_lifted_too(cut: bool) -> None:
    lifted = Lifted(nested(), lambda source: lifted_plan(source, cut=cut))
    arms = {entry.attribute: entry.plan for entry in lifted.lifted[0].bodies}
    (loop,) = (segment for segment in arms["then_branch"].segments if segment.bodies)
    assert any(segment.bodies for segment in loop.bodies[0].plan.segments)
    for most in (0, 1, 6):
        for go in (True, False):
            for seed in range(3):
                feeds = {"M": np.array(most, np.int64), "C": np.array(go), "x": np.abs(floats(seed, 4))}
                lifted.check(feeds)


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
    lifted = Lifted(proto)
    feeds = {"C": np.array(True), "x": floats(0, 2, 3), "w": floats(1, 2, 3)}
    lifted.check(feeds)
    with pytest.raises(SegmentError, match=r"else_branch.*MatMul.*choose") as failure:
        lifted.run({**feeds, "C": np.array(False)})
    assert failure.value.nodes == ("choose",)
    assert isinstance(failure.value, C.InvalidArgument | C.Fail | C.RuntimeException)
    lifted.check(feeds)


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
    executor = compile_plan(source, lifted_plan(source), RuntimeOptions())
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
    executor = compile_plan(source, lifted_plan(source), RuntimeOptions())
    x = value(np.float32([1, 2]))
    (y,) = executor.run({"M": value(np.array(0, np.int64)), "x": x}, ["y"])
    assert y.numpy().tolist() == [1, 2]
    assert y.data_ptr() != x.data_ptr()


def test_loop_state_is_handed_on_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    lifted = Lifted(counting_loop(condition=""), uncut_around)
    (segment,) = (part for part in lifted.executor.segments if hasattr(part.session, "executors"))
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
    lifted.run({"M": np.array(4, np.int64), "C": np.array(True), "x": floats(0, 2, 3)})
    assert len(fed) == 4
    assert fed[1:] == returned[:-1]


@pytest.mark.parametrize("cut", [True, False])
def test_captured_constants_need_not_be_fed_and_may_be_where_the_model_allows_it(cut: bool) -> None:
    lifted = Lifted(captured_weights_model(), lambda source: lifted_plan(source, cut=cut))
    assert len(lifted.lifted) == 1
    x = floats(0, 2, 64)
    first = lifted.run({"x": x})
    np.testing.assert_allclose(first[0], lifted.reference.run(None, {"x": x})[0], rtol=1e-6)
    other = {"x": x, "bias": floats(1, 64)}
    np.testing.assert_allclose(lifted.run(other)[0], lifted.reference.run(None, other)[0], rtol=1e-6)


def test_terminate_stops_a_loop_that_would_not_end() -> None:
    endless = counting_loop(count="", condition="", limit=2**62)
    looped = Lifted(endless, uncut_around)
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
    lifted = Lifted(proto)
    one, two = ({"M": np.array(count, np.int64), "x": floats(0, 1)} for count in (1, 2))
    lifted.check(one)
    with pytest.raises(C.Fail):
        lifted.reference.run(None, two)
    with pytest.raises(SegmentError, match="iteration made a tensor of shape"):
        lifted.run(two)
    lifted.check(one)


def test_threads_share_a_lifted_model() -> None:
    lifted = Lifted(nested(), uncut_around)
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            feeds = {
                "M": np.array(rng.integers(0, 5), np.int64),
                "C": np.array(rng.random() < 0.7),
                "x": rng.normal(size=rng.integers(1, 6)).astype(np.float32),
            }
            expected = lifted.reference.run(lifted.outputs, feeds)
            made = lifted.run(feeds)
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
    lifted = Lifted(counting_loop(), uncut_around)
    (segment,) = lifted.lifted
    assert segment.width == 2
    assert segment.bodies[0].plan.cores == 2
    pool = lane_pool()
    lease = pool.lease(pool.cores)  # somebody else's: a body needs no cores beyond those of its segment
    try:
        lifted.check({"M": np.array(3, np.int64), "C": np.array(True), "x": floats(0, 2, 3)})
        assert pool.statistics().free_cores == 0
    finally:
        pool.give_back(lease)


def test_a_plan_for_another_model_is_refused() -> None:
    source = load_model(counting_loop())
    plan = lifted_plan(source)
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
    "cpu": lambda source: lifted_plan(source),
    "device": lambda source: on_device(source, lifted_plan(source)),
    "queue": lambda source: on_device(source, lifted_plan(source), queue=True),
}


def backends_inside(plan: Plan) -> set[str]:
    return {part.backend for segment in plan.segments for entry in segment.bodies for part in entry.plan.segments}


def check_whole(name: str, placement: str, count: int) -> None:
    make, feeds_for = WHOLE[name]
    lifted = Lifted(make(), PLACEMENTS[placement])
    assert len(lifted.lifted) == 1
    if placement != "cpu":
        assert EMULATED in backends_inside(lifted.plan), "no region inside a body"
    rng = np.random.default_rng(5)
    met = set()
    for _ in range(count):
        made = lifted.check(feeds_for(rng), rtol=1e-5)
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
    lifted = Lifted(make(), PLACEMENTS["device"])
    rng = np.random.default_rng(5)
    counts = [len(lifted.check(feeds_for(rng), rtol=1e-5)[2]) for _ in range(24)]
    assert 0 in counts
    assert max(counts) > 1
