"""A plan shown to people: a table as text, and as HTML in notebooks."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from parallax.schedule import CPU_BACKEND, BodyPlan, Candidate, Plan
from tests.schedule.test_plan_json import make_plan, make_segment

HOSTILE = '<img src=x onerror="alert(1)">&\x1b[2J\n\ud800'


class Reader(HTMLParser):
    """What a browser would make of a fragment: elements in order, and the cells of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.paragraphs: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are closed in the order they were opened in"

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.paragraphs[-1] += data


def read(plan: Plan) -> Reader:
    reader = Reader()
    reader.feed(plan._repr_html_())
    reader.close()
    assert reader.open == []
    return reader


def split_plan(**fields: Any) -> Plan:
    segments = (
        make_segment(0, width=2, cost_ns=1_234_567, reason="the first"),
        make_segment(1, name="on the phone", backend="emulated:pixel-6-gpu", width=0, lane=1, reason="quicker there"),
    )
    plan = make_plan(segments, **{"cores": 2, "lanes": 2} | fields)
    told = replace(plan.provenance, reason="it gains", whole_ns=4_000_000, chosen_ns=3_000_000)
    return replace(plan, provenance=told)


def test_text_says_of_each_segment_what_runs_where_for_how_long_and_why() -> None:
    lines = str(split_plan()).splitlines()
    assert lines == [
        "split into 2 segments on 2 lanes (1 on emulated:pixel-6-gpu): it gains",
        "segment       operators  runs on             threads  lane     ms  why",
        "segment_0             2  cpu                       2   any  1.235  the first",
        "on the phone          2  emulated:pixel-...    queue     1  0.001  quicker there",
        "on 2 cores: 2 operators in 1 segment on cpu, 1.235 ms in all; 2 operators in 1",
        "  segment on emulated:pixel-6-gpu, 0.001 ms in all",
        "measured: 3.000 ms, and 4.000 ms for the whole model on the CPU",
        "",
        "compared, the quickest first:",
        "plan   segments  lanes  predicted ms  measured ms  note",
        "whole         1      1         0.000        0.000  2 lanes",
        "whole         1      1         0.000            -",
    ]


def test_html_says_the_same() -> None:
    reader = read(split_plan())
    text = str(split_plan()).splitlines()
    assert reader.paragraphs[0] == text[0]
    assert text[6] in reader.paragraphs
    assert [row[0] for row in reader.rows] == ["segment", "segment_0", "on the phone", "plan", "whole", "whole"]
    assert reader.rows[2] == ["on the phone", "2", "emulated:pixel-6-gpu", "queue", "1", "0.001", "quicker there"]


def test_what_a_file_says_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    harmless, plan = split_plan(), split_plan()
    segment = replace(plan.segments[0], name=HOSTILE, reason=HOSTILE)
    plan = replace(plan, segments=(segment, plan.segments[1]), provenance=replace(plan.provenance, reason=HOSTILE))
    assert read(plan).elements == read(harmless).elements
    assert '<img src=x onerror="alert(1)">' in read(plan).rows[1][0], "shown as it is written"
    text = str(plan)
    assert len(read(plan).rows) == len(read(harmless).rows)
    assert "\\x1b[2J\\n" in text
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


def alone(plan: Plan, **told: Any) -> Plan:
    """With nothing that it was compared with."""
    return replace(plan, provenance=replace(plan.provenance, candidates=(), **told))


def test_a_whole_model_is_one_line() -> None:
    whole = make_plan((make_segment(0, width=2),), cores=2, lanes=1)
    whole = alone(whole, reason="nothing gains", whole_ns=4_000_000, chosen_ns=4_000_000)
    assert whole.is_whole
    assert str(whole) == whole.summary == "whole model, 2 threads: nothing gains"
    assert read(whole).elements == ["div", "p"]


def test_a_whole_model_says_what_it_was_compared_with() -> None:
    candidates = (
        Candidate(label="whole model, 2 threads", segments=1, lanes=1, simulated_ns=0, measured_ns=4_000_000),
        Candidate(label="2 lanes", segments=9, lanes=2, simulated_ns=3_500_000, measured_ns=5_000_000),
        Candidate(label="slow", segments=4, lanes=2, simulated_ns=9_000_000, measured_ns=None, note="not measured"),
    )
    whole = make_plan((make_segment(0),), cores=1, lanes=1)
    lines = str(replace(whole, provenance=replace(whole.provenance, candidates=candidates[::-1]))).splitlines()
    assert [line.split("  ")[0] for line in lines[4:]] == ["whole model, 2 threads", "2 lanes", "slow"]
    assert lines[-1].endswith("not measured")


def test_a_plan_that_a_busy_machine_decided_says_so() -> None:
    whole = make_plan((make_segment(0),), cores=1, lanes=1)
    assert "nothing was concluded" not in str(whole)
    assert "nothing was concluded" in str(alone(whole, is_noisy=True))


def test_a_whole_model_on_a_backend_is_a_table_of_one() -> None:
    plan = make_plan((make_segment(0, backend="openvino", reason="all of it"),), cores=2, lanes=1)
    assert plan.summary.startswith("whole model on openvino, 1 thread: ")
    assert [row[2] for row in read(alone(plan)).rows] == ["runs on", "openvino"]


def test_a_plan_of_thousands_of_operators_fits_on_a_screen() -> None:
    segments = tuple(
        make_segment(
            index,
            nodes=tuple(range(100 * index, 100 * index + 100)),
            reason="why " * 1000,
            cost_ns=1_000_000 * (index % 7),
            backend="emulated:pixel-6-gpu" if index % 3 else CPU_BACKEND,
            name=f"a segment with a long name, number {index}",
        )
        for index in range(100)
    )
    plan = make_plan(segments, cores=4, lanes=2)
    candidates = tuple(
        Candidate(label=f"{number} lanes, " + "long " * 20, segments=3, lanes=2, simulated_ns=number, measured_ns=None)
        for number in range(1, 50)
    )
    plan = replace(plan, provenance=replace(plan.provenance, candidates=candidates, reason="because " * 20))
    lines = str(plan).splitlines()
    assert len(lines) <= 32
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("... and 88 more") for line in lines)
    assert "... and 43 more" in lines
    assert "3400 operators in 34 segments on cpu" in " ".join(lines)
    assert len([row for row in read(plan).rows if row[0].startswith("a segment")]) == 40


def test_the_segments_that_take_longest_are_listed_in_order() -> None:
    segments = tuple(make_segment(index, cost_ns=index + 1) for index in range(100))
    lines = str(make_plan(segments, cores=1, lanes=1)).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("segment_")]
    assert listed == [f"segment_{index}" for index in range(88, 100)]


def test_bodies_that_are_planned_are_told() -> None:
    body = make_plan((make_segment(0),), cores=1, lanes=1)
    planned = make_segment(0, bodies=(BodyPlan(attribute="body", plan=body),), reason="a loop")
    plan = make_plan((planned,), cores=1, lanes=1)
    assert plan.summary.startswith("whole model, 1 thread, bodies of control flow planned one by one: ")
    assert any("a loop; body: whole model, 1 thread:" in row[-1] for row in read(plan).rows)
