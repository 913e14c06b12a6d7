"""What a session has open: one record, which is replaced as a whole and never changed.

A run takes the record once, so that it sees one state from beginning to end, whatever another thread opens meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from parallax._record import dataclass
from parallax.errors import InternalError

if TYPE_CHECKING:
    from parallax.bundle import Bundle
    from parallax.model import Glimpse, Model
    from parallax.schedule import Plan
    from parallax.session._estimate import Estimator
    from parallax.session._memory import Budget
    from parallax.session._split_model import SplitModel


class SessionState(Enum):
    """How a session runs its model."""

    OPENING = "opening"
    """Not at all yet: the constructor, ``set_providers`` or the first run in a forked child is opening it."""
    WHOLE = "whole"
    """The base class runs it."""
    DIRECT = "direct"
    """Its C session runs it, since nothing is needed of what the base class does around that."""
    SPLIT = "split"
    """The engine runs it in segments."""


LEGAL_TRANSITIONS: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    # Opening may fail, and begin again.
    SessionState.OPENING: frozenset(SessionState),
    SessionState.WHOLE: frozenset({SessionState.OPENING}),
    SessionState.DIRECT: frozenset({SessionState.OPENING}),
    SessionState.SPLIT: frozenset({SessionState.OPENING}),
}
"""The states that may follow each: what is open is closed before something else is opened."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """What a session runs."""

    state: SessionState
    plan: Plan | None = None
    """None while it is opened."""
    split: SplitModel | None = None
    """In state SPLIT, and only there."""
    direct: Callable[..., Any] | None = None
    """The C session's ``run``; in state DIRECT, and only there."""
    bundle: Bundle | None = None
    stored_declaration: bytes | None = None
    """A bundle's description of the model's outputs."""
    estimator: Estimator | None = None
    budget: Budget | None = None
    is_unbounded: bool = False
    """How long a run takes depends on data."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """What the base class keeps of its C session, by the names of its attributes, as far as it is to be overwritten."""

    def __post_init__(self) -> None:
        if (self.split is not None) is not (self.state is SessionState.SPLIT):
            raise InternalError(f"a session in state {self.state.value!r} with a split model: {self.split is not None}")
        if (self.direct is not None) is not (self.state is SessionState.DIRECT):
            raise InternalError(f"a session in state {self.state.value!r} with a C session: {self.direct is not None}")

    def weight_bytes(self, model: Model | Glimpse | None) -> int | None:
        """Of what is open; None where that is not known. ``model``: what the session loaded or looked at, if it did."""
        if self.bundle is not None:
            return self.bundle.manifest.weight_bytes
        return None if model is None else model.weight_bytes


NOT_OPEN: Final = Opened(state=SessionState.OPENING)
"""What a session has before it has anything."""


def check_transition(before: Opened, after: Opened) -> None:
    """Raises: InternalError if a session must not go from one to the other."""
    if after.state not in LEGAL_TRANSITIONS[before.state]:
        raise InternalError(f"a session went from {before.state.value!r} to {after.state.value!r}")
