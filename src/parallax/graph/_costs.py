"""What a model's operators cost: durations per node and width, wherever they come from."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parallax._record import dataclass
from parallax.errors import ConfigError, InternalError

FORMAT_VERSION = 1
"""Of `CostModel.to_json`; raised whenever older values must not be read any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Durations in nanoseconds of every node of one `OpGraph`, at some numbers of threads.

    Invariants: ``widths`` ascend from at least 1 and are not empty; ``durations_ns``, ``latencies_ns``
    and ``scales`` have one entry per width; every entry of ``durations_ns`` has one duration, at
    least 0, per node of the graph, by ``Node.index``.
    """

    source: str
    """"tables" (estimated from shapes) or "measured" (timed on this machine)."""
    widths: tuple[int, ...]
    durations_ns: tuple[tuple[int, ...], ...]
    latencies_ns: tuple[int | None, ...]
    """End-to-end median of one run of the whole model; None where it was not measured."""
    scales: tuple[float, ...]
    """What measured kernel times were multiplied by so that they sum to the end-to-end latency."""
    known_fraction: float
    """Share of nodes (0 to 1) whose cost rests on known shapes and a known operator, or was measured."""
    fusion_safe: frozenset[str] | None = None
    """Tensors that still exist in the runtime's optimised graph; None where nobody asked."""

    def __post_init__(self) -> None:
        lengths = {len(self.durations_ns), len(self.latencies_ns), len(self.scales)}
        ascending = all(low < high for low, high in itertools.pairwise(self.widths))
        if not self.widths or self.widths[0] < 1 or not ascending or lengths != {len(self.widths)}:
            raise InternalError(f"a cost model's widths {self.widths} do not fit its durations")
        if len({len(durations) for durations in self.durations_ns}) > 1:
            raise InternalError("a cost model holds another number of nodes at one width than at another")

    def node_ns(self, width: int) -> tuple[int, ...]:
        """Duration of each node when it runs on ``width`` threads.

        Between two known widths the durations are interpolated in 1/width, which is exact for work
        that follows Amdahl's law; outside the known widths the nearest one answers.

        Raises: ConfigError if ``width`` is below 1.
        """
        low, high, share = self._bracket(width)
        if low == high:
            return self.durations_ns[low]
        return tuple(
            round(slow + (fast - slow) * share)
            for slow, fast in zip(self.durations_ns[low], self.durations_ns[high], strict=True)
        )

    def scale(self, width: int) -> float:
        """What kernel times at ``width`` were multiplied by to sum to the latency; 1.0 for tables."""
        low, high, share = self._bracket(width)
        return self.scales[low] + (self.scales[high] - self.scales[low]) * share

    def latency_ns(self, width: int) -> int | None:
        """End-to-end latency of the whole model on ``width`` threads, if it was measured."""
        low, high, share = self._bracket(width)
        slow, fast = self.latencies_ns[low], self.latencies_ns[high]
        return None if slow is None or fast is None else round(slow + (fast - slow) * share)

    def times(self, factor: float) -> CostModel:
        """The same on a machine that takes ``factor`` times as long for everything."""
        rows = tuple(tuple(round(ns * factor) for ns in row) for row in self.durations_ns)
        latencies = tuple(None if ns is None else round(ns * factor) for ns in self.latencies_ns)
        return replace(self, durations_ns=rows, latencies_ns=latencies)

    def _bracket(self, width: int) -> tuple[int, int, float]:
        """Positions of the known widths around ``width``, and how far it lies between them in 1/width."""
        if width < 1:
            raise ConfigError(f"a width of {width} threads", fix="widths are at least 1")
        high = bisect.bisect_left(self.widths, width)
        if high == len(self.widths):
            return high - 1, high - 1, 0.0
        if high == 0 or self.widths[high] == width:
            return high, high, 0.0
        below, above = self.widths[high - 1], self.widths[high]
        return high - 1, high, (1 / below - 1 / width) / (1 / below - 1 / above)

    def to_json(self) -> dict[str, object]:
        """A value of JSON types; `from_json` is its exact inverse."""
        return {
            "format": FORMAT_VERSION,
            "source": self.source,
            "widths": list(self.widths),
            "durations_ns": [list(durations) for durations in self.durations_ns],
            "latencies_ns": list(self.latencies_ns),
            "scales": list(self.scales),
            "known_fraction": self.known_fraction,
            "survivors": None if self.fusion_safe is None else sorted(self.fusion_safe),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> CostModel:
        """Raises: ConfigError if ``value`` is not what `to_json` of this version makes."""
        if value.get("format") != FORMAT_VERSION:
            raise ConfigError(
                f"cost model of format {value.get('format')!r}, this version reads {FORMAT_VERSION}", fix="measure anew"
            )
        try:
            fusion_safe = value["survivors"]
            return cls(
                source=str(value["source"]),
                widths=tuple(_int(width) for width in _list(value["widths"])),
                durations_ns=tuple(tuple(_int(ns) for ns in _list(row)) for row in _list(value["durations_ns"])),
                latencies_ns=tuple(None if ns is None else _int(ns) for ns in _list(value["latencies_ns"])),
                scales=tuple(_float(scale) for scale in _list(value["scales"])),
                known_fraction=_float(value["known_fraction"]),
                fusion_safe=None if fusion_safe is None else frozenset(str(name) for name in _list(fusion_safe)),
            )
        except (KeyError, TypeError, InternalError) as error:
            raise ConfigError(f"not a cost model: {error}", fix="measure anew") from error


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def _int(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"expected a whole number of at least 0, found {value!r}")
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value)
