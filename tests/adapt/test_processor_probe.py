"""What a probe says of a processor, from what it took and from what is known of the processor."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from parallax.adapting._processor_probe import Calibration, ProbeTimes, ProcessorProbe
from parallax.backends.ort import cpu_backend


def times(mean_ns: float, least_ns: float | None = None) -> ProbeTimes:
    return ProbeTimes(mean_ns=mean_ns, least_ns=mean_ns if least_ns is None else least_ns)


NOMINAL = Calibration(times=times(100), slowdown=1.2, least=1.2, nominal=times(100))


@pytest.mark.parametrize(
    ("took", "slowdown"),
    [
        (times(100), 1.2),
        (times(60), 1.2),  # the session's own runs were in the way before
        (times(125), 1.2),
        (times(400), 4.8),  # the device is slow
        (times(400, 100), 4.8),  # others take the processor
    ],
)
def test_against_the_nominal_state(took: ProbeTimes, slowdown: float) -> None:
    assert NOMINAL.slowdown_by(took) == pytest.approx(slowdown)


def test_a_processor_that_was_left_as_slow_is_quick_again_when_a_probe_takes_what_it_does_in_the_nominal_state() -> (
    None
):
    left = Calibration(times=times(400, 110), slowdown=3.0, least=1.2, nominal=times(100))
    assert left.slowdown_by(times(400, 110)) == pytest.approx(3.0)
    assert left.slowdown_by(times(120)) == pytest.approx(1.2)
    assert 1.2 < left.slowdown_by(times(250, 105)) < 3.0


def test_a_processor_that_is_left_with_what_was_known_of_a_state_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = ProcessorProbe(cpu_backend(), 1)
    took = chain(repeat(100, probe._runs), repeat(105, probe._runs), repeat(400, probe._runs), repeat(100))
    monkeypatch.setattr(probe, "_took_ns", lambda: next(took))
    probe.calibrate_nominal(1.2)
    assert probe.calibrate(4.0, 1.2) == pytest.approx(1.2), "runs have not shown yet that it is quick again"
    assert probe.calibrate(3.5, 1.2) == pytest.approx(3.5)
    assert probe.ratio() == pytest.approx(1.2)
