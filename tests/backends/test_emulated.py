"""Emulated accelerators: the processor's answers in the device's time, marked as emulated; the contract holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from parallax.backends import Backend, CompileOptions, open_backend
from parallax.backends.emulated import _backend as emulated
from parallax.backends.emulated import _compiled as compiled_parts
from parallax.backends.emulated import _host_speed as host_speed
from parallax.backends.emulated import profile_names
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.backends.emulated._compiled import EmulatedModel
from parallax.backends.emulated._profiles import load_profile
from parallax.backends.emulated._queue import OVERSLEEP_S, DeviceQueue
from parallax.errors import BackendError, ConfigError, InputError, RunCancelled
from parallax.graph import OperatorWork, Verdict, Work
from parallax.machine import LoadMeter
from parallax.model import load_model
from parallax.partition.regions import estimate_device_costs
from tests.backends._backends import Array, compiled, model_of, on_the_processor, run, value
from tests.backends.test_backend_contract import (  # noqa: F401 - the contract, run on the `backend` of this module
    test_a_part_it_cannot_compile_is_a_backend_error_that_names_it,
    test_a_target_that_does_not_fit_is_refused,
    test_an_unknown_output_is_refused,
    test_answers_belong_to_the_caller,
    test_answers_equal_the_processors,
    test_asking_leaves_nothing_behind,
    test_capability_divides_the_nodes,
    test_exclusive_means_that_nothing_is_left_to_the_processor,
    test_feeds_are_left_as_they_are,
    test_outputs_come_in_the_order_asked_for_and_alone,
    test_outputs_go_where_they_are_told,
    test_outputs_left_in_its_own_memory_feed_its_next_part,
    test_terminate_stops_a_run,
    test_threads_may_call_at_once,
    test_wrong_feeds_are_refused_and_forgotten,
)

F32 = TensorProto.FLOAT
node = helper.make_node


@pytest.fixture(scope="module")
def backend() -> Backend:
    # Its delegate takes dynamic shapes, as the contract's models have them; fast, for the tests' sake.
    return open_backend("emulated:jetson-agx-orin", {"speed": 1000})


def chain(rows: Any = 4) -> Any:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Erf", ["r"], ["y"])]
    weights = {"w": np.eye(8, dtype=np.float32)}
    return model_of(nodes, {"x": (F32, [rows, 8])}, {"y": (F32, [rows, 8])}, weights)


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", profile_names())
def test_device_is_marked_as_emulated_wherever_it_says_what_it_is(name: str) -> None:
    info = open_backend(f"emulated:{name}", {"speed": 2}).info
    assert info.name == f"emulated:{name}"
    assert "emulated at 2 times its speed" in info.device
    assert load_profile(name).title in info.device


def test_speed_keeps_the_ratio_of_processor_and_accelerator_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("pixel-6-gpu")
    monkeypatch.setattr(emulated, "host_gemm_flops", lambda: 3 * profile.cpu_gemm_flops)
    made = EmulatedBackend(profile)
    assert made.speed == pytest.approx(3)
    assert made.rates.flops_per_s["float32"] == pytest.approx(3 * profile.rates().flops_per_s["float32"])


@pytest.mark.parametrize(
    ("together", "alone", "busy_cores", "speed"),
    [
        (8e9, 5e9, 0.0, 8e9),  # what all cores do
        (8e9, 5e9, 1.0, 10e9),  # others had a core meanwhile
        (4e9, 5e9, 0.0, 10e9),  # threads of this process had
    ],
)
def test_speed_of_the_processor_is_that_of_the_kernels_that_run_models(
    monkeypatch: pytest.MonkeyPatch, together: float, alone: float, busy_cores: float, speed: float
) -> None:
    widths = []

    def product_flops(width: int, clock: object) -> float:
        widths.append(width)
        return alone if width == 1 else together

    monkeypatch.setattr(host_speed, "available_cores", lambda: 2)
    monkeypatch.setattr(LoadMeter, "cores_taken", lambda self, cores: busy_cores)
    monkeypatch.setattr(host_speed, "_product_flops", product_flops)
    assert host_speed.host_gemm_flops.__wrapped__() == speed
    assert widths == [2, 1]


def test_where_the_processors_speed_is_stated_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("pixel-6-gpu")

    def measure() -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(emulated, "host_gemm_flops", measure)
    assert EmulatedBackend(profile, host_flops=2 * profile.cpu_gemm_flops).speed == pytest.approx(2)
    stated = EmulatedBackend(profile, speed=5, host_flops=2 * profile.cpu_gemm_flops)
    assert (stated.speed, stated.host_flops) == (5, 2 * profile.cpu_gemm_flops)


def test_refusals_say_what_the_delegate_lacks() -> None:
    made = open_backend("emulated:pixel-6-gpu", {"speed": 1})
    answer = made.capability(load_model(chain()))
    assert answer.taken == (0, 1)
    (erf,) = answer.refused
    assert (erf.reason, erf.detail) == (Verdict.UNSUPPORTED_OPERATOR, "tflite-gpu has no Erf")
    dynamic = made.capability(load_model(chain("rows")))
    assert not dynamic.taken
    assert [entry.reason for entry in dynamic.refused] == [Verdict.DYNAMIC_SHAPE] * 2 + [Verdict.UNSUPPORTED_OPERATOR]


WORK = Work(operators=(OperatorWork(op_type="MatMul", flops=10**9, touched_bytes=10**6),), moved_bytes=(10**6, 10**5))


def test_price_is_the_profiles_at_its_speed() -> None:
    profile = load_profile("pixel-6-gpu")
    rates = profile.rates()
    price = EmulatedBackend(profile, speed=1.0).price(WORK)
    assert price.launch_ns == rates.launch_ns
    assert price.compute_ns == rates.operator_ns(10**9, 10**6)
    assert price.transfer_ns == rates.transfer_ns(10**6) + rates.transfer_ns(10**5)
    assert EmulatedBackend(profile, speed=4.0).price(WORK).total_ns == pytest.approx(price.total_ns / 4, abs=4)


def test_each_input_is_computed_once_and_replayed_from_then_on() -> None:
    proto = chain()
    model = compiled(open_backend("emulated:jetson-agx-orin", {"speed": 1000}), proto)
    assert isinstance(model, EmulatedModel)
    inputs = [floats(seed, 4, 8) for seed in range(3)]
    for x in inputs * 3:
        np.testing.assert_array_equal(run(model, {"x": x})[0], on_the_processor(proto, {"x": x})[0])
    assert (model.computed, model.replayed) == (3, 6)


def test_inputs_that_differ_in_a_single_element_are_told_apart() -> None:
    nodes = [node("Neg", ["x"], ["y"])]
    proto = model_of(nodes, {"x": (F32, [100_000])}, {"y": (F32, [100_000])})
    model = compiled(open_backend("emulated:jetson-agx-orin", {"speed": 1000}), proto)
    x = floats(1, 100_000)
    run(model, {"x": x})
    for place in (0, 1, 77_777, 99_999):
        other = x.copy()
        other[place] += 1
        np.testing.assert_array_equal(run(model, {"x": other})[0], -other)


def test_answers_that_a_caller_writes_to_are_not_the_next_callers() -> None:
    model = compiled(open_backend("emulated:jetson-agx-orin", {"speed": 1000}), chain())
    x = floats(1, 4, 8)
    for _ in range(3):
        (answer,) = model.run_with_ort_values({"x": value(x)}, model.interface.output_names)
        np.testing.assert_array_equal(answer.numpy(), on_the_processor(chain(), {"x": x})[0])
        answer.update_inplace(np.zeros((4, 8), np.float32))


def test_what_was_left_on_the_device_is_passed_on_without_a_copy() -> None:
    backend = open_backend("emulated:jetson-agx-orin", {"speed": 1000})
    first = compiled(backend, model_of([node("Relu", ["x"], ["y"])], {"x": (F32, [64])}, {"y": (F32, [64])}))
    second = compiled(backend, model_of([node("Neg", ["y"], ["z"])], {"y": (F32, [64])}, {"z": (F32, [64])}))
    assert isinstance(second, EmulatedModel)
    places = set()
    for _ in range(3):
        for x in (floats(1, 64), floats(2, 64)):
            passed = first.run_bound({"x": value(x)}, {"y": None})
            places.add(passed["y"].data_ptr())
            (z,) = second.run_with_ort_values(passed, ["z"])
            np.testing.assert_array_equal(z.numpy(), -np.maximum(x, 0))
    assert len(places) == 2
    assert (second.computed, second.replayed) == (2, 4)
    # The same from elsewhere is known by what it holds, also after the first part has gone.
    del first, passed
    (z,) = second.run_with_ort_values({"y": value(np.maximum(floats(2, 64), 0))}, ["z"])
    np.testing.assert_array_equal(z.numpy(), -np.maximum(floats(2, 64), 0))
    assert (second.computed, second.replayed) == (2, 5)


def test_more_inputs_than_it_can_remember_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_parts, "MEMORY_LIMIT_BYTES", 3 * 2 * 4 * 8 * 4)
    model = compiled(open_backend("emulated:jetson-agx-orin", {"speed": 1000}), chain())
    assert isinstance(model, EmulatedModel)
    inputs = [floats(seed, 4, 8) for seed in range(4)]
    for x in (*inputs, inputs[3], inputs[0]):
        run(model, {"x": x})
    assert (model.computed, model.replayed) == (5, 1)


class HandClock:
    """Time passes by a microsecond with each look, and by what is slept; ``at`` that moment something happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 100.0
        self.slept = 0.0
        self.at = float("inf")
        self.happens: Callable[[], None] = lambda: None

    def now(self) -> float:
        with self._lock:
            self._now += 1e-6
            return self._now

    def pass_time(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept += seconds
            self._now += seconds
            if self._now >= self.at:
                self.happens()


def test_replay_takes_the_modelled_time_and_sleeps_for_nearly_all_but_the_copying() -> None:
    clock = HandClock()
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.1, clock=clock)
    price_s = backend.price(WORK).total_ns / 1e9
    model = compiled(backend, chain(), options=CompileOptions(work=WORK))
    assert isinstance(model, EmulatedModel)
    x = value(floats(1, 4, 8))
    for _ in range(2):
        begin, slept = clock.now(), clock.slept
        model.run_with_ort_values({"x": x}, model.interface.output_names)
        assert price_s <= clock.now() - begin < price_s + 10e-6
        copying_s = sum(map(backend.rates.copying_ns, WORK.moved_bytes)) / 1e9
        assert price_s - copying_s - 10e-6 <= clock.slept - slept + OVERSLEEP_S <= price_s - copying_s + 10e-6
    assert model.replayed == 1


def test_copies_between_host_and_device_keep_a_core_busy() -> None:
    clock = HandClock()
    moved = Work(operators=(), moved_bytes=(10**6,))
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.5, clock=clock)
    model = compiled(backend, chain(), options=CompileOptions(work=moved))
    begin = clock.now()
    model.run_with_ort_values({"x": value(floats(1, 4, 8))}, model.interface.output_names)
    # What it does not sleep, it copies.
    awake_s = clock.now() - begin - clock.slept
    assert awake_s - OVERSLEEP_S == pytest.approx(backend.rates.copying_ns(10**6) / 1e9, abs=10e-6)
    assert backend.rates.copying_ns(10**6) > 100_000


def test_what_the_emulation_copies_itself_is_part_of_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock()
    moved = Work(operators=(), moved_bytes=(10**6,))
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.5, clock=clock)
    model = compiled(backend, chain(), options=CompileOptions(work=moved))
    copied_s = backend.rates.copying_ns(10**6) / 1e9
    copy = compiled_parts._copy

    def copy_for_a_while(output: Any) -> Any:
        clock.pass_time(copied_s / 2 / len(model.interface.output_names))
        return copy(output)

    monkeypatch.setattr(compiled_parts, "_copy", copy_for_a_while)
    begin = clock.now()
    model.run_with_ort_values({"x": value(floats(1, 4, 8))}, model.interface.output_names)
    awake_s = clock.now() - begin - clock.slept
    assert awake_s - OVERSLEEP_S == pytest.approx(copied_s, abs=20e-6)


def test_nothing_copies_where_the_device_shares_the_hosts_memory() -> None:
    rates = replace(load_profile("pixel-6-gpu"), transfer_bytes_per_s=None).rates()
    assert rates.copying_ns(10**9) == 0
    assert rates.transfer_ns(10**9) == rates.transfer_fixed_ns


def test_device_runs_one_part_at_a_time() -> None:
    clock = HandClock()
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.5, clock=clock)
    total_s = backend.price(WORK).total_ns / 1e9
    models = [compiled(backend, chain(), options=CompileOptions(work=WORK)) for _ in range(3)]
    x = value(floats(1, 4, 8))
    ends: list[float] = []
    begin = clock.now()

    def work(model: EmulatedModel) -> None:
        model.run_with_ort_values({"x": x}, model.interface.output_names)
        ends.append(clock.now() - begin)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(end >= number * total_s for number, end in enumerate(sorted(ends), 1))
    assert len(ends) == 3


def test_sessions_of_a_process_share_a_device_and_its_time() -> None:
    first, second = (EmulatedBackend(load_profile("pixel-6-gpu"), speed=0.5) for _ in range(2))
    assert first._queue is second._queue
    assert first._queue is not EmulatedBackend(load_profile("jetson-agx-orin"), speed=0.5)._queue


def test_an_idle_device_begins_when_asked_and_a_busy_one_when_it_is_free() -> None:
    queue = DeviceQueue(HandClock())
    assert queue.reserve(1.0, 10.0) == 11.0
    assert queue.reserve(2.0, 10.5) == 13.0
    assert queue.reserve(1.0, 20.0) == 21.0


def test_cancelled_while_the_device_works_stops_soon() -> None:
    hour = Work(operators=(OperatorWork(op_type="MatMul", flops=10**15, touched_bytes=0),))
    clock, options = HandClock(), onnxruntime.RunOptions()
    backend = EmulatedBackend(load_profile("pixel-6-gpu"), speed=1.0, clock=clock)
    model = compiled(backend, chain(), options=CompileOptions(work=hour))
    begin = clock.now()
    clock.at, clock.happens = begin + 0.1, lambda: setattr(options, "terminate", True)
    with pytest.raises(RunCancelled, match="terminate flag"):
        model.run_with_ort_values({"x": value(floats(1, 4, 8))}, model.interface.output_names, options)
    assert clock.now() - begin < 0.12, "it looks every hundredth of a second"
    # What was left of the hour is the device's again, which all sessions of the process share.
    quick = compiled(backend, chain(), options=CompileOptions(work=Work(operators=())))
    quick.run_with_ort_values({"x": value(floats(1, 4, 8))}, quick.interface.output_names)
    assert clock.now() - begin < 0.2


def test_part_with_an_uncovered_operator_is_not_compiled_where_that_must_not_be() -> None:
    backend = open_backend("emulated:pixel-6-gpu", {"speed": 1})
    with pytest.raises(BackendError, match="tflite-gpu has no Erf") as caught:
        compiled(backend, chain(), options=CompileOptions(exclusive=True))
    assert caught.value.where == "segment 'whole'"


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("emulated", {}, "write emulated:NAME with one of jetson-agx-orin"),
        ("emulated:pixel-9000", {}, "no device profile 'pixel-9000'"),
        ("emulated:pixel-6-gpu", {"sped": 2}, "no option 'sped'"),
        ("emulated:pixel-6-gpu", {"speed": "fast"}, "speed='fast'"),
        ("emulated:pixel-6-gpu", {"speed": 0}, "a speed of 0"),
    ],
)
def test_wrong_names_and_options_say_what_is_right(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        open_backend(name, options)


def test_feeds_that_do_not_fit_are_refused_on_replay_too() -> None:
    model = compiled(open_backend("emulated:jetson-agx-orin", {"speed": 1000}), chain())
    run(model, {"x": floats(1, 4, 8)})
    with pytest.raises(InputError):
        model.run_with_ort_values({}, model.interface.output_names)
    with pytest.raises(InputError):
        model.run_with_ort_values({"x": value(floats(1, 4, 9))}, model.interface.output_names)


def half(model: Work) -> Work:
    """The same work of a model in float16, whose tensors take half the bytes."""
    operators = [
        replace(entry, element_type="float16", touched_bytes=entry.touched_bytes // 2) for entry in model.operators
    ]
    return replace(model, operators=tuple(operators))


@pytest.mark.parametrize("name", ["jetson-agx-orin", "jetson-orin-nano", "pixel-6-gpu"])
def test_half_precision_is_priced_where_the_model_is_in_it_or_the_device_is_opened_so(name: str) -> None:
    plain = open_backend(f"emulated:{name}", {"speed": 1})
    asked = open_backend(f"emulated:{name}?float16=1", {"speed": 1})
    single, double = plain.price(WORK), plain.price(half(WORK))
    assert single is not None
    assert double is not None
    rates = load_profile(name).rates()
    assert single.compute_ns == rates.operator_ns(10**9, 10**6), "unasked, float32 stays float32"
    assert double.compute_ns == rates.operator_ns(10**9, 500_000, "float16")
    assert rates.dispatch_ns < double.compute_ns < single.compute_ns
    assert asked.price(WORK) == double
    assert asked.price(half(WORK)) == double
    # What crosses is in the model's own type still.
    assert double.transfer_ns == single.transfer_ns
    assert asked.info.name == plain.info.name
    assert "in half precision" in asked.info.device
    assert "half precision" not in plain.info.device


def test_a_device_in_half_precision_answers_in_less_time_and_with_the_same_values() -> None:
    heavy = Work(operators=(OperatorWork(op_type="MatMul", flops=10**10, touched_bytes=10**6),))
    x = value(floats(1, 4, 8))
    taken: dict[bool, float] = {}
    answers: dict[bool, Any] = {}
    for asked in (False, True):
        clock = HandClock()
        backend = EmulatedBackend(load_profile("jetson-orin-nano"), speed=0.1, clock=clock, float16=asked)
        model = compiled(backend, chain(), options=CompileOptions(work=heavy))
        begin = clock.now()
        (answers[asked],) = model.run_with_ort_values({"x": x}, model.interface.output_names)
        taken[asked] = clock.now() - begin
    np.testing.assert_array_equal(answers[True].numpy(), answers[False].numpy())
    assert taken[True] == pytest.approx(taken[False] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("emulated:raspberry-pi-5-gpu?float16=1", {}, "no rate for float16"),
        ("emulated:pixel-6-gpu?float16=half", {}, "float16='half'"),
        ("emulated:pixel-6-gpu?float16=1", {"float16": "1"}, "after the name of an emulated device"),
        ("emulated:pixel-6-gpu?float16=1&float16=1", {}, "after the name of an emulated device"),
    ],
)
def test_half_precision_is_refused_where_it_is_not_meant(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        open_backend(name, {"speed": 1, **options})


@pytest.mark.parametrize("given", ["0", 0, False, "false"])
def test_half_precision_may_be_declined(given: object) -> None:
    declined = open_backend("emulated:raspberry-pi-5-gpu", {"speed": 1, "float16": given})
    assert declined.price(WORK) == open_backend("emulated:raspberry-pi-5-gpu", {"speed": 1}).price(WORK)


def test_a_condition_and_half_precision_may_both_stand_in_a_name(tmp_path: Path) -> None:
    path = tmp_path / "condition.json"
    path.write_text('{"format": 1, "steps": [{"at_s": 0, "device": 2, "launch": 1}]}')
    made = open_backend(f"emulated:pixel-6-gpu?condition={path}&float16=1", {"speed": 1})
    assert isinstance(made, EmulatedBackend)
    assert made.computes_in_float16
    assert made.condition_at(made._queue.clock.now()).device == 2.0


@pytest.mark.parametrize(("asked", "gains"), [("", 2.0), ("?float16=1", 1.0)])
def test_planners_see_the_rate_that_a_model_runs_at(asked: str, gains: float) -> None:
    prices = {}
    for element_type, dtype in ((F32, np.float32), (TensorProto.FLOAT16, np.float16)):
        proto = model_of(
            [node("MatMul", ["x", "w"], ["y"])],
            {"x": (element_type, [512, 512])},
            {"y": (element_type, [512, 512])},
            {"w": np.eye(512, dtype=dtype)},
        )
        model = load_model(proto)
        backend = open_backend(f"emulated:jetson-orin-nano{asked}", {"speed": 1})
        assert isinstance(backend, EmulatedBackend)
        device_costs = estimate_device_costs(model.inferred(), backend.capability(model), backend, cpu_ns=[1])
        assert device_costs is not None
        assert device_costs.declined == (None,)
        prices[element_type] = device_costs.device_ns[0] - backend.price(dispatched()).compute_ns
    assert prices[F32] / prices[TensorProto.FLOAT16] == pytest.approx(gains, rel=0.01)


def dispatched() -> Work:
    """An operator that computes nothing."""
    return Work(operators=(OperatorWork(op_type="MatMul", flops=0, touched_bytes=0),))
