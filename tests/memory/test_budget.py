"""Budgets: how they are written, what a plan needs at least, and what it may hold at most."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import ConfigError, InternalError, PlanError
from parallax.memory import parse_bytes, peak_of_schedule
from parallax.memory._budget import admission_budget, largest_segment, least_budget
from tests.memory._plans import chain, plan_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (256 * MIB, 256 * MIB),
        ("256MiB", 256 * MIB),
        ("256 mib", 256 * MIB),
        (" 1.5 GiB ", 1536 * MIB),
        ("300MB", 300_000_000),
        ("2kB", 2000),
        ("2KiB", 2048),
        ("1TiB", 1 << 40),
        ("1024", 1024),
        ("64 B", 64),
        ("9007199254740993", 9007199254740993),
        (0.5, 500),
        (1.0, 1000),
        ("25%", 250),
        ("12.5 %", 125),
    ],
)
def test_budgets_may_be_bytes_sizes_and_shares(value, expected):
    assert parse_bytes(value, free_bytes=1000) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "much", "MiB", "1 2", "-1", "1e9", "0x10", "5 MiB%", "12XB", "1,5GiB", "٣", "9" * 40),
        *("0", "0.0 MiB", "0%", "101%", "9" * 18 + "TiB"),
        *(0, -5, 1 << 70, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, None, b"1", [1]),
    ],
)
def test_anything_else_is_refused_with_examples(value):
    with pytest.raises(ConfigError, match=r"memory_budget.*256MiB"):
        parse_bytes(value, free_bytes=1000)


def test_the_largest_amount_is_four_exbibytes():
    assert parse_bytes(1 << 62) == 1 << 62
    with pytest.raises(ConfigError, match="no usable amount"):
        parse_bytes((1 << 62) + 1)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("much", "'much' is no amount of memory"),
        (0.0, "0.0 is no share of free memory"),
        ([1], "a list is no amount of memory"),
        (0, "0 is no usable amount of memory"),
    ],
)
def test_the_message_says_what_is_wrong_and_shares_are_proposed_only_where_they_are_allowed(value, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_bytes(value, free_bytes=1000)
    assert "a share of free memory" in (caught.value.fix or "")
    with pytest.raises(ConfigError) as caught:
        parse_bytes(value, where="the device's memory")
    assert caught.value.where == "the device's memory"
    assert "share" not in (caught.value.fix or "")


def test_a_share_needs_to_know_what_is_free():
    with pytest.raises(ConfigError, match="free memory is not known"):
        parse_bytes(0.5)
    assert parse_bytes("1MiB") == MIB


def test_a_message_names_the_option_and_never_a_whole_file():
    with pytest.raises(ConfigError, match=r"\(at limit\)") as caught:
        parse_bytes("x" * 100_000, where="limit")
    assert len(str(caught.value)) < 400


def test_the_least_budget_is_the_arena_and_the_largest_segment():
    assert least_budget([], arena_bytes=5, margin=0.0) == 5
    assert largest_segment([70, 10, 70]) == 0, "the first of several"
    assert least_budget([10, 70, 30], arena_bytes=100, margin=0.0) == 170
    assert largest_segment([10, 70, 30]) == 1
    assert largest_segment([]) is None


def test_a_tenth_of_a_budget_is_left_free_unless_said_otherwise():
    assert least_budget([80], arena_bytes=10) == 100
    assert admission_budget(1000, [80], arena_bytes=100) == 800
    with pytest.raises(PlanError, match="10% is kept free") as caught:
        admission_budget(99, [80], arena_bytes=10)
    assert caught.value.fix == "give at least 100 bytes"


def test_a_budget_too_small_is_refused_with_the_number_that_would_do():
    with pytest.raises(PlanError, match="segments take 20 and segment 1 alone 80, and 50% is kept free"):
        admission_budget(199, [10, 80], arena_bytes=20, margin=0.5)
    with pytest.raises(PlanError, match="segments take 20, and"):
        admission_budget(19, [], arena_bytes=20, margin=0.0)
    with pytest.raises(PlanError, match="give at least 200 bytes"):
        admission_budget(199, [10, 80], arena_bytes=20, margin=0.5)
    assert admission_budget(200, [10, 80], arena_bytes=20, margin=0.5) == 80


@given(st.lists(st.integers(0, 1 << 40), max_size=5), st.integers(0, 1 << 45), st.floats(0, 0.99))
def test_the_least_budget_does_and_one_byte_less_does_not(peaks, arena, margin):
    least = least_budget(peaks, arena_bytes=arena, margin=margin)
    running = admission_budget(least, peaks, arena_bytes=arena, margin=margin)
    assert running >= max(peaks, default=0)
    assert running + arena <= least * (1 - margin)
    if least:
        with pytest.raises(PlanError, match=f"at least {least} bytes"):
            admission_budget(least - 1, peaks, arena_bytes=arena, margin=margin)


@pytest.mark.parametrize("margin", [1.0, -0.1, float("nan")])
def test_a_margin_is_a_share_below_all(margin):
    with pytest.raises(ConfigError, match="margin"):
        least_budget([1], arena_bytes=1, margin=margin)


def test_segments_that_depend_on_each_other_do_not_add_up():
    assert peak_of_schedule(chain(3, lanes=3, cores=3), [5, 7, 6], arena_bytes=100) == 107


def test_segments_that_may_run_together_add_up_as_far_as_lanes_and_cores_go():
    rows = [(("x",), (f"t{i}",)) for i in range(4)]
    peaks = [5, 7, 6, 1]
    assert peak_of_schedule(plan_of(rows, lanes=4, cores=4), peaks, arena_bytes=0) == 19
    assert peak_of_schedule(plan_of(rows, lanes=2, cores=4), peaks, arena_bytes=0) == 13
    assert peak_of_schedule(plan_of(rows, lanes=1, cores=4), peaks, arena_bytes=0) == 7
    wide = plan_of(rows, lanes=4, cores=4, widths=[1, 4, 1, 1])
    assert peak_of_schedule(wide, peaks, arena_bytes=0) == 12, "5 + 6 + 1; the one of 7 runs alone"


def test_devices_run_beside_all_that_the_cores_can_run():
    rows = [(("x",), (f"t{i}",)) for i in range(4)]
    peaks = [5, 7, 6, 1]
    plan = plan_of(rows, lanes=4, cores=2)
    queued = (replace(plan.segments[0], width=0, lane=3), *plan.segments[1:])
    assert peak_of_schedule(replace(plan, segments=queued), peaks, arena_bytes=0) == 18, "two on cores, one elsewhere"
    assert peak_of_schedule(plan, peaks, arena_bytes=0) == 13


def test_without_segments_there_is_the_arena_alone():
    assert peak_of_schedule(plan_of([]), [], arena_bytes=7) == 7
    assert peak_of_schedule(plan_of([]), [], arena_bytes=7, budget_bytes=0) == 7
    assert peak_of_schedule(plan_of([(("x",), ("y",))]), [1], arena_bytes=0) == 1


def test_a_budget_bounds_what_runs_but_for_what_runs_alone():
    plan = plan_of([(("x",), (f"t{i}",)) for i in range(3)], lanes=3, cores=3)
    assert peak_of_schedule(plan, [5, 7, 6], arena_bytes=10, budget_bytes=14) == 24
    assert peak_of_schedule(plan, [5, 7, 6], arena_bytes=10, budget_bytes=3) == 17


def test_peaks_of_another_plan_are_a_bug_of_ours():
    with pytest.raises(InternalError, match="2 peaks for 3 segments"):
        peak_of_schedule(chain(3), [1, 2], arena_bytes=0)
