"""What a caller may ask for about backends that fail."""

from __future__ import annotations

from numbers import Integral, Real

from parallax._record import dataclass
from parallax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPolicy:
    """What is done about a delegate that misbehaves."""

    tolerated: int = 3
    """Failures in a row after which it is disabled."""
    retry_s: float = 30.0
    """How long, at first; each failed trial doubles it."""
    deadline_s: float | None = None
    """Longest run; a delegate that exceeds it is disabled for good. Runs have a thread of their own then, and their
    feeds are copied, because a call that hangs cannot be stopped and may go on reading them."""
    checks_nan: bool = False
    """Have the processor compute what came out with a NaN in it. One that it makes as well is the model's own."""

    def __post_init__(self) -> None:
        if not _is_number(self.tolerated, Integral) or self.tolerated < 1:
            raise ConfigError(
                f"tolerated={self.tolerated!r:.80} failures in a row", fix="give a whole number of at least 1"
            )
        if not _is_number(self.retry_s, Real) or not self.retry_s >= 0:
            raise ConfigError(f"retry_s={self.retry_s!r:.80}", fix="give seconds, 0 or more")
        if self.deadline_s is not None and not (_is_number(self.deadline_s, Real) and self.deadline_s > 0):
            raise ConfigError(
                f"deadline_s={self.deadline_s!r:.80}", fix="give seconds above 0, or None for no deadline"
            )
        if self.checks_nan not in (True, False) or _is_number(self.checks_nan, Real):
            raise ConfigError(
                f"checks_nan={self.checks_nan!r:.80} is neither True nor False", fix="write checks_nan=True"
            )


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


DEFAULT_POLICY = FaultPolicy()
