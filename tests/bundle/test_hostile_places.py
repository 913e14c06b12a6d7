"""Folders in which others may write: what is planted there is refused or left alone, and nothing outside is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import parallax
from parallax.bundle import _open as opening
from parallax.bundle import prune_folder, prune_leftovers
from parallax.bundle._locks import try_lock
from tests.bundle._models import branching, compiled, copied, expected, feeds, generation

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need privileges on this system")

ID = "0123456789abcdef"


def nest(folder: Path, depth: int) -> None:
    """Folders in folders, made from inside, since no path is that long."""
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)


def unnest(folder: Path) -> None:
    """Remove what `nest` made: pytest cannot."""
    path = folder / "d"
    while path.exists():
        inner = path / "d"
        if inner.exists():
            inner.rename(folder / "next")
        path.rmdir()
        if (folder / "next").exists():
            (folder / "next").rename(path)


def plant_folder(path: Path) -> None:
    path.mkdir()


def plant_loop(path: Path) -> None:
    path.symlink_to(path)


def plant_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("not a lock")
    path.symlink_to(path.parent / "elsewhere")


def plant_dangling(path: Path) -> None:
    path.symlink_to(path.parent / "not there")


def plant_pipe(path: Path) -> None:
    os.mkfifo(path)


PLANTS = {
    "folder": plant_folder,
    "loop": plant_loop,
    "link": plant_link,
    "dangling": plant_dangling,
    "pipe": plant_pipe,
}


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("has_folder", [False, True], ids=["alone", "with-leftover"])
def test_what_is_no_lock_file_stops_no_writer_and_is_left_alone(name: str, has_folder: bool, tmp_path: Path) -> None:
    model = branching(tmp_path / "model.onnx")
    lock = tmp_path / f".m.plx.{ID}.lock"
    PLANTS[name](lock)
    if has_folder:
        (tmp_path / f".m.plx.{ID}.tmp" / f"g-{ID}").mkdir(parents=True)
    before = sorted(os.listdir(tmp_path))
    assert try_lock(lock, create=False) is None
    assert prune_leftovers(tmp_path / "m.plx") == prune_folder(tmp_path) == ()
    bundle = parallax.compile(model, tmp_path / "m.plx")
    np.testing.assert_allclose(parallax.InferenceSession(bundle).run(None, feeds())[0], expected(model, feeds()))
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "m.plx"])
    if name == "link":
        assert (tmp_path / "elsewhere").read_text() == "not a lock"


def test_a_lock_is_never_made_through_a_link(tmp_path: Path) -> None:
    plant_dangling(tmp_path / "lock")
    with pytest.raises(OSError):
        try_lock(tmp_path / "lock", create=True)
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize(
    "target",
    ["loop.plx", "loop.plx/m.plx", "file.plx", "file.plx/m.plx", "x" * 300, "nul\0.plx", "missing/m.plx", "/", ""],
)
def test_a_target_that_can_be_no_bundle_is_refused_before_the_work(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = branching(tmp_path / "model.onnx")
    plant_loop(tmp_path / "loop.plx")
    (tmp_path / "file.plx").write_text("a file")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(parallax.ConfigError):
        parallax.compile(model, target)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_chain_of_folders_in_a_bundle_is_refused_and_may_be_compiled_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = compiled(tmp_path)
    planted = generation(bundle)
    nest(planted, 1500)
    with pytest.raises(parallax.BundleError, match="not part of the bundle"):
        parallax.InferenceSession(bundle)
    try:
        parallax.compile(tmp_path / "model.onnx", bundle)
        np.testing.assert_allclose(
            parallax.InferenceSession(bundle).run(None, feeds())[0], expected(tmp_path / "model.onnx", feeds())
        )
    finally:
        unnest(planted)


def test_a_pipe_for_a_manifest_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    (tmp_path / "m.plx").mkdir()
    os.mkfifo(tmp_path / "m.plx" / "manifest.json")
    with pytest.raises(parallax.BundleError, match="no file"):
        parallax.InferenceSession(tmp_path / "m.plx")


def test_a_manifest_that_is_a_link_is_refused(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    (bundle / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(parallax.BundleError, match="no file"):
        parallax.InferenceSession(bundle)


KINDS = {"whole": {}, "split": {"min_gain": 0, "threads": 2}}


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_a_bundle_that_is_compiled_again_while_it_is_opened_is_opened_as_it_is_then(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last check, after everything was mapped, finds another bundle there."""
    model, other = branching(tmp_path / "a.onnx"), branching(tmp_path / "b.onnx", seed=1)
    bundle = parallax.compile(model, tmp_path / "m.plx", **KINDS[before])
    check = opening.Bundle.check_unchanged
    turns: list[str] = []

    def replaced_first(self: opening.Bundle) -> None:
        turns.append(self.manifest.generation)
        if len(turns) == 1:
            parallax.compile(other, bundle, **KINDS[after])
        check(self)

    monkeypatch.setattr(opening.Bundle, "check_unchanged", replaced_first)
    session = parallax.InferenceSession(bundle, threads=2)
    assert len(set(turns)) == 2
    assert (len(session.plan.segments) > 1) is (after == "split")
    np.testing.assert_allclose(session.run(None, feeds())[0], expected(other, feeds()), rtol=1e-5, atol=1e-6)
    assert session.get_inputs()[0].name == "x"
    assert session.get_session_options() is not None


def test_a_copy_of_a_bundle_opens_while_the_first_is_removed(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    copy = copied(bundle, tmp_path / "copy.plx")
    session = parallax.InferenceSession(bundle)
    shutil.rmtree(bundle)
    for opened in (session, parallax.InferenceSession(copy)):
        np.testing.assert_allclose(opened.run(None, feeds())[0], expected(tmp_path / "model.onnx", feeds()))
