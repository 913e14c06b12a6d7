"""Budgets that one caller's run does not fit into as planned: the plan changes, the answers do not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import parallax
from parallax.backends.ort import RuntimeOptions, make_session
from parallax.errors import BudgetError
from parallax.graph import tensor_bytes
from parallax.memory import Budget
from parallax.model import load_model
from parallax.options import sliced_options
from parallax.planner._constants import with_constants
from parallax.schedule import Plan
from tests._threads import in_threads
from tests.session.test_computed_constants import ON_PHONE, attention

WIDTH, INNER = 128, 1024


def tokens_model(rows: int | str = 1024, layers: int = 2) -> bytes:
    """Layers that widen each row eight times, and take it back: most of what a run holds can be held for some rows."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        for name, shape in ((f"up{layer}", (WIDTH, INNER)), (f"down{layer}", (INNER, WIDTH))):
            values = (random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)
            weights.append(numpy_helper.from_array(values, name))
        nodes += [
            helper.make_node("MatMul", [last, f"up{layer}"], [f"a{layer}"], name=f"widen{layer}"),
            helper.make_node("Erf", [f"a{layer}"], [f"e{layer}"], name=f"erf{layer}"),
            helper.make_node("MatMul", [f"e{layer}", f"down{layer}"], [f"d{layer}"], name=f"narrow{layer}"),
            helper.make_node("Add", [f"d{layer}", last], [f"s{layer}"], name=f"add{layer}"),
        ]
        last = f"s{layer}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, WIDTH])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def fed(rows: int = 1024, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)}


def check(session: parallax.InferenceSession, model: bytes, rows: int = 1024) -> None:
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for seed in range(3):
        answer = session.run(None, fed(rows, seed))[0]
        np.testing.assert_allclose(answer, stock.run(None, fed(rows, seed))[0], rtol=1e-4, atol=1e-5)


def within(share: float, session: parallax.InferenceSession) -> int:
    """A budget of this share of what runs want, beside weights and the runtime's own."""
    budget, run = session._opened.budget, session.memory().run_peak_bytes
    assert budget is not None
    assert run is not None
    return int((budget.held_bytes + 8 * 64 * 1024 + share * run) / (1 - budget.margin))


@pytest.mark.parametrize(("share", "rounds"), [(1.0, 0), (0.7, 1), (0.45, 2), (0.3, 3)])
@pytest.mark.parametrize("rows", [1024, "n"])
def test_with_less_memory_a_chain_is_computed_in_slices_of_its_rows(share: float, rounds: int, rows: int | str) -> None:
    model = tokens_model(rows)
    options: dict[str, Any] = {"threads": 2, "shapes": {"x": (1024, WIDTH)}}
    roomy = parallax.InferenceSession(model, memory_budget="1GiB", **options)
    budget = within(share, roomy)
    session = parallax.InferenceSession(model, memory_budget=budget, **options)
    plan = session.plan
    check(session, model)
    if not rounds:
        assert plan == roomy.plan
        return
    assert (plan.rows_permille, plan.rows_rounds) == (500, rounds)
    assert f"in {2**rounds} slices of rows" in plan.provenance.reason
    assert Plan.from_json(plan.to_json()) == plan
    usage = session.memory()
    assert usage.run_peak_bytes is not None
    assert usage.run_peak_bytes < roomy.memory().run_peak_bytes
    assert usage.admitted_peak_bytes <= usage.limit_bytes < budget
    copy = pickle.loads(pickle.dumps(session))
    assert copy.plan == plan
    check(copy, model)


def test_what_slices_cannot_do_for_is_refused_with_the_number_that_would() -> None:
    model = tokens_model()
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(model, memory_budget="4MiB", threads=2)
    least = caught.value.least_bytes
    session = parallax.InferenceSession(model, memory_budget=least, threads=2)
    assert session.plan.stretches, "slices where they are needed take less than slices of everything"
    check(session, model)
    with pytest.raises(BudgetError):
        parallax.InferenceSession(model, memory_budget=least - 1, threads=2)
    with pytest.raises(BudgetError) as kept_whole:
        parallax.InferenceSession(model, memory_budget=least, threads=2, split="never")
    assert kept_whole.value.least_bytes > least


def test_eight_threads_run_slices_within_one_budget() -> None:
    model = tokens_model()
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(model, memory_budget="4MiB", threads=2)
    session = parallax.InferenceSession(model, memory_budget=caught.value.least_bytes, threads=2)
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [stock.run(None, fed(seed=seed))[0] for seed in range(8)]

    def work(seed: int) -> None:
        for _ in range(3):
            np.testing.assert_allclose(session.run(None, fed(seed=seed))[0], answers[seed], rtol=1e-4, atol=1e-5)

    in_threads(8, work)
    usage = session.memory()
    assert usage.admitted_peak_bytes <= usage.limit_bytes


@pytest.mark.parametrize("length", [1024, "length"])
def test_attention_as_exporters_write_it_is_computed_in_slices(length: int | str) -> None:
    """Sizes and masks are computed from shapes there: without these constants no cut would get past a reshape."""
    model = attention(layers=3, length=length)
    options: dict[str, Any] = {"threads": 2, "shapes": {"x": (1, 1024, WIDTH)}}
    roomy = parallax.InferenceSession(model, memory_budget="1GiB", **options)
    session = parallax.InferenceSession(model, memory_budget=within(0.6, roomy), **options)
    plan = session.plan
    assert plan.rows_joined
    assert plan.constants_shapes == ()
    assert Plan.from_json(plan.to_json()) == plan
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = {}
    for rows in (1024,) if length == 1024 else (1024, 40):
        x = np.random.default_rng(rows).standard_normal((1, rows, WIDTH)).astype(np.float32)
        answers[rows] = x, stock.run(None, {"x": x})[0]

    def work(_: int) -> None:
        for x, want in answers.values():
            np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-4, atol=1e-4)

    in_threads(8, work)
    usage = session.memory()
    assert usage.admitted_peak_bytes <= usage.limit_bytes
    assert pickle.loads(pickle.dumps(session)).plan == plan


def test_budgets_count_constants_that_were_computed_beside_the_weights() -> None:
    model = attention(layers=2, length=256)
    session = parallax.InferenceSession(model, memory_budget="256MiB", **ON_PHONE)
    assert session.plan.constants_shapes == ()
    loaded = load_model(model)
    computed = with_constants(loaded)
    assert computed is not None
    assert computed.value_bytes >= 2 * 256 * 256, "a mask for each layer, of a byte per pair of places"
    assert computed.value_bytes == sum(
        tensor_bytes(computed.model.graph, name)
        for name in computed.model.graph.initializers
        if name not in loaded.graph.initializers
    )
    budget = session._opened.budget
    assert budget is not None
    weights = loaded.weight_bytes + computed.value_bytes
    assert budget == Budget.of(256 << 20, weight_bytes=weights, segments=len(session.plan.segments))


def stem_model() -> bytes:
    """An image network: what its first layers make is many times what the others make."""
    random = np.random.default_rng(1)
    nodes, weights, last = [], [], "x"
    for layer, (inner, outer, stride) in enumerate([(3, 32, 1), (32, 16, 2), (16, 32, 2), (32, 32, 2)]):
        values = random.standard_normal((outer, inner, 3, 3)) / (9 * inner) ** 0.5
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], strides=[stride] * 2, pads=[1] * 4),
            helper.make_node("HardSwish", [f"c{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 192, 192])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 24, 24])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made: bytes = proto.SerializeToString()
    return made


def image(seed: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 192, 192)).astype(np.float32)}


def share_of_run(share: float, session: parallax.InferenceSession) -> int:
    """As ``within``, without room for further segments."""
    budget, run = session._opened.budget, session.memory().run_peak_bytes
    assert budget is not None
    assert run is not None
    return int((budget.held_bytes + share * run) / (1 - budget.margin)) + 1


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_convolutions_that_hold_too_much_are_computed_in_slices(share: float) -> None:
    model = stem_model()
    roomy = parallax.InferenceSession(model, memory_budget="1GiB", threads=2)
    budget = share_of_run(share, roomy)
    session = parallax.InferenceSession(model, memory_budget=budget, threads=2)
    plan = session.plan
    assert plan.is_rewritten
    if share == 0.3:
        assert plan.stretches, "slices of everything wait for each other's rims, and hold too much"
        assert len(plan.segments) == 1
    assert Plan.from_json(plan.to_json()) == plan
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [stock.run(None, image(seed))[0] for seed in range(8)]

    def work(seed: int) -> None:
        for _ in range(3):
            np.testing.assert_allclose(session.run(None, image(seed))[0], answers[seed], rtol=1e-4, atol=1e-5)

    in_threads(8, work)
    usage = session.memory()
    assert usage.admitted_peak_bytes <= usage.limit_bytes < budget
    assert usage.run_peak_bytes < roomy.memory().run_peak_bytes
    assert pickle.loads(pickle.dumps(session)).plan == plan


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_behind_a_pool_that_leaves_out_its_last_window_rows_are_counted_as_there_are(share: float) -> None:
    random = np.random.default_rng(0)
    weights = {"w": (16, 4, 3, 3), "u": (48, 16, 3, 3)}
    initializers = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    initializers.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        helper.make_node("Resize", ["p", "", "scales"], ["b"], mode="linear"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "u"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["d"], ["y"], axes=[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 65, 65])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    wide = parallax.InferenceSession(model, memory_budget="1GiB", threads=2)
    session = parallax.InferenceSession(model, memory_budget=share_of_run(share, wide), threads=2)
    assert session.plan.is_rewritten
    feed = {"x": random.standard_normal((1, 4, 65, 65)).astype(np.float32)}
    answer = onnxruntime.InferenceSession(model).run(None, feed)[0]
    np.testing.assert_allclose(session.run(None, feed)[0], answer, rtol=1e-4, atol=1e-4)


def test_the_least_budget_that_a_refusal_names_is_enough() -> None:
    model = stem_model()
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(model, memory_budget="1MiB", threads=2)
    least = caught.value.least_bytes
    session = parallax.InferenceSession(model, memory_budget=least, threads=2)
    assert session.plan.stretches
    np.testing.assert_allclose(
        session.run(None, image(0))[0],
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, image(0))[0],
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(BudgetError):
        parallax.InferenceSession(model, memory_budget=least - 1, threads=2)


def test_optimisers_that_would_join_slices_are_off_beside_those_that_the_caller_disabled() -> None:
    key = "optimization.disable_specified_optimizers"
    given = RuntimeOptions(config=((key, "ConstantFolding;CommonSubexpressionElimination"), ("a", "b")))
    made = dict(sliced_options(given).config)
    assert made == {key: "ConstantFolding;CommonSubexpressionElimination;GatherSliceToSplitFusion;Pad_Fusion", "a": "b"}
    assert dict(sliced_options(RuntimeOptions()).config)[key]


def test_optimisers_that_are_off_for_slices_are_so_in_their_session() -> None:
    """A Pad and its pool, which the runtime refuses when it has joined them."""
    nodes = [
        helper.make_node("Pad", ["x", "rims"], ["p"]),
        helper.make_node("AveragePool", ["p"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 20, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64), "rims")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    segment = load_model(proto).extract_whole()
    with pytest.raises(Exception, match="Pad should be smaller than kernel"):
        make_session(segment, width=1, options=RuntimeOptions())
    make_session(segment, width=1, options=sliced_options(RuntimeOptions()))


MEASURE = """
import sys, threading
sys.path.insert(0, {root!r})
import parallax
from parallax.machine import private_bytes, trim_heap
from tests.session.test_narrow_budgets import image, stem_model

session = parallax.InferenceSession(stem_model(), memory_budget={budget}, threads=2)
feeds = [image(seed) for seed in range({threads})]
trim_heap()
before = private_bytes()
stop, highest = False, 0
def watch():
    global highest
    while not stop:
        highest = max(highest, private_bytes() - before)
watcher = threading.Thread(target=watch)
watcher.start()
def work(feed):
    for _ in range(20):
        session.run(None, feed)
workers = [threading.Thread(target=work, args=(feed,)) for feed in feeds]
for worker in workers: worker.start()
for worker in workers: worker.join()
stop = True
watcher.join()
print(highest, len(session.plan.stretches))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is measured by anonymous pages")
@pytest.mark.parametrize("threads", [1, 8])
def test_a_process_that_runs_slices_grows_by_no_more_than_the_budget(threads: int, pytestconfig: pytest.Config) -> None:
    """A run of the whole model holds three times as much as these slices."""
    budget = share_of_run(0.3, parallax.InferenceSession(stem_model(), memory_budget="1GiB", threads=2))
    script = MEASURE.format(root=str(pytestconfig.rootpath), budget=budget, threads=threads)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    highest, stretches = map(int, result.stdout.split())
    assert stretches
    assert highest <= budget, f"{highest} bytes measured"


def test_slices_are_for_the_planned_shape_and_others_need_room_for_the_whole_model() -> None:
    model = tokens_model("n")
    options: dict[str, Any] = {"threads": 2, "shapes": {"x": (1024, WIDTH)}}
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(model, memory_budget="4MiB", **options)
    least = caught.value.least_bytes
    session = parallax.InferenceSession(model, memory_budget=least, **options)
    assert session.plan.stretches
    check(session, model)
    with pytest.raises(BudgetError, match="a run takes") as refused:
        session.run(None, fed(40))
    check(session, model)
    wider = parallax.InferenceSession(model, memory_budget=refused.value.least_bytes, **options)
    check(wider, model)
    check(wider, model, 40)
    check(wider, model)


@pytest.mark.parametrize("rows", [2048, 16])
def test_what_a_refusal_of_other_shapes_names_is_enough_for_them_and_for_the_planned_ones(rows: int) -> None:
    model = tokens_model("n")
    options: dict[str, Any] = {"threads": 2, "shapes": {"x": (1024, WIDTH)}}
    with pytest.raises(BudgetError) as caught:
        parallax.InferenceSession(model, memory_budget="4MiB", **options)
    session = parallax.InferenceSession(model, memory_budget=caught.value.least_bytes, **options)
    with pytest.raises(BudgetError) as refused:
        session.run(None, fed(rows))
    check(session, model)
    wider = parallax.InferenceSession(model, memory_budget=refused.value.least_bytes, **options)
    for size in (rows, 1024, rows):
        check(wider, model, size)


@pytest.mark.parametrize("batch", [1, "n"])
def test_values_fed_in_place_of_initializers_reach_the_slices(batch: int | str) -> None:
    """Such a model is not run by the runtime's own session, which would take them. Nor are other shapes than its."""
    random = np.random.default_rng(0)
    shape, scale = (8, 300, 300), random.standard_normal((8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Exp", ["b"], ["c"]),
        helper.make_node("ReduceSum", ["c", "axes"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "overridden",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *shape)),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, scale.shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, *shape[:2], 1))],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(np.array([3]), "axes")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model: bytes = proto.SerializeToString()
    sizes = {1} if batch == 1 else {1, 4}
    options: dict[str, Any] = {"threads": 2, "shapes": {"x": (max(sizes), *shape)}}
    roomy = parallax.InferenceSession(model, memory_budget="64GiB", **options)
    session = parallax.InferenceSession(model, memory_budget=within(0.6, roomy), **options)
    assert session.plan.stretches
    assert [entry.name for entry in session.get_inputs()] == ["x"]
    stock = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for size in sizes:
        x = random.standard_normal((size, *shape)).astype(np.float32)
        for feed in ({"x": x}, {"x": x, "scale": scale + 1}):
            np.testing.assert_allclose(session.run(None, feed)[0], stock.run(None, feed)[0], rtol=1e-4, atol=1e-5)
