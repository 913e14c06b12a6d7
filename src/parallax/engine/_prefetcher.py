"""Whoever prepares the weights of segments before they run, and is told when they have been used."""

from __future__ import annotations

from typing import Protocol


class WeightPrefetcher(Protocol):
    """Told by the executor, on the lane that runs the segment. Must be safe to call from several threads at once."""

    def will_start(self, segment: int) -> None:
        """The segment is about to run. May wait until its weights are there; must return, whatever happens."""

    def has_ended(self, segment: int) -> None:
        """It ended, well or not. Comes once for each `will_start`."""
