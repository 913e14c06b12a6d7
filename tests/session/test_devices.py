"""Sessions on accelerators: emulated ones, so that answers are ONNX Runtime's own and placements real."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends import open_backend
from parallax.backends.emulated._backend import EmulatedBackend
from parallax.engine import TraceRecorder
from parallax.errors import BundleError, ConfigError
from parallax.options import make_device
from parallax.planner._devices import held_bytes
from parallax.planner._measuring import measure_again_if_noisy
from parallax.schedule import CPU_BACKEND
from tests.engine._flow_models import decoder, decoder_feeds

PHONE = "emulated:pixel-6-gpu"
CPU = "CPUExecutionProvider"
SIZE = 256


def _weights(name: str, *shape: int, seed: int) -> Any:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32) / shape[0] ** 0.5
    return numpy_helper.from_array(values, name)


def _serialised(name: str, nodes: list[Any], weights: list[Any], *, rows: int | str) -> bytes:
    """The model from x[rows, SIZE] to y of the same shape."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, SIZE])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def two_branches(*, batch: int | str = 64, depth: int = 6, fallbacks: int | None = None) -> bytes:
    """A branch of matrix products, which the phone takes, beside one of error functions, which it does not."""
    nodes = []
    weights = []
    last = "x"
    for step in range(depth):
        weights.append(_weights(f"w{step}", SIZE, SIZE, seed=step))
        nodes.append(helper.make_node("MatMul", [last, f"w{step}"], [f"a{step}"], name=f"product_{step}"))
        last = f"a{step}"
    left = last
    last = "x"
    for step in range(depth if fallbacks is None else fallbacks):
        nodes.append(helper.make_node("Erf", [last], [f"b{step}"], name=f"erf_{step}"))
        last = f"b{step}"
    nodes.append(helper.make_node("Add", [left, last], ["y"], name="join"))
    return _serialised("two_branches", nodes, weights, rows=batch)


def feeds(batch: int = 64, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).normal(size=(batch, SIZE)).astype(np.float32)}


def expected(model: bytes, fed: Mapping[str, Any]) -> list[Any]:
    return list(onnxruntime.InferenceSession(model, providers=[CPU]).run(None, fed))


def on(session: parallax.InferenceSession, backend: str) -> list[str]:
    graph = session._model.graph
    return [
        graph.nodes[node].op_type
        for segment in session.plan.segments
        if segment.backend == backend
        for node in segment.nodes
    ]


def test_what_the_device_takes_runs_there_and_the_rest_on_the_cpu() -> None:
    model = two_branches()
    session = parallax.InferenceSession(model, providers=[PHONE, CPU], min_gain=0, threads=2)
    assert set(on(session, PHONE)) == {"MatMul", "Add"}
    assert "Erf" in on(session, CPU_BACKEND)
    assert session.get_providers() == [PHONE, CPU]
    for seed in range(3):
        (answer,) = session.run(None, feeds(seed=seed))
        np.testing.assert_allclose(answer, expected(model, feeds(seed=seed))[0], rtol=1e-5, atol=1e-5)


def test_regions_have_a_queue_of_their_own_beside_the_cpu() -> None:
    recorder = TraceRecorder()
    # The two branches take about as long, so that only side by side anything is gained.
    model = two_branches(batch=512, fallbacks=30)
    session = parallax.InferenceSession(
        model, providers=[(PHONE, {"speed": 3})], min_gain=0.01, threads=1, trace=recorder
    )
    session.run(None, feeds(512))
    recorder.take()
    session.run(None, feeds(512))
    spans = recorder.take()
    backends = [segment.backend for segment in session.plan.segments]
    lanes = {backend: {span.lane for span in spans if backends[span.segment] == backend} for backend in set(backends)}
    assert lanes[PHONE].isdisjoint(lanes[CPU_BACKEND])
    widths = {span.width for span in spans if backends[span.segment] == PHONE}
    assert widths == {0}


def test_a_device_that_gains_nothing_is_left_alone_and_the_plan_says_why() -> None:
    tiny = two_branches(batch=1, depth=2)
    session = parallax.InferenceSession(tiny, providers=[PHONE, CPU])
    assert session.plan.is_whole
    assert "no region gains anything" in session.plan.provenance.reason
    assert "ms on the CPU alone" in session.plan.provenance.reason
    assert session.get_providers() == [PHONE, CPU]
    np.testing.assert_array_equal(session.run(None, feeds(1))[0], expected(tiny, feeds(1))[0])


def test_a_region_that_gains_is_taken_unmeasured() -> None:
    # So much faster than the processor that nothing else could be best.
    model = two_branches(batch=512)
    session = parallax.InferenceSession(model, providers=[(PHONE, {"speed": 1000})], threads=2)
    assert "MatMul" in on(session, PHONE)
    assert session.plan.provenance.source == "tables"
    assert "predicted" in session.plan.provenance.reason
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-5, atol=1e-5)


def test_tuning_compares_the_cpu_greedy_placement_and_regions(tmp_path: Path) -> None:
    model = two_branches(batch=512)
    session = parallax.InferenceSession(
        model, providers=[(PHONE, {"speed": 1000})], threads=2, tune=True, cache_dir=tmp_path
    )
    candidates = {candidate.label: candidate for candidate in session.plan.provenance.candidates}
    assert any(label.startswith("whole model") for label in candidates)
    assert f"greedy on {PHONE}" in candidates
    assert all(candidate.measured_ns or candidate.note for candidate in candidates.values())
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-5, atol=1e-5)


def test_open_shapes_are_planned_as_given_and_others_fall_back_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    model = two_branches(batch="n")
    session = parallax.InferenceSession(model, providers=[PHONE], min_gain=0, threads=2, shapes={"x": (64, SIZE)})
    assert "MatMul" in on(session, PHONE)
    for batch in (64, 3, 64, 17):
        fed = feeds(batch)
        np.testing.assert_allclose(session.run(None, fed)[0], expected(model, fed)[0], rtol=1e-5, atol=1e-5)
    assert not caplog.records  # other shapes are nobody's failure


def test_without_shapes_a_static_delegate_takes_nothing() -> None:
    session = parallax.InferenceSession(two_branches(batch="n"), providers=[PHONE], min_gain=0)
    assert PHONE not in {segment.backend for segment in session.plan.segments}


def test_policy_sequential_runs_one_thing_after_the_other() -> None:
    model = two_branches(batch=512)
    session = parallax.InferenceSession(model, providers=[(PHONE, {"speed": 1000})], threads=2, policy="sequential")
    assert session.plan.lanes == 1
    assert "MatMul" in on(session, PHONE)
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-5, atol=1e-5)


def test_never_split_a_device_gets_the_whole_model_or_nothing() -> None:
    products, mixed = two_branches(batch=512, fallbacks=0), two_branches(batch=512)
    fast, slow = (PHONE, {"speed": 1000}), (PHONE, {"speed": 0.001})
    session = parallax.InferenceSession(products, providers=[fast], threads=2, split="never")
    assert [segment.backend for segment in session.plan.segments] == [PHONE]
    assert "ms predicted" in session.plan.provenance.reason
    np.testing.assert_allclose(
        session.run(None, feeds(512))[0], expected(products, feeds(512))[0], rtol=1e-5, atol=1e-5
    )
    session = parallax.InferenceSession(mixed, providers=[fast], threads=2, split="never")
    assert session.plan.is_whole
    assert "does not take" in session.plan.provenance.reason
    assert 'split="never"' in session.plan.provenance.reason
    session = parallax.InferenceSession(products, providers=[slow], threads=2, split="never")
    assert session.plan.is_whole
    assert "does not gain" in session.plan.provenance.reason


def test_always_split_is_what_a_least_gain_of_zero_is_on_devices_too() -> None:
    model = two_branches(batch=1, depth=2)
    always = parallax.InferenceSession(model, providers=[PHONE, CPU], threads=2, split="always")
    assert "MatMul" in on(always, PHONE), "though it gains nothing"
    assert 'split="always"' in always.plan.provenance.reason
    assert always.plan == parallax.InferenceSession(model, providers=[PHONE, CPU], threads=2, min_gain=0).plan


def test_many_threads_share_the_device() -> None:
    model = two_branches()
    session = parallax.InferenceSession(model, providers=[PHONE], min_gain=0, threads=2)
    wanted = {seed: expected(model, feeds(seed=seed))[0] for seed in range(4)}
    failures: list[str] = []

    def work(seed: int) -> None:
        for _ in range(10):
            (answer,) = session.run(None, feeds(seed=seed))
            if not np.allclose(answer, wanted[seed], rtol=1e-5, atol=1e-5):
                failures.append(f"seed {seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_session_on_a_device_is_pickled_with_it() -> None:
    model = two_branches()
    session = parallax.InferenceSession(model, providers=[PHONE, CPU], min_gain=0)
    copy = pickle.loads(pickle.dumps(session))
    assert copy.get_providers() == [PHONE, CPU]
    assert [segment.backend for segment in copy.plan.segments] == [s.backend for s in session.plan.segments]


def test_set_providers_leaves_the_device() -> None:
    session = parallax.InferenceSession(two_branches(), providers=[PHONE], min_gain=0)
    session.set_providers([CPU])
    assert session.get_providers() == [CPU]
    assert {segment.backend for segment in session.plan.segments} == {CPU_BACKEND}


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="pixel-6-gpu"):
        parallax.InferenceSession(two_branches(), providers=["emulated:toaster"])


@pytest.mark.parametrize("demand", [{"min_gain": 0}, {}, {"policy": "sequential"}, {"tune": True}])
def test_a_device_holds_no_more_than_it_may(demand: dict[str, Any], tmp_path: Path) -> None:
    model = two_branches(batch=512)  # six weights of 256 KiB, tensors of 512 KiB
    options = {"speed": 1000, "memory_budget": "2MiB"}
    session = parallax.InferenceSession(model, providers=[(PHONE, options)], threads=2, cache_dir=tmp_path, **demand)
    products = on(session, PHONE).count("MatMul")
    if demand.get("tune"):  # what was measured quickest may be the processor
        assert products < 6
        labels = {candidate.label for candidate in session.plan.provenance.candidates}
        assert f"greedy on {PHONE}" in labels
    else:
        assert 0 < products < 6
        assert on(session, CPU_BACKEND).count("MatMul") == 6 - products
    fed = feeds(512)
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, fed)[0], expected(model, fed)[0], rtol=1e-5, atol=1e-5)
    free = parallax.InferenceSession(
        model, providers=[(PHONE, {"speed": 1000})], threads=2, min_gain=0, cache_dir=tmp_path
    )
    assert on(free, PHONE).count("MatMul") == 6


def test_the_plan_says_what_the_device_holds_and_may_hold() -> None:
    options: dict[str, object] = {"speed": 1000, "memory_budget": 2 << 20}
    session = parallax.InferenceSession(two_branches(batch=512), providers=[(PHONE, options)], threads=2)
    assert "MiB there, of 2.0 MiB allowed" in session.plan.provenance.reason
    options["memory_budget"] = "1 KiB"
    session = parallax.InferenceSession(two_branches(batch=512), providers=[(PHONE, options)], threads=2)
    assert session.plan.is_whole
    assert "no region gains anything in 1.0 KiB of its memory" in session.plan.provenance.reason


def test_bodies_share_what_the_model_around_them_leaves_of_a_devices_memory() -> None:
    model = decoder().SerializeToString()

    def held(limit: int | None) -> int:
        options = {"speed": 1000} if limit is None else {"speed": 1000, "memory_budget": limit}
        device = "emulated:jetson-agx-orin"
        session = parallax.InferenceSession(model, providers=[(device, options)], min_gain=0, threads=2)
        rng = np.random.default_rng(0)
        for _ in range(3):
            fed = decoder_feeds(rng)
            for mine, theirs in zip(session.run(None, fed), expected(model, fed), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        total, stack = 0, [(session._model, session.plan)]
        while stack:
            part, plan = stack.pop()
            total += held_bytes(part.inferred(), plan, device)
            for segment in plan.segments:
                for body in segment.bodies:
                    (made,) = [b for b in part.bodies(segment.nodes[0]) if b.attribute == body.attribute]
                    stack.append((made.model, body.plan))
        return total

    everything = held(None)
    assert 0 < held(everything // 2) <= everything // 2
    assert held(1) == 0


@pytest.mark.parametrize(
    ("provider", "complaint"),
    [
        ((PHONE, {"memory_budget": "much"}), "no amount of memory"),
        ((PHONE, {"memory_budget": 0.5}), "share"),
        ((CPU, {"memory_budget": "1MiB"}), "gets the whole model"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(provider: tuple[str, dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parallax.InferenceSession(two_branches(), providers=[provider])


def test_a_limit_of_the_runtimes_own_arena_is_planned_for() -> None:
    assert make_device("CUDAExecutionProvider", {"gpu_mem_limit": "1048576"}).memory_bytes == 1 << 20
    device = make_device("CUDAExecutionProvider", {"gpu_mem_limit": 1 << 30, "memory_budget": "1MiB"})
    assert device.memory_bytes == 1 << 20
    assert device.options == {"gpu_mem_limit": 1 << 30}
    assert make_device("CUDAExecutionProvider", {}).memory_bytes is None


def test_the_whole_model_is_not_tried_on_a_device_that_may_not_hold_it(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = two_branches(batch=512)
    session = parallax.InferenceSession(
        model, providers=[("openvino", {"memory_budget": "2MiB"})], threads=2, tune=True, cache_dir=tmp_path
    )
    candidates = session.plan.provenance.candidates
    assert any("of its memory, where 2.0 MiB are allowed" in candidate.note for candidate in candidates)
    assert "whole model, openvino" not in {candidate.label for candidate in candidates}
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-4, atol=1e-4)


def test_tuning_prices_a_device_that_states_no_speed_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = two_branches(batch=512)
    session = parallax.InferenceSession(model, providers=["openvino"], threads=2, tune=True, cache_dir=tmp_path)
    candidates = session.plan.provenance.candidates
    told = [candidate.note for candidate in candidates]
    assert not any("has no prices" in note for note in told), told
    # There is a placement by cost, or what was compared says in milliseconds why there is none.
    placed = any(candidate.label == "regions on openvino" and candidate.simulated_ns > 0 for candidate in candidates)
    assert placed or any("ms on the CPU alone" in note for note in told), told
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-4, atol=1e-4)


def test_a_bundle_is_not_for_a_device(tmp_path: Path) -> None:
    parallax.compile(two_branches(), tmp_path / "m.plx")
    with pytest.raises((ConfigError, BundleError), match="compiled for the CPU"):
        parallax.InferenceSession(tmp_path / "m.plx", providers=[PHONE])


def test_two_sessions_share_one_emulated_device() -> None:
    first, second = (open_backend(PHONE) for _ in range(2))
    assert isinstance(first, EmulatedBackend)
    assert isinstance(second, EmulatedBackend)
    assert first._queue is second._queue


def test_regions_inside_bodies_reach_the_device() -> None:
    proto = decoder().SerializeToString()
    session = parallax.InferenceSession(proto, providers=[PHONE], min_gain=0, threads=2)
    inside = [
        segment.backend for outer in session.plan.segments for body in outer.bodies for segment in body.plan.segments
    ]
    assert PHONE in inside
    assert CPU_BACKEND in inside
    rng = np.random.default_rng(0)
    for _ in range(5):
        fed = decoder_feeds(rng)
        for answer, wanted in zip(session.run(None, fed), expected(proto, fed), strict=True):
            np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-5)


# -- rows shared ----------------------------------------------------------------------------------------------


def chain(depth: int = 4, rows: int | str = 512) -> bytes:
    """Products one after the other, with an error function between them, which the phone does not take.

    Tuned for a phone so quick that its products pay whatever the processor was measured to take.
    """
    nodes, weights, last = [], [], "x"
    for step in range(depth):
        weights.append(_weights(f"w{step}", SIZE, SIZE, seed=step))
        nodes.append(helper.make_node("MatMul", [last, f"w{step}"], [f"a{step}"], name=f"product_{step}"))
        nodes.append(helper.make_node("Erf", [f"a{step}"], [f"b{step}"], name=f"erf_{step}"))
        last = f"b{step}"
    nodes[-1].output[0] = "y"
    return _serialised("chain", nodes, weights, rows=rows)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning measures in earnest, but not for long: what is kept where is not asked here, or is set."""
    monkeypatch.setattr("parallax.planner._measuring.PATIENCE_S", 0.5)
    measure = functools.partial(measure_again_if_noisy, rounds=5)
    monkeypatch.setattr(
        "parallax.planner._tuning.measure_again_if_noisy", lambda peers, *, rounds=0, **how: measure(peers, **how)
    )


@pytest.fixture
def rows_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, whatever else the machine is doing: plans with rows shared come last."""
    monkeypatch.setattr("parallax.planner._tuning.pick_winner", lambda times, whole=(): len(times) - 1)
    monkeypatch.setattr("parallax.planner._tuning.NOISY_SHARE", 1e9)


def check_shared(session: parallax.InferenceSession, model: bytes) -> None:
    plan = session.plan
    assert plan.rows_permille is not None
    assert 0 < plan.rows_permille < 1000
    assert {segment.backend for segment in plan.segments} == {PHONE, CPU_BACKEND}
    for seed in range(3):
        np.testing.assert_allclose(
            session.run(None, feeds(512, seed))[0], expected(model, feeds(512, seed))[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.usefixtures("rows_win")
def test_rows_are_shared_where_that_was_measured_to_be_best_and_later_sessions_know(tmp_path: Path) -> None:
    model = chain()
    options: dict[str, Any] = {"providers": [(PHONE, {"speed": 1000})], "threads": 2, "cache_dir": tmp_path}
    tuned = parallax.InferenceSession(model, tune=True, **options)
    check_shared(tuned, model)
    label = tuned.plan.provenance.candidates[-1].label
    assert label.startswith(f"rows shared with {PHONE}, ")
    assert tuned.memory().run_peak_bytes
    later = parallax.InferenceSession(model, **options)
    assert later.plan == tuned.plan
    check_shared(later, model)
    check_shared(pickle.loads(pickle.dumps(later)), model)
    check_shared(parallax.InferenceSession(model, memory_budget="1GiB", **options), model)
    assert later._sess is not None, "the whole model is the caller's, not the split one"
    np.testing.assert_array_equal(later._sess.run(["y"], feeds(512), None)[0], expected(model, feeds(512))[0])


@pytest.mark.usefixtures("rows_win")
def test_many_threads_share_rows(tmp_path: Path) -> None:
    model = chain()
    session = parallax.InferenceSession(
        model, providers=[(PHONE, {"speed": 1000})], threads=2, tune=True, cache_dir=tmp_path
    )
    assert session.plan.rows_permille is not None
    wrong: list[int] = []

    def work(seed: int) -> None:
        answer = expected(model, feeds(512, seed))[0]
        for _ in range(10):
            if not np.allclose(session.run(None, feeds(512, seed))[0], answer, rtol=1e-5, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
