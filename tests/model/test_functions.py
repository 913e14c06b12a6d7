"""Local functions are inlined where that changes nothing, and left to the runtime where it might."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from parallax.model import Model, load_model
from tests.model._models import model, node, run, value

X = np.array([-1.0, 2.0, -3.0], np.float32)


def referring(
    made: onnx.NodeProto, attribute: str, outer: str, kind: int = onnx.AttributeProto.FLOAT
) -> onnx.NodeProto:
    """A node whose attribute is that of the function around it."""
    made.attribute.append(onnx.AttributeProto(name=attribute, ref_attr_name=outer, type=kind))
    return made


def function(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    *,
    required: Sequence[str] = (),
    defaults: dict[str, object] | None = None,
    opset: int = 21,
    domain: str = "local",
    inputs: Sequence[str] = ("v",),
    outputs: Sequence[str] = ("w",),
) -> onnx.FunctionProto:
    return helper.make_function(
        domain,
        name,
        list(inputs),
        list(outputs),
        list(nodes),
        [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)],
        list(required),
        [helper.make_attribute(key, default) for key, default in (defaults or {}).items()],
    )


def leak(default: float | None = 0.25, name: str = "Leak") -> onnx.FunctionProto:
    body = [referring(node("LeakyRelu", "v", "w"), "alpha", "slope")]
    if default is None:
        return function(name, body, required=["slope"])
    return function(name, body, defaults={"slope": default})


def calling(
    functions: Sequence[onnx.FunctionProto], call: onnx.NodeProto | None = None, domain: str = "local"
) -> onnx.ModelProto:
    call = node(functions[0].name, "x", "y", domain=domain) if call is None else call
    proto = model([call], [value("x")], [value("y", None)])
    proto.functions.extend(functions)
    for name in {function.domain for function in functions} - {""}:
        proto.opset_import.append(helper.make_opsetid(name, 1))
    return proto


def answer(loaded: Model) -> np.ndarray:
    names = [info.name for info in loaded.graph.inputs]
    part = loaded.extract(range(len(loaded.graph.nodes)), names, ["y"], name="all")
    return run(part, {"x": X})[0]


def check_inlined(proto: onnx.ModelProto) -> np.ndarray:
    """What the inlined model computes, which ONNX Runtime computes too when it inlines by itself."""
    loaded = load_model(proto)
    assert loaded.why_whole is None
    assert all(not item.domain for item in loaded.graph.nodes)
    found = answer(loaded)
    np.testing.assert_array_equal(found, run(proto, {"x": X})[0])
    return found


def test_the_default_of_an_attribute_holds_where_the_call_leaves_it_out() -> None:
    np.testing.assert_array_equal(check_inlined(calling([leak()])), np.float32([-0.25, 2, -0.75]))


def test_an_attribute_that_is_given_wins_over_its_default() -> None:
    call = node("Leak", "x", "y", domain="local", slope=0.5)
    np.testing.assert_array_equal(check_inlined(calling([leak()], call)), np.float32([-0.5, 2, -1.5]))


def test_an_attribute_without_value_or_default_is_left_to_the_operator() -> None:
    found = check_inlined(calling([leak(default=None)]))
    np.testing.assert_array_equal(found, np.float32([-0.01, 2, -0.03]))


def test_defaults_pass_through_functions_that_call_functions() -> None:
    outer = function(
        "Outer",
        [referring(node("Leak", "v", "t", domain="local"), "slope", "steep"), node("Leak", "t", "w", domain="local")],
        defaults={"steep": 0.5},
    )
    np.testing.assert_array_equal(check_inlined(calling([outer, leak()])), np.float32([-0.125, 2, -0.375]))


def test_defaults_hold_in_bodies_inside_functions() -> None:
    branches = [
        helper.make_graph([made], name, [], [value("b", None)])
        for name, made in (
            ("then", node("Leak", "v", "b", domain="local")),
            ("else", referring(node("Elu", "v", "b"), "alpha", "slope")),
        )
    ]
    constant = node("Constant", "", "yes", value=helper.make_tensor("t", onnx.TensorProto.BOOL, [], [True]))
    outer = function(
        "Outer",
        [constant, node("If", "yes", "w", then_branch=branches[0], else_branch=branches[1])],
        defaults={"slope": 2.0},
    )
    np.testing.assert_array_equal(check_inlined(calling([outer, leak()])), np.float32([-0.25, 2, -0.75]))


def test_functions_that_nothing_calls_are_of_no_matter() -> None:
    idle = function("Idle", [node("Relu", "v", "w")], opset=13)
    check_inlined(calling([leak(), idle]))


def other_opset() -> onnx.ModelProto:
    return calling([function("Old", [node("Relu", "v", "w")], opset=13)])


def default_that_depends_on_the_call() -> onnx.ModelProto:
    body = [referring(node("Leak", "v", "w", domain="local"), "slope", "steep")]
    return calling([function("Outer", body, required=["steep"]), leak()])


def body_that_returns_its_input() -> onnx.ModelProto:
    """A loop whose condition goes through, which onnx's inliner renames at its entry and again at its exit."""
    body = helper.make_graph(
        [node("Neg", "state", "next")],
        "body",
        [value("i", (), 7), value("more", (), 9), value("state", None)],
        [value("more", (), 9), value("next", None)],
    )
    count = node("Constant", "", "count", value=helper.make_tensor("t", onnx.TensorProto.INT64, [], [3]))
    return calling([function("Again", [count, node("Loop", "count - v", "w", body=body)])])


def unsorted() -> onnx.ModelProto:
    return calling([function("Mixed", [node("Relu", "t", "w"), node("Neg", "v", "t")])])


def graph_for_an_attribute() -> onnx.ModelProto:
    branch = helper.make_graph([node("Relu", "x", "b")], "then", [], [value("b", None)])
    body = [
        node("Constant", "", "yes", value=helper.make_tensor("t", onnx.TensorProto.BOOL, [], [True])),
        node("If", "yes", "w"),
    ]
    for name in ("then_branch", "else_branch"):
        referring(body[1], name, "branch", onnx.AttributeProto.GRAPH)
    return calling(
        [function("Choose", body, required=["branch"])], node("Choose", "x", "y", domain="local", branch=branch)
    )


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (other_opset(), "version 13 of ai.onnx"),
        (default_that_depends_on_the_call(), "may leave an attribute of 'Leak' to its default"),
        (body_that_returns_its_input(), "reads or returns what it does not compute"),
        (unsorted(), "reads or returns what it does not compute"),
        (graph_for_an_attribute(), "is given a graph"),
    ],
    ids=["other opset", "nested default", "passed through", "unsorted", "graph"],
)
def test_what_inlining_might_change_is_left_to_the_runtime(proto: onnx.ModelProto, reason: str) -> None:
    loaded = load_model(proto)
    assert loaded.why_whole is not None
    assert reason in loaded.why_whole


def test_functions_deeper_than_the_inliner_goes_are_left_to_the_runtime() -> None:
    chain = [function(f"F{level}", [node(f"F{level + 1}", "v", "w", domain="local")]) for level in range(150)]
    loaded = load_model(calling([*chain, function("F150", [node("Relu", "v", "w")])]))
    assert loaded.why_whole == "its functions call each other 151 deep"
