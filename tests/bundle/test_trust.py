"""A cache decides what is run: only what this user (or root) alone can have written there is used."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import parallax
from parallax.bundle import cache_folder, read_manifest
from parallax.profile import Cache, why_distrusted
from tests.bundle._models import branching, expected, feeds, forge

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no user ids")

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others"
)

STRANGER = 54321


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that others can enter, unlike those of pytest."""
    place = Path(tempfile.mkdtemp(prefix="parallax-trust-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def cached(model: Path, cache: Path) -> parallax.InferenceSession:
    return parallax.InferenceSession(model, cache=True, cache_dir=cache)


def answer(session: parallax.InferenceSession) -> np.ndarray:
    result: np.ndarray = session.run(None, feeds())[0]
    return result


def entry(cache: Path) -> Path:
    (found,) = cache_folder(cache).iterdir()
    return found


def plant(model: Path, cache: Path, place: Path) -> None:
    """Put the bundle of another model, with the same names and shapes, where that of ``model`` is."""
    other = branching(place / "other.onnx", seed=1)
    there = entry(cache)
    shutil.rmtree(there)
    parallax.compile(other, there, cache_dir=place / "elsewhere")


def test_a_cache_is_made_for_its_user_alone(open_place: Path) -> None:
    before = os.umask(0)
    try:
        cached(branching(open_place / "m.onnx"), open_place / "cache")
    finally:
        os.umask(before)
    assert (open_place / "cache").stat().st_mode & 0o077 == 0
    for path in entry(open_place / "cache").rglob("*"):
        assert path.stat().st_mode & 0o022 == 0


def test_the_bundle_of_another_model_in_the_place_of_this_ones_is_not_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(tmp_path / "m.onnx")
    cached(model, tmp_path / "cache")
    plant(model, tmp_path / "cache", tmp_path)
    with caplog.at_level(logging.WARNING):
        session = cached(model, tmp_path / "cache")
    assert "compiled from another model" in caplog.text
    np.testing.assert_allclose(answer(session), expected(model, feeds()), rtol=1e-5, atol=1e-6)
    assert Path(read_manifest(entry(tmp_path / "cache"))[0].source.path or "").name == "m.onnx", "it was made anew"


@pytest.mark.parametrize("options", [{"policy": "sequential"}, {"threads": 7}, {"min_gain": "0.5"}], ids=str)
def test_a_bundle_that_was_compiled_with_other_options_is_made_anew(
    options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(tmp_path / "m.onnx")
    cached(model, tmp_path / "cache")
    forge(entry(tmp_path / "cache"), lambda manifest: manifest["options"].update(options))
    with caplog.at_level(logging.WARNING):
        cached(model, tmp_path / "cache")
    assert "with other options" in caplog.text


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777], ids=oct)
def test_a_folder_that_others_may_write_to_is_no_cache(
    mode: int, open_place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = branching(open_place / "m.onnx")
    cache = open_place / "cache"
    cached(model, cache)
    plant(model, cache, open_place)
    for folder in (cache, cache / "bundles"):
        folder.chmod(mode)
    with caplog.at_level(logging.WARNING):
        session = cached(model, cache)
    assert "others could plant" in caplog.text
    assert "chmod go-w" in caplog.text
    np.testing.assert_allclose(answer(session), expected(model, feeds()), rtol=1e-5, atol=1e-6)


def test_below_a_folder_that_others_cannot_enter_it_does_not_matter_what_they_could_write(open_place: Path) -> None:
    shared = open_place / "private" / "shared"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert "can be written to by others" in str(why_distrusted(shared))
    shared.parent.chmod(0o700)
    assert why_distrusted(shared) is None


def test_a_folder_above_that_others_may_write_to_spoils_all_below_unless_it_is_sticky(open_place: Path) -> None:
    below = open_place / "above" / "below"
    below.mkdir(parents=True)
    below.parent.chmod(0o777)
    assert "above can be written to" in str(why_distrusted(below))
    below.parent.chmod(0o1777)
    assert why_distrusted(below) is None
    assert why_distrusted(below / "not there yet") is None


def test_an_entry_that_is_a_link_is_not_followed_and_what_it_leads_to_left_alone(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    cached(model, tmp_path / "cache")
    there = entry(tmp_path / "cache")
    there.rename(tmp_path / "elsewhere.plx")
    there.symlink_to(tmp_path / "elsewhere.plx")
    np.testing.assert_allclose(
        answer(cached(model, tmp_path / "cache")), expected(model, feeds()), rtol=1e-5, atol=1e-6
    )
    assert (tmp_path / "elsewhere.plx" / "manifest.json").is_file()


OWNED: dict[str, Callable[[Path], Path]] = {
    "cache": lambda cache: cache,
    "bundles": lambda cache: cache / "bundles",
    "bundle": entry,
    "manifest": lambda cache: entry(cache) / "manifest.json",
    "folder": lambda cache: next(entry(cache).glob("g-*")),
    "file": lambda cache: next(entry(cache).glob("g-*/segments/*.onnx")),
}


@needs_root
@pytest.mark.parametrize("what", OWNED)
def test_what_belongs_to_another_user_is_not_run(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = branching(tmp_path / "m.onnx")
    cache = tmp_path / "cache"
    cached(model, cache)
    plant(model, cache, tmp_path)
    os.chown(OWNED[what](cache), STRANGER, STRANGER)
    with caplog.at_level(logging.WARNING):
        session = cached(model, cache)
    assert f"belongs to another user ({STRANGER})" in caplog.text
    np.testing.assert_allclose(answer(session), expected(model, feeds()), rtol=1e-5, atol=1e-6)
    if what in ("bundle", "manifest", "folder", "file"):
        assert why_distrusted(entry(cache)) is None, "it was removed, and made anew"


@needs_root
def test_figures_and_digests_that_belong_to_another_user_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.store("key", {"ns": 1})
    assert cache.load("key") == {"ns": 1}
    (path,) = (tmp_path / "cache").iterdir()
    os.chown(path, STRANGER, STRANGER)
    with caplog.at_level(logging.WARNING):
        assert cache.load("key") is None
        assert cache.load("key") is None
    assert caplog.text.count("ignoring the cache folder") == 1
    assert cache.store("key", {"ns": 2}), "the folder is this user's, so the file is replaced"
    assert cache.load("key") == {"ns": 2}


def test_figures_in_a_folder_that_others_may_write_to_are_neither_read_nor_kept(
    open_place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(open_place / "cache")
    assert cache.store("key", {"ns": 1})
    (open_place / "cache").chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert cache.load("key") is None
        assert not cache.store("key", {"ns": 2})
    assert caplog.text.count("ignoring the cache folder") == 1
    (path,) = (open_place / "cache").iterdir()
    assert json.loads(path.read_text())["value"] == {"ns": 1}
