"""Rows of operators within long chains, and regions elsewhere, in one plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallax.errors import ConfigError
from parallax.schedule.placement._placers import ByCost, Greedy, Heft, ShardRows
from parallax.schedule.placement._problem import Placement, PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAndRegions:
    """Regions by cost, by HEFT and all that a device takes; of a model split by rows, its parts too.

    Where sessions, `inspect` and `bench` ask it by name, they search which rows of which layers to share, at so many
    splits; what stays whole is placed as regions. Of a model that has no rows to split, regions are left.

    Args:
        evaluations: splits that are tried, at least 1.
    """

    evaluations: int = 40

    def __post_init__(self) -> None:
        if isinstance(self.evaluations, bool) or not isinstance(self.evaluations, int) or self.evaluations < 1:
            raise ConfigError(f"evaluations={self.evaluations!r:.40}", fix="give a whole number of at least 1")

    @property
    def rows_evaluations(self) -> int:
        """How many ways to split a model are to be tried."""
        return self.evaluations

    def propose(self, problem: PlacementProblem) -> Iterator[Placement]:
        """What all of these propose."""
        for placer in (ByCost(), Greedy(), Heft(), ShardRows()):
            yield from placer.propose(problem)
