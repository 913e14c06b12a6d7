"""What is loaded by whom: imports are a budget, and whoever exceeds it sees which modules do.

Counted in fresh processes, so that nothing depends on time. A failure names the modules: make an import that most
processes do not need one inside a function (see `parallax._lazy`), or raise the count and say why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parallax
from tests.bundle._models import branching, feeds

WIDE = 600
"""Of a model that is dense enough to be left whole at sight."""

NEVER_UNASKED = (
    *("onnx", "google.protobuf", "ml_dtypes", "openvino", "onnx_ir", "psutil"),
    *("rich", "typer", "click", "hypothesis", "pydantic"),
    *("importlib.metadata", "email", "subprocess", "tempfile", "statistics", "concurrent.futures", "multiprocessing"),
    *("pathlib", "urllib", "hashlib", "_hashlib"),
    "parallax.cli",
    "parallax.zoo",
)
"""Modules, each with all that lies in it, that no session loads which leaves its model whole."""

PLANNING = (
    *("parallax.partition", "parallax.memory"),
    *("parallax.planner._planning", "parallax.planner._tuning", "parallax.planner._candidates"),
    *("parallax.backends.emulated", "parallax.backends.openvino", "parallax.backends._registry"),
    *("parallax.profile._tables", "parallax.profile._measure", "parallax.model._model"),
    *("parallax.schedule.placement", "parallax.schedule._heft"),
)
# The numbers below: each session has its ends (`_closing`), its plan in words (`_planned`) and its keywords judged
# (`_unknown_keywords`) in modules of their own, which are small.
RUNNING_SPLIT = ("parallax.engine._executor", "parallax.engine._lanes", "parallax.engine._arenas")

OPEN_AND_RUN = """
    import sys, numpy, parallax
    session = parallax.InferenceSession(sys.argv[1])
    (answer,) = session.run(None, {"x": numpy.load(sys.argv[2])})
    numpy.save(sys.argv[3], answer)
"""


def loaded_by(script: str, *arguments: object) -> set[str]:
    """Modules that a fresh process has loaded when it has done this."""
    tell = "import json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    lines = [line.strip() for line in script.strip().splitlines()]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join([*lines, tell]), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stderr.splitlines()[-1]))


def within(modules: Iterable[str], packages: Iterable[str]) -> list[str]:
    """Those modules that are these, or lie in them."""
    forbidden = tuple(packages)
    return sorted(name for name in modules if any(name == other or name.startswith(f"{other}.") for other in forbidden))


def ours(modules: Iterable[str]) -> list[str]:
    return within(modules, ["parallax"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, its inputs, and bundles of it: whole, split, and with an emulated device."""
    path = tmp_path_factory.mktemp("imports")
    model = branching(path / "model.onnx", width=WIDE)
    parallax.compile(model, path / "whole.plx")
    parallax.compile(model, path / "split.plx", min_gain=0, threads=2)
    devices: dict[str, Any] = {"providers": ["emulated:pixel-6-gpu"], "shapes": {"x": (3, WIDE)}}
    parallax.compile(model, path / "device.plx", min_gain=0, threads=2, **devices)
    np.save(path / "x.npy", feeds(width=WIDE)["x"])
    return path


def run_of(folder: Path, name: str) -> set[str]:
    """Modules that opening and running this loads; its answer is that of the model."""
    modules = loaded_by(OPEN_AND_RUN, folder / name, folder / "x.npy", folder / "answer.npy")
    want = parallax.InferenceSession(folder / "model.onnx").run(None, {"x": np.load(folder / "x.npy")})[0]
    np.testing.assert_allclose(np.load(folder / "answer.npy"), want, rtol=1e-5, atol=1e-5)
    return modules


def test_importing_the_package_loads_nothing_else() -> None:
    modules = loaded_by("import parallax") - loaded_by("")
    assert ours(modules) == ["parallax", "parallax._lazy"]
    assert not within(modules, [*NEVER_UNASKED, "numpy", "onnxruntime", "dataclasses", "logging", "pathlib"])


def test_asking_for_an_error_loads_the_tree_of_errors() -> None:
    modules = loaded_by("import parallax; parallax.ConfigError, parallax.errors.BundleError")
    assert ours(modules) == ["parallax", "parallax._lazy", "parallax.errors"]


def test_a_bundle_of_a_whole_model_loads_neither_planner_nor_executor(folder: Path) -> None:
    modules = run_of(folder, "whole.plx")
    assert not within(modules, [*NEVER_UNASKED, *PLANNING, *RUNNING_SPLIT])
    assert len(ours(modules)) <= 63, ours(modules)


def test_a_bundle_of_a_split_model_loads_no_planner(folder: Path) -> None:
    modules = run_of(folder, "split.plx")
    assert not within(modules, [*NEVER_UNASKED, *set(PLANNING) - {"parallax.memory", "parallax.partition"}])
    assert len(ours(modules)) <= 108, ours(modules)


def test_a_bundle_with_an_emulated_device_loads_neither_planner_nor_onnx(folder: Path) -> None:
    modules = run_of(folder, "device.plx")
    emulated = {"parallax.memory", "parallax.partition", "parallax.backends.emulated", "parallax.backends._registry"}
    assert not within(modules, ["onnx", "google.protobuf", "ml_dtypes", "openvino", *set(PLANNING) - emulated])
    assert within(modules, ["parallax.backends.emulated"])


def test_a_model_that_stays_whole_at_sight_is_opened_without_onnx(folder: Path) -> None:
    modules = run_of(folder, "model.onnx")
    assert not within(modules, [*NEVER_UNASKED, *PLANNING, *RUNNING_SPLIT, "parallax.bundle._open"])
    assert len(ours(modules)) <= 63, ours(modules)


def test_a_session_that_follows_its_callers_loads_nothing_for_bundles_before_there_are_several(folder: Path) -> None:
    opening = "import sys, parallax; parallax.InferenceSession(sys.argv[1], threads=2, objective='auto')"
    modules = loaded_by(opening, folder / "model.onnx")
    assert within(modules, ["parallax.opening._sharing"])
    follower = {"statistics"}  # which says how sure a trial is
    assert not within(modules, [*set(NEVER_UNASKED) - follower, *PLANNING, *RUNNING_SPLIT])
    unneeded = ("_shared_weights", "_share_order", "_compile_apart", "_compile")
    assert not within(modules, ["parallax.bundle._manifest", *(f"parallax.opening.{name}" for name in unneeded)])


def test_a_small_model_is_opened_without_onnx(folder: Path) -> None:
    model = branching(folder / "small.onnx")
    np.save(folder / "small.npy", feeds()["x"])
    modules = loaded_by(OPEN_AND_RUN, model, folder / "small.npy", folder / "small_answer.npy")
    np.testing.assert_allclose(
        np.load(folder / "small_answer.npy"),
        parallax.InferenceSession(model).run(None, feeds())[0],
        rtol=1e-5,
        atol=1e-5,
    )
    assert not within(modules, [*NEVER_UNASKED, *set(PLANNING) - {"parallax.profile._tables"}, *RUNNING_SPLIT])
    assert len(ours(modules)) <= 75, ours(modules)


def test_naming_the_processor_as_provider_loads_no_backends(folder: Path) -> None:
    script = OPEN_AND_RUN.replace("(sys.argv[1])", '(sys.argv[1], providers=["CPUExecutionProvider"])')
    modules = loaded_by(script, folder / "whole.plx", folder / "x.npy", folder / "answer.npy")
    assert not within(modules, [*NEVER_UNASKED, *PLANNING])


def cli(*words: object) -> set[str]:
    script = "import sys; from parallax.cli import main; sys.argv = ['parallax', *sys.argv[1:]]\ntry: main()\n"
    return loaded_by(f"{script}except SystemExit as end: assert not end.code, end.code", *words)


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), ("bench", "--help"), ("bundle", "info", "--help"), ("train", "--help")]
)
def test_help_and_version_load_no_runtime(words: tuple[str, ...]) -> None:
    modules = cli(*words)
    assert not within(modules, ["numpy", "onnx", "onnxruntime", "psutil", "openvino", "rich"])
    assert ours(modules) == [
        *("parallax", "parallax._lazy", "parallax.cli", "parallax.cli._app", "parallax.cli._arguments"),
        *("parallax.cli._completing", "parallax.cli._exits", "parallax.cli._train_command", "parallax.cli._usage"),
        "parallax.errors",
    ]


def test_the_version_is_shown_without_tables_and_colours() -> None:
    assert not within(cli("--version"), ["parallax.cli._console", "rich.console", "rich.progress"])


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_bundle_info_loads_neither_onnx_nor_a_planner(folder: Path, words: tuple[str, ...]) -> None:
    modules = cli("bundle", "info", folder / "whole.plx", *words)
    assert not within(modules, ["onnx", "google.protobuf", "psutil", "openvino", "parallax.zoo", *PLANNING])


TOGETHER = """
import os, sys, threading
import numpy, parallax
x, wanted = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
sources = sys.argv[3:]
gate, wrong = threading.Barrier(len(sources)), []

def work(source):
    try:
        gate.wait()
        session = parallax.InferenceSession(source)
        (answer,) = session.run(None, {"x": x})
        if not numpy.allclose(answer, wanted, rtol=1e-5, atol=1e-5):
            wrong.append(f"{source}: another answer")
    except BaseException as error:
        wrong.append(f"{source}: {error!r}")

threads = [threading.Thread(target=work, args=(source,)) for source in sources]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong, wrong
"""


@pytest.mark.parametrize("attempt", range(3))
def test_first_sessions_can_be_opened_by_many_threads_at_once(folder: Path, attempt: int) -> None:
    run_of(folder, "model.onnx")
    sources = [folder / name for name in ("whole.plx", "split.plx", "model.onnx")] * 4
    ordered = [*sources[attempt:], *sources[:attempt]]
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, folder / "x.npy", folder / "answer.npy", *ordered],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]


FORKED = """
import os, sys
import numpy, parallax
if sys.argv[4] == "opened":
    parallax.InferenceSession(sys.argv[3])
child = os.fork()
x, wanted = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
(answer,) = parallax.InferenceSession(sys.argv[3]).run(None, {"x": x})
right = bool(numpy.allclose(answer, wanted, rtol=1e-5, atol=1e-5))
if child == 0:
    os._exit(0 if right else 3)
assert right
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("name", ["whole.plx", "split.plx", "model.onnx"])
@pytest.mark.parametrize("before", ["imported", "opened"])
def test_a_fork_may_come_before_anything_is_loaded_and_after(folder: Path, name: str, before: str) -> None:
    run_of(folder, "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, folder / "x.npy", folder / "answer.npy", folder / name, before],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
