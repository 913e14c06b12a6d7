"""Parts with open dimensions: compiled for the shapes that recur, right for all others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parallax.backends import CompileOptions, open_backend
from parallax.backends.openvino import OpenVinoBackend
from parallax.backends.openvino import _shapes as shapes_module
from parallax.backends.openvino._model import OpenVinoModel
from parallax.backends.openvino._shapes import EARNED, FIXED_KEPT, ShapedPrograms, Signature
from parallax.errors import BackendError
from parallax.model import load_model
from tests.backends._backends import model_of, obstacle, on_the_processor, run, whole

F32 = TensorProto.FLOAT
node = helper.make_node
needs_openvino = pytest.mark.skipif(obstacle("openvino") is not None, reason=str(obstacle("openvino")))
LONG_NS = 1 << 60
"""A run that has earned anything."""


def _of(rows: int) -> Signature:
    return ((rows, 8),)


class Compiler:
    """Makes programs that are told apart by what they were made for, and keeps count."""

    def __init__(self, *, refuses: Callable[[Signature | None], bool] = lambda signature: False) -> None:
        self.made: list[Signature | None] = []
        self._refuses = refuses

    def __call__(self, signature: Signature | None) -> tuple[str, Signature | None]:
        if self._refuses(signature):
            raise BackendError("not in this shape")
        self.made.append(signature)
        return ("program", signature)


def _settle() -> None:
    """Wait for what is compiled in the background."""
    for thread in threading.enumerate():
        if thread.name == "parallax-shapes":
            thread.join()


def test_likely_shapes_are_compiled_at_once_and_open_ones_when_they_come() -> None:
    compiler = Compiler()
    programs = ShapedPrograms(compiler, likely=_of(2), what="it")
    assert compiler.made == [_of(2)]
    assert programs.pick(_of(2)) == ("program", _of(2))
    assert compiler.made == [_of(2)], "nobody needs a second copy of the weights"
    assert programs.pick(_of(3)) == programs.pick(_of(4)) == ("program", None)
    assert compiler.made == [_of(2), None]


def test_without_likely_shapes_it_starts_open() -> None:
    compiler = Compiler()
    programs = ShapedPrograms(compiler, likely=None, what="it")
    assert compiler.made == [None]
    assert programs.fixed == ()


def test_a_signature_earns_its_program_by_the_time_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))  # compiling takes 100 ns
    monkeypatch.setattr("parallax.backends.openvino._shapes.time.perf_counter_ns", lambda: next(clock))
    compiler = Compiler()
    programs = ShapedPrograms(compiler, likely=None, what="it")
    for _ in range(EARNED - 1):
        programs.note(_of(2), 100)
        programs.note(_of(3), 1)
    _settle()
    assert compiler.made == [None]
    programs.note(_of(2), 100)
    _settle()
    assert compiler.made == [None, _of(2)]
    assert programs.pick(_of(2)) == ("program", _of(2))
    assert programs.pick(_of(3)) == ("program", None)


def test_few_are_kept_and_the_one_used_longest_ago_goes() -> None:
    compiler = Compiler()
    programs = ShapedPrograms(compiler, likely=None, what="it")
    for rows in range(FIXED_KEPT):
        programs.note(_of(rows), LONG_NS)
        _settle()
    programs.pick(_of(0))  # so that the others are older
    programs.note(_of(99), LONG_NS)
    _settle()
    assert len(programs.fixed) == FIXED_KEPT
    assert {_of(0), _of(99)} <= set(programs.fixed)
    assert programs.pick(_of(1)) == ("program", None)


def test_shapes_that_it_refuses_stay_open_and_are_not_tried_again() -> None:
    tried: list[Signature | None] = []

    def refuses(signature: Signature | None) -> bool:
        tried.append(signature)
        return signature == _of(2)

    programs = ShapedPrograms(Compiler(refuses=refuses), likely=_of(2), what="it")
    assert programs.pick(_of(2)) == ("program", None)
    programs.note(_of(2), LONG_NS)
    _settle()
    assert tried == [_of(2), None]


def test_a_part_that_cannot_be_compiled_says_so() -> None:
    with pytest.raises(BackendError, match="not in this shape"):
        ShapedPrograms(Compiler(refuses=lambda signature: True), likely=_of(2), what="it")


def test_where_no_thread_can_start_it_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = ShapedPrograms(Compiler(), likely=None, what="it")

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        programs.note(_of(2), LONG_NS)
    assert programs.fixed == ()
    programs.note(_of(2), LONG_NS)
    _settle()
    assert programs.fixed == (_of(2),)


def _dense() -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((8, 8), dtype=np.float32)
    return model_of(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"]), node("Shape", ["a"], ["s"])],
        {"x": (F32, ["n", 8])},
        {"y": (F32, ["n", 8]), "s": (TensorProto.INT64, [2])},
        {"w": weights},
    )


def _feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 8), dtype=np.float32)}


def _compile(backend: OpenVinoBackend, **shapes: tuple[int, ...]) -> OpenVinoModel:
    return backend.compile(whole(load_model(_dense())), width=2, options=CompileOptions(shapes=shapes))


@pytest.fixture(scope="module")
def backend() -> OpenVinoBackend:
    made = open_backend("openvino")
    assert isinstance(made, OpenVinoBackend)
    return made


def _check(compiled: OpenVinoModel, rows: int) -> None:
    fed = _feed(rows)
    expected = on_the_processor(_dense(), fed)
    y, s = run(compiled, fed)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(s, expected[1])


@needs_openvino
@pytest.mark.parametrize("likely", [{}, {"x": (4, 8)}, {"x": (4, 9)}, {"z": (4, 8)}])
def test_answers_are_the_same_in_all_shapes(backend: OpenVinoBackend, likely: dict[str, tuple[int, ...]]) -> None:
    compiled = _compile(backend, **likely)
    for rows in (4, 1, 4, 7, 2, 4):
        _check(compiled, rows)


@needs_openvino
def test_many_threads_and_shapes_while_programs_come_and_go(
    backend: OpenVinoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes_module, "EARNED", 0)  # every run earns its shape a program
    compiled = _compile(backend, x=(4, 8))
    rows = np.random.default_rng(0).integers(1, 6, 200)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_check, compiled, int(number)) for number in rows]:
            done.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_goes_on_though_the_parent_was_compiling() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def compile_for(signature: Signature | None) -> Signature | None:
        if signature is not None:
            begun.set()
            go_on.wait()
        return signature

    programs = ShapedPrograms(compile_for, likely=None, what="it")
    programs.note(_of(2), LONG_NS)
    begun.wait()
    child = os.fork()
    if child == 0:
        programs.note(_of(2), LONG_NS)
        os._exit(0 if programs.pick(_of(2)) is None else 1)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    _settle()
    assert programs.pick(_of(2)) == _of(2)
