"""Which plans to keep ready: few, such that in every state one of them is nearly as good as the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from parallax.adapt._state import CPU_NARROW, CPU_WIDE, HardwareState
from parallax.errors import ConfigError

MOST_PLANS: Final = 3
"""Plans that a session keeps ready: each holds its segments' packed weights, and two are nearly as good as all."""

CPU_FACTORS: Final = (1.0, 2.0, 5.0)
"""Slow-downs of the CPU that plans are made for: none, half of it taken, 80% of it taken."""

DEVICE_FACTORS: Final = (1.0, 2.0, 4.0, 8.0)
"""Slow-downs of a device that plans are made for."""

CROWDED: Final = ((1.0, 2.0), (2.0, 5.0))
"""Slow-downs of one thread, and of several, where something else has half of the cores, or most."""

_MOST_SUBSETS: Final = 20_000
"""Choices of plans that are looked through; beyond, plans are chosen one after the other."""


def state_grid(
    devices: Sequence[str],
    *,
    cpu_factors: Sequence[float] = CPU_FACTORS,
    device_factors: Sequence[float] = DEVICE_FACTORS,
) -> tuple[HardwareState, ...]:
    """The states that plans are made for, the nominal one first: every slow-down of the CPU with every one of a device.

    Several devices are slowed one at a time, not in all combinations.
    """
    states: dict[tuple[tuple[str, float], ...], HardwareState] = {}
    slowed: Iterable[tuple[str, float] | None] = [
        None,
        *((device, factor) for device in devices for factor in device_factors if factor != 1),
    ]
    for cpu, device in itertools.product(cpu_factors, slowed):
        factors = {} if cpu == 1 else {CPU_NARROW: cpu, CPU_WIDE: cpu}
        if device is not None:
            factors[device[0]] = device[1]
        states.setdefault(tuple(factors.items()), HardwareState(slowdowns=MappingProxyType(factors)))
    return tuple(states.values())


def crowded_states(
    devices: Sequence[str] = (), *, device_factors: Sequence[float] = DEVICE_FACTORS
) -> tuple[HardwareState, ...]:
    """States in which something else has half of the cores, or most: one thread finds a free core, or waits for its
    turn on one; of several, the slowest decides. With every slow-down of a device, one at a time, as in `state_grid`.
    """
    slowed = [(device, factor) for device in devices for factor in device_factors if factor != 1]
    return tuple(
        HardwareState(slowdowns=MappingProxyType({CPU_NARROW: narrow, CPU_WIDE: wide, **dict(device)}))
        for device in ([], *([one] for one in slowed))
        for narrow, wide in CROWDED
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio:
    """Plans to keep ready, as indices of candidates."""

    chosen: tuple[int, ...]
    """Ascending; the first candidate, which is the plan of the nominal state, always among them."""
    mean_regret: float
    """Geometric mean over the states of the best chosen plan's time against the best candidate's; at least 1."""
    worst_regret: float
    """The largest of these ratios."""


def choose_portfolio(
    times_ns: Sequence[Sequence[int]],
    *,
    sizes_bytes: Sequence[int] | None = None,
    bound_bytes: int | None = None,
    most: int = MOST_PLANS,
) -> Portfolio:
    """The plans of least mean regret.

    All subsets are compared where they are few, else plans are added one by one, each time the one that helps most,
    which is within 1 - 1/e of the best gain (a submodular one: Nemhauser, Wolsey and Fisher 1978).

    Args:
        times_ns: per candidate, what it takes in each state. The first is the plan of the nominal state.
        sizes_bytes: per candidate, what it holds beyond what all share.
        bound_bytes: what the candidates other than the first may hold together; None: no bound.
        most: plans to keep, at least 1.

    Raises: ConfigError if there is no candidate or no state, or ``most`` is below 1.
    """
    if not times_ns or not times_ns[0] or most < 1:
        raise ConfigError("no plan, no state, or no plan to keep", fix="give at least one of each")
    sizes = [0] * len(times_ns) if sizes_bytes is None else list(sizes_bytes)
    best = [max(1, min(column)) for column in zip(*times_ns, strict=True)]
    logs = [[math.log(max(1, ns) / least) for ns, least in zip(row, best, strict=True)] for row in times_ns]
    others = [index for index in range(1, len(times_ns)) if bound_bytes is None or sizes[index] <= bound_bytes]

    def regret(chosen: Sequence[int]) -> float:
        return math.fsum(min(column) for column in zip(*(logs[index] for index in chosen), strict=True))

    def fits(chosen: Sequence[int]) -> bool:
        return bound_bytes is None or sum(sizes[index] for index in chosen if index) <= bound_bytes

    found: tuple[int, ...] = (0,)
    subsets = sum(math.comb(len(others), count) for count in range(min(most, len(others) + 1)))
    if subsets <= _MOST_SUBSETS:
        for count in range(1, min(most, len(others) + 1)):
            for chosen in itertools.combinations(others, count):
                if fits(chosen) and regret((0, *chosen)) < regret(found) - _EPSILON:
                    found = (0, *chosen)
    else:
        while len(found) < most:
            tries = [(*found, index) for index in others if index not in found and fits((*found, index))]
            better = min(tries, key=regret, default=found)
            if regret(better) >= regret(found) - _EPSILON:
                break
            found = better
    per_state = [min(column) for column in zip(*(logs[index] for index in found), strict=True)]
    return Portfolio(
        chosen=tuple(sorted(found)),
        mean_regret=math.exp(sum(per_state) / len(per_state)),
        worst_regret=math.exp(max(per_state)),
    )


_EPSILON: Final = 1e-9
"""A plan that helps by less is not worth its memory."""
