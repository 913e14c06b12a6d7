"""What stands on a screen that is none: progress in lines, now and then."""

from __future__ import annotations

import pytest

from parallax.cli._console import Screen, _PlainProgress


def test_progress_in_a_log_is_a_line_every_few_seconds() -> None:
    now = 0.0
    said: list[str] = []
    progress = _PlainProgress(said.append, lambda: now)
    for step in range(200):
        now = step / 10
        progress("measuring", step, 200)
    assert said == [f"measuring: {step} of 200" for step in (50, 100, 150)]


def test_quick_work_leaves_no_trace_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().progress() as progress:
        progress("measuring", 1, 2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_columns_say_how_wide_a_pipe_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Screen().out.width == 200
    monkeypatch.setenv("COLUMNS", "61")
    assert Screen().out.width == 61
