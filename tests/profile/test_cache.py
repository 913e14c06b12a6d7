"""The disk cache: whole values or none, whatever the disk holds or refuses."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.errors import InternalError
from parallax.profile import Cache, machine_fingerprint
from parallax.profile._fingerprint import _parse_cpuinfo


def only_file(cache: Cache):
    [path] = cache.directory.glob("*.json")
    return path


def test_what_is_stored_is_loaded(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.load("k") is None
    assert cache.store("k", {"a": [1, None, 2.5], "b": "ü"})
    assert cache.load("k") == {"a": [1, None, 2.5], "b": "ü"}
    assert Cache(cache.directory).load("k") == cache.load("k")
    assert cache.load("other") is None


def test_storing_again_replaces(tmp_path):
    cache = Cache(tmp_path)
    cache.store("k", {"a": 1})
    cache.store("k", {"a": 2})
    assert cache.load("k") == {"a": 2}
    assert len(list(tmp_path.iterdir())) == 1


@given(key=st.text())
def test_any_text_can_be_a_key(tmp_path_factory, key):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    cache.store(key, {"key": "v"})
    assert cache.load(key) == {"key": "v"}
    assert only_file(cache).parent == cache.directory


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", b"[1]", b'{"format": 1}', b"[" * 100_000])
def test_a_damaged_file_is_reported_ignored_and_replaced(tmp_path, caplog, damage):
    cache = Cache(tmp_path)
    cache.store("k", {"a": 1})
    only_file(cache).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert cache.load("k") is None
    assert "will be replaced" in caplog.text
    cache.store("k", {"a": 2})
    assert cache.load("k") == {"a": 2}


def test_another_format_version_counts_as_absent(tmp_path, caplog):
    cache = Cache(tmp_path)
    cache.store("k", {"a": 1})
    envelope = json.loads(only_file(cache).read_text())
    only_file(cache).write_text(json.dumps(envelope | {"format": envelope["format"] + 1}))
    assert cache.load("k") is None
    assert caplog.text == ""


def test_a_file_that_holds_another_key_counts_as_absent(tmp_path):
    cache = Cache(tmp_path)
    cache.store("k", {"a": 1})
    path = only_file(cache)
    cache.store("other", {"a": 2})
    [other] = set(tmp_path.glob("*.json")) - {path}
    os.replace(other, path)
    assert cache.load("k") is None


def test_an_unwritable_folder_costs_one_warning_and_no_error(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not Cache(blocked / "cache").store("k", {})
            assert Cache(blocked / "cache").load("k") is None
    assert caplog.text.count("without caching") == 1


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs permissions that bind this user")
def test_a_read_only_folder_still_answers(tmp_path):
    cache = Cache(tmp_path)
    cache.store("k", {"a": 1})
    tmp_path.chmod(0o500)
    try:
        assert cache.load("k") == {"a": 1}
        assert not cache.store("k", {"a": 2})
    finally:
        tmp_path.chmod(0o700)


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, max_files=3)
    for age, key in enumerate("abc"):
        cache.store(key, {"key": key})
        [path] = [path for path in tmp_path.glob("*.json") if json.loads(path.read_text())["key"] == key]
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.load("a") is not None  # now the most recent
    cache.store("d", {"key": "d"})
    assert [key for key in "abcd" if cache.load(key)] == ["a", "c", "d"]


def test_what_a_dead_writer_left_is_removed_and_a_live_ones_kept(tmp_path):
    cache = Cache(tmp_path)
    dead, live = tmp_path / ".dead.tmp", tmp_path / ".live.tmp"
    dead.write_text("half")
    live.write_text("half")
    os.utime(dead, (time.time() - 7200,) * 2)
    cache.store("k", {})
    assert not dead.exists()
    assert live.exists()


def test_a_value_without_a_json_form_is_our_mistake_and_leaves_nothing(tmp_path):
    with pytest.raises(InternalError, match="no JSON form"):
        Cache(tmp_path).store("k", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def _write_many(directory: str, writer: int) -> None:
    for turn in range(15):
        Cache(directory).store("k", {"writer": writer, "turn": turn, "padding": "x" * 20_000})


def test_readers_among_several_writers_see_whole_values_only(tmp_path, caplog):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), number)) for number in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        value = Cache(tmp_path).load("k")
        if value is not None:
            seen += 1
            assert value["padding"] == "x" * 20_000
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen > 0
    assert caplog.text == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_is_stable_and_names_the_runtime():
    import onnxruntime

    assert machine_fingerprint() == machine_fingerprint()
    assert onnxruntime.__version__ in machine_fingerprint()


def test_cpu_model_and_features_are_read_from_x86_and_arm():
    x86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: Other\n"
    assert _parse_cpuinfo(x86, "fallback") == ("Some CPU", "fpu avx2")
    arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
    assert _parse_cpuinfo(arm, "fallback") == ("0x41 0xd0c", "fp asimd")
    assert _parse_cpuinfo("", "fallback") == ("fallback", "")


@pytest.mark.parametrize("home", [None, "/home/someone", "/home/someone/", "/", "", "elsewhere"])
@pytest.mark.parametrize("given", [None, "", " ", "/var/cache/here", "/var/cache/here/", "~/cache", "relative"])
def test_the_folder_is_where_platformdirs_has_it(
    given: str | None, home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("XDG_CACHE_HOME", given), ("HOME", home)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert Cache().directory == platformdirs.user_cache_path("parallax")
