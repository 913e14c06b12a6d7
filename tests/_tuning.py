"""What tests do to tuning, whose measurements of a busy machine tell them nothing."""

from __future__ import annotations

import functools

import pytest

from parallax.planner._measuring import measure_again_if_noisy


def let_the_last_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what is measured is kept, after few rounds and whatever else the machine is doing."""
    monkeypatch.setattr("parallax.planner._measuring.PATIENCE_S", 0.1)
    measure = functools.partial(measure_again_if_noisy, rounds=2)
    monkeypatch.setattr(
        "parallax.planner._tuning.measure_again_if_noisy", lambda peers, *, rounds=0, **how: measure(peers, **how)
    )
    monkeypatch.setattr("parallax.planner._tuning.pick_winner", lambda times, whole=(): len(times) - 1)
    monkeypatch.setattr("parallax.planner._tuning.NOISY_SHARE", 1e9)
