"""Sessions that follow the machine: the threads, clocks and probes for what `parallax.adapt` decides."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.adapting._following import Follower
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_following": "Follower",
        },
    )

__all__ = [
    "Follower",
]
