from __future__ import annotations

import threading

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.engine import SegmentSpan, SpanObserver, TraceRecorder
from parallax.engine._lanes import LanePool
from parallax.errors import ParallaxError, RunCancelled, SegmentError
from tests.engine._graphs import value
from tests.engine._plans import executor, ladder


def ladder_result(x: np.ndarray, rungs: int) -> np.ndarray:
    for _ in range(rungs):
        x = np.maximum(x, 0) + -x
    return x


@pytest.fixture
def pool() -> LanePool:
    return LanePool(2)


def test_chain_and_ladder_compute_what_their_operators_say(pool: LanePool) -> None:
    steps, top = ladder(5)
    made = executor(steps, [top, "left_0"], pool=pool)
    x = np.array([-2.0, 0.0, 3.0], dtype=np.float32)
    last, first = made.run({"x": value(x)}, [top, "left_0"])
    np.testing.assert_array_equal(last.numpy(), ladder_result(x, 5))
    np.testing.assert_array_equal(first.numpy(), np.maximum(x, 0))


def test_outputs_may_repeat_and_come_in_any_order(pool: LanePool) -> None:
    steps, top = ladder(1)
    made = executor(steps, [top, "left_0"], pool=pool)
    got = made.run({"x": value([-1.0, 2.0])}, ["left_0", top, "left_0"])
    assert [list(v.numpy()) for v in got] == [[0.0, 2.0], [1.0, 0.0], [0.0, 2.0]]


def test_one_core_runs_a_plan_made_for_two(pool: LanePool) -> None:
    steps, top = ladder(4)
    made = executor(steps, [top], pool=LanePool(1))
    x = np.array([-2.0, 3.0], dtype=np.float32)
    np.testing.assert_array_equal(made.run({"x": value(x)}, [top])[0].numpy(), ladder_result(x, 4))


def test_eight_threads_share_one_executor_and_the_pool_is_whole_again_afterwards(pool: LanePool) -> None:
    steps, top = ladder(3)
    made = executor(steps, [top], pool=pool)
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            x = rng.standard_normal(16).astype(np.float32)
            got = made.run({"x": value(x)}, [top])[0].numpy()
            if not np.array_equal(got, ladder_result(x, 3)):
                wrong.append((seed, x, got))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    after = pool.statistics()
    assert (after.free_cores, after.lanes, after.idle_lanes) == (2, 1, 1)


def test_two_executors_share_the_lanes_of_their_pool(pool: LanePool) -> None:
    steps, top = ladder(2)
    for _ in range(5):
        executor(steps, [top], pool=pool).run({"x": value([1.0])}, [top])
    assert pool.statistics().lanes == 1


def test_a_failing_segment_is_named_and_the_executor_stays_usable(pool: LanePool) -> None:
    steps = [("Relu", ["x"], "a"), ("Neg", ["x"], "b"), ("MatMul", ["a", "b"], "c"), ("Relu", ["c"], "d")]
    made = executor(steps, ["d"], pool=pool)
    with pytest.raises(SegmentError, match="segment_2") as caught:
        made.run({"x": value(np.ones((2, 3)))}, ["d"])
    assert caught.value.segment == "segment_2"
    assert caught.value.nodes == ("MatMul_c",)
    assert type(caught.value.__cause__).__module__ == C.__name__, "the runtime's own error is the cause"
    assert isinstance(caught.value, type(caught.value.__cause__)), "client code may catch the runtime's class"
    square = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(made.run({"x": value(square)}, ["d"])[0].numpy(), np.zeros((3, 3)))
    assert pool.statistics().free_cores == 2


def test_terminate_stops_a_run_and_leaves_the_executor_usable(pool: LanePool) -> None:
    steps, top = ladder(3)
    made = executor(steps, [top], pool=pool)
    options = C.RunOptions()
    options.terminate = True
    with pytest.raises(RunCancelled, match="stopped"):
        made.run({"x": value([1.0])}, [top], options)
    options.terminate = False
    assert made.run({"x": value([1.0])}, [top], options)[0].numpy() == 0.0


def test_results_belong_to_the_caller(pool: LanePool) -> None:
    steps, top = ladder(1)
    made = executor(steps, [top], pool=pool)
    first = made.run({"x": value([-5.0])}, [top])[0].numpy()
    made.run({"x": value([-7.0])}, [top])
    assert first == 5.0
    first[:] = 99
    assert made.run({"x": value([-5.0])}, [top])[0].numpy() == 5.0


def test_trace_has_one_span_per_segment_that_respects_dependencies(pool: LanePool) -> None:
    steps, top = ladder(3)
    made = executor(steps, [top], pool=pool)
    recorder = TraceRecorder()
    made.events.add(SpanObserver(recorder))
    made.run({"x": value(np.ones(10))}, [top])
    spans = {span.segment: span for span in recorder.take()}
    assert sorted(spans) == list(range(9))
    for segment in made.plan.segments:
        for before in segment.predecessors:
            assert spans[before].end_ns <= spans[segment.index].start_ns
    assert spans[2].input_bytes == 80
    assert spans[2].output_bytes == 40
    assert recorder.take() == ()


def test_a_broken_trace_sink_is_detached_and_the_run_goes_on(pool: LanePool, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def record(self, span: SegmentSpan) -> None:
            raise OSError("disk full")

    steps, top = ladder(1)
    made = executor(steps, [top], pool=pool)
    sink = SpanObserver(Broken())
    made.events.add(sink)
    assert made.run({"x": value([-1.0])}, [top])[0].numpy() == 1.0
    assert sink not in made.events
    assert "detached" in caplog.text


def test_a_bug_outside_any_segment_reaches_the_caller_instead_of_hanging_it(pool: LanePool) -> None:
    steps = [("Relu", ["x"], "a"), ("Neg", ["x"], "b"), ("Add", ["a", "b"], "c")]
    made = executor(steps, ["c"], pool=pool)
    made.run({"x": value([1.0])}, ["c"])
    made.readers = []  # a bug of ours, as it were
    with pytest.raises((ParallaxError, IndexError)):
        made.run({"x": value([1.0])}, ["c"])
    assert pool.statistics().free_cores == 2
