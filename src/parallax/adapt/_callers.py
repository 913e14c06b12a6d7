"""Whether a session serves its callers with all threads for each run, or with runs side by side on one thread each.

Decided from samples of how many runs are in flight and how many have ended. Which of the two forms serves more runs a
second is not assumed: both are tried in turn while the callers go on. Here is neither clock nor thread; the caller of
`CallerPolicy` gives the time, and does what it says.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Final

from parallax._record import dataclass

WINDOW_S: Final = 0.25
"""How far back samples are looked at."""

LEAST_SAMPLES: Final = 4
"""But never at fewer samples than these: the window reaches further back where the sampling thread was held up."""

CROWDED_MEAN: Final = 1.4
"""Callers keep coming from when on so many runs, or more, are in flight on average ..."""

ALONE_MEAN: Final = 1.1
"""... until it is at most this number. More than two in flight count as two, so that a short crowd is not much.

A mean is compared, not how often runs overlap: callers that also do other work between their runs are better served in
the form in which more of their runs end, whatever part of their time they spend in runs."""

TRIAL_S: Final = 0.1
"""A form is tried for at least so long at a time, ..."""

TRIAL_RUNS: Final = 6
"""... and for so many runs, or one of each caller where those are more, ..."""

TRIAL_MOST_S: Final = 5.0
"""... but for no longer than this, however few runs have ended."""

FIRST_PAUSE_S: Final = 30.0
"""After a trial that the narrow form lost, or a replica that could not be made, the next attempt comes no sooner ..."""

LEFT_S: Final = 60.0
"""A trial whose callers went before it ended goes on if they come again within this time: else callers that come for
short times would be tried each time, and nothing ever be known."""

VERDICT_S: Final = 600.0
"""What a trial found is believed for so long: the machine may have changed since."""

MOST_PAUSE_S: Final = VERDICT_S
"""... and after each further one the pause doubles, up to this."""

AGAIN_S: Final = 3.0
"""After a trial whose halves do not agree which form is better, since other work took cores, the next one comes no
sooner."""

MOST_TRIALS: Final = 3
"""After so many such trials, the median of their halves decides."""


TRYING: Final = "it is measured which form serves more runs a second"
"""The reason of changes during a trial."""


class CallerForm(Enum):
    """How a session runs its model."""

    WIDE = "wide"
    """The plan that it was opened with: each run has all threads, which several callers share."""
    NARROW = "narrow"
    """A run that finds others in flight has one thread, that of its caller, so that the runs of several callers go on
    side by side; one that finds none has all threads."""


class CallerStep(Enum):
    """What is to be done now."""

    WAIT = "wait"
    """Nothing, until the next sample."""
    MAKE = "make"
    """Make the replica, which the narrow form runs."""
    USE_WIDE = "use wide"
    """Put the wide form in force."""
    USE_NARROW = "use narrow"
    """Put the narrow form in force."""
    DROP = "drop"
    """Let go of the replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerRules:
    """What an objective asks for."""

    crowded_s: float
    """Callers must keep coming for so many seconds before anything is done for them."""
    least_gain: float
    """The part by which the narrow form must serve more runs a second."""
    idle_s: float
    """Where at most one caller came for so many seconds, the wide form is in force again, and the replica goes."""
    most_growth: float
    """A replica with weights of its own must not make the process's private memory larger than by this factor; beyond
    that it is to share the weights of what the session has open ..."""
    may_copy: bool
    """... and where it cannot, it may take a part of what is free."""


CALLER_RULES: Final[Mapping[str, CallerRules]] = {
    "auto": CallerRules(crowded_s=WINDOW_S, least_gain=0.05, idle_s=10.0, most_growth=1.15, may_copy=False),
    "throughput": CallerRules(crowded_s=WINDOW_S, least_gain=0.02, idle_s=30.0, most_growth=1.15, may_copy=True),
}
"""By ``objective=``. "latency" has none: its plan stays as it is."""


@dataclass(slots=True, kw_only=True)
class _Leg:
    """A form that is tried without a break."""

    form: CallerForm
    weight: int
    """How many times the least time and number of runs."""
    settled_at: int = 0
    """Runs that have ended when those in flight at its beginning have."""
    begin_s: float | None = None
    begin_ended: int = 0
    runs: int = 0
    seconds: float = 0.0

    def begin(self, settled_at: int) -> None:
        """Begin, perhaps once more."""
        self.settled_at, self.begin_s, self.runs, self.seconds = settled_at, None, 0, 0.0


class _Trial:
    """Both forms in turn, A once, B twice, A twice, B twice, A once: so a drift of the machine hits both alike."""

    def __init__(self, level: int, callers: int, first: CallerForm) -> None:
        other = CallerForm.NARROW if first is CallerForm.WIDE else CallerForm.WIDE
        self.level, self.callers = level, callers
        order = ((first, 1), (other, 2), (first, 2), (other, 2), (first, 1))
        self.legs = [_Leg(form=form, weight=weight) for form, weight in order]
        self.place = 0
        self.left_s = -math.inf
        """When its callers had gone before it ended, if they had."""

    @property
    def leg(self) -> _Leg | None:
        """The one under way; None when all are done."""
        return self.legs[self.place] if self.place < len(self.legs) else None

    def sample(self, now_s: float, ended: int) -> bool:
        """Take a sample of the leg under way; returns whether it is done."""
        leg = self.leg
        assert leg is not None
        if leg.begin_s is None:
            if ended >= leg.settled_at:
                leg.begin_s, leg.begin_ended = now_s, ended
            return False
        leg.runs, leg.seconds = ended - leg.begin_ended, now_s - leg.begin_s
        wanted = leg.weight * max(TRIAL_RUNS, self.callers)
        is_enough = leg.seconds >= leg.weight * TRIAL_S and leg.runs >= wanted
        return is_enough or leg.seconds >= TRIAL_MOST_S

    def gain(self) -> float:
        """The part by which the narrow form served more runs a second; negative where it served fewer."""
        return self._gain_of(self.legs)

    def halves(self) -> tuple[float, float]:
        """The gain in the first half of the trial, and in the second; both have a part of the leg in the middle."""
        return self._gain_of(self.legs[:3]), self._gain_of(self.legs[2:])

    @staticmethod
    def _gain_of(legs: list[_Leg]) -> float:
        rates = {}
        for form in CallerForm:
            seconds = sum(leg.seconds for leg in legs if leg.form is form)
            rates[form] = sum(leg.runs for leg in legs if leg.form is form) / seconds if seconds else 0.0
        wide = rates[CallerForm.WIDE]
        return rates[CallerForm.NARROW] / wide - 1 if wide else 0.0


class CallerPolicy:
    """Decides for one session, from samples. Not thread-safe. Times are seconds on one clock.

    Args:
        rules: of the session's objective.
        cores: that the session uses; more callers than those are served like as many.

    Attributes:
        form: the one in force, as `switched` was told last.
        has_replica: whether the narrow form could run at once.
        refusal: why there is no replica, where one was wanted; else "".
        reason: of the step that was asked for last, in words.
    """

    def __init__(self, rules: CallerRules, *, cores: int) -> None:
        self.form = CallerForm.WIDE
        self.has_replica = False
        self.refusal = self.reason = ""
        self._rules = rules
        self._cores = cores
        self._samples: deque[tuple[float, int]] = deque()
        self._in_flight = self._overlap = 0  # sums of these, as they are and with 2 for more than that
        self._crowded_since: float | None = None
        self._used_s = -math.inf
        self._trial: _Trial | None = None
        self._left: _Trial | None = None  # one whose callers went before it ended
        self._gains: dict[int, float] = {}
        self._judged_s: dict[int, float] = {}
        self._untold: dict[int, list[float]] = {}  # gains in halves of trials that did not agree
        self._not_before_s = self._again_s = -math.inf
        self._pause_s = FIRST_PAUSE_S

    # -- what is seen -----------------------------------------------------------------------------------

    def observe(self, now_s: float, in_flight: int, ended: int) -> CallerStep:
        """Take a sample, and return what to do.

        Args:
            now_s: the moment of the sample.
            in_flight: runs in flight.
            ended: runs that ended since the session was opened.
        """
        self._note(now_s, in_flight)
        if self._trial is not None:
            return self._try_further(self._trial, now_s, in_flight, ended)
        if self.form is CallerForm.NARROW:
            return self._while_narrow(now_s, in_flight, ended)
        return self._while_wide(now_s, in_flight, ended)

    def _note(self, now_s: float, in_flight: int) -> None:
        samples = self._samples
        samples.append((now_s, in_flight))
        self._in_flight += in_flight
        self._overlap += min(in_flight, 2)
        while len(samples) > LEAST_SAMPLES and samples[0][0] < now_s - WINDOW_S:
            left = samples.popleft()[1]
            self._in_flight -= left
            self._overlap -= min(left, 2)
        overlap = self._overlap / len(samples)
        if overlap <= ALONE_MEAN:
            self._crowded_since = None
        elif overlap >= CROWDED_MEAN and self._crowded_since is None and self._has_window(now_s):
            self._crowded_since = now_s

    def _has_window(self, now_s: float) -> bool:
        """Whether the samples are enough to say anything."""
        samples = self._samples
        return len(samples) >= LEAST_SAMPLES and now_s - samples[0][0] >= 0.9 * WINDOW_S

    @property
    def _mean(self) -> float:
        """Runs in flight."""
        return self._in_flight / len(self._samples)

    @property
    def _level(self) -> int:
        """How many callers there are, as a power of two, and not above the number of cores."""
        most = max(1, int(math.log2(max(2, self._cores))))
        level: int = 2 ** min(most, max(1, round(math.log2(max(2.0, self._mean)))))
        return level

    def _is_crowded(self, now_s: float) -> bool:
        since = self._crowded_since
        return since is not None and now_s - since >= 0.9 * self._rules.crowded_s

    def _is_alone(self, now_s: float) -> bool:
        """Whether a whole window shows at most one caller."""
        return self._crowded_since is None and self._has_window(now_s)

    # -- what follows -----------------------------------------------------------------------------------

    def _while_wide(self, now_s: float, in_flight: int, ended: int) -> CallerStep:
        if not self._is_crowded(now_s):
            is_idle = self.has_replica and now_s - self._used_s >= self._rules.idle_s
            return CallerStep.DROP if is_idle else CallerStep.WAIT
        level = self._level
        gain = self._gains.get(level)
        if gain is not None and gain < self._rules.least_gain:
            if now_s < self._not_before_s:
                is_of_use = any(other >= self._rules.least_gain for other in self._gains.values())
                return CallerStep.DROP if self.has_replica and not is_of_use else CallerStep.WAIT
            del self._gains[level]  # it is time to try once more
            gain = None
        if not self.has_replica:
            return CallerStep.WAIT if now_s < self._not_before_s else CallerStep.MAKE
        if gain is not None:
            return self._use(CallerForm.NARROW, f"{self._mean:.0f} callers keep coming; {self._told(level)}")
        return self._begin_trial(level, now_s, in_flight, ended)

    def _while_narrow(self, now_s: float, in_flight: int, ended: int) -> CallerStep:
        if self._crowded_since is None:
            if now_s - self._used_s < self._rules.idle_s or not self._is_alone(now_s):
                return CallerStep.WAIT  # which costs one caller nothing: its runs have all threads in this form, too
            return self._use(CallerForm.WIDE, "for some time there was at most one caller")
        self._used_s = now_s
        level = self._level
        if now_s - self._crowded_since < self._rules.crowded_s:
            return CallerStep.WAIT
        gain = self._gains.get(level)
        if gain is None or now_s - self._judged_s[level] >= VERDICT_S:
            return self._begin_trial(level, now_s, in_flight, ended)
        return self._use(CallerForm.WIDE, self._told(level)) if gain < self._rules.least_gain else CallerStep.WAIT

    def _begin_trial(self, level: int, now_s: float, in_flight: int, ended: int) -> CallerStep:
        """Begin one, or go on with the one that was left, from the beginning of its leg."""
        if now_s < self._again_s:
            return CallerStep.WAIT
        trial, self._left = self._left, None
        if trial is None or trial.level != level or now_s - trial.left_s >= LEFT_S:
            trial = _Trial(level, max(level, round(self._mean)), self.form)
        self._trial = trial
        self._begin_leg(ended, in_flight)
        assert trial.leg is not None
        return self._use(trial.leg.form, TRYING)

    def _begin_leg(self, ended: int, in_flight: int) -> None:
        leg = None if self._trial is None else self._trial.leg
        if leg is not None:
            leg.begin(ended + in_flight)

    def _try_further(self, trial: _Trial, now_s: float, in_flight: int, ended: int) -> CallerStep:
        self._used_s = now_s
        if self._is_alone(now_s):
            trial.left_s, self._left, self._trial = now_s, trial, None
            return self._use(CallerForm.WIDE, "the callers have gone")
        if not trial.sample(now_s, ended):
            return CallerStep.WAIT
        trial.place += 1
        leg = trial.leg
        if leg is None:
            return self._judge(trial, now_s)
        return self._use(leg.form, TRYING)

    def _judge(self, trial: _Trial, now_s: float) -> CallerStep:
        self._trial = None
        gain = self._told_gain(trial)
        if gain is None:
            self._again_s = now_s + AGAIN_S
            return self._use(CallerForm.WIDE, "which form serves more runs a second is not known")
        self._gains[trial.level], self._judged_s[trial.level] = gain, now_s
        if gain >= self._rules.least_gain:
            self._pause_s = FIRST_PAUSE_S
            return self._use(CallerForm.NARROW, self._told(trial.level))
        self._postpone(now_s)
        return self._use(CallerForm.WIDE, self._told(trial.level))

    def _told_gain(self, trial: _Trial) -> float | None:
        """What a trial says, with those before it that said nothing; None where it says nothing either."""
        least, halves = self._rules.least_gain, trial.halves()
        if (halves[0] >= least) is (halves[1] >= least):
            self._untold.pop(trial.level, None)
            return trial.gain()
        untold = self._untold.setdefault(trial.level, [])
        untold.extend(halves)
        if len(untold) < 2 * MOST_TRIALS:
            return None
        del self._untold[trial.level]
        return statistics.median(untold)

    def _use(self, form: CallerForm, reason: str) -> CallerStep:
        """The step that has a form in force."""
        if form is self.form:
            return CallerStep.WAIT
        self.reason = reason
        return CallerStep.USE_NARROW if form is CallerForm.NARROW else CallerStep.USE_WIDE

    def _told(self, level: int) -> str:
        return f"side by side, {level} callers had {1 + self._gains[level]:.2f} times the runs a second, measured"

    def _postpone(self, now_s: float) -> None:
        self._not_before_s = now_s + self._pause_s
        self._pause_s = min(MOST_PAUSE_S, 2 * self._pause_s)

    # -- what was done ----------------------------------------------------------------------------------

    def made(self, now_s: float) -> None:
        """The replica is there."""
        self.has_replica, self.refusal, self._used_s = True, "", now_s

    def refused(self, reason: str, now_s: float) -> None:
        """The replica cannot be made now."""
        self.refusal = reason
        self._postpone(now_s)

    def dropped(self) -> None:
        """The replica is gone."""
        self.has_replica = False

    def switched(self, form: CallerForm, now_s: float, in_flight: int, ended: int) -> None:
        """Another form is in force from now on; the runs in flight end in the one before."""
        self.form = form
        self._begin_leg(ended, in_flight)

    # -- what is told -----------------------------------------------------------------------------------

    @property
    def pause_s(self) -> float:
        """How long to wait for the next sample."""
        if self._trial is not None:
            return 0.002
        is_settled = bool(self.refusal) or bool(self._gains)
        return 0.04 if is_settled else 0.01

    def may_sleep(self, now_s: float) -> bool:
        """Whether no samples are needed until two runs are in flight at once again."""
        is_still = self.form is CallerForm.WIDE and not self.has_replica and self._trial is None
        is_quiet = all(count < 2 for _, count in self._samples)
        return is_still and is_quiet and self._has_window(now_s)

    def woken(self) -> None:
        """Samples come again after a time without."""
        self._samples.clear()
        self._in_flight = self._overlap = 0
        self._crowded_since = None

    @property
    def is_trying(self) -> bool:
        """Whether the forms are being compared."""
        return self._trial is not None

    def describe(self) -> str:
        """What is known and done, in words for people; "" while several callers were not seen yet."""
        if self.refusal:
            return f"callers share all threads: {self.refusal}"
        told = [f"{level} callers had {1 + gain:.2f} times" for level, gain in sorted(self._gains.items())]
        if not told:
            return "runs side by side are being tried" if self._trial is not None else ""
        form = "run side by side, on one thread each," if self.form is CallerForm.NARROW else "share all threads"
        return f"callers {form} now; {', '.join(told)} the runs a second side by side, measured"
