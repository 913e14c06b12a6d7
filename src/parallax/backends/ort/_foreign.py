"""What ONNX Runtime raises, in our words: for whoever runs a part through a backend."""

from __future__ import annotations

from typing import Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.errors import BackendError, InputError, ParallaxError, RunCancelled

RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    value
    for value in vars(C).values()
    if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == C.__name__
)
"""Every exception class that ONNX Runtime's binding module registers."""

TERMINATED: Final = "Exiting due to terminate flag being set to true"
"""How ONNX Runtime says that ``RunOptions.terminate`` stopped a run; callers look for these words."""


def run_error(error: Exception, *, backend: str) -> ParallaxError:
    """What a run's failure is to the caller: a wrong feed, a wish to stop, or the backend's own failure."""
    if isinstance(error, ParallaxError):
        return error
    text = str(error)
    if TERMINATED in text:
        return RunCancelled(f"the run was stopped: {TERMINATED}", fix="run again to start over")
    if isinstance(error, C.InvalidArgument | TypeError | ValueError):
        return InputError(text, where=f"backend {backend}", fix="feed what the part declares as its inputs")
    return BackendError(text, where=f"backend {backend}", fix="run this part on the CPU")


def compile_error(error: Exception, *, backend: str, segment: str) -> BackendError:
    """A backend's refusal to compile a part."""
    return BackendError(
        f"backend {backend} cannot compile a part of the model: {error}",
        where=f"segment {segment!r}",
        fix="run this part on the CPU",
    )
