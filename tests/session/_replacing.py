"""A client of ONNX Runtime in a process where ``onnxruntime.InferenceSession`` is ours.

Run as ``python -m tests.session._replacing WAY FOLDER``. It replaces the name in one of :data:`WAYS`, does each of
:data:`JOBS` with nothing but the ``onnxruntime`` module (as a third party's package would), and prints a line per job:
its name and "right", or what went wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as collection

STOCK = onnxruntime.InferenceSession
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


class TracingSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # untyped
    """What a tracing tool puts in the runtime's place."""


def by_name() -> None:
    """As the README says."""
    import parallax

    onnxruntime.InferenceSession = parallax.InferenceSession


def everywhere() -> None:
    """Also where ONNX Runtime defines the class."""
    import parallax

    onnxruntime.InferenceSession = collection.InferenceSession = parallax.InferenceSession


def after_another_tool() -> None:
    """A tool came first, and Parallax is imported only then."""
    onnxruntime.InferenceSession = collection.InferenceSession = TracingSession
    by_name()


def by_a_second_import() -> None:
    """The name is that of a Parallax which is imported anew, as test runners and notebooks do."""
    everywhere()
    for name in [name for name in sys.modules if name.partition(".")[0] == "parallax"]:
        del sys.modules[name]
    by_name()
    parallax = importlib.import_module("parallax")
    assert onnxruntime.InferenceSession is parallax.InferenceSession
    assert not issubclass(parallax.InferenceSession, collection.InferenceSession)


WAYS = {way.__name__: way for way in (by_name, everywhere, after_another_tool, by_a_second_import)}


def right(answers: Any) -> None:
    """Raises AssertionError unless these are the outputs for `X`."""
    from tests.session._dropin import branches_answer

    np.testing.assert_allclose(answers[0], branches_answer(X, 4), rtol=1e-5, atol=1e-5)


def runs_right(session: Any) -> Any:
    right(session.run(None, {"x": X}))
    return session


def split(model: Path, **more: Any) -> Any:
    session = runs_right(onnxruntime.InferenceSession(str(model), min_gain=0, threads=2, **more))
    assert len(session.plan.segments) > 1
    return session


def opens_by_default(model: Path) -> None:
    session = runs_right(onnxruntime.InferenceSession(str(model)))
    assert type(session) is onnxruntime.InferenceSession
    assert isinstance(session, (onnxruntime.InferenceSession, STOCK, collection.Session))


def opens_with_options(model: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("N", 2)
    session = runs_right(onnxruntime.InferenceSession(str(model), options, tune=True, threads=2))
    assert session.get_inputs()[0].shape == [2, 4]


def splits(model: Path) -> None:
    split(model)


def tunes(model: Path) -> None:
    runs_right(onnxruntime.InferenceSession(model.read_bytes(), tune=True, threads=2))


def compiles_a_bundle(model: Path) -> None:
    import parallax

    for name, forced in (("whole", {}), ("split", {"min_gain": 0, "threads": 2})):
        bundle = parallax.compile(model, model.with_name(f"{name}.plx"), portable=True, **forced)
        session = runs_right(onnxruntime.InferenceSession(str(bundle)))
        assert (len(session.plan.segments) > 1) is bool(forced)
        binds(session)


def keeps_a_budget(model: Path) -> None:
    split(model, memory_budget="64MiB")


def runs_on_a_device(model: Path) -> None:
    session = onnxruntime.InferenceSession(
        str(model), providers=["emulated:pixel-6-gpu", "CPUExecutionProvider"], min_gain=0, threads=2
    )
    right(session.run(None, {"x": X}))
    binds(session)


def binds(session: Any) -> None:
    """By the method, and by the constructor."""
    for binding in (session.io_binding(), onnxruntime.IOBinding(session)):
        binding.bind_cpu_input("x", X)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        right(binding.copy_outputs_to_cpu())


def binds_memory(model: Path) -> None:
    binds(onnxruntime.InferenceSession(str(model)))
    binds(split(model))


def runs_ort_values(model: Path) -> None:
    for session in (onnxruntime.InferenceSession(str(model)), split(model)):
        answers = session.run_with_ort_values(None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(X)})
        right([value.numpy() for value in answers])


def changes_providers(model: Path) -> None:
    for session in (onnxruntime.InferenceSession(str(model)), split(model)):
        session.disable_fallback()
        session.set_providers(["CPUExecutionProvider"])
        runs_right(session)
        binds(session)
        session.enable_fallback()
        assert session.get_providers() == ["CPUExecutionProvider"]


def opens_new_versions(model: Path) -> None:
    proto = onnx.load(model)
    proto.ir_version = 12
    proto.opset_import[0].version = 24
    session = runs_right(onnxruntime.InferenceSession(proto.SerializeToString()))
    assert "refuses" not in session.plan.provenance.reason, session.plan.provenance.reason


def is_derived_from(model: Path) -> None:
    class Own(onnxruntime.InferenceSession):  # type: ignore[misc]  # untyped
        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
            return super().run(output_names, input_feed, run_options)

    session = runs_right(Own(str(model), min_gain=0, threads=2))
    assert isinstance(session, onnxruntime.InferenceSession)
    binds(session)


def is_pickled(model: Path) -> None:
    for session in (onnxruntime.InferenceSession(str(model)), split(model)):
        copy = runs_right(pickle.loads(pickle.dumps(session)))
        assert len(copy.plan.segments) == len(session.plan.segments)


def forks(model: Path) -> None:
    for session in (onnxruntime.InferenceSession(str(model)), split(model)):
        child = multiprocessing.get_context("fork").Process(target=lambda kept=session: (runs_right(kept), binds(kept)))
        child.start()
        child.join(30)
        if child.exitcode is None:
            child.kill()
            raise AssertionError("the forked child hangs")
        # Only what it computed counts: how a forked child ends is the runtime's affair.
        assert child.exitcode == 0, child.exitcode


def refuses_a_broken_model(model: Path) -> None:
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile, match=r"none\.onnx"):
        onnxruntime.InferenceSession(str(model.with_name("none.onnx")))


JOBS: tuple[Callable[[Path], None], ...] = (
    opens_by_default,
    opens_with_options,
    splits,
    tunes,
    compiles_a_bundle,
    keeps_a_budget,
    runs_on_a_device,
    binds_memory,
    runs_ort_values,
    changes_providers,
    opens_new_versions,
    is_derived_from,
    is_pickled,
    forks,
    refuses_a_broken_model,
)


def outcome(job: Callable[[Path], None], model: Path) -> str:
    """ "right", or what went wrong. What ONNX Runtime prints where it falls back to the CPU is wrong, too."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            job(model)
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"printed {printed.getvalue()[:300]!r}" if printed.getvalue() else "right"


def main(way: str, folder: str) -> None:
    """Replace the name in this way, then do every job."""
    WAYS[way]()
    from tests.session._dropin import branches_model

    model = Path(folder) / "branches.onnx"
    model.write_bytes(branches_model(4).SerializeToString())
    for job in JOBS:
        print(job.__name__, outcome(job, model), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
