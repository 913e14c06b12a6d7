"""Runs compared by modelled joules, or joules x seconds, though the constants of the model are not known exactly.

All runs are on one machine, so its constants are the same in each of them, whatever they are. Joules are linear in each
constant, so that the share of one run's in another's is monotone in each: its largest value within the bands is at one
of their corners, where each constant is at an end of its band. What holds at all corners holds for all constants
between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from parallax.energy._model import Band, PowerModel
from parallax.energy._usage import Usage
from parallax.errors import ConfigError

_ROUNDING = 1e-9
"""Sums of the same joules differ by less than this share."""


class EnergyComparison:
    """Ranks runs against baselines.

    Args:
        power: of the machine that all runs are on.
        baselines: runs that none should cost more than; one at least.
        with_delay: whether joules are multiplied by the seconds of the run (the energy-delay product).

    Raises: ConfigError without a baseline, or for a device whose power is not known.
    """

    def __init__(self, power: PowerModel, baselines: Sequence[Usage], *, with_delay: bool = False) -> None:
        if not baselines:
            raise ConfigError("no baseline to compare joules with", fix="give one at least")
        self._power = power
        self._with_delay = with_delay
        self._devices = sorted(power.device_w)
        bands = [power.static_w, power.core_w, *(power.device_w[name] for name in self._devices), power.joules_per_byte]
        self._corners = list(itertools.product(*(sorted({band.low, band.high}) for band in bands)))
        self._typical = tuple(band.typical for band in bands)
        amounts = [self._amounts(usage) for usage in baselines]
        self._least = [min(_dot(corner, amount) for amount in amounts) for corner in self._corners]

    def most_share(self, usage: Usage) -> float:
        """What a run costs, in shares of what the best baseline costs, at the constants within the bands at which that
        is most. At most 1: it never costs more than any baseline, whatever the constants."""
        amount = self._amounts(usage)
        most = max(
            _share(_dot(corner, amount), least) for corner, least in zip(self._corners, self._least, strict=True)
        )
        return 1.0 if 1 < most <= 1 + _ROUNDING else most

    def typical(self, usage: Usage) -> float:
        """Joules, or joules x seconds, at the typical constants."""
        return _dot(self._typical, self._amounts(usage))

    def rank(self, usage: Usage) -> tuple[float, float]:
        """The least is the best: what never costs more than any baseline, by the typical constants; where nothing is
        so, what costs more by the least factor at the worst constants."""
        return max(1.0, self.most_share(usage)), self.typical(usage)

    def share_of(self, usage: Usage, other: Usage) -> Band:
        """What a run costs as a share of another one's, with the same constants in both."""
        pair = self._amounts(usage), self._amounts(other)
        ends = [_share(*(_dot(corner, amount) for amount in pair)) for corner in self._corners]
        typical = _share(*(_dot(self._typical, amount) for amount in pair))
        return Band(low=min(*ends, typical), typical=typical, high=max(*ends, typical))

    def _amounts(self, usage: Usage) -> tuple[float, ...]:
        """What the constants are multiplied by, in their order. Raises: ConfigError for a device of unknown power."""
        unknown = sorted(set(usage.device_ns) - set(self._devices))
        if unknown:
            raise ConfigError(
                f"the power of {unknown[0]} is not known", fix="give it in PowerModel.device_w of the machine"
            )
        seconds = usage.makespan_ns / 1e9
        factor = seconds if self._with_delay else 1.0
        devices = [usage.device_ns.get(name, 0) / 1e9 for name in self._devices]
        plain = (seconds, usage.core_ns / 1e9, *devices, float(usage.touched_bytes))
        return tuple(factor * amount for amount in plain)


def _dot(constants: Sequence[float], amounts: Sequence[float]) -> float:
    return sum(constant * amount for constant, amount in zip(constants, amounts, strict=True))


def _share(cost: float, least: float) -> float:
    if least > 0:
        return cost / least
    return math.inf if cost > 0 else 1.0
