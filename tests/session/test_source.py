"""What a session was opened with is what it computes until it is dropped, whatever becomes of the file."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import parallax
from parallax.errors import BundleError, ConfigError, ModelFileError
from parallax.model import load_model
from parallax.opening._source import SessionSource
from tests.session._versions import (
    LARGE,
    MAPPED,
    SMALL,
    X,
    binds,
    in_fork,
    options,
    replace,
    runs,
    version,
    write,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
# Forking with threads about is what is tested; the interpreter is right to warn of it.
warned_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

FORCED = {"min_gain": 0, "threads": 2}


def _is_replaced(path: Path, columns: int, *, external: bool) -> None:
    replace(path, 2, columns, external=external)


def _is_removed(path: Path, columns: int, *, external: bool) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def _is_left_behind(path: Path, columns: int, *, external: bool) -> None:
    """Another version lies at the same relative path in the new working folder."""
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / path.name, 2, columns, external=external)
    os.chdir(elsewhere)


FATES = [
    pytest.param(_is_replaced, id="replaced"),
    pytest.param(_is_removed, id="removed"),
    pytest.param(_is_left_behind, id="working-folder-changed"),
]
FORMS = [
    pytest.param(SMALL, False, id="small"),
    pytest.param(MAPPED, False, id="mapped"),
    pytest.param(SMALL, True, id="external-small"),
    pytest.param(MAPPED, True, id="external-mapped"),
]
Fate = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("columns", "external"), FORMS)
def test_an_io_binding_of_a_split_model_computes_what_was_opened(
    folder: Path, fate: Fate, columns: int, external: bool
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    session = parallax.InferenceSession(path.name, **FORCED)
    assert len(session.plan.segments) > 1
    fate(path, columns, external=external)
    runs(session, 1)
    binds(session, 1)
    assert session._model_path == path.name


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_an_io_binding_keeps_the_session_options(folder: Path, external: bool) -> None:
    path = write(folder / "model.onnx", 1, MAPPED, external=external)
    given = options(1)
    given.add_session_config_entry("session.disable_prepacking", "1")
    session = parallax.InferenceSession(path.name, given, min_gain=0)
    path.unlink()
    binds(session, 1)
    held: Any = session._sess
    assert held.session_options.get_session_config_entry("session.disable_prepacking") == "1"


@needs_fork
@warned_fork
@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("columns", "external"), FORMS)
@pytest.mark.parametrize("mode", ["one-thread", "two-threads", "split"])
def test_a_forked_worker_computes_what_its_parent_opened(
    folder: Path, fate: Fate, columns: int, external: bool, mode: str
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    if mode == "split":
        session = parallax.InferenceSession(path.name, **FORCED)
    else:
        session = parallax.InferenceSession(path.name, options(1 if mode == "one-thread" else 2))
    runs(session, 1)
    fate(path, columns, external=external)

    def work() -> None:
        runs(session, 1)
        binds(session, 1)

    assert in_fork(work) == "done"
    runs(session, 1)


@needs_fork
@warned_fork
def test_a_forked_worker_goes_on_with_a_session_that_has_no_threads(folder: Path) -> None:
    # As ONNX Runtime's own sessions do: weights stay shared with the parent, and its bindings stay good.
    path = write(folder / "model.onnx", 1)
    session = parallax.InferenceSession(str(path), options(1))
    held = session._sess
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")

    def work() -> None:
        session.run_with_iobinding(binding)
        assert session._sess is held

    assert in_fork(work) == "done"


@needs_fork
@warned_fork
@pytest.mark.parametrize("fate", FATES)
def test_a_forked_worker_runs_an_ort_format_model_as_opened(folder: Path, fate: Fate) -> None:
    for number in (1, 2):
        saving = options(2)
        saving.optimized_model_filepath = str(folder / f"{number}.ort")
        saving.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(version(number, MAPPED).SerializeToString(), saving)
    path = folder / "1.ort"
    session = parallax.InferenceSession(path.name, options(2))
    if fate is _is_replaced:
        os.replace(folder / "2.ort", path)
    else:
        fate(path, SMALL, external=False)
    assert in_fork(lambda: runs(session, 1)) == "done"


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("columns", "external"), FORMS)
@pytest.mark.parametrize("own", [{}, FORCED], ids=["default", "split"])
def test_new_providers_get_the_model_that_was_opened(
    folder: Path, fate: Fate, columns: int, external: bool, own: dict[str, Any]
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    session = parallax.InferenceSession(path.name, options(1), **own)
    fate(path, columns, external=external)
    session.set_providers(["CPUExecutionProvider"])
    runs(session, 1)


def test_bytes_with_external_data_keep_the_data_of_the_folder_they_were_opened_in(folder: Path) -> None:
    path = write(folder / "model.onnx", 1, MAPPED, external=True)
    session = parallax.InferenceSession(path.read_bytes(), **FORCED)
    _is_left_behind(path, MAPPED, external=True)
    binds(session, 1)
    runs(pickle.loads(pickle.dumps(session)), 1)


@needs_fork
@warned_fork
@pytest.mark.parametrize("mode", ["fork", "pickle"])
def test_initializers_from_the_options_are_kept_or_the_session_says_that_they_cannot_be(
    folder: Path, mode: str
) -> None:
    path = write(folder / "model.onnx", 1, MAPPED)
    given = options(2)
    held = onnxruntime.OrtValue.ortvalue_from_numpy(np.full(MAPPED, 3, np.float32))
    given.add_initializer("w_a", held)
    given.add_initializer("w_b", held)
    session = parallax.InferenceSession(path.name, given)
    runs(session, 3)
    _is_replaced(path, MAPPED, external=False)
    if mode == "fork":
        assert in_fork(lambda: runs(session, 3)) == "done"
    else:
        with pytest.raises(ConfigError, match="cannot be pickled: the session options give initializer"):
            pickle.dumps(session)


@needs_fork
@warned_fork
def test_data_that_the_options_find_elsewhere_are_not_taken_from_beside_the_model(folder: Path) -> None:
    path = write(folder / "model.onnx", 1, MAPPED, external=True)
    data = folder / "data"
    data.mkdir()
    write(data / path.name, 3, MAPPED, external=True)
    given = options(2)
    given.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    session = parallax.InferenceSession(path.read_bytes(), given)
    runs(session, 3)
    assert in_fork(lambda: runs(session, 3)) == "done"
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")

    def work() -> None:
        with pytest.raises(ModelFileError, match="no longer where they were"):
            session.run(None, {"x": X})

    assert in_fork(work) == "done"
    runs(session, 3)


# -- written in place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [SMALL, MAPPED], ids=["small", "mapped"])
@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("shorter", [False, True], ids=["same-size", "truncated"])
def test_a_write_into_the_file_reaches_no_split_model_of_ordinary_size(
    folder: Path, columns: int, external: bool, shorter: bool
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    session = parallax.InferenceSession(path.name, **FORCED)
    _write_into(path, external=external, columns=1 if shorter else columns)
    runs(session, 1)
    binds(session, 1)


def _write_into(path: Path, *, columns: int, external: bool) -> None:
    """As exporters do, which open a file that is there for writing."""
    made = write(path.with_name("other.onnx"), 2, columns, external=external)
    for old, new in ((path, made), (path.with_name("model.onnx.data"), made.with_name("other.onnx.data"))):
        if old.exists():
            before = old.stat()
            data = new.read_bytes()
            with open(old, "r+b") as file:
                file.write(data)
                file.truncate(len(data))
            # The clock of a file system ticks every few milliseconds.
            os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_write_into_a_large_file_is_an_error_and_never_another_answer(folder: Path, external: bool) -> None:
    path = write(folder / "model.onnx", 1, LARGE, external=external)
    session = parallax.InferenceSession(path.name, **FORCED)
    runs(session, 1)
    written = path.with_name("model.onnx.data") if external else path
    with open(written, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    with pytest.raises(ModelFileError, match="written to") as caught:
        session.run(None, {"x": X})
    assert caught.value.where == str(written)
    with pytest.raises(ModelFileError, match="written to"):
        session.io_binding()
    with pytest.raises(ModelFileError, match="written to"):
        pickle.dumps(session)


def test_a_whole_model_runs_on_when_its_file_is_written_to(folder: Path) -> None:
    path = write(folder / "model.onnx", 1, MAPPED)
    session = parallax.InferenceSession(path.name, options(2))
    _write_into(path, columns=1, external=False)
    runs(session, 1)
    binds(session, 1)
    assert session.memory().weights_private_bytes


@needs_fork
@warned_fork
def test_a_forked_worker_says_that_the_file_was_written_to_each_time(folder: Path) -> None:
    path = write(folder / "model.onnx", 1, MAPPED)
    session = parallax.InferenceSession(path.name, options(2))
    _write_into(path, columns=MAPPED, external=False)

    def work() -> None:
        for _ in range(2):
            with pytest.raises(ModelFileError, match="written to"):
                session.run(None, {"x": X})

    assert in_fork(work) == "done"
    runs(session, 1)


# -- replaced meanwhile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_file_that_is_replaced_while_the_runtime_opens_it_is_opened_from_memory(folder: Path, external: bool) -> None:
    path = write(folder / "model.onnx", 1, MAPPED, external=external)
    model = load_model(path)
    given: list[str | bytes] = []

    def open_slowly(source: str | bytes) -> Any:
        if not given:
            replace(path, 2, MAPPED, external=external)
        given.append(source)
        return onnxruntime.InferenceSession(source, options(1))

    runs(SessionSource(str(path), None).open_whole(model, None, open_slowly), 1)
    assert given[0] == str(path)
    assert isinstance(given[1], bytes)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_a_bundle_is_of_the_model_that_was_opened_for_it(folder: Path, external: bool) -> None:
    path = write(folder / "model.onnx", 1, MAPPED, external=external)
    replaced = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if not replaced.is_set():
            replaced.set()
            replace(path, 2, MAPPED, external=external)

    bundle = parallax.compile(path, folder / "model.plx", portable=True, progress=progress, **FORCED)
    assert replaced.is_set()
    session = parallax.InferenceSession(str(bundle))
    runs(session, 1)
    binds(session, 1)


# -- bundles ----------------------------------------------------------------------------------------------------------


def _bundle(folder: Path, number: int, **own: Any) -> Path:
    path = write(folder / f"{number}.onnx", number, MAPPED)
    return parallax.compile(path, folder / "model.plx", portable=True, **own)


@pytest.mark.parametrize("fate", ["replaced", "removed"])
def test_an_io_binding_of_a_split_bundle_computes_what_was_opened(folder: Path, fate: str) -> None:
    session = parallax.InferenceSession(os.path.relpath(_bundle(folder, 1, **FORCED)))
    assert len(session.plan.segments) > 1
    if fate == "replaced":
        _bundle(folder, 2, **FORCED)
    else:
        shutil.rmtree(folder / "model.plx")
    runs(session, 1)
    binds(session, 1)


@needs_fork
@warned_fork
@pytest.mark.parametrize("own", [{}, FORCED], ids=["whole", "split"])
@pytest.mark.parametrize("fate", ["compiled-again", "replaced", "removed", "working-folder-changed"])
def test_a_forked_worker_computes_the_bundle_that_was_opened(folder: Path, own: dict[str, Any], fate: str) -> None:
    session = parallax.InferenceSession(os.path.relpath(_bundle(folder, 1, **own)))
    runs(session, 1)
    if fate == "removed":
        shutil.rmtree(folder / "model.plx")
    elif fate == "working-folder-changed":
        os.chdir("/")
    else:
        _bundle(folder, 2 if fate == "replaced" else 1, **own)

    def work() -> None:
        runs(session, 1)
        binds(session, 1)

    assert in_fork(work) == "done"


@needs_fork
@warned_fork
def test_a_forked_worker_refuses_another_models_bundle(folder: Path) -> None:
    own = {"threads": 2}
    path = write(folder / "1.onnx", 1, MAPPED)
    session = parallax.InferenceSession(str(parallax.compile(path, folder / "model.plx", **own)), options(2))
    path = write(folder / "2.onnx", 2, MAPPED)
    parallax.compile(path, folder / "model.plx", **own)

    def work() -> None:
        with pytest.raises(BundleError, match="another model's bundle"):
            session.run(None, {"x": X})

    assert in_fork(work) == "done"
    runs(session, 1)


@needs_fork
@warned_fork
@pytest.mark.parametrize("fate", FATES)
def test_a_cached_bundle_stays_the_models_that_was_opened(folder: Path, fate: Fate, tmp_path_factory: Any) -> None:
    path = write(folder / "model.onnx", 1, MAPPED)
    kept = tmp_path_factory.mktemp("cache")
    for _ in range(2):
        session = parallax.InferenceSession(path.name, cache=True, cache_dir=kept, threads=2)
    fate(path, MAPPED, external=False)

    def work() -> None:
        runs(session, 1)
        binds(session, 1)

    work()
    assert in_fork(work) == "done"
    session.set_providers(["CPUExecutionProvider"])
    runs(session, 1)
    runs(pickle.loads(pickle.dumps(session)), 1)


# -- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "external"), FORMS)
@pytest.mark.parametrize("own", [{}, FORCED], ids=["default", "split"])
def test_a_pickled_session_finds_its_model_from_another_folder(
    folder: Path, columns: int, external: bool, own: dict[str, Any]
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    sent = pickle.dumps(parallax.InferenceSession(path.name, **own))
    assert len(sent) < 1 << 16, "the model itself was pickled, not its path"
    _is_left_behind(path, columns, external=external)
    runs(pickle.loads(sent), 1)


@pytest.mark.parametrize("fate", FATES[:2])
@pytest.mark.parametrize(("columns", "external"), FORMS)
def test_a_session_whose_file_is_no_longer_there_is_pickled_with_its_model(
    folder: Path, fate: Fate, columns: int, external: bool
) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    session = parallax.InferenceSession(path.name, **FORCED)
    fate(path, columns, external=external)
    runs(pickle.loads(pickle.dumps(session)), 1)


@pytest.mark.parametrize(("columns", "external"), FORMS)
def test_another_model_at_the_path_of_a_pickled_session_is_refused(folder: Path, columns: int, external: bool) -> None:
    path = write(folder / "model.onnx", 1, columns, external=external)
    sent = pickle.dumps(parallax.InferenceSession(path.name))
    replace(path, 2, columns, external=external)
    with pytest.raises(ModelFileError, match="another model") as caught:
        pickle.loads(sent)
    assert caught.value.where == str(path)
    # A copy is as good: where it was pickled, files have other inodes and times.
    replace(path, 1, columns, external=external)
    runs(pickle.loads(sent), 1)


def test_another_models_bundle_at_the_path_of_a_pickled_session_is_refused(folder: Path) -> None:
    sent = pickle.dumps(parallax.InferenceSession(os.path.relpath(_bundle(folder, 1))))
    _bundle(folder, 2)
    with pytest.raises(BundleError, match="another model's bundle"):
        pickle.loads(sent)
    _bundle(folder, 1)
    os.chdir("/")
    runs(pickle.loads(sent), 1)
