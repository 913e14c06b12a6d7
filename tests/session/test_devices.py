"""Sessions on accelerators: emulated ones, so that answers are ONNX Runtime's own and placements real."""

from __future__ import annotations

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
from parallax.device import EmulatedBackend, open_backend
from parallax.engine import TraceRecorder
from parallax.errors import BundleError, ConfigError
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
    assert session.plan.is_uncut
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
    assert any(label.startswith("uncut") for label in candidates)
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


@pytest.fixture
def rows_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, whatever else the machine is doing: plans with rows shared come last."""
    monkeypatch.setattr("parallax.session._tuning.pick_winner", lambda times, whole=(): len(times) - 1)
    monkeypatch.setattr("parallax.session._tuning.DISTURBED_SHARE", 1e9)


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
    within = parallax.InferenceSession(model, memory_budget="1GiB", **options)
    assert within.plan.rows_permille is None, "a budget is judged by the model as it is"
    np.testing.assert_allclose(within.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-5, atol=1e-5)
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


@pytest.mark.parametrize(
    ("rows", "more"),
    [("n", {}), (512, {"shapes": {"x": (512, SIZE)}}), (512, {"memory_budget": "1GiB"})],
    ids=["open shapes", "shapes for planning alone", "a budget"],
)
def test_rows_are_not_shared_where_the_model_as_it_is_must_be_known(
    rows: int | str, more: dict[str, Any], tmp_path: Path
) -> None:
    model = chain(rows=rows)
    session = parallax.InferenceSession(
        model,
        providers=[(PHONE, {"speed": 1000})],
        threads=2,
        tune=True,
        cache_dir=tmp_path,
        calibration=feeds(512),
        **more,
    )
    assert session.plan.rows_permille is None
    assert not any("rows" in candidate.label for candidate in session.plan.provenance.candidates)
    np.testing.assert_allclose(session.run(None, feeds(512))[0], expected(model, feeds(512))[0], rtol=1e-5, atol=1e-5)
