"""When to try something that failed again: a circuit breaker. It knows no clock of its own and no threads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class CircuitBreaker:
    """Closed at first: all may try. After ``tolerated`` failures in a row it opens, for ``retry_s``.

    Then one may try: a success closes it, a failure opens it for twice as long, up to ``longest_s``.
    """

    tolerated: int
    retry_s: float
    longest_s: float = 3600.0
    failures: int = 0
    """In a row."""
    _open_until: float = field(default=0.0, init=False)
    _is_trying: bool = field(default=False, init=False)

    @property
    def is_open(self) -> bool:
        """Whether it has given up for the time being."""
        return self.failures >= self.tolerated

    def may_try(self, now_s: float) -> bool:
        """Whether to try at this time; who is told yes must report a success or a failure, or call `abandon`."""
        if not self.is_open:
            return True
        if self._is_trying or now_s < self._open_until:
            return False
        self._is_trying = True
        return True

    def succeeded(self) -> None:
        """A try went well."""
        self.failures = 0
        self._is_trying = False

    def failed(self, now_s: float) -> bool:
        """A try went wrong; returns whether that opened it."""
        was_open = self.is_open
        self.failures += 1
        self._is_trying = False
        if self.is_open:
            doublings = min(32, self.failures - self.tolerated)
            self._open_until = now_s + min(self.longest_s, self.retry_s * 2**doublings)
        return self.is_open and not was_open

    def abandon(self) -> None:
        """A try proved nothing either way."""
        self._is_trying = False

    def give_up(self) -> None:
        """Never try again."""
        self.failures = max(self.failures, self.tolerated)
        self._open_until = float("inf")
        self._is_trying = False
