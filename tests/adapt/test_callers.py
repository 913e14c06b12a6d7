"""How callers are served: decided from samples, here of callers and a machine that are simulated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.adapt import CALLER_RULES, CallerForm, CallerPolicy, CallerRules, CallerStep

WIDE, NARROW = CallerForm.WIDE, CallerForm.NARROW
THROUGHPUT, AUTO = CALLER_RULES["throughput"], CALLER_RULES["auto"]


def rates(gain: float) -> Callable[[CallerForm, int], float]:
    """Runs a second of each form: 4,000 on all threads, and so many times as many side by side."""
    return lambda form, callers: 4000.0 * (gain if form is NARROW and callers > 1 else 1.0) * min(callers, 1)


@dataclass
class World:
    """Callers that come and go, and a machine that runs them."""

    policy: CallerPolicy
    callers: Callable[[float], int]
    rate: Callable[[CallerForm, int], float] = field(default_factory=lambda: rates(1.4))
    makes: bool = True
    late_s: Callable[[], float] = lambda: 0.0
    """By which a sample comes later than it was asked for."""
    now: float = 0.0
    done: float = 0.0
    steps: list[tuple[float, CallerStep]] = field(default_factory=list)
    narrow_s: float = 0.0

    def until(self, end_s: float) -> World:
        """Go on until then, and keep to what the policy says."""
        while self.now < end_s:
            pause = self.policy.pause_s + self.late_s()
            self.now += pause
            callers = self.callers(self.now)
            self.done += pause * self.rate(self.policy.form, callers)
            self.narrow_s += pause * (self.policy.form is NARROW)
            step = self.policy.observe(self.now, callers, int(self.done))
            if step is not CallerStep.WAIT:
                self.steps.append((self.now, step))
                self._do(step, callers)
        return self

    def _do(self, step: CallerStep, callers: int) -> None:
        policy = self.policy
        if step is CallerStep.MAKE:
            assert not policy.has_replica
            self.now += 0.2
            if self.makes:
                policy.made(self.now)
            else:
                policy.refused("there is no room", self.now)
        elif step is CallerStep.DROP:
            assert policy.has_replica
            assert policy.form is WIDE
            policy.dropped()
        else:
            form = NARROW if step is CallerStep.USE_NARROW else WIDE
            assert policy.has_replica
            assert form is not policy.form
            assert policy.reason
            policy.switched(form, self.now, callers, int(self.done))

    def count(self, step: CallerStep) -> int:
        return sum(done is step for _, done in self.steps)


def world(
    callers: Callable[[float], int], rules: CallerRules = THROUGHPUT, *, gain: float = 1.4, cores: int = 2
) -> World:
    return World(CallerPolicy(rules, cores=cores), callers, rates(gain))


def test_one_caller_changes_nothing_and_is_not_even_looked_at() -> None:
    for callers in (0, 1):
        alone = world(lambda now, callers=callers: callers).until(5)
        assert not alone.steps
        assert alone.policy.may_sleep(alone.now)
        assert alone.policy.describe() == ""


@pytest.mark.parametrize("rules", [THROUGHPUT, AUTO])
@pytest.mark.parametrize("callers", [2, 8])
def test_several_callers_are_served_side_by_side_within_two_seconds(rules: CallerRules, callers: int) -> None:
    served = world(lambda now: callers if now >= 1 else 1, rules).until(3.0)
    assert served.policy.form is NARROW
    assert "1.40 times" in served.policy.describe()
    assert served.count(CallerStep.MAKE) == 1
    before = len(served.steps)
    served.until(60)
    assert len(served.steps) == before, "nothing is changed while callers keep coming"


def test_nothing_is_done_for_runs_that_overlap_now_and_then() -> None:
    for share in (0.05, 0.2, 0.3):
        now_and_then = world(lambda now, share=share: 2 if (now * 10) % 1 < share else 1).until(20)
        assert not now_and_then.steps


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "duty"), [(3, 0.6), (2, 0.8), (8, 0.4)])
def test_callers_that_do_other_work_between_their_runs_are_served_side_by_side(
    count: int, duty: float, seed: int
) -> None:
    rng = random.Random(seed)
    served = world(lambda now: sum(rng.random() < duty for _ in range(count))).until(4)
    assert served.policy.form is NARROW
    before = served.narrow_s
    served.until(34)
    assert served.narrow_s - before >= 0.95 * 30


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("late_s", [0.02, 0.1, 0.2])
def test_a_load_is_followed_within_two_seconds_though_samples_come_late(late_s: float, seed: int) -> None:
    rng = random.Random(seed)

    def callers(now: float) -> int:
        return 8 if now < 15 or 20 <= now < 28 else 1

    served = world(callers)
    served.late_s = lambda: rng.expovariate(1 / late_s)
    served.until(20)
    assert "1.4" in served.policy.describe()
    served.until(22)
    assert served.policy.form is NARROW
    served.until(28 + THROUGHPUT.idle_s + 2)
    assert served.policy.form is WIDE


@pytest.mark.parametrize("turn_s", [0.4, 0.7, 1.2, 2.0, 2.5])
def test_a_load_is_followed_within_two_seconds_whatever_was_before(turn_s: float) -> None:
    def callers(now: float) -> int:
        return 8 if now < 5 or now >= 60 or now % (2 * turn_s) < turn_s else 0

    served = world(callers).until(62)
    assert served.policy.form is NARROW


def test_a_trial_whose_callers_go_goes_on_when_they_come_again() -> None:
    def rate(form: CallerForm, callers: int) -> float:
        return 40.0 if form is NARROW else 30.0  # a second: a trial takes longer than callers stay

    served = World(CallerPolicy(THROUGHPUT, cores=2), lambda now: 8 if now % 3 < 1.5 else 0, rate).until(20)
    assert "times the runs a second" in served.policy.describe()


def test_trials_whose_halves_do_not_agree_are_decided_by_their_median() -> None:
    served = world(lambda now: 4)

    def rate(form: CallerForm, callers: int) -> float:
        # The second half of each trial finds the narrow form worse, whatever it is.
        trial = served.policy._trial
        is_late = trial is not None and trial.place > 2
        return 4000.0 * (1.0 if form is WIDE else 0.9 if is_late else 1.6)

    served.rate = rate
    served.until(4)
    assert served.policy.form is WIDE
    assert served.policy.describe() == ""
    served.until(15)
    assert served.policy.form is NARROW


def test_where_one_caller_is_left_an_idle_replica_goes() -> None:
    for left in (0, 1):
        served = world(lambda now, left=left: 4 if now < 5 else left).until(5)
        assert served.policy.form is NARROW
        served.until(5 + THROUGHPUT.idle_s - 1)
        assert served.policy.form is NARROW, "whose runs have all threads where each is alone"
        served.until(5 + THROUGHPUT.idle_s + 1)
        assert served.policy.form is WIDE
        assert not served.policy.has_replica
        assert served.steps[-1][1] is CallerStep.DROP
        served.until(served.now + 1)
        assert served.policy.may_sleep(served.now)


def test_what_was_measured_is_known_when_callers_come_again() -> None:
    served = world(lambda now: 4 if now < 5 or now >= 48 else 1).until(48)
    tried = served.count(CallerStep.USE_NARROW)
    assert served.policy.form is WIDE
    served.until(49)
    assert served.policy.form is NARROW
    assert served.count(CallerStep.USE_NARROW) == tried + 1


def test_it_is_measured_anew_after_a_long_time() -> None:
    served = world(lambda now: 4).until(100)
    served.rate = rates(0.8)
    served.until(800)
    assert served.policy.form is WIDE
    assert "0.80 times" in served.policy.describe()


def test_a_model_that_gains_nothing_stays_as_it_is_and_is_tried_ever_more_rarely() -> None:
    served = world(lambda now: 4, gain=0.9).until(5)
    assert served.policy.form is WIDE
    assert not served.policy.has_replica
    assert served.count(CallerStep.MAKE) == served.count(CallerStep.DROP) == 1
    served.until(25)
    assert served.count(CallerStep.MAKE) == 1
    served.until(3600)
    assert served.count(CallerStep.MAKE) <= 12
    assert served.narrow_s < 0.005 * served.now


@pytest.mark.parametrize(
    ("gain", "rules", "wanted"), [(1.03, AUTO, WIDE), (1.03, THROUGHPUT, NARROW), (1.1, AUTO, NARROW)]
)
def test_the_least_gain_is_that_of_the_objective(gain: float, rules: CallerRules, wanted: CallerForm) -> None:
    assert world(lambda now: 2, rules, gain=gain).until(10).policy.form is wanted


def test_a_machine_that_changes_during_the_trial_is_not_taken_for_a_gain() -> None:
    served = world(lambda now: 4, gain=1.0)
    # Everything becomes quicker by a tenth in each second: the form that is tried later looks better.
    served.rate = lambda form, callers: 4000.0 * 1.1**served.now
    served.until(6)
    assert served.policy.form is WIDE


def test_a_trial_that_other_work_spoiled_is_made_again_soon() -> None:
    served = world(lambda now: 4)
    # Until the fifth second something else takes nine tenths of the cores, now and then.
    served.rate = lambda form, callers: (
        (400.0 if served.now < 5 and served.now % 0.7 < 0.35 else 4000.0) * (1.4 if form is NARROW else 1.0)
    )
    assert served.until(12).policy.form is NARROW


def test_a_replica_that_cannot_be_made_is_asked_for_ever_more_rarely() -> None:
    refused = world(lambda now: 4)
    refused.makes = False
    refused.until(20)
    assert refused.count(CallerStep.MAKE) == 1
    assert "there is no room" in refused.policy.describe()
    refused.until(3600)
    assert 2 < refused.count(CallerStep.MAKE) < 12
    refused.makes = True
    refused.until(3 * 3600)
    assert refused.policy.form is NARROW
    assert "there is no room" not in refused.policy.describe()


def test_callers_that_go_during_the_trial_teach_nothing() -> None:
    served = world(lambda now: 4 if now < 1.0 else 1).until(1.5)
    assert served.policy.form is WIDE
    assert served.policy.describe() == ""
    assert not served.policy.is_trying


def test_callers_that_come_and_go_do_not_make_it_change_all_the_time() -> None:
    served = world(lambda now: 4 if now % 1.2 < 0.6 else 1).until(5)
    before = len(served.steps)
    served.until(65)
    assert len(served.steps) == before


def test_how_many_callers_there_are_counts() -> None:
    def rate(form: CallerForm, callers: int) -> float:
        # On eight cores: side by side, each caller has one of them.
        return 10.0 * callers if form is NARROW else 50.0

    few = World(CallerPolicy(THROUGHPUT, cores=8), lambda now: 2, rate).until(20)
    assert few.policy.form is WIDE
    many = World(CallerPolicy(THROUGHPUT, cores=8), lambda now: 8 if now < 20 else 2, rate).until(20)
    assert many.policy.form is NARROW
    many.until(30)
    assert many.policy.form is WIDE
    assert "8 callers had" in many.policy.describe()


def test_runs_that_take_long_are_compared_all_the_same() -> None:
    def rate(form: CallerForm, callers: int) -> float:
        return 4.0 if form is NARROW else 2.0  # a second with two callers

    assert World(CallerPolicy(THROUGHPUT, cores=2), lambda now: 2, rate).until(60).policy.form is NARROW


@settings(deadline=None, max_examples=40)
@given(
    phases=st.lists(st.tuples(st.floats(0.1, 6.0), st.integers(0, 9)), min_size=1, max_size=12),
    gain=st.floats(0.2, 3.0),
    cores=st.integers(2, 16),
    objective=st.sampled_from(["auto", "throughput"]),
)
def test_whatever_callers_do_a_form_that_serves_less_is_in_force_for_trials_alone(
    phases: list[tuple[float, int]], gain: float, cores: int, objective: str
) -> None:
    ends: list[tuple[float, int]] = []
    for seconds, callers in phases:
        ends.append(((ends[-1][0] if ends else 0.0) + seconds, callers))
    made = world(
        lambda now: next((callers for end, callers in ends if now < end), 0),
        CALLER_RULES[objective],
        gain=gain,
        cores=cores,
    ).until(ends[-1][0])
    if gain < 1:
        # A tried form has two tenths of a second, and callers that go meanwhile are noticed within a quarter.
        assert made.narrow_s <= 0.5 * made.count(CallerStep.USE_NARROW) + 0.1
    made.until(made.now + 40)
    assert made.policy.form is WIDE
    assert not made.policy.has_replica
