"""Sessions that follow the machine or their callers: threads, clocks and probes for what `parallax.adapt` decides."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.adapting._following import Follower
    from parallax.adapting._serving_callers import CallerFollower
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_following": "Follower",
            "_serving_callers": "CallerFollower",
        },
    )

__all__ = [
    "CallerFollower",
    "Follower",
]
