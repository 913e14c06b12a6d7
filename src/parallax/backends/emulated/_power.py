"""What a device draws while it computes, as its profile says: a band for each figure, with its source.

Nobody measures a device that is not here. `parallax.energy` makes joules of these figures, which are marked as modelled
wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from parallax.backends.emulated._figures import Basis, Fields

_MOST_W: Final = 10_000.0
"""No board draws more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureBand:
    """A figure that is not known exactly, with its origin. The unit is that of the field it stands in."""

    low: float
    typical: float
    high: float
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """A phone or a board, its processor and its accelerator."""

    static_w: FigureBand
    """W of the whole, as long as a run lasts, whatever computes."""
    core_w: tuple[FigureBand, ...]
    """W of each busy core beyond that; one for each cluster of the profile, in their order."""
    device_w: FigureBand
    """W of the accelerator beyond that, while it computes."""
    joules_per_byte: FigureBand
    """Of memory that operators read and write."""

    def bands(self) -> Mapping[str, FigureBand]:
        """Every band by its name in the file, for reports that say what they rest on."""
        cores = {f"power.core_w[{index}]": band for index, band in enumerate(self.core_w)}
        return {
            "power.static_w": self.static_w,
            **cores,
            "power.device_w": self.device_w,
            "power.joules_per_byte": self.joules_per_byte,
        }


def read_power(fields: Fields, *, clusters: int) -> DevicePower:
    """The block ``power`` of a profile whose processor has so many clusters.

    Raises: ConfigError naming the field at fault.
    """
    cores = tuple(_read_band(item, most=_MOST_W) for item in fields.items("core_w"))
    if len(cores) != clusters:
        raise fields.error("core_w", f"found {len(cores)} bands", f"{clusters}, one for each cluster of cpu.clusters")
    power = DevicePower(
        static_w=_read_band(fields.inner("static_w"), most=_MOST_W),
        core_w=cores,
        device_w=_read_band(fields.inner("device_w"), most=_MOST_W),
        joules_per_byte=_read_band(fields.inner("joules_per_byte"), most=1e-6),
    )
    fields.finish()
    return power


def _read_band(fields: Fields, *, most: float) -> FigureBand:
    low, typical, high = (fields.number(name, most=most, positive=False) for name in ("low", "typical", "high"))
    if not low <= typical <= high:
        raise fields.error("typical", f"found {typical:g}", f"a number from low, {low:g}, to high, {high:g}")
    basis, source = fields.origin()
    fields.finish()
    return FigureBand(low=low, typical=typical, high=high, basis=basis, source=source)
