"""A Loop or Scan that says something impossible keeps its body, for the runtime to refuse in its own words."""

from __future__ import annotations

import pytest
from onnx import helper

from parallax.model import Model, load_model
from tests.model._models import model, node, value, weight


def scan(**attributes: object) -> Model:
    """A running sum over the rows of x."""
    body = helper.make_graph(
        [node("Add", "s r", "t"), node("Relu", "t", "o")],
        "body",
        [value("s", (8,)), value("r", (8,))],
        [value("t", (8,)), value("o", (8,))],
    )
    made = node("Scan", "start x", "sum y", **{"body": body, "num_scan_inputs": 1, **attributes})
    return load_model(model([made], [value("x", (2, 8))], [value("sum", None), value("y", None)],
                            {"start": weight((8,))}))  # fmt: skip


def test_a_scan_with_right_attributes_gives_its_body() -> None:
    assert scan(scan_input_axes=[-2], scan_output_directions=[1]).why_no_bodies(0) is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"num_scan_inputs": 5}, "scans 5 of 2 inputs"),
        ({"num_scan_inputs": 0}, "scans 0 of 2 inputs"),
        ({"num_scan_inputs": -1}, "scans -1 of 2 inputs"),
        ({"scan_input_axes": [7]}, "'x' has no axis 7"),
        ({"scan_input_axes": [-3]}, "'x' has no axis -3"),
        ({"scan_input_axes": [0, 0]}, "scan_input_axes does not have 1 entries"),
        ({"scan_input_axes": 1}, "scan_input_axes does not have 1 entries"),
        ({"scan_input_directions": [2]}, "entries other than 0 and 1"),
        ({"scan_output_directions": [0, 1]}, "scan_output_directions does not have 1 entries"),
    ],
)
def test_a_scan_with_impossible_attributes_keeps_its_body(attributes: dict[str, object], reason: str) -> None:
    found = scan(**attributes).why_no_bodies(0)
    assert found is not None
    assert reason in found


def test_a_loop_whose_body_returns_too_little_keeps_it() -> None:
    body = helper.make_graph(
        [node("Identity", "more", "still")],
        "body",
        [value("i", (), 7), value("more", (), 9), value("s", (8,))],
        [value("still", (), 9)],
    )
    loaded = load_model(model([node("Loop", "- - x", "y", body=body)], [value("x", (8,))], [value("y", (8,))]))
    assert loaded.why_no_bodies(0) == "body 'body' has 1 outputs where 2 are expected"
