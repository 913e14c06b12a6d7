"""The table of what OpenVINO computes right: spot checks that it holds. The tool that makes it compares the whole."""

from __future__ import annotations

import pytest

from parallax.backends.openvino import OpenVinoBackend
from parallax.backends.openvino._rules import refused_nodes
from parallax.backends.openvino._table import Row, operator_table, parse_table
from parallax.model import load_model
from tests.backends._backends import obstacle
from tests.conformance._operator_seeds import own_seeds
from tests.conformance._operator_sweep import Swept, render
from tests.conformance._operator_table import REFUSED, Expected, expect, judge_trials, trial_key
from tests.conformance._operator_trials import as_exported

needs_openvino = pytest.mark.skipif(obstacle("openvino") is not None, reason=str(obstacle("openvino")))


def _admits(item: Expected) -> bool:
    """Whether a session would give such a node to OpenVINO."""
    rows = operator_table().rows.get((item.trial.domain, item.trial.op_type), ())
    if all(row.obstacle(item.form) is not None for row in rows):
        return False
    model = load_model(item.trial.model())
    return not refused_nodes(model.inferred(), model.opset_imports)


@needs_openvino
@pytest.mark.timeout(600)
def test_openvino_computes_what_the_table_admits_as_onnxruntime_does() -> None:
    """Of the seeds written here; `tools/openvino_table.py --check` takes the suite's, and what grows from both."""
    trials = [as_exported(trial) for seeds in own_seeds().values() for trial in seeds]
    expected = [item for item in map(expect, trials) if item is not None]
    admitted = [item for item in expected if _admits(item)]
    assert len(admitted) > 0.4 * len(expected)
    backend = OpenVinoBackend(checks_feeds=False)
    judged = [item for batch in judge_trials(backend, admitted) for item in batch]
    assert [(trial_key(item.expected.trial), item.failed["plain"]) for item in judged if item.is_wrong] == []
    assert sum(item.is_equal for item in judged) > 0.9 * len(judged)
    table = operator_table()
    for item in judged:
        trial = item.expected.trial
        stated = set().union(*(row.loses for row in table.rows[trial.domain, trial.op_type]))
        assert set(item.failed) - {REFUSED} <= stated, trial_key(trial)


@pytest.mark.parametrize(
    ("takes", "form", "expected"),
    [
        ({"in0": "float"}, {"in0": "float"}, None),
        ({"in0": "float"}, {"in0": "int64"}, "with operand 0 of type int64"),
        ({"in0": "float"}, {"in0": "float", "in1": "float"}, "with operand 1 of type float"),
        ({"in0": "float", "in1": "float"}, {"in0": "float"}, "without operand 1"),
        ({"in0": "float", "in1": "- float"}, {"in0": "float"}, None),
        ({"@mode": "avg"}, {"@mode": "max"}, "with mode of the kind 'max'"),
        ({"@mode": "avg"}, {}, "without its attribute mode"),
        ({"@pads": "- 0"}, {"@pads": "0 >1"}, "with pads of the kind '>1'"),
        ({"rank0": "1 2"}, {"rank0": "3"}, "with operand 0 of rank 3"),
        ({"rank0": "1 2"}, {"rank0": "?"}, "with operand 0 of unknown rank"),
        ({"const1": "yes"}, {"const1": "no"}, "with operand 1 computed"),
        ({"shapes": "fixed"}, {"shapes": "open"}, "with shapes that are open"),
        ({"since": "13"}, {"since": "11"}, "of version 11"),
        ({}, {"out1": "int64"}, "with output 1 of type int64"),
    ],
)
def test_a_row_refuses_what_it_does_not_hold_and_says_so(
    takes: dict[str, str], form: dict[str, str], expected: str | None
) -> None:
    row = Row(takes={name: frozenset(values.split()) for name, values in takes.items()})
    assert row.obstacle({name: frozenset(values.split()) for name, values in form.items()}) == expected


def test_versions_are_told_by_their_minor_release() -> None:
    text = '{"format": 1, "openvino": "2026.4.1-1-x", "opsets": {}, "operators": {}}'
    table = parse_table(text)
    assert [table.is_for(version) for version in ("2026.4.0", "2026.4.7-2", "2026.5.1", "2027.4.1", "2026")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_what_was_found_lost_on_another_processor_stays() -> None:
    takes = {"in0": ["double", "float"]}
    found = {
        ("", "Greater"): Swept(rows=[{"takes": takes, "loses": ["inf"]}], trials=1, equal=1, failures={}),
        ("", "Less"): Swept(rows=[{"takes": takes}], trials=1, equal=1, failures={}),
    }
    elsewhere = {("", "Greater"): Swept(rows=[{"takes": takes, "loses": ["nan"]}], trials=1, equal=1, failures={})}
    table = parse_table(render(found, "2026.4.0", known=render(elsewhere, "2026.4.0")))
    assert [row.loses for row in table.rows["", "Greater"]] == [{"inf", "nan"}]
    assert [row.loses for row in table.rows["", "Less"]] == [frozenset()]
