"""The one enumeration of why a node runs where it runs."""

from __future__ import annotations

from parallax.graph import Verdict


def test_verdicts_are_told_apart_and_explained():
    assert len({verdict.label for verdict in Verdict}) == len({verdict.meaning for verdict in Verdict}) == len(Verdict)
    assert all(verdict.label and verdict.meaning for verdict in Verdict)


def test_refusals_are_what_a_device_can_say_of_a_node_by_itself():
    assert {verdict.name for verdict in Verdict if verdict.is_refusal} == {
        "UNSUPPORTED_OPERATOR",
        "UNSUPPORTED_TYPE",
        "LOWER_PRECISION",
        "DYNAMIC_SHAPE",
        "CONTROL_FLOW",
        "UNSUPPORTED_FORM",
        "OUT_OF_MEMORY",
    }
    assert all(verdict.is_refusal == bool(verdict.remedy) for verdict in Verdict)
