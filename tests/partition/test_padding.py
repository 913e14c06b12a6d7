"""Padding that is proven to be without effect, and what stands in the way of such a proof."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from parallax import zoo
from parallax.model import load_model
from parallax.partition.padding import NotTrimmable, PaddedOutput, Trimming, divide_rows, prove_trimming
from parallax.partition.padding._groups import RUN_PLACES
from parallax.partition.padding._lengths import Length, product
from parallax.partition.padding._seen import axis_of, regrouped
from parallax.partition.padding._trimming import CutInput
from tests.partition._encoders import LEAST, PLACES, Choices, encoder

GOOD = [
    Choices(),
    Choices(mask="chosen", hidden=LEAST, positions="counted"),
    Choices(mask="chosen", hidden=float("-inf"), types=True),
    Choices(mask="filled", hidden=-1e9, positions="summed", head="mean"),
    Choices(mask="expanded", hidden=LEAST, head="mean", layers=2),
    Choices(mask="flattened", hidden=LEAST, layers=2),
    Choices(mask="flattened", hidden=LEAST, is_causal=True),
    Choices(mask_type=TensorProto.BOOL, head="largest"),
    Choices(mask_type=TensorProto.FLOAT, positions="none", head="mean"),
    Choices(head="hidden_zeroed"),
    Choices(mask="expanded", hidden=LEAST, head="mean", layers=2, is_decomposed=True),
    Choices(mask="flattened", hidden=LEAST, layers=2, is_decomposed=True),
]
BAD = [
    (Choices(head="plain_mean"), "'the_head' (ReduceMean)"),
    (Choices(head="last"), "'the_head' (Gather)"),
    (Choices(head="hidden"), "output 'y' keeps the axis 'sequence'"),
    (Choices(head="length"), "output 'y' says how long the sequence is"),
    (Choices(mask="none"), "'the_softmax' (Softmax)"),
    (Choices(mask="query"), "'the_softmax' (Softmax)"),
    (Choices(mask="weak"), "'the_softmax' (Softmax)"),
    (Choices(hidden=-100.0), "'the_softmax' (Softmax)"),
]


def proven(model: onnx.ModelProto) -> Trimming:
    loaded = load_model(model)
    opset = loaded.opset_imports.get("", 0)
    return prove_trimming(loaded.inferred(), opset=opset, fillings=loaded.filled_values())


def built(
    *nodes: onnx.NodeProto,
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: tuple[str, ...] = ("y",),
    weights: dict[str, Any] | None = None,
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "built",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


IDS = (TensorProto.INT64, ["batch", "sequence"])
FEATURES = (TensorProto.FLOAT, ["batch", "sequence", 4])


@pytest.mark.parametrize("choices", GOOD, ids=repr)
def test_encoders_whose_mask_hides_padding_can_be_trimmed(choices: Choices) -> None:
    found = proven(encoder(choices))
    names = ("ids", "mask", "types") if choices.types else ("ids", "mask")
    assert found.mask == "mask"
    assert found.inputs == tuple(CutInput(name=name, axes=(1,)) for name in names)
    assert found.shortest == 1
    assert found.longest == (PLACES * 4 if choices.positions == "sliced" else None)
    filled = (PaddedOutput(name="y", axes=(1,), value="0.0"),) if choices.head == "hidden_zeroed" else ()
    assert found.outputs == filled


@pytest.mark.parametrize(("choices", "named"), BAD, ids=repr)
def test_what_stands_in_the_way_is_named(choices: Choices, named: str) -> None:
    with pytest.raises(NotTrimmable) as caught:
        proven(encoder(choices))
    assert named in str(caught.value)


def test_the_zoo_s_classifier_can_be_trimmed() -> None:
    found = proven(onnx.load(zoo.load("distilbert")))
    assert found.mask == "attention_mask"
    assert {entry.name for entry in found.inputs} == {"input_ids", "attention_mask"}
    assert found.longest == 512
    assert not found.outputs


def test_the_zoo_s_text_encoder_returns_what_padding_makes() -> None:
    with pytest.raises(NotTrimmable, match="output 'last_hidden_state' keeps the axis 'sequence'"):
        proven(onnx.load(zoo.load("clip-text")))


def test_whole_numbers_that_hide_nothing_are_no_mask() -> None:
    # Neither input is a mask; the first place of a sequence is the same however it is cut, but nothing says so.
    model = built(
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Gather", ["kinds", "types"], ["kind"]),
        helper.make_node("Add", ["embedded", "kind"], ["total"]),
        helper.make_node("Gather", ["total", "zero"], ["y"], axis=1),
        inputs={"ids": IDS, "types": IDS},
        weights={"table": np.ones((9, 4), np.float32), "kinds": np.ones((2, 4), np.float32), "zero": np.int64(0)},
    )
    with pytest.raises(NotTrimmable, match="no output is computed from what input 'ids' leaves"):
        proven(model)


def test_an_output_that_nothing_which_is_cut_goes_into_is_not_enough() -> None:
    model = built(
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Add", ["ids", "mask"], ["unused"]),
        inputs={"x": (TensorProto.FLOAT, ["batch", 4]), "ids": IDS, "mask": IDS},
    )
    with pytest.raises(NotTrimmable, match="no output is computed from"):
        proven(model)


def test_a_model_without_two_inputs_of_one_open_axis_has_no_mask() -> None:
    model = built(helper.make_node("Relu", ["x"], ["y"]), inputs={"x": (TensorProto.FLOAT, ["batch", 4])})
    with pytest.raises(NotTrimmable, match="no input that could be a mask"):
        proven(model)
    axes_apart = built(
        helper.make_node("Add", ["ids", "mask"], ["y"]),
        inputs={"ids": IDS, "mask": (TensorProto.INT64, ["batch", "mask_sequence"])},
    )
    with pytest.raises(NotTrimmable, match="no input that could be a mask"):
        proven(axes_apart)


ZEROED = [
    helper.make_node("Unsqueeze", ["mask", "two"], ["rows"]),
    helper.make_node("Mul", ["x", "rows"], ["zeroed"]),
]
MASKED = {"x": FEATURES, "mask": (TensorProto.FLOAT, ["batch", "sequence"])}
TWO = {"two": np.array([2], np.int64), "one": np.array([1], np.int64)}


def test_what_is_zeroed_may_be_added_up_but_not_convolved_or_remembered() -> None:
    summed = helper.make_node("ReduceSum", ["zeroed", "one"], ["y"], keepdims=0)
    assert proven(built(*ZEROED, summed, inputs=MASKED, weights=TWO)).mask == "mask"
    turned = helper.make_node("Transpose", ["zeroed"], ["turned"], perm=[0, 2, 1])
    convolved = helper.make_node("Conv", ["turned", "w"], ["y"], name="the_conv", kernel_shape=[3], pads=[1, 1])
    weights = TWO | {"w": np.ones((4, 4, 3), np.float32)}
    with pytest.raises(NotTrimmable, match=r"'the_conv' \(Conv\)"):
        proven(built(*ZEROED, turned, convolved, inputs=MASKED, weights=weights))
    steps = helper.make_node("Transpose", ["zeroed"], ["steps"], perm=[1, 0, 2])
    states = helper.make_node("LSTM", ["steps", "w", "r"], ["", "y"], name="the_lstm", hidden_size=2)
    weights = TWO | {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    with pytest.raises(NotTrimmable, match=r"'the_lstm' \(LSTM\)"):
        proven(built(*ZEROED, steps, states, inputs=MASKED, weights=weights))


def test_a_product_over_the_sequence_needs_zeros_on_one_side() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", "zeroed"], ["y"], name="the_product"),
    ]
    assert proven(built(*ZEROED, *nodes, inputs=MASKED, weights=TWO)).mask == "mask"
    nodes[1] = helper.make_node("MatMul", ["turned", "x"], ["y"], name="the_product")
    with pytest.raises(NotTrimmable, match=r"'the_product' \(MatMul\)"):
        proven(built(*ZEROED, *nodes, inputs=MASKED, weights=TWO))


def test_fused_attention_of_the_runtime_is_refused() -> None:
    attention = helper.make_node(
        "MultiHeadAttention", ["x", "x", "x", "", "mask"], ["made"], domain="com.microsoft", num_heads=2, name="fused"
    )
    first = helper.make_node("Gather", ["made", "zero"], ["y"], axis=1)
    model = built(
        attention,
        first,
        inputs={"x": FEATURES, "mask": (TensorProto.INT32, ["batch", "sequence"])},
        weights={"zero": np.int64(0)},
        domain="com.microsoft",
    )
    with pytest.raises(NotTrimmable, match=r"'fused' \(MultiHeadAttention\)"):
        proven(model)


def test_windows_that_may_hide_the_first_place_are_refused() -> None:
    # Rows of padded queries then see nothing but hidden places, and weigh them by how many there are.
    base = encoder(mask="flattened", hidden=LEAST, is_causal=True)
    compared = next(node for node in base.graph.node if node.op_type == "LessOrEqual")
    query = compared.input[1]
    near = helper.make_node("Sub", [query, "reach"], ["near"], name="near")
    base.graph.initializer.append(numpy_helper.from_array(np.int64(4), "reach"))
    compared.op_type, compared.input[:] = "GreaterOrEqual", [compared.input[0], "near"]
    base.graph.node.insert(list(base.graph.node).index(compared), near)
    with pytest.raises(NotTrimmable, match=r"'the_softmax' \(Softmax\): it is not known to see a place"):
        proven(base)


def test_places_that_are_read_by_number_are_kept() -> None:
    model = encoder(head="first")
    picked = next(node for node in model.graph.node if node.name == "the_head")
    place = next(entry for entry in model.graph.initializer if entry.name == picked.input[1])
    place.CopyFrom(numpy_helper.from_array(np.int64(6), place.name))
    assert proven(model).shortest == 7


def test_a_diagonal_of_axes_that_were_joined_is_refused() -> None:
    # Which column a place is in depends on how long the rows before it are.
    nodes = [
        helper.make_node("Reshape", ["x", "joined"], ["flat"]),
        helper.make_node("Trilu", ["flat", "five"], ["kept"], name="the_trilu"),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["kept", "shape"], ["apart"]),
        helper.make_node("Mul", ["apart", "mask"], ["zeroed"]),
        helper.make_node("ReduceSum", ["zeroed", "one"], ["y"], keepdims=0),
    ]
    kind = (TensorProto.FLOAT, ["batch", "sequence"])
    weights = {"joined": np.array([1, -1]), "five": np.int64(5), "one": np.array([1])}
    with pytest.raises(NotTrimmable, match=r"'the_trilu' \(Trilu\): where its diagonal runs depends"):
        proven(built(*nodes, inputs={"x": kind, "mask": kind}, weights=weights))


def test_many_numbers_that_are_computed_from_the_length_are_refused() -> None:
    nodes = [
        *ZEROED,
        helper.make_node("ReduceSum", ["zeroed", "one"], ["total"], keepdims=0),
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        helper.make_node("Concat", ["length"] * 70, ["lengths"], axis=0, name="the_lengths"),
        helper.make_node("Cast", ["lengths"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers"], ["number"], keepdims=0),
        helper.make_node("Add", ["total", "number"], ["y"]),
    ]
    with pytest.raises(NotTrimmable, match=r"'the_lengths' \(Concat\): it computes with the length"):
        proven(built(*nodes, inputs=MASKED, weights=TWO))


def test_the_square_of_a_single_number_is_not_the_number() -> None:
    # Nine places are picked, not three.
    nodes = [
        helper.make_node("Shape", ["three"], ["length"]),
        helper.make_node("Squeeze", ["length", "zero"], ["number"]),
        helper.make_node("ReduceSumSquare", ["number"], ["square"], keepdims=0),
        helper.make_node("Unsqueeze", ["square", "zero"], ["end"]),
        helper.make_node("Slice", ["x", "zero", "end", "one"], ["begin"], name="the_slice"),
        *ZEROED,
        helper.make_node("ReduceSum", ["zeroed", "one"], ["total"]),
        helper.make_node("ReduceSum", ["begin", "one"], ["other"]),
        helper.make_node("Add", ["total", "other"], ["y"]),
    ]
    weights = TWO | {"three": np.ones(3, np.float32), "zero": np.array([0])}
    with pytest.raises(NotTrimmable, match=r"'the_slice' \(Slice\): the bounds 'end' are not known"):
        proven(built(*nodes, inputs=MASKED, weights=weights))


def test_a_mask_that_was_computed_in_whole_numbers_hides_as_much() -> None:
    # Padded queries see nothing but hidden places, and so weigh those that are padded in every row, too.
    def hiding(kind: int) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Cast", ["mask"], ["flags"], to=kind),
            helper.make_node("Unsqueeze", ["flags", "one"], ["keys"]),
            helper.make_node("Unsqueeze", ["flags", "two"], ["queries"]),
            helper.make_node("Mul", ["keys", "queries"], ["pairs"]),
            helper.make_node("Sub", ["full", "pairs"], ["hidden"]),
            helper.make_node("Mul", ["hidden", "least"], ["bias"]),
            helper.make_node("Cast", ["bias"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "turned"], ["scores"]),
            helper.make_node("Add", ["scores", "numbers"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["weights"], axis=2, name="the_softmax"),
            helper.make_node("MatMul", ["weights", "x"], ["made"]),
            helper.make_node("Gather", ["made", "two"], ["y"], axis=1),
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        numbers = {"full": np.array(1, dtype), "least": np.array(-1000000, dtype)}
        return built(*nodes, inputs=MASKED, weights=TWO | numbers)

    for kind in (TensorProto.FLOAT, TensorProto.INT64):
        with pytest.raises(NotTrimmable, match=r"'the_softmax' \(Softmax\): it is not known to see a place"):
            proven(hiding(kind))


def attended(*made: onnx.NodeProto, numbers: dict[str, Any] | None = None) -> onnx.ModelProto:
    """What the first place attends to, where ``made`` makes "masked" of "scores" and of "bias" (0, or -1e9 for padded
    keys), "open" (1 - the mask) and "keys" (the mask)."""
    nodes = [
        helper.make_node("Unsqueeze", ["mask", "one"], ["keys"]),
        helper.make_node("Sub", ["full", "keys"], ["open"]),
        helper.make_node("Mul", ["open", "least"], ["bias"]),
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"]),
        *made,
        helper.make_node("Softmax", ["masked"], ["weights"], axis=2, name="the_softmax"),
        helper.make_node("MatMul", ["weights", "x"], ["made"]),
        helper.make_node("Gather", ["made", "zero"], ["y"], axis=1),
    ]
    held = {"full": np.float32(1), "least": np.float32(-1e9), "zero": np.int64(0), "minus": np.float32(-1)}
    return built(*nodes, inputs=MASKED, weights=TWO | held | (numbers or {}))


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16])
def test_what_hides_in_a_type_that_does_not_hold_it_hides_no_more(kind: int) -> None:
    nodes = [
        helper.make_node("Add", ["scores", "bias"], ["hidden"]),
        helper.make_node("Cast", ["hidden"], ["small"], to=kind),
        helper.make_node("Cast", ["small"], ["masked"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(NotTrimmable, match=r"'the_softmax' \(Softmax\): it weighs padded places like others"):
        proven(attended(*nodes))


def test_a_number_that_a_type_does_not_hold_is_not_known_in_it() -> None:
    # -1e9 modulo 256 is 0, but no processor has to make that of it.
    nodes = [
        helper.make_node("Cast", ["bias"], ["small"], to=TensorProto.INT8),
        helper.make_node("Cast", ["small"], ["zeros"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["zeros"], ["padded"], perm=[0, 2, 1]),
        helper.make_node("Mul", ["x", "padded"], ["zeroed"]),
        helper.make_node("ReduceSum", ["zeroed", "one"], ["masked"], name="the_sum"),
    ]
    with pytest.raises(NotTrimmable, match=r"'the_sum' \(ReduceSum\): .*nothing makes padded ones 0"):
        proven(attended(*nodes))


@pytest.mark.parametrize("op_type", ["Log", "Reciprocal", "Pow", "Div", "Atanh"])
def test_a_function_that_is_infinite_at_the_first_place_hides_it(op_type: str) -> None:
    # Then everything is hidden, and a full run weighs padded places like all others.
    given = {"Pow": ["open", "minus"], "Div": ["full", "open"], "Atanh": ["keys"]}.get(op_type, ["open"])
    nodes = [
        helper.make_node("Add", ["scores", "bias"], ["hidden"]),
        helper.make_node(op_type, given, ["pole"]),
        helper.make_node("Add" if op_type == "Log" else "Sub", ["hidden", "pole"], ["masked"]),
    ]
    with pytest.raises(NotTrimmable, match=r"'the_softmax' \(Softmax\)"):
        proven(attended(*nodes))


def test_the_logarithm_of_a_mask_hides() -> None:
    nodes = [helper.make_node("Log", ["keys"], ["low"]), helper.make_node("Add", ["scores", "low"], ["masked"])]
    assert proven(attended(*nodes)).mask == "mask"


def test_all_but_the_first_places_are_refused_and_not_kept_for_ever() -> None:
    nodes = [
        helper.make_node("Slice", ["x", "one", "end", "one"], ["rest"], name="the_slice"),
        helper.make_node("ReduceSum", ["rest", "one"], ["other"]),
        *ZEROED,
        helper.make_node("ReduceSum", ["zeroed", "one"], ["total"]),
        helper.make_node("Add", ["total", "other"], ["y"]),
    ]
    model = built(*nodes, inputs=MASKED, weights=TWO | {"end": np.array([2**63 - 1])})
    with pytest.raises(NotTrimmable, match=r"'the_slice' \(Slice\): it takes a part of an axis"):
        proven(model)


def test_an_infinity_is_told_by_its_sign() -> None:
    nodes = [
        helper.make_node("Cast", ["mask"], ["flags"], to=TensorProto.BOOL),
        helper.make_node("Where", ["flags", "full", "least"], ["bias"]),
        helper.make_node("IsInf", ["bias"], ["is_hidden"], detect_negative=0),
        helper.make_node("Where", ["is_hidden", "least", "x"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=1, name="the_softmax"),
        helper.make_node("Gather", ["weights", "zero"], ["y"], axis=1),
    ]
    kind = (TensorProto.FLOAT, ["batch", "sequence"])
    weights = {"full": np.float32(1), "least": np.float32(-np.inf), "zero": np.int64(0)}
    with pytest.raises(NotTrimmable, match=r"'the_softmax' \(Softmax\): it weighs padded places like others"):
        proven(built(*nodes, inputs={"x": kind, "mask": kind}, weights=weights))


def test_whole_numbers_that_no_float_holds_are_not_filled_in() -> None:
    nodes = [
        helper.make_node("Cast", ["mask"], ["flags"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Where", ["flags", "numbers", "most"], ["y"]),
    ]
    kind = (TensorProto.FLOAT, ["batch", "sequence"])
    model = built(*nodes, inputs={"x": kind, "mask": kind}, weights={"most": np.int64(2**63 - 1)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(NotTrimmable, match="is 9223372036854775807 at padded places"):
        proven(model)


# -- what it rests on -------------------------------------------------------------------------------------------------


def lengths(*values: int | str) -> list[Length]:
    return [Length.of(value) for value in values]


def test_lengths_are_polynomials() -> None:
    b, n = lengths("b", "n")
    assert b * n == n * b
    assert (b + n) * (b - n) == b * b - n * n
    assert (b * n * Length.of(12)).divided_by(n * Length.of(4)) == b * Length.of(3)
    assert (b * n + b).divided_by(b) == n + Length.of(1)
    assert (b * n + Length.of(1)).divided_by(b) is None
    assert (b - b).number == 0
    assert b.number is None
    assert (b + Length.of(1)).is_never_negative
    assert not (b - Length.of(1)).is_never_negative
    assert product([]) == Length.of(1)


def test_axes_are_joined_and_divided_where_atoms_are() -> None:
    b, n, width, heads, each = lengths("b", "n", 12, 3, 4)
    assert regrouped([b, n, width], [b * n, width]) == ((b, n), (width,))
    assert regrouped([b, n, width], [b, n, heads, each]) == ((b,), (n,), (heads,), (each,))
    assert regrouped([b, n, heads, each], [b, n, width]) == ((b,), (n,), (width,))
    assert regrouped([b, n], [n, b]) is None
    assert regrouped([b, width], [b, Length.of(5)]) is None
    assert axis_of(Length.of(1)) == ()


@given(rows=st.lists(st.integers(1, 200), min_size=1, max_size=7))
def test_rows_are_divided_in_the_cheapest_way(rows: list[int]) -> None:
    groups = divide_rows(rows)
    assert sorted(row for group in groups for row in group) == list(range(len(rows)))
    assert all(group == sorted(group) for group in groups)

    def cost(divided: list[list[int]]) -> int:
        return sum(len(group) * max(rows[row] for row in group) + RUN_PLACES for group in divided)

    # Groups that are not of neighbours in length are never cheaper: all of those that are, by brute force.
    order = sorted(range(len(rows)), key=rows.__getitem__)
    best = min(
        cost([list(part) for part in np.split(order, cuts)])
        for count in range(len(rows))
        for cuts in itertools.combinations(range(1, len(rows)), count)
    )
    assert cost(groups) == best


def test_too_many_rows_are_not_divided() -> None:
    assert divide_rows([1, 100] * 100) == [list(range(200))]
    assert divide_rows([]) == [[]]
