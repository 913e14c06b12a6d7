"""ONNX Runtime's own session class, whatever the name ``onnxruntime.InferenceSession`` stands for by now.

Applications replace that name by ours (so that packages which open sessions themselves get them), and tracing tools by
a wrapper of their own. All of this package opens the class that is found here, or a replaced name would have a session
open itself again.
"""

from __future__ import annotations

import weakref
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


class PinnedSession(StockSession):  # type: ignore[misc]  # untyped
    """ONNX Runtime's session class on one C session, whatever the session that it was opened for opens later.

    What belongs to the C session is kept here; everything else is read from that session, and done to it.

    Args:
        owner: the session that it was opened for, which is not kept alive by this.
        opened: what opened it: the owner itself, or another session of the class.
    """

    def __init__(self, owner: Any, opened: Any) -> None:
        self._owner = weakref.ref(owner)
        self._pin(opened)

    def _pin(self, opened: Any) -> None:
        self._sess = opened._sess
        self._inputs_meta = opened._inputs_meta
        self._outputs_meta = opened._outputs_meta

    def _its_owner(self) -> Any:
        owner = self._owner()
        if owner is None:
            raise ReferenceError("the session that this run is of is gone")
        return owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._its_owner(), name)

    def set_providers(self, providers: Any = None, provider_options: Any = None) -> None:
        """Called by the class where a provider failed, to go on with others."""
        owner = self._its_owner()
        owner.set_providers(providers, provider_options)
        self._pin(owner)

    def disable_fallback(self) -> None:
        """Called by the class after that, which it does once."""
        self._its_owner().disable_fallback()


def read_entry(session_options: Any, key: str) -> str | None:
    """The value of a config entry of an ``onnxruntime.SessionOptions``; None where it is not set.

    That one is not set takes the binding some sixty microseconds to say.
    """
    try:
        return str(session_options.get_session_config_entry(key))
    except RuntimeError:  # how the binding says "not set"
        return None
