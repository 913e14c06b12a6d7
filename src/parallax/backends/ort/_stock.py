"""ONNX Runtime's own session class, whatever the name ``onnxruntime.InferenceSession`` stands for by now.

Applications replace that name by ours (so that packages which open sessions themselves get them), and tracing tools by
a wrapper of their own. All of this package opens the class that is found here, or a replaced name would have a session
open itself again.
"""

from __future__ import annotations

from typing import Any

from onnxruntime.capi import onnxruntime_inference_collection as collection


def _find_stock_class() -> Any:
    # The module's own name may be replaced too, before this package is imported or imported again; the classes that
    # derive from ``Session`` are still those that the module defined.
    for known in collection.Session.__subclasses__():
        if (known.__module__, known.__qualname__) == (collection.__name__, "InferenceSession"):
            return known
    return collection.InferenceSession


StockSession: Any = _find_stock_class()
"""The class that ``onnxruntime`` defines as its ``InferenceSession``."""
