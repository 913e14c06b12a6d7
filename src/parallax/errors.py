"""What went wrong: one small tree, each class saying whose move it is.

::

    ParallaxError
    ├── ModelError            the model file is at fault: fix or re-export it
    │   ├── ModelFileError        it cannot be read at all (missing, truncated, not ONNX)
    │   ├── ExternalDataError     its external data is missing or damaged
    │   │   └── ExternalPathError     ... or lies outside the model's folder (an UnsafeModelError too)
    │   ├── UnsafeModelError      what it asks for is refused for safety, whoever would run it
    │   └── UnsupportedModelError valid, but newer than what is installed can run
    ├── ConfigError           the caller's options are at fault: change the call
    │   └── MissingExtraError     an optional dependency is not installed
    ├── InputError            the tensors fed to a run are at fault
    ├── Overloaded            a batcher takes no more: send less, or later
    │   └── DeadlineMissed        ... or it took a request that cannot end in time any more
    ├── PlanError             no plan satisfies the constraints (budget, cores)
    │   └── BudgetError           the memory budget is too small; says which one would do
    ├── SessionClosedError    a session was used after its close(): open another
    ├── BundleError           a compiled bundle is damaged or not one: compile it again
    │   └── BundleMismatchError   it is whole, but made for another machine, runtime or version
    ├── BackendError          the wrapped runtime failed
    │   ├── SegmentError          ... while running one segment; names it and its nodes
    │   └── RunCancelled          a run was stopped on request (terminate, Ctrl-C)
    └── InternalError         we are at fault: please report it

A message says what happened, where in the model, and how to fix it. This module knows nothing of
the rest of the package.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BudgetError",
    "BundleError",
    "BundleMismatchError",
    "ConfigError",
    "DeadlineMissed",
    "ExternalDataError",
    "ExternalPathError",
    "InputError",
    "InternalError",
    "MissingExtraError",
    "ModelError",
    "ModelFileError",
    "Overloaded",
    "ParallaxError",
    "PlanError",
    "RunCancelled",
    "SegmentError",
    "SessionClosedError",
    "UnsafeModelError",
    "UnsupportedModelError",
]


class ParallaxError(Exception):
    """Root of everything this package raises on purpose.

    Args:
        what: what happened, naming the offending value.
        where: the place in the model or call (a node, a tensor, a file), if there is one.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        message = what if where is None else f"{what} (at {where})"
        super().__init__(message if fix is None else f"{message}; {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # The default reduction would replay only the joined message and lose the fields.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[ParallaxError], args: tuple[object, ...], state: dict[str, object]) -> ParallaxError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ModelError(ParallaxError):
    """The model is at fault: its author fixes or re-exports it."""


class ModelFileError(ModelError):
    """The model cannot be read at all: missing, truncated, or not ONNX."""


class ExternalDataError(ModelError):
    """External data is missing, too short, or not where it may be."""


class UnsafeModelError(ModelError):
    """What the model asks for is refused for safety: it is not handed to the wrapped runtime either.

    Functions that expand without bound, say.
    """


class ExternalPathError(ExternalDataError, UnsafeModelError):
    """External data lies outside the model's folder."""


class UnsupportedModelError(ModelError):
    """A valid model that needs a newer opset or IR version than what is installed."""


class ConfigError(ParallaxError):
    """The options of a call are at fault: the caller changes them."""


class MissingExtraError(ConfigError):
    """An optional dependency is missing: the message gives the install command."""


class InputError(ParallaxError):
    """A fed tensor has the wrong name, type, rank or size: the caller changes the feed."""


class Overloaded(ParallaxError):
    """A batcher refuses a request (the queue is full, or it could not end in time): the caller sends less, or later.

    Args:
        retry_after_s: seconds after which it would be taken, if nothing else came; None where that is not known.
    """

    def __init__(
        self, what: str, *, retry_after_s: float | None = None, where: str | None = None, fix: str | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, where=where, fix=fix)


class DeadlineMissed(Overloaded):
    """A request that a batcher took cannot end before its deadline any more, so it was dropped and never run."""


class PlanError(ParallaxError):
    """No plan satisfies the constraints: the caller relaxes them, the message says to what."""


class BudgetError(PlanError):
    """A memory budget is too small for the model: the caller gives more, or makes less do.

    Args:
        least_bytes: the smallest budget that would do.
    """

    def __init__(
        self, what: str, *, least_bytes: int | None = None, where: str | None = None, fix: str | None = None
    ) -> None:
        self.least_bytes = least_bytes
        super().__init__(what, where=where, fix=fix)


class SessionClosedError(ParallaxError):
    """A session was used after ``close``: the caller opens another one, or closes it later."""


class BundleError(ParallaxError):
    """A bundle cannot be used: damaged, incomplete or not a bundle. Nothing of it was run."""


class BundleMismatchError(BundleError):
    """A whole bundle, made for another machine, number of cores, runtime or version of Parallax."""


class BackendError(ParallaxError):
    """The wrapped runtime failed; its own exception is the ``__cause__``."""


class SegmentError(BackendError):
    """A segment of the plan failed while running; the session stays usable.

    Args:
        segment: name of the segment.
        nodes: names of the model's nodes in it, in execution order.
    """

    def __init__(
        self,
        what: str,
        *,
        segment: str = "",
        nodes: tuple[str, ...] = (),
        where: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.segment = segment
        self.nodes = nodes
        super().__init__(what, where=where, fix=fix)


class RunCancelled(BackendError):
    """A run was stopped on request: ``RunOptions.terminate`` or Ctrl-C."""


class InternalError(ParallaxError):
    """A bug in Parallax; please report it with the text of the message."""
