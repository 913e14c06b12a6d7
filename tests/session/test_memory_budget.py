"""Sessions within memory budgets: same answers, no more memory, refusals that say what would do."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import parallax
from parallax.engine import TraceRecorder
from parallax.errors import BudgetError, ConfigError, PlanError, RunCancelled
from parallax.machine import PressureMonitor, PressureReading
from parallax.opening._state import SessionState
from tests.session._dropin import (
    FloatArray,
    ForcedSplitSession,
    SessionClass,
    branches_answer,
    branches_model,
    ramp,
)

MIB = 1 << 20
PATIENCE_S = 60

both_ways = pytest.mark.parametrize(
    "session_class", [pytest.param(parallax.InferenceSession, id="whole"), pytest.param(ForcedSplitSession, id="cut")]
)


@pytest.fixture(autouse=True)
def no_pressure(monkeypatch):
    """Whatever else this machine is doing, its memory is not short here."""
    plenty = PressureMonitor(read=lambda: PressureReading(free_bytes=1 << 40))
    monkeypatch.setattr("parallax.admission._session_memory._process_monitor", plenty)


def wide_model(rows: int | str, *, branches: int = 6, depth: int = 3) -> bytes:
    """`branches_model` without constants, over x[rows, 1024]; each branch is summed up, so that the outputs are small.

    A branch holds two tensors of the input's size at a time.
    """
    nodes, ends = [], []
    for branch in range(branches):
        value = "x"
        for step in range(depth):
            operator = ("Sin", "Cos", "Tanh")[(branch + step) % 3]
            nodes.append(helper.make_node(operator, [value], [f"v_{branch}_{step}"]))
            value = f"v_{branch}_{step}"
        nodes.append(helper.make_node("ReduceSum", [value, "axes"], [f"end_{branch}"], keepdims=0))
        ends.append(f"end_{branch}")
    nodes.append(helper.make_node("Concat", ends, ["y"], axis=0))
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


def answer(model: bytes, x: FloatArray) -> FloatArray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, {"x": x})[0]
    return result


def least_budget(session_class: SessionClass, model: bytes, **options: Any) -> int:
    with pytest.raises(BudgetError) as caught:
        session_class(model, memory_budget=1, **options)
    assert caught.value.least_bytes is not None
    return caught.value.least_bytes


# -- refusals -------------------------------------------------------------------------------------------------


@both_ways
def test_what_cannot_run_is_refused_with_the_number_that_would_do(session_class):
    model = wide_model(256)
    least = least_budget(session_class, model)
    with pytest.raises(BudgetError, match=f"too small.*memory_budget={least}") as caught:
        session_class(model, memory_budget=least - 1)
    assert isinstance(caught.value, PlanError)
    session = session_class(model, memory_budget=least)
    x = ramp(256, 1024)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))
    assert session.memory().least_budget_bytes == least


def test_a_split_that_does_not_fit_gives_way_to_the_whole_model():
    x = ramp(4096, 4)
    model = branches_model(6, 1).SerializeToString()
    shapes = {"x": x.shape}
    roomy = ForcedSplitSession(model, shapes=shapes, memory_budget="1GiB")
    assert len(roomy.plan.segments) > 1
    least = least_budget(ForcedSplitSession, model, shapes=shapes)
    assert roomy.memory().least_budget_bytes is not None
    tight = ForcedSplitSession(model, shapes=shapes, memory_budget=least)
    np.testing.assert_array_equal(tight.run(None, {"x": x})[0], roomy.run(None, {"x": x})[0])
    if roomy.memory().least_budget_bytes > least:
        assert len(tight.plan.segments) == 1, "the whole model, or the whole with a part of it in slices"
        assert "memory budget" in tight.plan.provenance.reason


@both_ways
def test_shapes_that_do_not_fit_are_refused_before_they_run_and_others_go_on(session_class):
    model = wide_model("rows")
    small, large = ramp(16, 1024), ramp(4096, 1024)
    session = session_class(model, memory_budget="8MiB")
    with pytest.raises(BudgetError, match=r"x \[4096, 1024\]") as caught:
        session.run(None, {"x": large})
    np.testing.assert_array_equal(session.run(None, {"x": small})[0], answer(model, small))
    enough = session_class(model, memory_budget=caught.value.least_bytes)
    np.testing.assert_allclose(enough.run(None, {"x": large})[0], answer(model, large), rtol=1e-5)


@pytest.mark.parametrize("value", ["", "much", "5 XB", "0", 0, -1, 1.5, 0.0, float("nan"), True, "101%", [1]])
def test_what_is_no_amount_of_memory_is_refused(value):
    with pytest.raises(ConfigError, match=r"memory_budget.*256MiB"):
        parallax.InferenceSession(wide_model(1), memory_budget=value)


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("nan")])
def test_what_is_no_time_to_idle_is_refused(value):
    with pytest.raises(ConfigError, match="idle_trim_s"):
        parallax.InferenceSession(wide_model(1), idle_trim_s=value)


@pytest.mark.parametrize("value", [64 * MIB, "64MiB", "67.108864 MB"])
def test_the_same_budget_may_be_written_in_several_ways(value):
    session = parallax.InferenceSession(wide_model(1), memory_budget=value)
    assert session.memory().budget_bytes == 64 * MIB


def test_a_share_is_one_of_what_is_free():
    session = parallax.InferenceSession(wide_model(1), memory_budget=0.5)
    budget = session.memory().budget_bytes
    free = parallax.machine.free_memory_bytes()
    assert budget is not None
    assert 0.2 * free < budget < 0.9 * free


@both_ways
def test_the_margin_of_a_budget_can_be_set(session_class, tmp_path):
    model, x = wide_model(256), ramp(256, 1024)
    folder = str(parallax.compile(model, tmp_path / "wide.plx", memory_budget="64MiB", margin=0.2))
    for source in (model, folder):
        made = {
            margin: parallax.InferenceSession(source, memory_budget="64MiB", margin=margin)
            if source is folder
            else session_class(source, memory_budget="64MiB", margin=margin)
            for margin in (0, 0.1, 0.5)
        }
        limits = {margin: session.memory().limit_bytes for margin, session in made.items()}
        assert abs(limits[0] - limits[0.5] - 32 * MIB) <= 2
        default = type(made[0.1])(source, memory_budget="64MiB")
        assert default.memory().limit_bytes == limits[0.1]
        least = {margin: session.memory().least_budget_bytes for margin, session in made.items()}
        assert least[0] < least[0.1] < least[0.5]
        assert abs(least[0.5] - 2 * least[0]) <= 2
        copy = pickle.loads(pickle.dumps(made[0.5]))
        assert copy.memory().limit_bytes == limits[0.5]
        for session in (*made.values(), copy):
            np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))
    with pytest.raises(BudgetError, match="50% is kept free") as caught:
        session_class(model, memory_budget="2MiB", margin=0.5)
    session = session_class(model, memory_budget=caught.value.least_bytes, margin=0.5)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))


@pytest.mark.parametrize("value", [1, -0.1, 2, "10%", None, True, float("nan")])
def test_what_is_no_margin_is_refused(value):
    with pytest.raises(ConfigError, match=r"margin=.*from 0 to below 1"):
        parallax.InferenceSession(wide_model(1), memory_budget="64MiB", margin=value)


# -- what runs at once ----------------------------------------------------------------------------------------


def most_at_once(session: parallax.InferenceSession, recorder: TraceRecorder) -> int:
    """The highest sum of peaks of segments that ran at the same time, from what was traced."""
    peaks = {segment.index: segment.peak_bytes for segment in session.plan.segments}
    events = []
    for span in recorder.take():
        events += [(span.start_ns, 1, peaks[span.segment]), (span.end_ns, 0, -peaks[span.segment])]
    return max(itertools.accumulate(size for _, _, size in sorted(events)), default=0)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.3])
def test_with_less_memory_less_runs_at_once_and_the_answers_stay(share):
    model, x = wide_model(256), ramp(256, 1024)
    recorder = TraceRecorder()
    roomy = ForcedSplitSession(model, memory_budget="1GiB")
    wanted = roomy.memory().run_peak_bytes
    least = least_budget(ForcedSplitSession, model)
    assert wanted is not None
    enough = least - _held_alone(roomy) + wanted
    budget = max(least, int(enough * share))
    session = ForcedSplitSession(model, memory_budget=budget, trace=recorder)
    usage = session.memory()
    assert usage.limit_bytes is not None
    for _ in range(10):
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))
    usage = session.memory()
    assert usage.admitted_bytes == 0
    assert 0 < usage.admitted_peak_bytes <= usage.limit_bytes < budget
    assert most_at_once(session, recorder) <= usage.limit_bytes


def _held_alone(session: parallax.InferenceSession) -> int:
    """What one segment at a time holds: the least a run can do with."""
    need = session._estimator.requirement({})
    return int(need.least_bytes)


MEASURE = """
import sys, threading
import numpy as np
import parallax
from parallax.machine import private_bytes, trim_heap
sys.path.insert(0, {root!r})
from tests.session._dropin import ForcedSplitSession, ramp
from tests.session.test_memory_budget import answer, wide_model

model, x = wide_model(1024), ramp(1024, 1024)
expected = answer(model, x)
session = {name}(model, memory_budget={budget})
trim_heap()
before = private_bytes()
stop = False
highest = 0
def watch():
    global highest
    while not stop:
        highest = max(highest, private_bytes() - before)
watcher = threading.Thread(target=watch)
watcher.start()
wrong = 0
def work():
    global wrong
    for _ in range(6):
        wrong += not np.array_equal(session.run(None, {{"x": x}})[0], expected)
workers = [threading.Thread(target=work) for _ in range({threads})]
for worker in workers: worker.start()
for worker in workers: worker.join()
stop = True
watcher.join()
usage = session.memory()
print(highest, wrong, usage.admitted_peak_bytes, usage.run_peak_bytes, len(session.plan.segments))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
@pytest.mark.parametrize(
    ("name", "budget", "threads"),
    [
        pytest.param("ForcedSplitSession", 40 * MIB, 1, id="cut"),
        pytest.param("ForcedSplitSession", 15 * MIB, 1, id="cut, tight"),
        pytest.param("ForcedSplitSession", 40 * MIB, 4, id="cut, several threads"),
        pytest.param("parallax.InferenceSession", 26 * MIB, 1, id="whole"),
        pytest.param("parallax.InferenceSession", 26 * MIB, 4, id="whole, several threads"),
        pytest.param("parallax.InferenceSession", 60 * MIB, 4, id="whole, several threads at once"),
    ],
)
def test_the_process_grows_by_no_more_than_the_budget(name, budget, threads, pytestconfig):
    script = MEASURE.format(root=str(pytestconfig.rootpath), name=name, budget=budget, threads=threads)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False
    )
    assert result.returncode == 0, result.stderr
    highest, wrong, admitted, wanted, segments = map(int, result.stdout.split())
    assert wrong == 0
    assert (segments > 1) == (name == "ForcedSplitSession")
    assert 0 < admitted <= budget
    assert highest <= budget, f"{highest} bytes measured, {admitted} admitted, {wanted} wanted by a run"


# -- several threads ------------------------------------------------------------------------------------------


@both_ways
def test_runs_of_several_threads_share_one_budget(session_class):
    model = wide_model(256)
    least = least_budget(session_class, model)
    session = session_class(model, memory_budget=least + MIB)
    feeds = [ramp(256, 1024, start=float(number)) for number in range(12)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: session.run(None, {"x": x})[0], feeds))
    for x, result in zip(feeds, results, strict=True):
        np.testing.assert_array_equal(result, answer(model, x))
    usage = session.memory()
    assert usage.admitted_bytes == 0
    assert usage.admitted_peak_bytes <= usage.limit_bytes


@both_ways
def test_every_way_to_run_is_admitted(session_class):
    model, x = wide_model(64), ramp(64, 1024)
    expected = answer(model, x)
    session = session_class(model, memory_budget="64MiB")
    value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    (result,) = session.run_with_ort_values(None, {"x": value})
    np.testing.assert_array_equal(result.numpy(), expected)
    arrived = threading.Event()
    heard: list[Any] = []

    def hear(results: Any, data: Any, error: str) -> None:
        heard.append((results, data, error))
        arrived.set()

    session.run_async(None, {"x": x}, hear, "mine")
    assert arrived.wait(PATIENCE_S)
    ((results, data, error),) = heard
    assert (data, error) == ("mine", "")
    np.testing.assert_array_equal(results[0], expected)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
    assert session.memory().admitted_peak_bytes > 0
    assert session.memory().admitted_bytes == 0


@both_ways
def test_a_run_that_fails_gives_back_what_it_was_granted(session_class):
    session = session_class(wide_model("rows"), memory_budget="64MiB")
    for wrong in ({"x": ramp(4, 3)}, {"nobody": ramp(4, 1024)}, {}):
        with pytest.raises(Exception) as theirs:
            onnxruntime.InferenceSession(wide_model("rows"), providers=["CPUExecutionProvider"]).run(None, wrong)
        with pytest.raises(type(theirs.value)):
            session.run(None, wrong)
    assert session.memory().admitted_bytes == 0
    x = ramp(4, 1024)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(wide_model("rows"), x))


@both_ways
def test_a_run_that_waits_can_be_stopped(session_class):
    model, x = wide_model(64), ramp(64, 1024)
    session = session_class(model, memory_budget="64MiB")
    gate = session._memory.controller
    grant = gate.admit(session._estimator.requirement({}))
    session._memory._monitor = PressureMonitor(read=lambda: PressureReading(free_bytes=0))
    options = onnxruntime.RunOptions()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            session.run(None, {"x": x}, options)
        except RunCancelled as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not gate.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    options.terminate = True
    thread.join(PATIENCE_S)
    assert len(caught) == 1
    gate.release(grant)
    options.terminate = False
    np.testing.assert_array_equal(session.run(None, {"x": x}, options)[0], answer(model, x))


# -- what is told ---------------------------------------------------------------------------------------------


def test_a_cut_session_tells_of_its_arenas():
    x = ramp(256, 4)
    session = ForcedSplitSession(branches_model(4, 2).SerializeToString(), shapes={"x": x.shape})
    session.run(None, {"x": x})
    usage = session.memory()
    assert 0 < usage.planned_bytes <= usage.reserved_bytes
    assert 0 < usage.touched_bytes <= usage.reserved_bytes
    assert usage.run_peak_bytes >= usage.planned_bytes
    assert usage.process_private_bytes > MIB
    assert (usage.budget_bytes, usage.limit_bytes, usage.admitted_peak_bytes) == (None, None, None)
    assert usage.to_json()["planned_bytes"] == usage.planned_bytes


def test_a_session_of_a_whole_model_says_none_of_what_it_does_not_know():
    x = ramp(8, 1024)
    session = parallax.InferenceSession(wide_model(8))
    session.run(None, {"x": x})
    usage = session.memory()
    assert usage.planned_bytes is usage.reserved_bytes is usage.touched_bytes is usage.weights_mapped_bytes is None
    assert usage.run_peak_bytes >= 2 * x.nbytes
    assert parallax.InferenceSession(wide_model("rows")).memory().run_peak_bytes is None
    assert set(usage.to_json()) >= {"planned_bytes", "process_private_bytes", "budget_bytes"}


def test_segments_of_a_cut_plan_tell_their_peaks():
    session = ForcedSplitSession(wide_model(256))
    peaks = [segment.peak_bytes for segment in session.plan.segments]
    assert max(peaks) >= 256 * 1024 * 4


# -- giving back ----------------------------------------------------------------------------------------------


TRIM = """
import sys
import numpy as np
import parallax
sys.path.insert(0, {root!r})
from tests.session._dropin import ForcedSplitSession, ramp
from tests.session.test_memory_budget import wide_model

model, x = wide_model(4096), ramp(4096, 1024)
session = {name}(model, memory_budget={budget!r})
expected = session.run(None, {{"x": x}})[0]
returned = session.trim()
print(returned, x.nbytes, session.plan.is_whole, np.array_equal(session.run(None, {{"x": x}})[0], expected))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
@pytest.mark.parametrize("name", ["parallax.InferenceSession", "ForcedSplitSession"])
@pytest.mark.parametrize("budget", [None, "1GiB"])
def test_trimming_gives_memory_back_and_the_session_goes_on(name, budget, pytestconfig):
    """In a process of its own: the heap of this one may have room for the session left over from other tests."""
    script = TRIM.format(root=str(pytestconfig.rootpath), name=name, budget=budget)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False
    )
    assert result.returncode == 0, result.stderr
    returned, size, is_whole, is_equal = result.stdout.split()
    assert is_equal == "True"
    if budget is None and is_whole == "True":
        # To shrink an arena is to run something, which takes some 100 KiB of the heap.
        assert int(returned) >= int(size) // 2 - (1 << 19), "the runtime's own arena keeps its first block"
    else:
        assert int(returned) >= int(size), "of the two tensors that a branch holds"


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
@both_ways
def test_an_idle_session_gives_memory_back_by_itself(session_class):
    model, x = wide_model(4096), ramp(4096, 1024)
    session = session_class(model, idle_trim_s=0.05)
    expected = session.run(None, {"x": x})[0]
    deadline = time.monotonic() + PATIENCE_S
    while not session._memory._trimmed:
        assert time.monotonic() < deadline, "it was never trimmed"
        time.sleep(0.01)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_sessions_without_budget_or_idle_time_are_left_alone():
    session = parallax.InferenceSession(wide_model(8))
    session.run(None, {"x": ramp(8, 1024)})
    assert session._memory is None
    assert session._opened.state is SessionState.DIRECT, "the shortest way to run stays open"


# -- bundles, copies ------------------------------------------------------------------------------------------


@both_ways
def test_a_bundle_runs_within_a_budget_and_is_refused_with_the_number(session_class, tmp_path):
    model, x = wide_model(256), ramp(256, 1024)
    target = tmp_path / "wide.plx"
    options = {"min_gain": 0, "threads": 2} if session_class is ForcedSplitSession else {}
    parallax.compile(model, target, memory_budget="64MiB", **options)
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(target, memory_budget=1000, threads=2)
    session = parallax.InferenceSession(target, memory_budget=caught.value.least_bytes, threads=2)
    assert session.plan.is_whole == (session_class is not ForcedSplitSession)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))
    usage = session.memory()
    assert usage.weights_private_bytes == 0
    assert usage.admitted_peak_bytes <= usage.limit_bytes


def test_what_no_budget_would_do_for_is_refused_when_it_is_compiled(tmp_path):
    with pytest.raises(BudgetError) as caught:
        parallax.compile(wide_model(256), tmp_path / "wide.plx", memory_budget="1MiB")
    assert not (tmp_path / "wide.plx").exists()
    parallax.compile(wide_model(256), tmp_path / "wide.plx", memory_budget=caught.value.least_bytes)


def test_a_bundle_of_open_shapes_runs_alone_where_it_cannot_know_its_need(tmp_path):
    model = wide_model("rows")
    parallax.compile(model, tmp_path / "open.plx")
    session = parallax.InferenceSession(tmp_path / "open.plx", memory_budget="64MiB")
    for rows in (3, 200):
        x = ramp(rows, 1024)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], answer(model, x))
    assert session.memory().run_peak_bytes is None
    assert session.memory().admitted_peak_bytes == session.memory().limit_bytes
    parallax.compile(model, tmp_path / "kept.plx", portable=True)
    kept = parallax.InferenceSession(tmp_path / "kept.plx", memory_budget="64MiB")
    x = ramp(200, 1024)
    np.testing.assert_array_equal(kept.run(None, {"x": x})[0], answer(model, x))
    assert kept.memory().run_peak_bytes is not None


def test_a_copy_has_the_same_budget():
    session = parallax.InferenceSession(wide_model(8), memory_budget="48MiB", idle_trim_s=7)
    copy = pickle.loads(pickle.dumps(session))
    assert copy.memory().budget_bytes == 48 * MIB
    assert copy._memory.idle_trim_s == 7


def test_weights_that_are_private_count(tmp_path):
    weight = np.ones((1024, 1024), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        "weighty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 1024])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 1024])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    least = least_budget(parallax.InferenceSession, model.SerializeToString())
    assert least > weight.nbytes
    with pytest.raises(BudgetError, match="bundle maps its weights"):
        parallax.InferenceSession(model.SerializeToString(), memory_budget=weight.nbytes)
    parallax.compile(model, tmp_path / "weighty.plx")
    session = parallax.InferenceSession(tmp_path / "weighty.plx", memory_budget=weight.nbytes)
    assert session.memory().weights_mapped_bytes >= weight.nbytes
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((2, 1024), np.float32)})[0], 1024)


def test_the_answer_of_the_shared_model_is_the_one_numpy_gives():
    x = ramp(32, 4)
    session = ForcedSplitSession(branches_model(3, 2).SerializeToString(), memory_budget="16MiB")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x, 3, 2), rtol=1e-6)
