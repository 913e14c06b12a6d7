"""Plans to JSON and back: exact inverses, and nothing that is read is trusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import PlanError
from parallax.schedule import (
    PLAN_FORMAT_VERSION,
    BodyPlan,
    Candidate,
    Dispatcher,
    DispatchTable,
    Plan,
    Provenance,
    Segment,
    Stretch,
    verify_plan,
)

JsonDict = dict[str, Any]


def make_segment(index: int, **fields: Any) -> Segment:
    settings: JsonDict = {
        "index": index,
        "name": f"segment_{index}",
        "nodes": (2 * index, 2 * index + 1),
        "inputs": (f"t{index - 1}" if index else "x",),
        "outputs": (f"t{index}",),
        "predecessors": (index - 1,) if index else (),
        "width": 1,
        "priority": -index,
        "lane": None,
        "cost_ns": 1000,
        "reason": "",
    }
    return Segment(**settings | fields)


def make_plan(segments: tuple[Segment, ...], **fields: Any) -> Plan:
    candidate = Candidate(label="whole", segments=1, lanes=1, simulated_ns=5, measured_ns=None)
    provenance = Provenance(
        source="measured",
        whole_ns=5,
        chosen_ns=None,
        candidates=(candidate, replace(candidate, measured_ns=7, note="2 lanes")),
        runtime_version="1.2.3",
        machine="m",
        reason="",
    )
    settings: JsonDict = {
        "format_version": PLAN_FORMAT_VERSION,
        "structure_digest": "abc",
        "policy": "adaptive",
        "cores": 4,
        "lanes": 2,
        "backfill": True,
        "segments": segments,
        "provenance": provenance,
    }
    return Plan(**settings | fields)


PLAN = make_plan(
    (make_segment(0), make_segment(1, lane=1, width=4, peak_bytes=9), make_segment(2, predecessors=(0, 1)))
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    cores, lanes = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    segments = []
    for index in range(draw(st.integers(0, 5))):
        others = draw(st.sets(st.integers(0, index - 1))) if index else set()
        segments.append(
            make_segment(
                index,
                name=draw(st.text()),
                reason=draw(st.text()),
                inputs=tuple(f"t{other}" for other in sorted(others)),
                predecessors=tuple(sorted(others)),
                width=draw(st.integers(1, cores)),
                priority=draw(st.integers(-(1 << 63), (1 << 63) - 1)),
                lane=draw(st.none() | st.integers(0, lanes - 1)),
                cost_ns=draw(st.integers(0, 1 << 62)),
                peak_bytes=draw(st.integers(0, 1 << 62)),
            )
        )
    return make_plan(
        tuple(segments),
        cores=cores,
        lanes=lanes,
        backfill=draw(st.booleans()),
        policy=draw(st.text(alphabet="aé\ud800")),
    )


@given(plans())
def test_reading_is_the_exact_inverse_of_writing(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    text = json.dumps(plan.to_json())
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text.encode()) == plan
    assert json.dumps(Plan.from_json(text).to_json()) == text


def test_written_plan_has_json_types_only() -> None:
    def types_in(value: object) -> set[type]:
        if isinstance(value, dict):
            return {dict}.union(*map(types_in, value.values()))
        return {list}.union(*map(types_in, value)) if isinstance(value, list) else {type(value)}

    assert types_in(PLAN.to_json()) == {dict, list, str, int, bool, type(None)}


def test_plan_that_was_read_can_be_dispatched() -> None:
    dispatcher = Dispatcher(DispatchTable.from_plan(Plan.from_json(PLAN.to_json())), cores=4, lanes=2, strict=True)
    assert dispatcher.start() == ((0, 0, 1),)
    assert dispatcher.segment_done(0) == ((1, 1, 4),)
    assert dispatcher.segment_done(1) == ((2, 1, 1),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"format_version": 1',
        "\x00",
        "[" * 100_000,
        '{"format_version": ' + "9" * 5000 + "}",
        '{"a": 1, "a": 2}',
        b"\xff\xfe{}",
        b"PK\x03\x04",
    ],
)
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="not a plan in JSON"):
        Plan.from_json(text)


@pytest.mark.parametrize("version", [0, PLAN_FORMAT_VERSION + 1, -1, 10**30, int("9" * 4000)])
def test_other_format_version_is_refused_before_its_fields_are_looked_at(version: int) -> None:
    reads = rf"format version .* reads {PLAN_FORMAT_VERSION} \(at plan.format_version\); make the plan again"
    with pytest.raises(PlanError, match=reads):
        Plan.from_json({"format_version": version, "new field": 1})


ILL_TYPED: list[tuple[str, Any, str]] = [
    ("format_version", True, "plan.format_version"),
    ("format_version", 1.0, "plan.format_version"),
    ("structure_digest", None, "plan.structure_digest"),
    ("cores", "4", "plan.cores"),
    ("cores", True, "plan.cores"),
    ("cores", 4.0, "plan.cores"),
    ("cores", float("nan"), "plan.cores"),
    ("cores", 1 << 63, "plan.cores"),
    ("cores", int("9" * 4000), "plan.cores"),
    ("backfill", 1, "plan.backfill"),
    ("segments", {}, "plan.segments"),
    ("segments", None, "plan.segments"),
    ("segments", [[]], r"plan.segments\[0\]"),
    ("segments.1.nodes", [1, "2"], r"plan.segments\[1\].nodes\[1\]"),
    ("segments.1.nodes", "12", r"plan.segments\[1\].nodes"),
    ("segments.1.lane", [], r"plan.segments\[1\].lane"),
    ("segments.0.inputs", [None], r"plan.segments\[0\].inputs\[0\]"),
    ("provenance", [], "plan.provenance"),
    ("provenance.uncut_ns", "5", "plan.provenance.uncut_ns"),
    ("provenance.candidates.1.simulated_ns", None, r"plan.provenance.candidates\[1\].simulated_ns"),
]


def changed(path: str, value: Any) -> JsonDict:
    plan: Any = copy.deepcopy(PLAN.to_json())
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = plan
    for step in way:
        place = place[step]
    place[last] = value
    assert isinstance(plan, dict)
    return plan


@pytest.mark.parametrize(("path", "value", "where"), ILL_TYPED, ids=lambda value: repr(value)[:20])
def test_ill_typed_field_is_named(path: str, value: Any, where: str) -> None:
    with pytest.raises(PlanError, match=where) as refusal:
        Plan.from_json(changed(path, value))
    assert refusal.value.fix is not None


@pytest.mark.parametrize("path", ["cores", "provenance.reason", "segments.2.peak_bytes"])
def test_missing_and_unknown_fields_are_named(path: str) -> None:
    plan = changed(path, 0)
    place: Any = plan
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    del place[last]
    with pytest.raises(PlanError, match=f"missing or unknown: '{last}'"):
        Plan.from_json(plan)
    with pytest.raises(PlanError, match="missing or unknown: 'extra'"):
        Plan.from_json(changed(".".join([*way, "extra"]), 1))


@pytest.mark.parametrize("value", [None, [], "[]", "null", "7", '"plan"', {}])
def test_json_that_is_no_plan_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match="at plan"):
        Plan.from_json(value)


IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("cores", 0, "0 cores"),
    ("lanes", 1 << 40, "lanes are not within"),
    ("segments.1.index", 2, "index 2 at position 1"),
    ("segments.1.predecessors", [1], "not distinct lower"),
    ("segments.1.predecessors", [2], "not distinct lower"),
    ("segments.1.predecessors", [-1], "not distinct lower"),
    ("segments.2.predecessors", [1, 1], "not distinct lower"),
    ("segments.0.width", 0, "width 0"),  # without a fixed lane it is no device's queue
    ("segments.1.width", 5, "width 5"),
    ("segments.1.lane", 2, "lane 2"),
    ("segments.1.lane", -1, "lane -1"),
    ("segments.1.cost_ns", -1, "negative"),
    ("segments.1.peak_bytes", -1, "negative"),
    ("segments.1.nodes", [3, 2], "not ascending"),
    ("segments.1.nodes", [2, 2], "not ascending"),
    ("segments.1.nodes", [-2, 2], "not ascending"),
    ("segments.1.nodes", [], "no nodes"),
    ("segments.1.outputs", ["t0"], "'t0' is produced by segment 0 as well"),
    ("segments.1.outputs", ["t1", "t1"], "name a tensor twice"),
    ("segments.1.inputs", ["t0", "t0"], "name a tensor twice"),
    ("segments.2.inputs", ["t0", "t2"], "reads 't2' of segment 2"),
    ("segments.0.inputs", ["t1"], "reads 't1' of segment 1, which is not among its predecessors"),
]


@pytest.mark.parametrize(("path", "value", "complaint"), IMPOSSIBLE)
def test_plan_that_could_not_run_is_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint) as refusal:
        Plan.from_json(changed(path, value))
    assert refusal.value.where is not None
    assert refusal.value.fix is not None


def test_judge_accepts_a_good_plan_and_checks_nodes_against_the_graph() -> None:
    verify_plan(PLAN)
    verify_plan(PLAN, 6)
    with pytest.raises(PlanError, match=r"node 5 of a graph of 5 nodes \(at plan.segments\[2\] 'segment_2'\)"):
        verify_plan(PLAN, 5)


def test_judge_refuses_another_format_version() -> None:
    with pytest.raises(PlanError, match="format version 9"):
        verify_plan(replace(PLAN, format_version=9))


@pytest.mark.parametrize("permille", [0, 1000, -5])
def test_judge_refuses_a_share_that_is_none(permille: int) -> None:
    verify_plan(replace(PLAN, rows_permille=1))
    verify_plan(replace(PLAN, rows_permille=999))
    with pytest.raises(PlanError, match=f"{permille} thousandths"):
        verify_plan(replace(PLAN, rows_permille=permille))


def test_judge_refuses_tensors_that_stay_whole_where_no_rows_are_split_once() -> None:
    plan = replace(PLAN, rows_permille=300, rows_whole=("a", "b"))
    verify_plan(plan)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for changes in ({"rows_permille": None}, {"rows_rounds": 2}):
        with pytest.raises(PlanError, match="no rows that are split once"):
            verify_plan(replace(plan, **changes))
    verify_plan(replace(plan, rows_joined=True))
    with pytest.raises(PlanError, match="none that are split"):
        verify_plan(replace(PLAN, rows_joined=True))
    for names in (("a", "a"), ("a", "")):
        with pytest.raises(PlanError, match="named twice, or not at all"):
            verify_plan(replace(plan, rows_whole=names))


def test_judge_refuses_stretches_that_are_none_or_beside_other_rewrites() -> None:
    stretch = Stretch(output="a", axis=1, slices=4, inputs=("b", "c"))
    plan = replace(PLAN, stretches=(stretch, replace(stretch, output="d")))
    verify_plan(plan)
    assert plan.is_rewritten
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    wrong: tuple[dict[str, Any], ...] = ({"slices": 1}, {"slices": 1 << 20}, {"axis": -1})
    for changes in wrong:
        with pytest.raises(PlanError, match="a stretch in"):
            verify_plan(replace(plan, stretches=(replace(stretch, **changes),)))
    with pytest.raises(PlanError, match="two stretches of one output"):
        verify_plan(replace(plan, stretches=(stretch, stretch)))
    beside: tuple[dict[str, Any], ...] = ({"rows_permille": 500}, {"constants_shapes": ()})
    for changes in beside:
        with pytest.raises(PlanError, match="rewritten otherwise"):
            verify_plan(replace(plan, **changes))
    body = BodyPlan(attribute="body", plan=replace(make_plan((make_segment(0),), cores=1), stretches=(stretch,)))
    with pytest.raises(PlanError, match="which only whole models have"):
        verify_plan(make_plan((make_segment(0, bodies=(body,)),)))


def test_a_plan_that_was_written_before_layers_could_stay_whole_is_read() -> None:
    body = BodyPlan(attribute="body", plan=make_plan((make_segment(0),), cores=1))
    plan = make_plan((make_segment(0, bodies=(body,)),))
    written: Any = json.loads(json.dumps(plan.to_json()))
    del written["rows_whole"], written["stretches"]
    del written["rows_joined"], written["segments"][0]["bodies"][0]["plan"]["rows_whole"]
    assert Plan.from_json(written) == plan
    del written["rows_rounds"]
    with pytest.raises(PlanError, match="'rows_rounds'"):
        Plan.from_json(written)


@pytest.mark.parametrize("shapes", [None, (), (("x", (2, 0)), ("y", ()))])
def test_shapes_that_constants_were_computed_in_come_back(
    shapes: tuple[tuple[str, tuple[int, ...]], ...] | None,
) -> None:
    plan = replace(PLAN, constants_shapes=shapes, rows_permille=300, rows_shapes=(("z", (8,)),))
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert read.is_rewritten
    assert read.own_shapes == {**dict(shapes or ()), "z": (8,)}
    assert replace(plan, rows_permille=None, rows_shapes=()).is_rewritten is (shapes is not None)


def test_judge_refuses_sizes_below_nought_and_bodies_with_computed_constants() -> None:
    with pytest.raises(PlanError, match="to compute constants in are none"):
        verify_plan(replace(PLAN, constants_shapes=(("x", (2, -1)),)))
    body = BodyPlan(attribute="body", plan=replace(make_plan((make_segment(0),), cores=1), constants_shapes=()))
    with pytest.raises(PlanError, match="which whole models have"):
        verify_plan(make_plan((make_segment(0, bodies=(body,)),)))


def test_judge_refuses_a_body_that_is_split_by_rows() -> None:
    body = BodyPlan(attribute="body", plan=replace(make_plan((make_segment(0),), cores=1), rows_permille=500))
    with pytest.raises(PlanError, match="only whole models"):
        verify_plan(make_plan((make_segment(0, bodies=(body,)),)))


def test_node_may_be_replicated_and_the_plan_of_a_whole_model_need_not_list_nodes() -> None:
    verify_plan(make_plan((make_segment(0, nodes=(0, 1)), make_segment(1, nodes=(0, 2)))), 3)
    verify_plan(make_plan((make_segment(0, nodes=()),)))
    verify_plan(make_plan(()))


@pytest.mark.parametrize("mutate", [lambda t: t[: len(t) // 2], lambda t: t.replace("1", "-1"), lambda t: t[::-1]])
def test_mangled_text_is_a_plan_error_and_nothing_else(mutate: Callable[[str], str]) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(mutate(json.dumps(PLAN.to_json())))
