"""Zeros of models in which they are known: by construction, and by what ONNX Runtime returns of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from parallax.errors import BackendError
from parallax.graph import tensor_bytes
from parallax.model import Model, load_model
from parallax.sparsity import OperatorZeros, Quadrant, SparsityReport, fetch_tensors, plan_fetches, study_zeros
from tests.model._models import model, node, run, value, weight


def pruned() -> onnx.ModelProto:
    """Two convolutions with zero channels, a product, and a constant that the model transposes itself."""
    first, second = weight((8, 3, 3, 3), 1), weight((4, 8, 3, 3), 2)
    first[[0, 5]] = 0
    second[:, [0, 5]] = 0
    second.reshape(-1)[::4] = 0
    product = weight((6, 4), 3)
    product[2] = 0
    return model(
        [
            node("Conv", "x w1 b1", "c1", name="first", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1", name="clip"),
            node("Conv", "r1 w2", "c2", name="second", pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", "c2", "p", name="pool"),
            node("Flatten", "p", "f", name="flatten"),
            node("Transpose", "w3", "t3", name="turned"),
            node("MatMul", "f t3", "m", name="product"),
            node("Mul", "m scale", "y", name="scaled"),
        ],
        [value("x", (1, 3, 8, 8))],
        [value("y", (1, 6))],
        {
            "w1": first,
            "w2": second,
            "w3": product,
            "b1": np.full(8, -0.5, np.float32),
            "scale": np.array([0, 1, 0, 1, 1, 1], np.float32),
        },
    )


def examples(number: int) -> list[dict[str, np.ndarray]]:
    made = [{"x": weight((1, 3, 8, 8), 10 + place)} for place in range(number)]
    for place, example in enumerate(made):
        example["x"][:, :, : 2 * place] = 0
    return made


def by_name(found: SparsityReport) -> dict[str, OperatorZeros]:
    return {operator.name: operator for operator in found.operators}


def loaded(proto: onnx.ModelProto) -> Model:
    return load_model(proto.SerializeToString())


def all_tensors(proto: onnx.ModelProto, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What ONNX Runtime makes of these tensors, returned all at once by a model that declares them as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return dict(zip(names, run(copy, feeds), strict=True))


def test_activations_are_those_that_the_runtime_makes() -> None:
    proto, fed = pruned(), examples(3)
    found = by_name(study_zeros(loaded(proto), fed))
    read = {"clip": "c1", "second": "r1", "pool": "c2", "flatten": "p", "product": "f", "scaled": "m"}
    shares: dict[str, list[float]] = {name: [] for name in read}
    for example in fed:
        values = all_tensors(proto, example, list(read.values()))
        for name, tensor in read.items():
            shares[name].append(float(np.mean(values[tensor] == 0)))
    for name, tensor in read.items():
        seen = found[name].seen
        assert seen is not None
        assert found[name].activation == tensor
        assert seen.mean == pytest.approx(np.mean(shares[name]))
        assert seen.deviation == pytest.approx(np.std(shares[name], ddof=1), abs=1e-12)
    # The rows of the input that are zero are known, and so is what a negative bias makes of two channels.
    entry = found["first"].seen
    assert entry is not None
    assert entry.mean == pytest.approx(np.mean([0, 0.25, 0.5]))
    assert found["second"].seen.mean >= 0.25


def test_weights_are_counted_those_that_the_model_computes_too() -> None:
    found = by_name(study_zeros(loaded(pruned()), examples(1)))
    assert "turned" not in found  # it is computed when the model is loaded
    first, second, product = (found[name].weights for name in ("first", "second", "product"))
    assert (first.rows, first.zero_rows, first.columns, first.zero_columns) == (8, 2, 3, 0)
    assert first.share == 0.25
    assert (second.zero_rows, second.zero_columns) == (0, 2)
    assert second.share == pytest.approx(0.25 + 0.75 * 0.25, abs=0.01)
    assert (product.rows, product.zero_rows, product.columns, product.zero_columns) == (6, 1, 4, 0)
    assert found["scaled"].weights.share == pytest.approx(1 / 3)
    assert found["clip"].weights is None


def test_the_share_of_multiplications_is_theirs_by_work() -> None:
    found = study_zeros(loaded(pruned()), examples(2))
    operators = by_name(found)
    first = operators["first"]
    assert first.zeros == pytest.approx(1 - (1 - first.seen.mean) * (1 - 0.25))
    assert first.multiplications == first.flops // 2 > 0
    assert operators["pool"].multiplications == 0
    heavy = [operators[name] for name in ("first", "second", "product")]
    total = sum(operator.multiplications for operator in heavy)
    want = sum(operator.multiplications * operator.zeros for operator in heavy) / total
    assert found.zero_multiplications == pytest.approx(want)
    assert found.channels() == (2 + 0 + 1, 8 + 4 + 6, 0 + 2 + 0, 3 + 8 + 4)


def test_a_model_without_zeros_has_none() -> None:
    proto = model([node("MatMul", "x w", "y")], [value("x", (2, 3))], [value("y", (2, 4))], {"w": weight((3, 4), 1)})
    found = study_zeros(loaded(proto), [{"x": np.ones((2, 3), np.float32)}])
    assert found.zero_multiplications == 0
    assert found.channels() == (0, 4, 0, 3)
    assert found.operators[0].seen.deviation == 0


def test_quadrants_follow_the_thresholds_given() -> None:
    found = study_zeros(loaded(pruned()), examples(1), min_flops=1000, max_zeros=0.3)
    assert (found.min_flops, found.max_zeros) == (1000, 0.3)
    for operator in found.operators:
        sides = {
            (True, False): Quadrant.DENSE_HEAVY,
            (True, True): Quadrant.SPARSE_HEAVY,
            (False, True): Quadrant.SPARSE_LIGHT,
            (False, False): Quadrant.DENSE_LIGHT,
        }
        assert found.quadrant(operator) is sides[operator.flops >= 1000, operator.zeros > 0.3]
    assert found.quadrant(by_name(found)["second"]) is Quadrant.SPARSE_HEAVY


def test_thresholds_not_given_are_in_the_middle_of_what_there_is() -> None:
    found = study_zeros(loaded(pruned()), examples(1))
    work = sorted({operator.flops for operator in found.operators})
    assert found.min_flops in work[1:-1]
    assert min(operator.zeros for operator in found.operators) <= found.max_zeros < 1
    assert len({found.quadrant(operator) for operator in found.operators}) > 1


def looping() -> onnx.ModelProto:
    """A loop whose body multiplies with a weight half of whose columns are zero; the state grows or not, who knows."""
    held = weight((16, 32), 4)
    held[:, ::2] = 0
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"], name="same"),
            helper.make_node("MatMul", ["state", "inner"], ["wide"], name="widen"),
            helper.make_node("MatMul", ["wide", "outer"], ["next"], name="narrow"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 16]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 16]),
        ],
        [numpy_helper.from_array(held, "inner")],
    )
    return model(
        [
            node("Constant", "", "trips", value_int=3),
            node("Constant", "", "yes", value=numpy_helper.from_array(np.array(True))),
            node("Relu", "x", "r", name="before"),
            helper.make_node("Loop", ["trips", "yes", "r"], ["y"], name="loop", body=body),
        ],
        [value("x", (2, 16))],
        [value("y", (2, 16))],
        {"outer": np.zeros((32, 16), np.float32)},
    )


def test_inside_control_flow_weights_are_seen_and_activations_are_not() -> None:
    fed = np.ones((2, 16), np.float32)
    fed[0] = -1
    found = by_name(study_zeros(loaded(looping()), [{"x": fed}]))
    assert found["before"].seen.mean == 0
    widen, narrow = found["loop/body/widen"], found["loop/body/narrow"]
    assert widen.weights.share == 0.5
    assert (widen.weights.zero_rows, widen.weights.rows) == (16, 32)
    assert narrow.weights.share == 1  # of the graph around it
    for inner in (widen, narrow):
        assert inner.inside == "loop"
        assert inner.seen is None
        assert "control flow" in inner.why_unseen


def test_what_no_number_is_known_of_says_why() -> None:
    proto = model(
        [
            node("QuantizeLinear", "x s z", "q", name="rounded"),
            node("DequantizeLinear", "q s z", "d", name="back"),
            node("Identity", "words", "same", name="texts"),
            node("Relu", "d", "y", name="clip"),
        ],
        [value("x", (4,)), value("words", (2,), TensorProto.STRING)],
        [value("y", (4,)), value("same", (2,), TensorProto.STRING)],
        {"s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)},
    )
    fed = {"x": np.array([0, 0, 1, -9], np.float32), "words": np.array(["a", "b"], object)}
    found = by_name(study_zeros(loaded(proto), [fed]))
    assert "quantised" in found["back"].why_unseen
    assert "no tensor of numbers" in found["texts"].why_unseen
    assert found["rounded"].seen.mean == 0.5
    assert found["clip"].seen.mean == 0.5


# Bounded memory ---------------------------------------------------------------------------------------


def chain(length: int) -> onnx.ModelProto:
    """Operators in a row over tensors of 4 KiB."""
    nodes = [node("Abs", f"t{place}", f"t{place + 1}") for place in range(length)]
    return model(nodes, [value("t0", (32, 32))], [value(f"t{length}", (32, 32))])


@pytest.mark.parametrize(("limit", "most"), [(4096, 1), (3 * 4096, 3), (4 * 4096 - 1, 3), (1, 1), (1 << 20, 10)])
def test_no_run_returns_more_than_the_limit_or_one_tensor(limit: int, most: int) -> None:
    made = loaded(chain(10))
    names = [f"t{place}" for place in range(1, 11)]
    returned: list[str] = []
    fetches = fetch_tensors(
        made, [{"t0": np.ones((32, 32), np.float32)}], names, lambda name, _: returned.append(name), limit_bytes=limit
    )
    assert returned == names
    assert max(len(fetch.tensors) for fetch in fetches) == most
    for fetch in fetches:
        assert len(fetch.tensors) == 1 or sum(tensor_bytes(made.inferred(), name) for name in fetch.tensors) <= limit
    assert [name for fetch in fetches for name in fetch.tensors] == names


def test_a_run_computes_no_more_than_what_it_returns_needs() -> None:
    made = loaded(chain(10))
    fetches = plan_fetches(made.inferred(), ["t9", "t2"], limit_bytes=4096)
    assert [fetch.nodes for fetch in fetches] == [(0, 1), tuple(range(9))]


def test_at_most_eight_tensors_of_unknown_size_are_returned_at_once() -> None:
    nodes = [node("NonZero", "x", "n0")] + [node("Abs", f"n{place}", f"n{place + 1}") for place in range(19)]
    proto = model(nodes, [value("x", (4, 4))], [value("n19", None, TensorProto.INT64)])
    names = [f"n{place}" for place in range(20)]
    fetches = plan_fetches(loaded(proto).inferred(), names)
    assert max(len(fetch.tensors) for fetch in fetches) <= 8
    assert [name for fetch in fetches for name in fetch.tensors] == names


def test_runs_are_told_and_do_not_change_what_is_seen() -> None:
    told: list[tuple[int, int]] = []
    fed = examples(2)
    narrow = study_zeros(loaded(pruned()), fed, limit_bytes=1, progress=lambda done, total: told.append((done, total)))
    wide = study_zeros(loaded(pruned()), fed)
    assert narrow.operators == wide.operators
    assert narrow.runs > wide.runs == 1
    assert told == [(done, narrow.runs * 2) for done in range(1, narrow.runs * 2 + 1)]


def test_feeds_that_the_model_does_not_run_on_are_told() -> None:
    proto = model(
        [node("Gather", "table i", "row"), node("Abs", "row", "y")],
        [value("i", (1,), TensorProto.INT64)],
        [value("y", (1, 4))],
        {"table": weight((3, 4))},
    )
    with pytest.raises(BackendError, match="look at its tensors") as caught:
        study_zeros(loaded(proto), [{"i": np.array([99])}])
    assert caught.value.fix is not None
