"""The power of a machine of which nobody said what it draws, with a band as wide as what is known of such machines."""

from __future__ import annotations

from typing import Final

from parallax.energy._model import Band, PowerModel

CORE_W: Final = Band(low=1.5, typical=4.0, high=10.0)
"""W of a busy core: thermal design power over cores, by makers' data sheets (recalled). Laptops have 15 W for 10 cores,
servers 350 to 360 W for 56 to 96, desktops 125 W for 12 and more while they may."""

STATIC_W_PER_CORE: Final = Band(low=0.3, typical=1.0, high=3.0)
"""W for each core used that its machine draws whether it computes or not: a fifth to a third of full load, as servers
that report SPECpower_ssj2008 draw when idle (recalled)."""

JOULES_PER_BYTE: Final = Band(low=2e-11, typical=1.2e-10, high=2e-10)
"""Of DDR4 and DDR5: 15 to 25 pJ a bit with interface and controller (recalled); less where caches hold what operators
touch, which is the low end."""


def unknown_host(cores: int) -> PowerModel:
    """The power of a machine of which ``cores`` cores are used and nothing else is known. Constants: this module's."""
    return PowerModel(static_w=STATIC_W_PER_CORE.times(cores), core_w=CORE_W, joules_per_byte=JOULES_PER_BYTE)
