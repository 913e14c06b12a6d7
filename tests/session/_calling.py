"""Callers of a session in threads of their own, a model for them, and what trials of the two forms decide."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from parallax.adapt import CALLER_RULES, _callers
from parallax.adapting import _serving_callers
from parallax.errors import SessionClosedError
from tests.session._dropin import model_of

CPU = "CPUExecutionProvider"
SIZE = 256
LIMIT_S = 120
"""Nothing is timed by this: it ends a test that would never end."""
MANY = 8
"""So many callers have several runs in flight even on a busy machine, where each also waits for Python's lock."""


def dense_chain(depth: int = 6) -> bytes:
    """Matrix products one after the other over x[64, SIZE]: a millisecond or two, nearly all of it in the runtime."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((SIZE, SIZE)) / 16).astype(np.float32), f"w{step}")
        for step in range(depth)
    ]
    nodes = []
    for step in range(depth):
        nodes.append(helper.make_node("MatMul", [f"t{step}" if step else "x", f"w{step}"], [f"p{step}"]))
        nodes.append(helper.make_node("Tanh", [f"p{step}"], [f"t{step + 1}" if step + 1 < depth else "y"]))
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, SIZE])],
        weights,
    ).SerializeToString()


MODEL = dense_chain()
INPUTS = [np.random.default_rng(seed).standard_normal((64, SIZE)).astype(np.float32) for seed in range(5)]


def is_right(answer: Any, wanted: Any) -> bool:
    """Whether it is this answer, and not that to another input."""
    return bool(np.allclose(answer, wanted, rtol=1e-4, atol=1e-5))


def decide_trials(monkeypatch: pytest.MonkeyPatch, *, narrow: bool, **rules: Any) -> None:
    """Have trials decide so, which on a busy machine may decide either: side by side, or not."""
    least = -1.0 if narrow else 100.0
    changed = {name: replace(rule, least_gain=least, **rules) for name, rule in CALLER_RULES.items()}
    monkeypatch.setattr(_serving_callers, "CALLER_RULES", changed)
    monkeypatch.setattr(_callers._Trial, "halves", lambda trial: (trial.gain(), trial.gain()))


class Callers:
    """Threads that run a session until they are told to stop, and check each answer."""

    def __init__(self, session: Any, wanted: list[Any], count: int = MANY, *, least: int = 0) -> None:
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.closed = 0
        self.ran = [0] * count
        self._session, self._wanted, self._least = session, wanted, least
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self, number: int) -> None:
        for turn in itertools.count():
            if self.over.is_set() and turn >= self._least:
                return
            which = (number + turn) % len(INPUTS)
            try:
                (answer,) = self._session.run(None, {"x": INPUTS[which]})
            except SessionClosedError:
                self.closed += 1
                return
            except BaseException as error:
                self.wrong.append(repr(error))
                return
            if not is_right(answer, self._wanted[which]):
                self.wrong.append(f"run {turn} of thread {number}: another answer")
            self.ran[number] += 1

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        self._session = None
        assert not self.wrong, self.wrong[:5]


@contextmanager
def calling(session: Any, wanted: list[Any], count: int = MANY, *, least: int = 0) -> Iterator[Callers]:
    callers = Callers(session, wanted, count, least=least)
    try:
        yield callers
    finally:
        callers.end()


def wait_until(what: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_narrow(session: Any) -> bool:
    return bool(session.plan.segments[0].width == 1)


def run_alone_until(session: Any, wanted: list[Any], what: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < end
        assert is_right(session.run(None, {"x": INPUTS[0]})[0], wanted[0])
