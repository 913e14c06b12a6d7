"""``parallax.patch``: who opens a session through onnxruntime gets ours, until it is undone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as collection

import parallax
from parallax.backends.ort import StockSession
from tests.session._dropin import branches_answer, branches_model, ramp

MODEL = branches_model().SerializeToString()
HOLDER = "_a_client_of_onnxruntime"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever a test does, the names are as they were."""
    held = onnxruntime.InferenceSession, collection.InferenceSession
    yield
    parallax.unpatch()
    assert (onnxruntime.InferenceSession, collection.InferenceSession) == held


@pytest.fixture
def client() -> Iterator[Any]:
    """A module that ran ``from onnxruntime import InferenceSession`` before."""
    module: Any = ModuleType(HOLDER)
    sys.modules[HOLDER] = module
    exec(
        """
from onnxruntime import InferenceSession
from onnxruntime import InferenceSession as Session
class Engine:
    session_class = InferenceSession
def open_session(model):
    return InferenceSession(model)
""",
        vars(module),
    )
    yield module
    del sys.modules[HOLDER]


def _runs(session: Any) -> None:
    x = ramp(2, 4)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], branches_answer(x), rtol=1e-6, atol=1e-6)


def test_a_block_is_patched_and_what_follows_is_not(client: Any) -> None:
    with parallax.patch() as patched:
        assert onnxruntime.InferenceSession is parallax.InferenceSession
        assert collection.InferenceSession is parallax.InferenceSession
        for session in (onnxruntime.InferenceSession(MODEL), client.open_session(MODEL), client.Session(MODEL)):
            assert type(session) is parallax.InferenceSession
            assert isinstance(session, StockSession)
            _runs(session)
        assert client.Engine.session_class is parallax.InferenceSession
        assert {"onnxruntime.InferenceSession", f"{HOLDER}.InferenceSession", f"{HOLDER}.Session"} <= set(
            patched.replaced
        )
        assert f"{HOLDER}.Engine.session_class" in patched.replaced
    assert onnxruntime.InferenceSession is StockSession
    for session in (onnxruntime.InferenceSession(MODEL), client.open_session(MODEL)):
        assert type(session) is StockSession
        _runs(session)
    assert client.Engine.session_class is client.Session is StockSession


def test_a_call_lasts_until_it_is_undone() -> None:
    made = parallax.patch()
    assert type(onnxruntime.InferenceSession(MODEL)) is parallax.InferenceSession
    assert parallax.unpatch() == ()
    assert type(onnxruntime.InferenceSession(MODEL)) is StockSession
    assert parallax.unpatch() == ()
    assert made.undo() == ()


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), parallax.patch():
        raise KeyError
    assert onnxruntime.InferenceSession is StockSession


def test_blocks_may_be_nested() -> None:
    with parallax.patch():
        with parallax.patch() as inner:
            assert inner.replaced == ()
        assert onnxruntime.InferenceSession is parallax.InferenceSession
    assert onnxruntime.InferenceSession is StockSession


def test_subclasses_that_were_defined_before_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Traced(StockSession):
        pass

    with parallax.patch() as patched:
        assert any("Traced (a subclass, defined before)" in text for text in patched.missed)
        assert "Traced" in repr(patched)
        assert type(Traced(MODEL)) is Traced
    assert "call parallax.patch() before they are imported" in caplog.text
    assert not any("parallax." in text for text in patched.missed)


def test_modules_imported_meanwhile_are_named_when_it_is_undone() -> None:
    made = parallax.patch()
    module: Any = ModuleType(HOLDER)
    sys.modules[HOLDER] = module
    try:
        exec("from onnxruntime import InferenceSession", vars(module))
        assert module.InferenceSession is parallax.InferenceSession
        assert made.undo() == (f"{HOLDER}.InferenceSession",)
    finally:
        del sys.modules[HOLDER]


def test_what_another_tool_put_there_meanwhile_is_left_alone() -> None:
    class Other(StockSession):
        pass

    made = parallax.patch()
    onnxruntime.InferenceSession = Other
    made.undo()
    assert onnxruntime.InferenceSession is Other
    onnxruntime.InferenceSession = StockSession


def test_what_another_tool_put_there_before_is_put_back() -> None:
    class Other(StockSession):
        pass

    onnxruntime.InferenceSession = Other
    try:
        with parallax.patch():
            assert onnxruntime.InferenceSession is parallax.InferenceSession
        assert onnxruntime.InferenceSession is Other
    finally:
        onnxruntime.InferenceSession = StockSession


def test_our_own_sessions_still_open_onnxruntimes_class() -> None:
    with parallax.patch():
        for options in ({}, {"split": "always", "threads": 2}, {"memory_budget": "256MiB"}):
            _runs(parallax.InferenceSession(MODEL, **options))
