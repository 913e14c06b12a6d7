"""The front door: ``InferenceSession``, a drop-in for ONNX Runtime's."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.session._session import InferenceSession
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_session": "InferenceSession",
        },
    )

__all__ = [
    "InferenceSession",
]
