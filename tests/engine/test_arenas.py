from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import make_session
from parallax.engine import CompiledSegment, Executor, RunBudget, SpanObserver, TraceRecorder
from parallax.engine._lanes import LanePool
from parallax.errors import ConfigError, RunCancelled, SegmentError
from parallax.memory import MemoryModel
from tests.engine._graphs import QUIET, Cut, ladder_model, models, plan_of_nodes, proto, value
from tests.engine._plans import part_of

RANDOM = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def pool() -> LanePool:
    return LanePool(2)


def rows(count: int, width: int = 4, seed: int = 0) -> Any:
    return value(np.random.default_rng(seed).standard_normal((count, width)))


@RANDOM
@given(source=models(), lanes=st.integers(1, 3), memory_model=st.booleans(), data=st.data())
def test_runs_in_arenas_equal_runs_without_bit_for_bit(source: Any, lanes: int, memory_model: bool, data: Any) -> None:
    cut = Cut(source, pool=LanePool(lanes), lanes=lanes, memory_model=memory_model)
    for seed in range(6):
        # ONNX Runtime refuses to split what is empty.
        least = int(any(node.op_type == "Split" for node in source.graph.node))
        count = data.draw(st.integers(least, 3), label="rows")
        width = data.draw(st.sampled_from([4, 16]), label="width")  # of 16 all rows are aligned
        cut.check({"x": rows(count, width, seed=seed)})
        if cut.executor._arenas is not None:
            cut.poison()


@RANDOM
@given(source=models(symbolic=False, data_dependent=False), lanes=st.integers(1, 2))
def test_every_boundary_tensor_of_known_size_lies_in_the_arena_and_outputs_do_not(source: Any, lanes: int) -> None:
    cut = Cut(source, pool=LanePool(2), lanes=lanes)
    made = {name for segment in cut.plan.segments for name in segment.outputs}
    got = cut.check({"x": rows(3, 16)})
    arenas = cut.executor._arenas
    if arenas is None:
        assert made <= set(cut.outputs)
        return
    assert set(cut.places()) == made - set(cut.outputs)
    (context,) = arenas._idle
    assert context.arena is not None
    assert not any(one.data_ptr() in context.arena for one in got)


@RANDOM
@given(source=models(), seed=st.integers(0, 1000))
def test_results_are_not_overwritten_by_later_runs(source: Any, seed: int) -> None:
    cut = Cut(source, pool=LanePool(2))
    kept = []
    for number in range(5):
        feeds = {"x": rows(1 + (seed + number) % 3, seed=number)}
        kept.append((cut.check(feeds), cut.reference(feeds)))
    for got, expected in kept:
        for one, other in zip(got, expected, strict=True):
            assert one.numpy().tobytes() == other.tobytes()


def test_a_result_of_a_segment_that_also_writes_into_the_arena_is_not_overwritten(pool: LanePool) -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], axis=0, num_outputs=2), helper.make_node("Neg", ["a"], ["c"])]
    cut = Cut(proto(nodes, {"x": [4]}, ["b", "c"]), pool=pool)
    first = cut.check({"x": value([1, 2, 3, 4])})
    second = cut.check({"x": value([5, 6, 7, 8])})
    assert set(cut.places()) == {"a"}
    assert [list(one.numpy()) for one in (*first, *second)] == [[3, 4], [-1, -2], [7, 8], [-5, -6]]


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(source=models(), seed=st.integers(0, 1000))
def test_threads_share_an_executor_but_never_an_arena(source: Any, seed: int) -> None:
    cut = Cut(source, pool=LanePool(2))
    wrong: list[BaseException] = []

    def hammer(thread: int) -> None:
        rng = np.random.default_rng(seed + thread)
        try:
            for _ in range(15):
                cut.check({"x": rows(int(rng.integers(1, 4)), 16, seed=int(rng.integers(0, 99)))})
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    assert cut.executor.memory().contexts <= 6


def test_a_chain_in_one_lane_takes_two_slots_however_long_it_is(pool: LanePool) -> None:
    nodes = [helper.make_node("Neg", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"]) for i in range(20)]
    cut = Cut(proto(nodes, {"x": [1024]}, ["t20"]), pool=pool, lanes=1)
    cut.check({"x": value(np.arange(1024))})
    used = cut.executor.memory()
    assert used.planned_bytes == 2 * 4096
    assert used.planned_bytes <= used.touched_bytes <= used.reserved_bytes
    assert used.contexts == 1


def test_nothing_grows_after_the_first_pass_over_the_shapes(pool: LanePool) -> None:
    cut = Cut(ladder_model(4), pool=pool)
    shapes = [7, 300, 20, 4000, 1, 0, 1999]
    for count in shapes:
        cut.check({"x": value(np.arange(count))})
    first = cut.executor.memory()
    for _ in range(4):
        for count in shapes:
            cut.check({"x": value(np.arange(count))})
        now = cut.executor.memory()
        assert (now.reserved_bytes, now.touched_bytes, now.contexts) == (
            first.reserved_bytes,
            first.touched_bytes,
            first.contexts,
        )


def test_empty_tensors_have_no_address_and_do_no_harm(pool: LanePool) -> None:
    cut = Cut(ladder_model(2), pool=pool)
    for count in (0, 5, 0):
        cut.check({"x": value(np.arange(count))})
    assert cut.executor._arenas is not None


def test_an_arena_that_is_far_too_large_for_long_shrinks(pool: LanePool) -> None:
    cut = Cut(ladder_model(2), pool=pool)
    cut.check({"x": value(np.arange(100_000))})
    large = cut.executor.memory().reserved_bytes
    for _ in range(130):
        cut.check({"x": value(np.arange(100))})
    assert cut.executor.memory().reserved_bytes < large / 10
    cut.check({"x": value(np.arange(100_000))})


def test_trim_gives_idle_arenas_back_and_the_next_run_has_one_again(pool: LanePool) -> None:
    cut = Cut(ladder_model(2), pool=pool)
    cut.check({"x": value(np.arange(5000))})
    before = cut.executor.memory()
    assert before.touched_bytes > 0
    assert cut.executor.trim() == before.touched_bytes
    after = cut.executor.memory()
    assert (after.planned_bytes, after.reserved_bytes, after.touched_bytes, after.contexts) == (0, 0, 0, 0)
    assert cut.executor.trim() == 0
    cut.check({"x": value(np.arange(5000))})
    assert cut.executor.memory() == before


def test_an_input_is_let_go_when_its_run_is_over(pool: LanePool) -> None:
    cut = Cut(ladder_model(1), pool=pool)
    array = np.arange(64, dtype=np.float32)
    gone = weakref.ref(array)
    feeds = {"x": C.OrtValue.from_dlpack(array.__dlpack__(), False)}
    del array
    cut.executor.run(feeds, cut.outputs)
    assert cut.executor.memory().contexts == 1, "the context outlives the run"
    del feeds
    assert gone() is None


def test_an_input_that_may_be_omitted_is_bound_only_where_it_is_fed(pool: LanePool) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "shift"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
    ]
    shift = numpy_helper.from_array(np.full(3, 2, np.float32), "shift")
    cut = Cut(proto(nodes, {"x": [3], "shift": [3]}, ["c"], initializers=[shift]), pool=pool)
    x = value([1, 2, 3])
    for _ in range(3):
        assert list(cut.executor.run({"x": x}, ["c"])[0].numpy()) == [-3, -4, -5]
        assert list(cut.executor.run({"x": x, "shift": value([10, 10, 10])}, ["c"])[0].numpy()) == [-11, -12, -13]
    assert set(cut.places()) == {"a", "b"}


def test_sizes_that_types_do_not_tell_are_learnt_from_two_runs(pool: LanePool) -> None:
    cut = Cut(ladder_model(2), pool=pool, memory_model=False)
    source = ladder_model(2, shape=None)  # type: ignore[arg-type]
    cut = Cut(source, pool=pool, memory_model=False)
    feeds = {"x": value(np.arange(9))}
    cut.check(feeds)
    assert not cut.places()
    cut.check(feeds)
    cut.check(feeds)
    assert set(cut.places()) == {"left_0", "right_0", "joint_0", "left_1", "right_1"}
    cut.poison()
    cut.check(feeds)


def test_a_size_that_depends_on_data_costs_a_second_call_but_never_the_answer(
    pool: LanePool, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Neg", ["where"], ["neg"]),
        helper.make_node("Abs", ["neg"], ["abs"]),
    ]
    cut = Cut(proto(nodes, {"x": [6]}, ["abs"], output_types={"abs": TensorProto.INT64}), pool=pool)
    same, other = value([1, 0, 1, 0, 0, 0]), value([1, 1, 1, 1, 0, 1])
    for _ in range(3):
        cut.check({"x": same})
    assert set(cut.places()) == {"where", "neg"}, "two runs agreed"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cut.check({"x": other})
            cut.check({"x": same})
    assert not cut.places(), "never trusted again"
    assert caplog.text.count("other sizes than planned") == 1


@pytest.mark.parametrize("wrong", [[1], [5], [500], [2, 2]])
def test_an_inferred_size_that_is_wrong_corrupts_nothing(
    pool: LanePool, wrong: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    right = Cut(ladder_model(3, shape=["n"]), pool=pool)
    graph = right.model.inferred()
    tensors = {name: graph.tensors[name] for name in graph.producers}
    tensors["joint_0"] = replace(tensors["joint_0"], shape=tuple(wrong))
    tensors["left_1"] = replace(tensors["left_1"], shape=tuple(wrong))
    memory_model = MemoryModel(right.plan, replace(graph, tensors=tensors), place_outputs=False)
    cut = Cut(ladder_model(3, shape=["n"]), pool=pool, memory_model=memory_model)
    for _ in range(3):
        cut.check({"x": value(np.arange(4) - 2)})
        cut.poison()
    assert {"joint_0", "left_1"}.isdisjoint(cut.places())
    assert "left_0" in cut.places()
    assert caplog.text.count("other sizes than planned") == 1


def test_an_element_type_that_is_wrongly_inferred_is_not_used(pool: LanePool) -> None:
    right = Cut(ladder_model(1, shape=[4]), pool=pool)
    graph = right.model.inferred()
    tensors = {name: replace(graph.tensors[name], dtype=TensorProto.INT32) for name in graph.producers}
    memory_model = MemoryModel(right.plan, replace(graph, tensors=tensors), place_outputs=False)
    cut = Cut(ladder_model(1, shape=[4]), pool=pool, memory_model=memory_model)
    cut.check({"x": value([1, 2, 3, 4])})
    assert cut.executor._arenas is None


def test_results_that_lie_elsewhere_than_bound_end_the_use_of_arenas(
    pool: LanePool, caplog: pytest.LogCaptureFixture
) -> None:
    cut = Cut(ladder_model(1), pool=pool)
    feeds = {"x": value([-1, 2])}
    cut.check(feeds)
    assert cut.executor._arenas is not None
    (layout,) = cut.executor._arenas._idle[0]._layouts.values()
    step = layout.steps[0]
    step.placed = tuple((position, slot, address + 64) for position, slot, address in step.placed)
    layout.is_proven = False
    cut.check(feeds)
    assert cut.executor._arenas is None
    assert "ignored where outputs were bound" in caplog.text
    cut.check(feeds)
    assert cut.executor.memory().reserved_bytes == 0


def test_an_interrupted_run_gives_its_arena_to_nobody(pool: LanePool) -> None:
    class Interrupting:
        def record(self, span: object) -> None:
            if threading.current_thread() is caller:  # signals are delivered nowhere else
                raise KeyboardInterrupt

    caller = threading.current_thread()

    cut = Cut(ladder_model(2), pool=pool)
    feeds = {"x": value([-1, 2])}
    cut.check(feeds)
    interrupting = SpanObserver(Interrupting())
    cut.executor.events.add(interrupting)
    with pytest.raises(KeyboardInterrupt):
        cut.executor.run(feeds, cut.outputs)
    assert cut.executor.memory().contexts == 0
    cut.executor.events.remove(interrupting)
    cut.check(feeds)


def test_a_failing_segment_leaves_the_arena_fit_for_the_next_run(pool: LanePool) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "y"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
    ]
    cut = Cut(proto(nodes, {"x": [None], "y": [None]}, ["c"]), pool=pool)
    for _ in range(2):
        cut.check({"x": value([1, 2]), "y": value([3, 4])})
        with pytest.raises(SegmentError, match="segment_1") as caught:
            cut.executor.run({"x": value([1, 2]), "y": value([1, 2, 3])}, ["c"])
        assert type(caught.value.__cause__).__module__ == C.__name__, "the runtime's own error is the cause"
        assert isinstance(caught.value, type(caught.value.__cause__))
    assert cut.executor.memory().contexts == 1


def test_a_run_stopped_inside_a_bound_segment_is_cancelled_as_any_other(pool: LanePool) -> None:
    cut = Cut(ladder_model(1), pool=pool)
    cut.check({"x": value([1.0])})
    options = C.RunOptions()
    options.terminate = True
    with pytest.raises(RunCancelled) as caught:
        cut.executor.run({"x": value([1.0])}, cut.outputs, options)
    assert isinstance(caught.value, C.Fail)
    cut.check({"x": value([1.0])})


def test_tensors_that_another_backend_makes_or_reads_stay_outside(pool: LanePool) -> None:
    class Other:
        """As a session of another backend: it has no bindings."""

        def __init__(self, inner: Any) -> None:
            self.inputs_meta, self.outputs_meta = inner.inputs_meta, inner.outputs_meta
            self.overridable_initializers = inner.overridable_initializers
            self.run_with_ort_values = inner.run_with_ort_values

    made = Cut(ladder_model(3, shape=[8]), pool=pool)
    segments = [
        replace(segment, session=Other(segment.session)) if segment.outputs == ("joint_1",) else segment
        for segment in made.segments
    ]
    made.executor = Executor(made.plan, segments, inputs=["x"], outputs=made.outputs, pool=pool)
    for _ in range(3):
        made.check({"x": value(np.arange(8) - 4)})
        made.poison()
    assert set(made.places()) == {"left_0", "right_0", "joint_0", "left_2", "right_2"}


def test_sequences_and_strings_cross_segments_outside_the_arena(pool: LanePool) -> None:
    def info(name: str, kind: int, shape: list[int] | None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def sequence(name: str) -> Any:
        return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)

    number, text, whole = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64
    steps = [
        (helper.make_node("Relu", ["x"], ["a"]), [info("x", number, [2])], info("a", number, [2])),
        (
            helper.make_node("SequenceConstruct", ["a", "x"], ["s"]),
            [info("a", number, [2]), info("x", number, [2])],
            sequence("s"),
        ),
        (helper.make_node("SequenceLength", ["s"], ["l"]), [sequence("s")], info("l", whole, [])),
        (helper.make_node("Cast", ["a"], ["t"], to=text), [info("a", number, [2])], info("t", text, [2])),
        (helper.make_node("Cast", ["t"], ["f"], to=number), [info("t", text, [2])], info("f", number, [2])),
        (helper.make_node("Cast", ["l"], ["m"], to=number), [info("l", whole, [])], info("m", number, [])),
        (
            helper.make_node("Add", ["f", "m"], ["y"]),
            [info("f", number, [2]), info("m", number, [])],
            info("y", number, [2]),
        ),
    ]
    whole_graph = helper.make_graph([step[0] for step in steps], "g", [info("x", number, [2])], [steps[-1][2]])
    from parallax.model import load_model

    plan = plan_of_nodes(
        load_model(helper.make_model(whole_graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)).graph
    )
    segments = []
    for part, (node, inputs, output) in zip(plan.segments, steps, strict=True):
        model = helper.make_model(
            helper.make_graph([node], "s", inputs, [output]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        segments.append(
            CompiledSegment(
                name=part.name,
                node_names=(node.op_type,),
                width=1,
                session=make_session(part_of(model.SerializeToString()), width=1, options=QUIET),
                inputs=part.inputs,
                outputs=part.outputs,
                weights={},
            )
        )
    made = Executor(plan, segments, inputs=["x"], outputs=["y"], pool=pool)
    recorder = TraceRecorder()
    made.events.add(SpanObserver(recorder))
    for _ in range(4):
        assert list(made.run({"x": value([-1.5, 2.5])}, ["y"])[0].numpy()) == [2.0, 4.5]
    assert made._arenas is not None
    placed = made._arenas.planner.plan(made._arenas.planner.signature({"x": value([1, 1])})).places
    assert {"a", "f", "l", "m"} >= set(placed) >= {"a", "f"}
    sizes = {span.name: (span.input_bytes, span.output_bytes) for span in recorder.take()}
    assert sizes["segment_0"] == (8, 8)
    assert sizes["segment_1"] == (16, 0)


def test_types_that_numpy_does_not_have_lie_in_arenas_too(pool: LanePool) -> None:
    half = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=half),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
    ]
    cut = Cut(proto(nodes, {"x": [4]}, ["c"]), pool=pool)
    cut.check({"x": value([1, 2, -3, 0.5])})
    assert {place.element_type for place in cut.places().values()} == {half}


def test_a_context_serves_signatures_by_turns_without_planning_again(pool: LanePool) -> None:
    cut = Cut(ladder_model(2), pool=pool)
    for _ in range(3):
        for count in (3, 30, 300):
            cut.check({"x": value(np.arange(count))})
    arenas = cut.executor._arenas
    assert arenas is not None
    assert arenas.planner._cache.statistics().misses == 3


class Overlaps:
    """Counts segments that run at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[int] = set()
        self.most = 0
        self.calls: list[tuple[str, int]] = []

    def will_start(self, segment: int) -> None:
        with self.lock:
            self.running.add(segment)
            self.most = max(self.most, len(self.running))
            self.calls.append(("start", segment))

    def has_ended(self, segment: int) -> None:
        with self.lock:
            self.running.discard(segment)
            self.calls.append(("end", segment))


def test_an_advisor_hears_of_every_segment_before_and_after(pool: LanePool) -> None:
    prefetcher = Overlaps()
    cut = Cut(ladder_model(3), pool=pool, prefetcher=prefetcher)
    cut.executor.run({"x": value([1, 2])}, cut.outputs)
    for segment in range(9):
        assert prefetcher.calls.index(("start", segment)) < prefetcher.calls.index(("end", segment))
    assert len(prefetcher.calls) == 18


def test_an_advisor_that_fails_is_detached_and_the_run_goes_on(
    pool: LanePool, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Overlaps):
        def will_start(self, segment: int) -> None:
            raise OSError("no such page")

    cut = Cut(ladder_model(2), pool=pool, prefetcher=Broken())
    cut.check({"x": value([1, 2])})
    assert cut.executor.prefetcher is None
    assert "detached" in caplog.text


def test_a_budget_of_one_segment_lets_one_run_at_a_time(pool: LanePool) -> None:
    prefetcher = Overlaps()
    cut = Cut(ladder_model(6), pool=pool, prefetcher=prefetcher, peaks=dict.fromkeys(range(18), 100))
    for seed in range(20):
        cut.check({"x": value(np.arange(2000) - seed)}, budget=RunBudget(100))
    assert prefetcher.most == 1
    with pytest.raises(ConfigError, match="-1"):
        cut.check({"x": value(np.arange(2000))}, budget=RunBudget(-1))


def test_a_budget_that_is_raised_while_a_run_waits_lets_it_go_on_at_once(pool: LanePool) -> None:
    both = threading.Barrier(2, timeout=20)

    class Raising(Overlaps):
        def will_start(self, segment: int) -> None:
            super().will_start(segment)
            if segment in (0, 1):
                if segment == 0:
                    # From another thread, as a monitor of the machine would.
                    monitor = threading.Thread(target=budget.change, args=(200,))
                    monitor.start()
                    monitor.join()
                both.wait()  # only met if both segments run at once

    prefetcher = Raising()
    cut = Cut(ladder_model(1), pool=pool, prefetcher=prefetcher, peaks=dict.fromkeys(range(3), 100))
    budget = RunBudget(100)
    cut.check({"x": value([1, -2])}, budget=budget)
    assert prefetcher.most == 2


def test_lowering_the_budget_while_runs_go_on_loses_no_run(pool: LanePool) -> None:
    cut = Cut(ladder_model(8), pool=pool, peaks=dict.fromkeys(range(24), 100))
    budget = RunBudget(None)
    over = threading.Event()

    def change() -> None:
        rng = np.random.default_rng(1)
        while not over.is_set():
            budget.change([None, 0, 100, 200][int(rng.integers(4))])

    monitor = threading.Thread(target=change)
    monitor.start()
    try:
        for seed in range(150):
            cut.check({"x": value(np.arange(50) - seed)}, budget=budget)
    finally:
        over.set()
        monitor.join()
    assert pool.statistics().free_cores == 2
