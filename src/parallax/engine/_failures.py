"""What a caller gets when a segment fails."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import FOREIGN_EXCEPTIONS, RUNTIME_EXCEPTIONS, TERMINATED, both, is_termination
from parallax.errors import BackendError, ParallaxError, RunCancelled, SegmentError


def segment_failure(error: BaseException, *, segment: str, nodes: tuple[str, ...]) -> ParallaxError:
    """The error a caller gets when ``error`` came out of a segment."""
    text = str(error)
    if isinstance(error, RunCancelled):
        # Of a segment inside, or of a backend, which knows nothing of the runtime's classes.
        return error if isinstance(error, C.Fail) else both(RunCancelled, C.Fail)(error.what, fix=error.fix)
    if is_termination(error):
        return both(RunCancelled, type(error))(
            f"the run was stopped: {TERMINATED}", where=f"segment {segment!r}", fix="run again to start over"
        )
    made: type[ParallaxError]
    if isinstance(error, SegmentError):
        made = type(error)  # of a segment inside
    elif (theirs := _runtime_class(error)) is not None:
        made = both(SegmentError, theirs)
    elif isinstance(error, Exception):
        made = both(SegmentError, type(error)) if type(error) in FOREIGN_EXCEPTIONS else SegmentError
    else:
        made = BackendError
    shown = ", ".join(nodes[:8]) + (f", ... ({len(nodes)} nodes)" if len(nodes) > 8 else "")
    failure = made(text, where=f"segment {segment!r}, nodes {shown}")
    if isinstance(failure, SegmentError):
        failure.segment = segment
        failure.nodes = nodes
    return failure


def _runtime_class(error: BaseException) -> type[BaseException] | None:
    """The runtime's class of an error, or of what a backend's error came from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RUNTIME_EXCEPTIONS):
        cause = cause.__cause__
    return None if cause is None else next(kind for kind in type(cause).__mro__ if kind in RUNTIME_EXCEPTIONS)
