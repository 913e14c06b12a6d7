"""The front door: ``InferenceSession``, a drop-in for ONNX Runtime's, and ``compile``."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.session._compile import compile
    from parallax.session._options import Options
    from parallax.session._patch import Patch, patch, unpatch
    from parallax.session._providers import make_device
    from parallax.session._session import InferenceSession
    from parallax.session._usage import MemoryUsage
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_compile": "compile",
            "_options": "Options",
            "_patch": "Patch patch unpatch",
            "_providers": "make_device",
            "_session": "InferenceSession",
            "_usage": "MemoryUsage",
        },
    )

__all__ = [
    "InferenceSession",
    "MemoryUsage",
    "Options",
    "Patch",
    "compile",
    "make_device",
    "patch",
    "unpatch",
]
