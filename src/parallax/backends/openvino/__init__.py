"""OpenVINO as a backend."""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.backends.openvino._backend import PACKAGE, OpenVinoBackend
    from parallax.backends.openvino._table import openvino_table_digest
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_backend": "PACKAGE OpenVinoBackend",
            "_table": "openvino_table_digest",
        },
    )

__all__ = [
    "PACKAGE",
    "OpenVinoBackend",
    "openvino_table_digest",
]
