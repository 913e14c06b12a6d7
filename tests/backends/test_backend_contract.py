"""What every backend owes the engine, whichever library computes."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from parallax.backends import Backend, CompileOptions, DeviceKind, DeviceSpeed, UnfitFeedsError, measure_speed
from parallax.backends.openvino import OpenVinoBackend
from parallax.backends.ort import OnnxRuntimeBackend
from parallax.errors import BackendError, InputError, RunCancelled
from parallax.graph import OperatorWork, Verdict, Work
from parallax.machine import private_bytes
from parallax.model import load_model
from tests.backends._backends import NAMES, Array, compiled, model_of, obstacle, on_the_processor, opened, run, value

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node


def _params() -> list[Any]:
    reasons = {name: obstacle(name) for name in NAMES}
    return [
        pytest.param(name, id=name, marks=[pytest.mark.skip(reason=reason)] if reason else [])
        for name, reason in reasons.items()
    ]


@pytest.fixture(scope="module", params=_params())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with opened(request.param) as made:
        yield made


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _floats(seed: int, *shape: int) -> Array:
    return _random(seed).standard_normal(shape, np.float32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small model, and how to feed it."""

    proto: onnx.ModelProto
    feeds: tuple[Mapping[str, Array], ...]
    tolerance: float = 1e-5
    """Relative to the largest value of an output; other orders of summation round differently."""


def _convolutions() -> Case:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c2"], ["p"]),
        node("Flatten", ["p"], ["y"]),
    ]
    weights = {"w1": _floats(1, 8, 3, 3, 3), "b1": _floats(2, 8), "w2": _floats(3, 8, 1, 3, 3)}
    proto = model_of(nodes, {"x": (F32, [1, 3, 32, 32])}, {"y": (F32, [1, 8]), "r1": (F32, None)}, weights)
    return Case(proto=proto, feeds=tuple({"x": _floats(seed, 1, 3, 32, 32)} for seed in range(3)))


def _dense() -> Case:
    """Weights above every threshold for sharing, at an offset in the file that no type is aligned to."""
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "w2"], ["m"]),
        node("Softmax", ["m"], ["y"], axis=-1),
    ]
    weights = {"w1": _floats(1, 128, 96), "b1": _floats(2, 128), "w2": _floats(3, 128, 80)}
    proto = model_of(nodes, {"x": (F32, ["batch", 96])}, {"y": (F32, ["batch", 80])}, weights)
    return Case(proto=proto, feeds=tuple({"x": _floats(rows, rows, 96)} for rows in (1, 7, 2, 7)))


def _attention() -> Case:
    nodes = [
        node("LayerNormalization", ["x", "scale", "shift"], ["n"], axis=-1),
        node("MatMul", ["n", "wq"], ["q"]),
        node("Transpose", ["n"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["s"]),
        node("Softmax", ["s"], ["a"], axis=-1),
        node("MatMul", ["a", "n"], ["o"]),
        node("Add", ["o", "x"], ["sum"]),
        node("Erf", ["sum"], ["y"]),
    ]
    weights = {"scale": _floats(1, 64), "shift": _floats(2, 64), "wq": _floats(3, 64, 64) / 8}
    shape = ["batch", "time", 64]
    proto = model_of(nodes, {"x": (F32, shape)}, {"y": (F32, shape), "a": (F32, None)}, weights)
    feeds = tuple({"x": _floats(time, batch, time, 64)} for batch, time in ((1, 5), (2, 9), (1, 1)))
    return Case(proto=proto, feeds=feeds, tolerance=2e-5)


def _integers_and_booleans() -> Case:
    """Token ids into a table, a mask, shape arithmetic: the integers that models have."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Equal", ["ids", "pad"], ["is_pad"]),
        node("Not", ["is_pad"], ["mask"]),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),
        node("Where", ["mask3", "e", "zero"], ["kept"]),
        node("Shape", ["kept"], ["shape"]),
        node("Gather", ["shape", "first"], ["rows"]),
        node("Concat", ["rows", "rest"], ["flat"], axis=0),
        node("Reshape", ["kept", "flat"], ["y"]),
        node("ArgMax", ["y"], ["best"], axis=-1, keepdims=0),
        node("Cast", ["mask"], ["counted"], to=F32),
    ]
    weights = {
        "table": _floats(1, 50, 96),
        "pad": np.array(0, np.int64),
        "last": np.array([-1], np.int64),
        "zero": np.array(0, np.float32),
        "first": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
    }
    outputs = {"y": (F32, None), "best": (I64, None), "mask": (BOOL, None), "counted": (F32, None)}
    proto = model_of(nodes, {"ids": (I64, ["batch", "time"])}, outputs, weights)
    feeds = tuple({"ids": _random(seed).integers(0, 50, (2, seed + 3))} for seed in range(3))
    return Case(proto=proto, feeds=feeds, tolerance=0)


def _scalars() -> Case:
    nodes = [node("Mul", ["x", "x"], ["square"]), node("ReduceSum", ["v"], ["total"], keepdims=0)]
    nodes.append(node("Add", ["square", "total"], ["y"]))
    proto = model_of(nodes, {"x": (F32, []), "v": (F32, ["n"])}, {"y": (F32, []), "square": (F32, [])})
    feeds = tuple({"x": np.array(seed - 1.5, np.float32), "v": _floats(seed, 4)} for seed in range(3))
    return Case(proto=proto, feeds=feeds)


def _empty() -> Case:
    """No rows at all, between runs with some."""
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "one"], ["y"])]
    proto = model_of(nodes, {"x": (F32, ["n", 5])}, {"y": (F32, ["n", 5])}, {"one": np.ones(5, np.float32)})
    return Case(proto=proto, feeds=tuple({"x": _floats(rows, rows, 5)} for rows in (3, 0, 2)))


def _data_dependent() -> Case:
    nodes = [node("Relu", ["x"], ["r"]), node("NonZero", ["r"], ["where"]), node("Mul", ["r", "r"], ["y"])]
    proto = model_of(nodes, {"x": (F32, ["n"])}, {"where": (I64, None), "y": (F32, ["n"])})
    return Case(proto=proto, feeds=tuple({"x": _floats(seed, 6)} for seed in range(4)), tolerance=0)


def _unused_input() -> Case:
    proto = model_of([node("Neg", ["x"], ["y"])], {"x": (F32, [3]), "unused": (F32, [2])}, {"y": (F32, [3])})
    return Case(proto=proto, feeds=({"x": _floats(1, 3), "unused": _floats(2, 2)},), tolerance=0)


def _output_read_inside() -> Case:
    """An output that other nodes read, and two outputs that are the same tensor by two names."""
    nodes = [node("Relu", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Identity", ["a"], ["c"])]
    proto = model_of(nodes, {"x": (F32, [8])}, {"a": (F32, [8]), "b": (F32, [8]), "c": (F32, [8])})
    return Case(proto=proto, feeds=({"x": _floats(1, 8)}, {"x": _floats(2, 8)}))


CASES: dict[str, Callable[[], Case]] = {
    "convolutions": _convolutions,
    "dense": _dense,
    "attention": _attention,
    "integers and booleans": _integers_and_booleans,
    "scalars": _scalars,
    "empty": _empty,
    "data-dependent sizes": _data_dependent,
    "unused input": _unused_input,
    "output read inside": _output_read_inside,
}


def _assert_equal(made: list[Array], expected: list[Array], tolerance: float) -> None:
    assert len(made) == len(expected)
    for ours, theirs in zip(made, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if theirs.dtype.kind == "f" and theirs.size:
            scale = max(1e-6, float(np.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(ours, theirs)


def _may_refuse_if_empty(feeds: Mapping[str, Array]) -> contextlib.AbstractContextManager[None]:
    """A backend may say that empty tensors are computed elsewhere, and those alone of these cases."""
    if any(array.size == 0 for array in feeds.values()):
        return contextlib.suppress(UnfitFeedsError)
    return contextlib.nullcontext()


@pytest.mark.parametrize("case", CASES)
def test_answers_equal_the_processors(backend: Backend, case: str) -> None:
    made = CASES[case]()
    model = compiled(backend, made.proto)
    for feeds in made.feeds:
        with _may_refuse_if_empty(feeds):
            _assert_equal(run(model, feeds), on_the_processor(made.proto, feeds), made.tolerance)


@pytest.mark.parametrize("case", CASES)
def test_outputs_go_where_they_are_told(backend: Backend, case: str) -> None:
    made = CASES[case]()
    model = compiled(backend, made.proto)
    for feeds in made.feeds:
        expected = on_the_processor(made.proto, feeds)
        targets = {
            name: np.full_like(array, 7) for name, array in zip(model.interface.output_names, expected, strict=True)
        }
        values = {name: value(array) for name, array in targets.items()}
        with _may_refuse_if_empty(feeds):
            answer = model.run_bound({name: value(array) for name, array in feeds.items()}, values)
            assert answer.keys() == targets.keys()
            _assert_equal(list(targets.values()), expected, made.tolerance)


@pytest.mark.parametrize("case", CASES)
def test_it_states_its_arguments_as_the_runtime_does(backend: Backend, case: str) -> None:
    proto = CASES[case]().proto
    model = compiled(backend, proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for ours, theirs in (
        (model.interface.inputs, session.get_inputs()),
        (model.interface.outputs, session.get_outputs()),
    ):
        assert [(entry.name, entry.type) for entry in ours] == [(entry.name, entry.type) for entry in theirs]
    assert [list(entry.shape) for entry in model.interface.inputs] == [entry.shape for entry in session.get_inputs()]
    assert not model.interface.overridable


def test_outputs_come_in_the_order_asked_for_and_alone(backend: Backend) -> None:
    made = _output_read_inside()
    model = compiled(backend, made.proto)
    a, b, c = on_the_processor(made.proto, made.feeds[0])
    feeds = {"x": value(made.feeds[0]["x"])}
    assert [np.array(got.numpy()).tolist() for got in model.run_with_ort_values(feeds, ["c", "a"])] == [
        c.tolist(),
        a.tolist(),
    ]
    (only,) = model.run_with_ort_values(feeds, ["b"])
    np.testing.assert_allclose(only.numpy(), b, rtol=1e-5)


def test_outputs_left_in_its_own_memory_feed_its_next_part(backend: Backend) -> None:
    first = compiled(backend, model_of([node("Relu", ["x"], ["y"])], {"x": (F32, [4])}, {"y": (F32, [4])}))
    second = compiled(backend, model_of([node("Neg", ["y"], ["z"])], {"y": (F32, [4])}, {"z": (F32, [4])}))
    x = _floats(1, 4)
    passed = first.run_bound({"x": value(x)}, {"y": None})
    assert (passed["y"].device_name().lower() == "cpu") == first.memory.is_host
    (z,) = second.run_with_ort_values(passed, ["z"])
    np.testing.assert_array_equal(z.numpy(), -np.maximum(x, 0))


def test_a_target_that_does_not_fit_is_refused(backend: Backend) -> None:
    made = _convolutions()
    model = compiled(backend, made.proto)
    for wrong in (np.zeros((1, 9), np.float32), np.zeros((1, 8), np.int32)):
        with pytest.raises((InputError, BackendError)):
            model.run_bound({"x": value(made.feeds[0]["x"])}, {"y": value(wrong)})


def test_answers_belong_to_the_caller(backend: Backend) -> None:
    made = _dense()
    model = compiled(backend, made.proto)
    feeds = [{name: value(array) for name, array in feed.items()} for feed in made.feeds]
    kept = [model.run_with_ort_values(feed, model.interface.output_names)[0] for feed in feeds]
    for answer, feed in zip(kept, made.feeds, strict=True):
        _assert_equal([np.array(answer.numpy())], on_the_processor(made.proto, feed), made.tolerance)


def test_feeds_are_left_as_they_are(backend: Backend) -> None:
    made = _dense()
    model = compiled(backend, made.proto)
    x = made.feeds[0]["x"].copy()
    run(model, {"x": x})
    np.testing.assert_array_equal(x, made.feeds[0]["x"])


def test_threads_may_call_at_once(backend: Backend) -> None:
    made = _attention()
    model = compiled(backend, made.proto, width=2)
    expected = [on_the_processor(made.proto, feeds) for feeds in made.feeds]
    failures: list[BaseException] = []

    def call(first: int) -> None:
        try:
            for turn in range(8):
                which = (first + turn) % len(expected)
                _assert_equal(run(model, made.feeds[which]), expected[which], made.tolerance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({}, id="missing"),
        pytest.param({"x": np.zeros((2, 96), np.float32), "z": np.zeros(1, np.float32)}, id="unknown"),
        pytest.param({"x": np.zeros((2, 96), np.float64)}, id="type"),
        pytest.param({"x": np.zeros((2, 95), np.float32)}, id="size"),
        pytest.param({"x": np.zeros((2, 96, 1), np.float32)}, id="rank"),
    ],
)
def test_wrong_feeds_are_refused_and_forgotten(backend: Backend, wrong: Mapping[str, Array]) -> None:
    made = _dense()
    model = compiled(backend, made.proto)
    with pytest.raises(InputError):
        model.run_with_ort_values({name: value(array) for name, array in wrong.items()}, model.interface.output_names)
    _assert_equal(run(model, made.feeds[0]), on_the_processor(made.proto, made.feeds[0]), made.tolerance)


def test_an_unknown_output_is_refused(backend: Backend) -> None:
    made = _dense()
    with pytest.raises((InputError, BackendError)):
        compiled(backend, made.proto).run_with_ort_values({"x": value(made.feeds[0]["x"])}, ["nothing"])


def test_terminate_stops_a_run(backend: Backend) -> None:
    made = _dense()
    model = compiled(backend, made.proto)
    options = onnxruntime.RunOptions()
    options.terminate = True
    with pytest.raises(RunCancelled, match="terminate flag"):
        model.run_with_ort_values({"x": value(made.feeds[0]["x"])}, model.interface.output_names, options)
    _assert_equal(run(model, made.feeds[0]), on_the_processor(made.proto, made.feeds[0]), made.tolerance)


def test_a_part_it_cannot_compile_is_a_backend_error_that_names_it(backend: Backend) -> None:
    proto = model_of(
        [node("NoSuchOperator", ["x"], ["y"], domain="nobody")],
        {"x": (F32, [2])},
        {"y": (F32, [2])},
        domains=["nobody"],
    )
    with pytest.raises(BackendError, match="NoSuchOperator") as caught:
        compiled(backend, proto)
    assert caught.value.where == "segment 'whole'"
    assert caught.value.fix
    assert caught.value.__cause__ is not None


def test_exclusive_means_that_nothing_is_left_to_the_processor(backend: Backend) -> None:
    made = _data_dependent()
    refused = backend.capability(load_model(made.proto)).refused
    exclusive = CompileOptions(exclusive=True)
    if refused:
        with pytest.raises(BackendError):
            compiled(backend, made.proto, options=exclusive)
    taken = model_of([node("Relu", ["x"], ["y"])], {"x": (F32, [1, 4])}, {"y": (F32, [1, 4])})
    assert not backend.capability(load_model(taken)).refused
    feeds = {"x": _floats(1, 1, 4)}
    _assert_equal(run(compiled(backend, taken, options=exclusive), feeds), on_the_processor(taken, feeds), 0)


@pytest.mark.parametrize("case", CASES)
def test_capability_divides_the_nodes(backend: Backend, case: str) -> None:
    model = load_model(CASES[case]().proto)
    answer = backend.capability(model)
    assert answer.backend == backend.info.name
    refused = [entry.node for entry in answer.refused]
    assert sorted([*answer.taken, *refused]) == [entry.index for entry in model.graph.nodes]
    assert all(entry.detail for entry in answer.refused)


@pytest.mark.parametrize("case", CASES)
def test_what_compiles_without_the_processor_is_refused_nowhere(backend: Backend, case: str) -> None:
    proto = CASES[case]().proto
    try:
        compiled(backend, proto, options=CompileOptions(exclusive=True))
    except BackendError:
        return
    refused = backend.capability(load_model(proto)).refused
    # A form whose answers differ compiles, too: OpenVINO's ArgMax loses NaNs.
    assert not [entry for entry in refused if entry.reason is not Verdict.UNSUPPORTED_FORM]


def test_asking_leaves_nothing_behind(backend: Backend) -> None:
    model = load_model(_attention().proto)
    first = backend.capability(model)
    gc.collect()
    before = _footprint()
    assert all(backend.capability(model) == first for _ in range(5))
    gc.collect()
    assert _footprint() == before


WORK = Work(
    operators=(OperatorWork(op_type="MatMul", flops=2_000_000, touched_bytes=40_000),),
    moved_bytes=(1000, 3000),
)


def test_prices_are_the_same_each_time_and_more_for_more(backend: Backend) -> None:
    price = backend.price(WORK)
    assert backend.price(WORK) == price
    transfer = backend.transfer_ns(1 << 20)
    assert backend.transfer_ns(1 << 20) == transfer
    if price is not None:
        twice = backend.price(dataclasses.replace(WORK, operators=WORK.operators * 2))
        assert twice is not None
        assert twice.total_ns > price.total_ns > 0
    if transfer:
        assert (backend.transfer_ns(1 << 21) or 0) > transfer


def test_prices_come_from_the_speed_given_or_are_its_own(backend: Backend) -> None:
    speed = DeviceSpeed(
        launch_ns=200_000, flops_per_s=1e12, memory_bytes_per_s=1e10, link_bytes_per_s=1e9, link_latency_ns=50
    )
    priced = backend.with_speed(speed)
    assert priced.info == backend.info
    price = priced.price(WORK)
    own = backend.price(WORK)
    if own is not None:
        assert price == own
        return
    assert backend.transfer_ns(1 << 20) in (0, None)
    assert price is not None
    # Memory bounds it: 40 kB at 10 GB/s are 4 us, 2 MFLOP at 1 TFLOP/s are 2 us.
    assert (price.launch_ns, price.compute_ns, price.transfer_ns) == (200_000, 4000, 50 + 1000 + 50 + 3000)
    assert price.total_ns == 208_100
    assert priced.price(WORK) == price


def test_a_handful_of_probes_measures_it(backend: Backend) -> None:
    if not isinstance(backend, OpenVinoBackend | OnnxRuntimeBackend):
        pytest.skip("it has figures of its own")
    speed = measure_speed(backend)
    # Whatever the device: slower than light, quicker than by hand.
    assert 100 < speed.launch_ns < 10**10
    assert 1e3 < speed.flops_per_s < 1e16
    assert speed.memory_bytes_per_s > 1e3
    assert speed.link_bytes_per_s > 1e3
    if backend.info.memory.is_host:
        assert speed.link_bytes_per_s == math.inf
    price = speed.price(WORK)
    assert price.total_ns >= speed.launch_ns
    small, large = (speed.price(dataclasses.replace(WORK, operators=WORK.operators * n)) for n in (10, 1000))
    assert small.compute_ns < large.compute_ns


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted through /proc")
@pytest.mark.parametrize("width", [1, 2])
def test_no_more_threads_work_than_its_width(backend: Backend, width: int) -> None:
    if backend.info.kind is not DeviceKind.CPU:
        pytest.skip("what works for a device's driver is not counted against the processor's cores")
    nodes = [node("MatMul", ["x0", "w"], ["y0"])]
    for step in range(8):
        nodes += [
            node("Softmax", [f"y{step}"], [f"x{step + 1}"]),
            node("MatMul", [f"x{step + 1}", "w"], [f"y{step + 1}"]),
        ]
    proto = model_of(nodes, {"x0": (F32, [256, 256])}, {"y8": (F32, [256, 256])}, {"w": _floats(1, 256, 256)})
    model = compiled(backend, proto, width=width)
    feeds = {"x0": _floats(2, 256, 256)}
    run(model, feeds)
    before = _processor_time()
    # Until there are ticks enough to tell a thread that works from one that woke up once.
    while sum(_growth(before).values()) < 40:
        run(model, feeds)
    grown = _growth(before)
    workers = [thread for thread, ticks in grown.items() if ticks > 0.05 * sum(grown.values())]
    assert 1 <= len(workers) <= width, grown


def _processor_time() -> dict[str, int]:
    """Clock ticks by thread of this process."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{thread}/stat").read_text()
        except FileNotFoundError:  # it has just ended
            continue
        fields = text[text.rindex(")") + 2 :].split()
        found[thread] = int(fields[11]) + int(fields[12])
    return found


def _growth(before: Mapping[str, int]) -> dict[str, int]:
    return {thread: ticks - before.get(thread, 0) for thread, ticks in _processor_time().items()}


def _footprint() -> tuple[int, int]:
    """Threads and open files of this process."""
    if sys.platform != "linux":
        return threading.active_count(), 0
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def test_compiling_and_running_again_and_again_leaks_nothing(backend: Backend) -> None:
    # A driver compiles its programs anew for each session: there the smallest part must do.
    is_processor = backend.info.kind is DeviceKind.CPU
    made = _dense() if is_processor else _unused_input()
    cycles = 200 if is_processor else 40

    def cycle() -> None:
        run(compiled(backend, made.proto, width=2), made.feeds[0])

    for _ in range(cycles // 4 if is_processor else cycles):
        cycle()
    gc.collect()
    before, memory = _footprint(), private_bytes()
    for _ in range(cycles):
        cycle()
    gc.collect()
    assert _footprint() == before
    after = private_bytes()
    if memory is not None and after is not None:
        # Allocators keep some pages; the weights of `_dense` alone would be twice this. Drivers keep programs, too.
        assert after - memory < (8 if is_processor else 24) << 20
