"""A plan shown to people: a table as text, and as HTML in notebooks."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from parallax.schedule import BodyPlan, Plan
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
    told = replace(plan.provenance, reason="it gains", uncut_ns=4_000_000, chosen_ns=3_000_000)
    return replace(plan, provenance=told)


def test_text_says_of_each_segment_what_runs_where_for_how_long_and_why() -> None:
    lines = str(split_plan()).splitlines()
    assert lines == [
        "2 segments on 2 lanes (1 on emulated:pixel-6-gpu): it gains",
        "segment       operators  runs on               width  lane  predicted ms  why",
        "segment_0             2  cpu                       2   any         1.235  the first",
        "on the phone          2  emulated:pixel-6-gpu  queue     1         0.001  quicker there",
        "measured: 3.000 ms, and 4.000 ms for the whole model on the CPU",
    ]


def test_html_says_the_same() -> None:
    reader = read(split_plan())
    text = str(split_plan()).splitlines()
    assert reader.paragraphs == [text[0], text[-1]]
    assert [row[0] for row in reader.rows] == ["segment", "segment_0", "on the phone"]
    assert reader.rows[2] == ["on the phone", "2", "emulated:pixel-6-gpu", "queue", "1", "0.001", "quicker there"]


def test_what_a_file_says_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    harmless, plan = split_plan(), split_plan()
    segment = replace(plan.segments[0], name=HOSTILE, reason=HOSTILE)
    plan = replace(plan, segments=(segment, plan.segments[1]), provenance=replace(plan.provenance, reason=HOSTILE))
    assert read(plan).elements == read(harmless).elements
    assert '<img src=x onerror="alert(1)">' in read(plan).rows[1][0], "shown as it is written"
    text = str(plan)
    assert len(text.splitlines()) == len(str(harmless).splitlines())
    assert "\\x1b[2J\\n" in text
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


def test_a_whole_model_is_one_line() -> None:
    whole = make_plan((make_segment(0),), lanes=1)
    told = replace(whole.provenance, reason="nothing gains", uncut_ns=4_000_000, chosen_ns=4_000_000)
    whole = replace(whole, provenance=told)
    assert whole.is_uncut
    assert str(whole) == whole.summary == "uncut: nothing gains"
    assert read(whole).elements == ["div", "p"]


def test_a_whole_model_on_a_backend_is_a_table_of_one() -> None:
    plan = make_plan((make_segment(0, backend="openvino", reason="all of it"),), lanes=1)
    assert plan.summary.startswith("uncut on openvino: ")
    assert [row[2] for row in read(plan).rows] == ["runs on", "openvino"]


def test_long_plans_and_long_reasons_are_cut_short_and_say_so() -> None:
    segments = tuple(make_segment(index, reason="why " * 1000) for index in range(100))
    plan = make_plan(segments, cores=1, lanes=1)
    assert len(read(plan).rows) == 1 + 40
    lines = str(plan).splitlines()
    assert "... and 60 more" in lines
    assert all(len(line) < 300 for line in lines)
    assert lines[2].endswith("...")


def test_bodies_that_are_planned_are_told() -> None:
    body = make_plan((make_segment(0),), cores=1, lanes=1)
    planned = make_segment(0, bodies=(BodyPlan(attribute="body", plan=body),), reason="a loop")
    assert "a loop; body: uncut:" in str(make_plan((planned,), cores=1, lanes=1))
