"""Translation of ONNX Runtime's exceptions: one place, so that no foreign error crosses a segment.

A translated error is an instance of both worlds: ``except ParallaxError`` and code written for
ONNX Runtime (``except onnxruntime...InvalidArgument``) both catch it.
"""

from __future__ import annotations

from typing import Final

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.errors import (
    BackendError,
    InputError,
    ModelError,
    ModelFileError,
    ParallaxError,
    RunCancelled,
    UnsupportedModelError,
)

RUNTIME_EXCEPTIONS: tuple[type[Exception], ...] = tuple(
    value
    for value in vars(C).values()
    if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == C.__name__
)
"""Every exception class that ONNX Runtime's binding module registers."""

OPENING_EXCEPTIONS: tuple[type[Exception], ...] = (*RUNTIME_EXCEPTIONS, UnicodeDecodeError)
"""What opening a model can raise because of the model: the binding makes no exception of a text that is not UTF-8."""

FOREIGN_EXCEPTIONS: tuple[type[Exception], ...] = (*RUNTIME_EXCEPTIONS, RuntimeError, ValueError, TypeError)
"""What a call into the binding can raise: its own classes, and those pybind11 raises for it."""

# ONNX Runtime has no error class for a terminated run; its text is fixed in sequential_executor.cc.
TERMINATED: Final = "Exiting due to terminate flag being set to true"
"""How ONNX Runtime says that ``RunOptions.terminate`` stopped a run; callers look for these words."""


def is_termination(error: BaseException) -> bool:
    """Whether a call ended because ``RunOptions.terminate`` was set."""
    return TERMINATED in str(error)


_combined: dict[tuple[type[BaseException], type[BaseException]], type[ParallaxError]] = {}


def both(ours: type[ParallaxError], theirs: type[BaseException]) -> type[ParallaxError]:
    """A class that is ``ours`` and ``theirs`` at once, named after ours; the same one each time."""
    if issubclass(theirs, UnicodeError):
        theirs = ValueError  # that class takes the codec, the bytes and the place, not a text
    if issubclass(ours, theirs):
        return ours
    made = _combined.get((ours, theirs))
    if made is None:
        made = type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__doc__": ours.__doc__})
        made = _combined.setdefault((ours, theirs), made)
    return made


def run_failure(error: Exception) -> Exception:
    """The error a caller gets when a whole-model run raised ``error``: the runtime's words, in both worlds.

    What is not the runtime's (a TypeError for a wrong argument, say) is returned as it is.
    """
    text = str(error)
    if isinstance(error, ParallaxError):
        return error
    if is_termination(error):
        return both(RunCancelled, type(error))(text)
    if isinstance(error, C.InvalidArgument) or (isinstance(error, ValueError) and text.startswith("Required inputs")):
        return both(InputError, type(error))(text)
    if isinstance(error, RUNTIME_EXCEPTIONS):
        return both(BackendError, type(error))(text)
    return error


def open_failure(error: Exception) -> Exception:
    """The error a caller gets when the runtime refused to open a model, likewise."""
    if isinstance(error, UnicodeDecodeError):
        return both(ModelError, C.InvalidGraph)(
            "the runtime refuses the model, for a reason that names something which is not UTF-8 text",
            fix="the file is damaged, or written in another encoding: export it again",
        )
    if isinstance(error, C.NoSuchFile | C.InvalidProtobuf):
        return both(ModelFileError, type(error))(str(error))
    if isinstance(error, C.InvalidGraph):
        return both(ModelError, type(error))(str(error))
    if isinstance(error, C.NotImplemented):
        return both(UnsupportedModelError, type(error))(str(error))
    if isinstance(error, RUNTIME_EXCEPTIONS) and not isinstance(error, ParallaxError):
        return both(BackendError, type(error))(str(error))
    return error


def load_failure(error: OSError) -> BackendError:
    """The error a caller gets when a module of ours could not be read at its first use."""
    return BackendError(
        f"a part of Parallax, or of what it uses, could not be loaded: {error.strerror or error}",
        where=str(error.filename or ""),
        fix="where the process is out of descriptors or memory, let it have more; else install Parallax again",
    )


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
