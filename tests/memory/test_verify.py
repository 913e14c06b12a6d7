"""The judge of arena plans, tested with plans broken on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallax.errors import PlanError
from parallax.memory import ArenaPlan, find_lifetimes, plan_arena, verify_arena_plan
from parallax.memory._arena import ArenaSlot
from tests.memory._plans import chain, plan_of

#   s -> a -> b ;  s -> c ;  (b, c) -> m
ROWS = [
    (("x",), ("s",)),
    (("s",), ("a",)),
    (("a",), ("b",)),
    (("s",), ("c",)),
    (("b", "c"), ("m",)),
]
PLAN = plan_of(ROWS)
SIZES = dict.fromkeys("sabcm", 64)
GOOD = plan_arena(find_lifetimes(PLAN, ["m"]), [64] * 5)


def judge(arena, *, plan=PLAN, sizes=SIZES, outputs=("m",), order=None):
    verify_arena_plan(arena, plan, sizes=sizes, model_outputs=outputs, order=order)


def moved(arena, **offsets):
    return replace(
        arena, slots=tuple(slot._replace(offset=offsets.get(slot.tensor, slot.offset)) for slot in arena.slots)
    )


def spread(arena, **offsets):
    """A roomy arena in which nothing overlaps but what is moved."""
    places = {slot.tensor: 64 * number for number, slot in enumerate(arena.slots)}
    return moved(replace(arena, arena_bytes=arena.naive_bytes), **{**places, **offsets})


def test_a_good_plan_and_a_roomy_one_pass():
    judge(GOOD)
    judge(spread(GOOD))


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("s", "a", "a reader writes beside what it reads"),
        ("s", "b", "segment 3 may still read s while segment 2 makes b"),
        ("a", "c", "branches may run together"),
        ("b", "c", "both are read by the last"),
        ("b", "m", "the last writes beside what it reads"),
    ],
)
def test_tensors_that_may_be_alive_at_once_must_not_share_bytes(first, second, why):
    roomy = spread(GOOD)
    places = {slot.tensor: slot.offset for slot in roomy.slots}
    with pytest.raises(PlanError, match="may be alive at once") as caught:
        judge(moved(roomy, **{first: places[second]}))
    assert repr(first) in str(caught.value), why
    assert repr(second) in str(caught.value), why


def test_sharing_a_single_byte_is_sharing():
    sizes = {**SIZES, "a": 65}
    arena = plan_arena(find_lifetimes(PLAN, ["m"]), [sizes[name] for name in "sabcm"])
    places = dict(zip("sabcm", (0, 64, 192, 256, 320), strict=True))
    roomy = moved(replace(arena, arena_bytes=arena.naive_bytes), **places)
    judge(roomy, sizes=sizes)
    with pytest.raises(PlanError, match=r"'a'.*'b'"):
        judge(moved(roomy, b=128), sizes=sizes)


@pytest.mark.parametrize(("first", "second"), [("s", "m"), ("a", "m")])
def test_tensors_of_which_one_is_over_before_the_other_begins_may_share(first, second):
    roomy = spread(GOOD)
    places = {slot.tensor: slot.offset for slot in roomy.slots}
    judge(moved(roomy, **{second: places[first]}))


def test_an_output_of_the_model_is_never_over():
    roomy = spread(GOOD)
    places = {slot.tensor: slot.offset for slot in roomy.slots}
    shared = moved(roomy, m=places["a"])
    judge(shared)
    with pytest.raises(PlanError, match="may be alive at once"):
        judge(shared, outputs=("m", "a"))


def test_a_known_order_allows_more_and_only_that_order():
    plan = replace(PLAN, lanes=1)
    shared = moved(spread(GOOD), s=0, b=0)
    judge(shared, plan=plan, order=(0, 1, 3, 2, 4))
    with pytest.raises(PlanError, match="may be alive at once"):
        judge(shared, plan=plan, order=(0, 1, 2, 3, 4))
    with pytest.raises(PlanError, match="may be alive at once"):
        judge(shared, plan=plan)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (moved(spread(GOOD), a=32), "multiple of 64"),
        (moved(spread(GOOD), a=-64), "multiple of 64"),
        (moved(spread(GOOD), m=5 * 64), "ends at 384 of 320"),
        (replace(GOOD, alignment_bytes=48), "power of two"),
        (replace(GOOD, alignment_bytes=0), "power of two"),
        (replace(GOOD, slots=GOOD.slots[:-1]), "differ by"),
        (replace(GOOD, slots=(*GOOD.slots, ArenaSlot("y", 0, 64))), "differ by"),
        (replace(GOOD, slots=(*GOOD.slots, GOOD.slots[0])), "two slots"),
        (replace(GOOD, slots=(GOOD.slots[0]._replace(size_bytes=1), *GOOD.slots[1:])), "has 1 bytes where it needs 64"),
        (replace(GOOD, dynamic=("y",)), "dynamic"),
        (replace(GOOD, naive_bytes=GOOD.naive_bytes + 64), "naive"),
        (replace(GOOD, lower_bound_bytes=GOOD.arena_bytes + 1), "lower bound"),
        (replace(GOOD, lower_bound_bytes=-1), "lower bound"),
        (replace(GOOD, arena_bytes=GOOD.naive_bytes + 64), "lower bound"),
    ],
)
def test_figures_that_do_not_add_up_are_refused(broken, message):
    with pytest.raises(PlanError, match=message):
        judge(broken)


def test_a_tensor_that_nothing_produces_is_refused():
    plan = chain(2)
    arena = plan_arena(find_lifetimes(plan, []), [64, 64])
    ghost = replace(arena, slots=(*arena.slots, ArenaSlot("ghost", 0, 64)), naive_bytes=192)
    with pytest.raises(PlanError, match="'ghost' is produced by no segment"):
        verify_arena_plan(ghost, plan, sizes={"t0": 64, "t1": 64, "ghost": 64}, model_outputs=[])


def test_an_unknown_size_must_be_dynamic():
    sizes = {**SIZES, "a": None}
    arena = plan_arena(find_lifetimes(PLAN, ["m"]), [sizes[name] for name in "sabcm"])
    assert isinstance(arena, ArenaPlan)
    judge(arena, sizes=sizes)
    with pytest.raises(PlanError, match="differ by"):
        judge(GOOD, sizes=sizes)
