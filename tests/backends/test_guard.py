"""A failing delegate costs time, never an answer."""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from parallax.backends import (
    HOST_MEMORY,
    CompiledModel,
    Complaints,
    FaultPolicy,
    Interface,
    MemoryDomain,
    UnfitFeedsError,
    compile_guarded,
    open_backend,
)
from parallax.backends._breaker import CircuitBreaker
from parallax.backends._guard import GuardedModel
from parallax.errors import BackendError, ConfigError, InputError, RunCancelled
from parallax.model import load_model
from tests.backends._backends import Array, compiled, model_of, obstacle, on_the_processor, value, whole

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
PROTO = model_of([helper.make_node("Neg", ["x"], ["y"])], {"x": (F32, [3])}, {"y": (F32, [3])})


DEFAULT = FaultPolicy()


class Scripted:
    """A delegate that does, run by run, what it is told: raise, hang, answer with a NaN, or compute."""

    memory: MemoryDomain = HOST_MEMORY

    def __init__(self, script: Callable[[int], BaseException | threading.Event | float | None]) -> None:
        self._inner = compiled(open_backend("cpu"), PROTO)
        self._script = script
        self._lock = threading.Lock()
        self.calls = 0

    @property
    def interface(self) -> Interface:
        return self._inner.interface

    def run_with_ort_values(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], run_options: Any = None
    ) -> Sequence[Any]:
        made = self.run_bound(feeds, dict.fromkeys(outputs), run_options)
        return [made[name] for name in outputs]

    def run_bound(
        self, feeds: Mapping[str, Any], targets: Mapping[str, Any], run_options: Any = None
    ) -> Mapping[str, Any]:
        with self._lock:
            self.calls += 1
            act = self._script(self.calls)
        if isinstance(act, BaseException):
            raise act
        if isinstance(act, threading.Event):
            act.wait()
        made = self._inner.run_bound(feeds, targets, run_options)
        if isinstance(act, float):
            # A wrong answer, as broken drivers give.
            return {name: value(np.full(3, act, np.float32)) for name in made}
        return made


def _guarded(delegate: CompiledModel, policy: FaultPolicy = DEFAULT, **more: Any) -> GuardedModel:
    return GuardedModel(
        delegate, fallback=lambda: compiled(open_backend("cpu"), PROTO), what="a delegate", policy=policy, **more
    )


def _answer(model: CompiledModel, x: Array) -> list[float]:
    (y,) = model.run_with_ort_values({"x": value(x)}, ["y"])
    return list(np.array(y.numpy()))


def _check(model: CompiledModel, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(3, np.float32)
    assert _answer(model, x) == list(-x)
    y = np.zeros(3, np.float32)
    model.run_bound({"x": value(x)}, {"y": value(y)})
    assert list(y) == list(-x)


def _broken(_: int) -> BaseException:
    return BackendError("the driver is gone")


def test_a_delegate_that_always_fails_is_set_aside_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    delegate = Scripted(_broken)
    model = _guarded(delegate)
    with caplog.at_level(logging.WARNING):
        for seed in range(500):
            _check(model, seed)
    assert delegate.calls == FaultPolicy().tolerated == model.failures
    assert model.is_set_aside
    assert model.fallbacks == 1000
    (record,) = caplog.records
    assert "a delegate failed" in record.message
    assert "the driver is gone" in record.message


def test_failures_at_random_change_no_answer_of_any_thread() -> None:
    chance = random.Random(0)
    delegate = Scripted(lambda _: BackendError("now and then") if chance.random() < 0.3 else None)
    model = _guarded(delegate, FaultPolicy(tolerated=50))
    failures: list[BaseException] = []

    def call(first: int) -> None:
        try:
            for seed in range(first, first + 125):
                _check(model, seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert delegate.calls == 1000
    assert model.failures == model.fallbacks > 200
    assert not model.is_set_aside


def test_a_delegate_that_hangs_is_left_hanging_and_never_asked_again() -> None:
    released = threading.Event()
    before = threading.active_count()
    delegate = Scripted(lambda call: released if call == 3 else None)
    model = _guarded(delegate, FaultPolicy(deadline_s=0.2))
    try:
        for seed in range(500):
            _check(model, seed)
        assert delegate.calls == 3
        assert model.is_set_aside
        assert threading.active_count() == before + 1
    finally:
        released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("parallax-delegate"):
            thread.join(10)
    assert threading.active_count() == before


def test_a_call_that_comes_back_late_writes_nowhere() -> None:
    released = threading.Event()
    model = _guarded(Scripted(lambda _: released), FaultPolicy(deadline_s=0.05))
    x, y = np.ones(3, np.float32), np.zeros(3, np.float32)
    model.run_bound({"x": value(x)}, {"y": value(y)})
    assert list(y) == [-1, -1, -1]
    x[:], y[:] = 5, 9
    released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("parallax-delegate"):
            thread.join(10)
    assert list(y) == [9, 9, 9]


def test_a_nan_that_the_processor_does_not_make_is_a_failure() -> None:
    delegate = Scripted(lambda call: float("nan") if call % 2 else None)
    model = _guarded(delegate, FaultPolicy(checks_nan=True))
    for seed in range(20):
        _check(model, seed)
    assert model.failures == model.fallbacks > 0
    assert not model.is_set_aside  # every other run is well


def test_a_nan_of_the_models_own_is_not() -> None:
    model = _guarded(Scripted(lambda _: None), FaultPolicy(checks_nan=True))
    for _ in range(10):
        assert np.isnan(_answer(model, np.array([1, np.nan, 2], np.float32))[1])
    assert model.failures == 0


def test_without_being_asked_nothing_is_checked() -> None:
    model = _guarded(Scripted(lambda _: float("nan")))
    assert np.isnan(_answer(model, np.ones(3, np.float32))).all()


def test_a_wish_to_stop_is_not_the_delegates_fault() -> None:
    delegate = Scripted(lambda call: RunCancelled("stopped") if call <= 5 else None)
    model = _guarded(delegate)
    for _ in range(5):
        with pytest.raises(RunCancelled):
            _answer(model, np.ones(3, np.float32))
    assert (model.failures, model.fallbacks) == (0, 0)
    _check(model, 1)


def test_wrong_feeds_are_the_callers_fault_where_the_processor_refuses_them_too() -> None:
    model = _guarded(Scripted(lambda _: None))
    for _ in range(5):
        with pytest.raises(InputError):
            _answer(model, np.ones(4, np.float32))
    assert model.failures == 0
    _check(model, 1)


@pytest.mark.parametrize("error", [InputError("a wrong feed"), RuntimeError("oops"), MemoryError()])
def test_whatever_else_it_raises_is_a_failure_where_the_processor_has_an_answer(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    delegate = Scripted(lambda _: error)
    model = _guarded(delegate)
    for seed in range(10):
        _check(model, seed)
    assert delegate.calls == model.failures == FaultPolicy().tolerated
    assert type(error).__name__ in caplog.text


def test_parts_of_one_delegate_warn_once_between_them(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    models = [_guarded(Scripted(_broken), complaints=complaints, part=f"segment_{index}") for index in range(3)]
    with caplog.at_level(logging.INFO):
        for model in models:
            _check(model, 1)
    assert [record.levelname for record in caplog.records if "failed" in record.message] == ["WARNING", "INFO", "INFO"]


@pytest.mark.parametrize("wrong", [{"tolerated": 0}, {"tolerated": 1.5}, {"retry_s": -1}, {"deadline_s": 0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FaultPolicy(**wrong)


def test_feeds_it_is_not_made_for_do_not_count_against_it() -> None:
    model = _guarded(Scripted(lambda _: UnfitFeedsError("too large")))
    for seed in range(10):
        _check(model, seed)
    assert model.failures == 0
    assert not model.is_set_aside
    assert model.fallbacks == 20


def test_a_delegate_that_recovers_is_used_again() -> None:
    now = 0.0
    delegate = Scripted(lambda call: BackendError("asleep") if call <= 5 else None)
    model = _guarded(delegate, FaultPolicy(tolerated=3, retry_s=10), clock=lambda: now)
    x = np.ones(3, np.float32)
    calls = []
    for step in range(12):
        now = 10.0 * step
        for _ in range(2):
            assert _answer(model, x) == [-1, -1, -1]
        calls.append(delegate.calls)
    # Three failures; the trials 10 s and then 20 s later fail; the one after another 40 s succeeds.
    assert calls == [2, 3, 4, 4, 5, 5, 5, 5, 7, 9, 11, 13]
    assert not model.is_set_aside


def test_a_part_it_cannot_compile_runs_on_the_spare(caplog: pytest.LogCaptureFixture) -> None:
    if obstacle("openvino") is not None:
        pytest.skip(str(obstacle("openvino")))
    proto = model_of(
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), helper.make_node("Det", ["m"], ["d"])],
        {"x": (F32, [3]), "m": (F32, [2, 2])},
        {"y": (F32, [3]), "d": (F32, [])},
        domains=["com.microsoft"],
    )
    feeds = {"x": np.ones(3, np.float32), "m": np.eye(2, dtype=np.float32)}
    with caplog.at_level(logging.WARNING):
        model = compile_guarded(
            open_backend("openvino"), whole(load_model(proto)), fallback=open_backend("cpu"), width=1
        )
    (record,) = caplog.records
    assert "does not compile segment 'whole'" in record.message
    made = model.run_with_ort_values({name: value(array) for name, array in feeds.items()}, ["y", "d"])
    for ours, theirs in zip(made, on_the_processor(proto, feeds), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_integers_beyond_openvinos_are_computed_by_the_processor() -> None:
    if obstacle("openvino") is not None:
        pytest.skip(str(obstacle("openvino")))
    proto = model_of(
        [helper.make_node("Equal", ["a", "b"], ["y"])], dict.fromkeys("ab", (I64, ["n"])), {"y": (BOOL, ["n"])}
    )
    model = compile_guarded(open_backend("openvino"), whole(load_model(proto)), fallback=open_backend("cpu"), width=1)
    assert isinstance(model, GuardedModel)
    for a, b in (([1, 2], [1, 3]), ([1 << 24, (1 << 24) + 1], [1 << 24, 1 << 24]), ([1 << 40], [0])):
        feeds = {"a": np.array(a), "b": np.array(b)}
        (y,) = model.run_with_ort_values({name: value(array) for name, array in feeds.items()}, ["y"])
        assert y.numpy().tolist() == [left == right for left, right in zip(a, b, strict=True)]
    assert (model.failures, model.fallbacks) == (0, 2)


def test_a_guarded_model_goes_away_with_its_last_user() -> None:
    model = _guarded(Scripted(_broken), FaultPolicy(deadline_s=5.0))
    _check(model, 1)
    before = threading.active_count()
    del model
    gc.collect()
    assert threading.active_count() == before


@given(events=st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60), tolerated=st.integers(1, 4))
def test_the_breaker_lets_through_what_its_rule_says(events: list[tuple[bool, int]], tolerated: int) -> None:
    breaker = CircuitBreaker(tolerated=tolerated, retry_s=10, longest_s=40)
    now, row, until = 0.0, 0, 0.0
    for is_well, wait in events:
        now += wait
        expected = row < tolerated or now >= until
        assert breaker.may_try(now) is expected
        if not expected:
            continue
        if row >= tolerated:
            assert not breaker.may_try(now)  # one at a time
        if is_well:
            breaker.succeeded()
            row = 0
        else:
            opened = breaker.failed(now)
            row += 1
            assert opened is (row == tolerated)
            if row >= tolerated:
                until = now + min(40, 10 * 2 ** (row - tolerated))
        assert breaker.is_open is (row >= tolerated)
    breaker.give_up()
    assert not breaker.may_try(now + 1e9)
