"""``parallax.patch``: our class in the place of ONNX Runtime's, for libraries that open sessions themselves."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.patching._patch import Patch, patch, unpatch
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_patch": "Patch patch unpatch",
        },
    )

__all__ = [
    "Patch",
    "patch",
    "unpatch",
]
