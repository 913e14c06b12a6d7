"""The batcher with real threads: every request gets its own answer, whatever the others do."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from parallax.errors import BackendError, ConfigError, DeadlineMissed, InputError, Overloaded, SessionClosedError
from parallax.model import BatchAxis
from parallax.serving import Batcher, RequestReader, join_rows, split_rows_of
from parallax.serving.policy import Setting, Sizing
from tests._threads import needs_stack_limits, no_new_threads

PATIENCE_S = 60.0
AXIS = BatchAxis(inputs={"x": 0}, outputs=(0, 0))
WIDE = Setting(threads=2, lanes=1, measured=((1, 0.001), (8, 0.0015)), best_size=8)
NARROW = Setting(threads=1, lanes=2, measured=((1, 0.0012), (8, 0.0016)), best_size=8)


def session() -> onnxruntime.InferenceSession:
    """y = 2 x, and z = the sum of the squares of x, for x of float32[n, 4]."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("ReduceSumSquare", ["x", "axes"], ["z"], keepdims=0),
        ],
        "twice",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "yz"],
        [onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Runner:
    """ONNX Runtime, with a gate that can be shut, and requests that fail on purpose: those that begin with -1."""

    def __init__(self, settings: Sequence[Setting] = (WIDE,), *, fails_together: bool = False) -> None:
        self.settings = tuple(settings)
        self.elements = 4
        self.reason = ""
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fails_together = fails_together
        self.sizes: list[int] = []
        self.closed = 0
        self.is_open = True
        self.session = session()

    def check_open(self) -> None:
        if not self.is_open:
            raise SessionClosedError("this session was closed")

    def _run(self, feeds: Mapping[str, Any], size: int) -> list[Any]:
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        self.sizes.append(size)
        if (feeds["x"][:, 0] == -1).any():
            raise BackendError("a request that begins with -1")
        outputs: list[Any] = self.session.run(None, dict(feeds))
        return outputs

    def run_one(self, setting: int, arrays: Mapping[str, Any]) -> list[Any]:
        self.check_open()
        return self._run(arrays, 1)

    def run_together(self, setting: int, requests: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        if self.fails_together:
            raise BackendError("no batches today")
        outputs = self._run(join_rows(requests, AXIS), len(requests))
        return split_rows_of(outputs, AXIS, requests=len(requests))

    def close(self) -> None:
        self.closed += 1


def batcher_on(runner: Runner, **options: Any) -> Batcher:
    described = runner.session
    reader = RequestReader(described.get_inputs(), described.get_overridable_initializers(), axis=AXIS)
    return Batcher(runner, reader, **options)


def feeds(number: float, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, 4), number, np.float32) + np.arange(4, dtype=np.float32) / 8}


def assert_answers(answer: Sequence[Any], fed: Mapping[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(answer[0], 2 * fed["x"])
    np.testing.assert_allclose(answer[1], (fed["x"] ** 2).sum(1), rtol=1e-6)


def shut(runner: Runner, batcher: Batcher) -> Future[Any]:
    """Have a first request run until the gate is opened, so that all others wait."""
    runner.gate.clear()
    first = batcher.submit(feeds(0), client="first")
    assert runner.entered.acquire(timeout=PATIENCE_S)
    return first


@pytest.mark.parametrize("settings", [(WIDE,), (WIDE, NARROW), (NARROW,)], ids=["wide", "both", "narrow"])
@pytest.mark.parametrize("sizing", Sizing)
def test_of_eight_threads_every_request_gets_its_own_answer(settings: Sequence[Setting], sizing: Sizing) -> None:
    runner = Runner(settings)
    errors: list[BaseException] = []
    cancelled = failed = answered = 0
    lock = threading.Lock()

    def caller(number: int, batcher: Batcher) -> None:
        nonlocal cancelled, failed, answered
        draw = random.Random(number)
        try:
            pending = []
            for turn in range(60):
                is_bad = draw.random() < 0.05
                fed = (
                    {"x": np.full((1, 4), -1, np.float32)}
                    if is_bad
                    else feeds(1000 * number + turn, draw.choice([1, 1, 2]))
                )
                pending.append((fed, is_bad, batcher.submit(fed, client=number % 3)))
                if draw.random() < 0.1:
                    pending[-1][2].cancel()
                if draw.random() < 0.3:
                    time.sleep(0.001)
            for fed, is_bad, future in pending:
                try:
                    answer = future.result(PATIENCE_S)
                    assert not is_bad
                    assert_answers(answer, fed)
                    with lock:
                        answered += 1
                except CancelledError:
                    with lock:
                        cancelled += 1
                except BackendError:
                    assert is_bad
                    with lock:
                        failed += 1
        except BaseException as error:
            errors.append(error)

    with batcher_on(runner, max_batch=8, sizing=sizing, window_ms=1) as batcher:
        threads = [threading.Thread(target=caller, args=(number, batcher)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        stats = batcher.stats()
    assert not errors
    assert answered + cancelled + failed == 8 * 60
    assert (stats.completed, stats.cancelled, stats.failed) == (answered, cancelled, failed)
    assert stats.taken == 8 * 60
    assert runner.closed == 1


def test_requests_that_wait_run_together() -> None:
    runner = Runner()
    with batcher_on(runner, max_batch=8) as batcher:
        first = shut(runner, batcher)
        waiting = [(feeds(number), batcher.submit(feeds(number))) for number in range(1, 8)]
        runner.gate.set()
        for fed, future in waiting:
            assert_answers(future.result(PATIENCE_S), fed)
        assert_answers(first.result(), feeds(0))
    assert runner.sizes[:2] == [1, 7]
    assert batcher.stats().largest_batch == 7


def test_one_that_fails_does_not_fail_the_others_of_its_batch() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        shut(runner, batcher)
        fine = [batcher.submit(feeds(number)) for number in (1, 2)]
        wrong = batcher.submit({"x": np.full((1, 4), -1, np.float32)})
        fine.append(batcher.submit(feeds(3)))
        runner.gate.set()
        for number, future in enumerate(fine, 1):
            assert_answers(future.result(PATIENCE_S), feeds(number))
        with pytest.raises(BackendError, match="begins with -1"):
            wrong.result(PATIENCE_S)
        stats = batcher.stats()
    assert (stats.completed, stats.failed, stats.reason) == (4, 1, "")


def test_batches_that_fail_while_their_requests_succeed_are_given_up() -> None:
    runner = Runner(fails_together=True)
    with batcher_on(runner) as batcher:
        for turn in range(4):
            shut(runner, batcher)
            waiting = [(feeds(number), batcher.submit(feeds(number))) for number in range(4)]
            runner.gate.set()
            for fed, future in waiting:
                assert_answers(future.result(PATIENCE_S), fed)
            while runner.entered.acquire(blocking=False):
                pass
            assert bool(batcher.stats().reason) is (turn >= 2)
        assert "3 batches in a row failed" in batcher.stats().reason


def test_a_full_queue_refuses_at_once() -> None:
    runner = Runner()
    with batcher_on(runner, max_queue=2) as batcher:
        shut(runner, batcher)
        kept = [batcher.submit(feeds(number)) for number in (1, 2)]
        with pytest.raises(Overloaded, match="the queue is full: 2 requests wait"):
            batcher.submit(feeds(3))
        kept[0].cancel()
        kept[0] = batcher.submit(feeds(4))
        runner.gate.set()
        assert_answers(kept[0].result(PATIENCE_S), feeds(4))
        stats = batcher.stats()
    assert (stats.refused_full, stats.refused_late, stats.taken) == (1, 0, 4)


def test_what_could_not_end_in_time_is_refused_with_the_time_that_is_missing() -> None:
    slow = Setting(threads=1, lanes=1, measured=((1, 1.0),))
    runner = Runner([slow])
    with batcher_on(runner, slo_ms=3000) as batcher:
        first = shut(runner, batcher)
        with pytest.raises(Overloaded, match=r"ms after its deadline of 500 ms") as caught:
            batcher.submit(feeds(1), deadline_ms=500)
        assert 0.4 < (caught.value.retry_after_s or 0) < 3
        second = batcher.submit(feeds(2))
        runner.gate.set()
        wait([first, second], PATIENCE_S)
        assert batcher.stats().refused_late == 1


def test_what_was_taken_and_cannot_end_in_time_any_more_is_dropped_and_never_run() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        first = shut(runner, batcher)
        late = batcher.submit(feeds(1), deadline_ms=30)
        patient = batcher.submit(feeds(2))
        time.sleep(0.1)
        runner.gate.set()
        with pytest.raises(DeadlineMissed, match="could not end within its 30 ms"):
            late.result(PATIENCE_S)
        assert_answers(patient.result(PATIENCE_S), feeds(2))
        assert_answers(first.result(PATIENCE_S), feeds(0))
        assert batcher.stats().dropped == 1
    assert runner.sizes == [1, 1]


def test_a_request_that_waits_can_be_cancelled_and_one_that_runs_cannot() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        first = shut(runner, batcher)
        waiting = batcher.submit(feeds(1))
        assert waiting.cancel()
        assert not first.cancel()
        assert batcher.stats().waiting == 0
        runner.gate.set()
        assert_answers(first.result(PATIENCE_S), feeds(0))
        assert batcher.stats().cancelled == 1


def test_closing_answers_what_waits() -> None:
    runner = Runner()
    batcher = batcher_on(runner)
    shut(runner, batcher)
    waiting = [batcher.submit(feeds(number)) for number in range(1, 6)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    runner.gate.set()
    for number, future in enumerate(waiting, 1):
        assert_answers(future.result(PATIENCE_S), feeds(number))
    closing.join(PATIENCE_S)
    assert runner.closed == 1
    batcher.close()
    with pytest.raises(ConfigError, match="the batcher is closed"):
        batcher.submit(feeds(1))
    assert batcher.stats().completed == 6


def test_closing_without_draining_cancels_what_waits_and_answers_what_runs() -> None:
    runner = Runner()
    batcher = batcher_on(runner)
    first = shut(runner, batcher)
    waiting = [batcher.submit(feeds(number)) for number in range(1, 6)]
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(PATIENCE_S)
    runner.gate.set()
    closing.join(PATIENCE_S)
    assert_answers(first.result(PATIENCE_S), feeds(0))
    stats = batcher.stats()
    assert (stats.completed, stats.cancelled, stats.waiting, stats.running) == (1, 5, 0, 0)


def test_an_error_in_the_block_cancels_what_waits() -> None:
    runner = Runner()
    waiting: list[Future[Any]] = []

    def fail() -> None:
        with batcher_on(runner) as batcher:
            shut(runner, batcher)
            waiting.append(batcher.submit(feeds(1)))
            threading.Timer(0.05, runner.gate.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert waiting[0].cancelled()


def test_a_callback_may_close_and_submit() -> None:
    runner = Runner()
    batcher = batcher_on(runner)
    seen: list[Any] = []

    def again(done: Future[Any]) -> None:
        seen.append(batcher.submit(feeds(2)))
        batcher.close()

    batcher.submit(feeds(1)).add_done_callback(again)
    deadline = time.monotonic() + PATIENCE_S
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    assert_answers(seen[0].result(PATIENCE_S), feeds(2))
    batcher.close()
    assert runner.closed == 1


def test_whatever_is_done_to_a_future_the_others_are_answered() -> None:
    def leave(done: Future[Any]) -> None:
        raise SystemExit(3)

    runner = Runner()
    with batcher_on(runner) as batcher:
        first = shut(runner, batcher)
        futures = [batcher.submit(feeds(number)) for number in range(1, 9)]
        for future in (first, *futures[:4]):
            future.add_done_callback(leave)
        futures[5].set_result(["mine"])
        runner.gate.set()
        for number, future in enumerate(futures, 1):
            if number == 6:
                assert future.result(PATIENCE_S) == ["mine"]
            else:
                assert_answers(future.result(PATIENCE_S), feeds(number))
        assert_answers(batcher.submit(feeds(9)).result(PATIENCE_S), feeds(9))


def test_those_who_wait_for_several_futures_hear_of_cancelled_ones() -> None:
    runner = Runner()
    batcher = batcher_on(runner)
    first = shut(runner, batcher)
    cancelled, left = batcher.submit(feeds(1)), batcher.submit(feeds(2))
    cancelled.cancel()
    assert wait([cancelled], PATIENCE_S).done == {cancelled}
    closing = threading.Thread(target=batcher.close, args=(False,))
    closing.start()
    assert wait([left], PATIENCE_S).done == {left}
    assert left.cancelled()
    runner.gate.set()
    closing.join(PATIENCE_S)
    assert_answers(first.result(PATIENCE_S), feeds(0))


def test_a_callback_that_raises_while_a_batcher_is_closed_keeps_no_other_request_waiting() -> None:
    def leave(done: Future[Any]) -> None:
        raise SystemExit(3)

    runner = Runner()
    batcher = batcher_on(runner)
    first = shut(runner, batcher)
    futures = [batcher.submit(feeds(number)) for number in range(1, 5)]
    futures[0].add_done_callback(leave)
    with pytest.raises(SystemExit):
        batcher.close(drain=False)
    assert wait(futures, PATIENCE_S).done == set(futures)
    runner.gate.set()
    batcher.close()
    assert_answers(first.result(PATIENCE_S), feeds(0))


def test_a_batcher_that_is_dropped_answers_what_it_took_and_ends() -> None:
    runner = Runner()
    future = batcher_on(runner).submit(feeds(3))
    gc.collect()
    assert_answers(future.result(PATIENCE_S), feeds(3))
    deadline = time.monotonic() + PATIENCE_S
    while not runner.closed and time.monotonic() < deadline:
        time.sleep(0.001)
    assert runner.closed == 1


def test_arrays_may_be_written_to_once_they_are_submitted() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        shut(runner, batcher)
        buffer = feeds(5)
        futures = []
        for number in range(5, 9):
            buffer["x"][:] = feeds(number)["x"]
            futures.append(batcher.submit(buffer))
        buffer["x"][:] = np.nan
        runner.gate.set()
        for number, future in enumerate(futures, 5):
            assert_answers(future.result(PATIENCE_S), feeds(number))


def test_answers_do_not_share_memory() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        shut(runner, batcher)
        futures = [batcher.submit(feeds(number)) for number in (1, 2)]
        runner.gate.set()
        first, second = (future.result(PATIENCE_S) for future in futures)
        first[0][:] = np.nan
        assert_answers(second, feeds(2))
        assert first[0].base is None


def test_errors_in_feeds_are_raised_when_they_are_submitted() -> None:
    with batcher_on(Runner()) as batcher:
        for wrong, message in (
            ({}, "Required inputs"),
            ({"q": feeds(1)["x"]}, "Required inputs"),
            ({**feeds(1), "q": feeds(1)["x"]}, "Invalid input name"),
            ({"x": np.zeros((1, 4))}, "Unexpected input data type"),
            ({"x": np.zeros(4, np.float32)}, "Invalid rank"),
            ({"x": np.zeros((1, 5), np.float32)}, "invalid dimensions"),
        ):
            with pytest.raises(InputError, match=message):
                batcher.submit(wrong)
        with pytest.raises(TypeError, match="map no names of inputs"):
            batcher.submit([1])
        for client in ([], ("alice", [])):
            with pytest.raises(TypeError, match="not hashable") as refused:
                batcher.submit(feeds(1), client=client)
            assert isinstance(refused.value, ConfigError)
        for limit in (0, -1, float("nan"), float("inf"), True, "soon"):
            with pytest.raises(ConfigError, match="deadline_ms="):
                batcher.submit(feeds(1), deadline_ms=limit)
        assert batcher.stats().taken == 0
        assert_answers(
            batcher.submit({"x": [[1.0, 2.0, 3.0, 4.0]]}).result(PATIENCE_S), {"x": np.array([[1, 2, 3, 4.0]])}
        )
        value = onnxruntime.OrtValue.ortvalue_from_numpy(feeds(7)["x"])
        assert_answers(batcher.submit({"x": value}).result(PATIENCE_S), feeds(7))


def test_limits_that_are_none_are_refused() -> None:
    for name, value in (("slo_ms", 0), ("slo_ms", "fast"), ("max_batch", 0), ("max_batch", 1.5), ("max_queue", -1)):
        with pytest.raises(ConfigError, match=f"{name}="):
            batcher_on(Runner(), **{name: value})


def test_a_closed_session_refuses_requests_and_fails_those_that_wait() -> None:
    runner = Runner()
    with batcher_on(runner) as batcher:
        first = shut(runner, batcher)
        waiting = batcher.submit(feeds(1))
        runner.is_open = False
        with pytest.raises(SessionClosedError):
            batcher.submit(feeds(2))
        runner.gate.set()
        assert_answers(first.result(PATIENCE_S), feeds(0))
        with pytest.raises(SessionClosedError):
            waiting.result(PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    with batcher_on(Runner()) as batcher:
        assert_answers(batcher.submit(feeds(1)).result(PATIENCE_S), feeds(1))
        child = os.fork()
        if child == 0:
            code = 3
            try:
                batcher.submit(feeds(1))
            except ConfigError as error:
                code = 0 if "another process" in str(error) else 4
            batcher.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert_answers(batcher.submit(feeds(2)).result(PATIENCE_S), feeds(2))


@needs_stack_limits
def test_without_a_thread_there_is_no_batcher() -> None:
    with no_new_threads(), pytest.raises(ConfigError, match="needs a thread"):
        batcher_on(Runner())


def test_asyncio() -> None:
    runner = Runner()

    async def main() -> None:
        with batcher_on(runner, max_queue=8) as batcher:
            answers = await asyncio.gather(*(batcher.asubmit(feeds(number)) for number in range(8)))
            for number, answer in enumerate(answers):
                assert_answers(answer, feeds(number))
            while runner.entered.acquire(blocking=False):
                pass
            first = shut(runner, batcher)
            tasks = [asyncio.create_task(batcher.asubmit(feeds(number))) for number in range(2)]
            while batcher.stats().waiting < 2:
                await asyncio.sleep(0.001)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            while batcher.stats().waiting > 1:
                await asyncio.sleep(0.001)
            runner.gate.set()
            assert_answers(await tasks[0], feeds(0))
            assert_answers(await asyncio.wrap_future(first), feeds(0))
            with pytest.raises(InputError):
                await batcher.asubmit({})

    asyncio.run(main())


def test_stats_say_what_happened() -> None:
    runner = Runner((WIDE, NARROW))
    with batcher_on(runner) as batcher:
        assert batcher.stats().p50_ms is None
        for number in range(10):
            batcher.submit(feeds(number)).result(PATIENCE_S)
        stats = batcher.stats()
    assert stats.batches == stats.completed == 10
    assert stats.mean_batch == 1
    assert 0 < (stats.p50_ms or 0) <= (stats.p99_ms or 0)
    assert [setting.lanes for setting in stats.settings] == [1, 2]
    assert sum(entry.batches for entry in stats.classes) == 10
    assert stats.to_json()["settings"][0]["measured_ms"] == ((1, 1.0), (8, 1.5))
    text = str(stats)
    assert "10 answered" in text
    assert "2 at once on 1 thread" in text
