"""Bundles appear whole or not at all, whoever dies or writes at the same time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import parallax
from parallax.bundle import prune_folder, prune_leftovers, read_bundle, read_manifest
from parallax.bundle._locks import try_lock
from parallax.bundle._publish import Workspace
from tests.bundle._models import branching, compiled, expected, feeds, generation, python

COMPILE_FOREVER = """
import sys
import parallax
models, target, cache = sys.argv[1:3], sys.argv[3], sys.argv[4]
print("ready", flush=True)
for number in range(100_000):
    parallax.compile(models[number % 2], target, min_gain=0, threads=2, cache_dir=cache)
    print("compiled", flush=True)
"""


def two_models(folder: Path) -> list[Path]:
    return [branching(folder / f"{seed}.onnx", seed=seed, width=200) for seed in (0, 1)]


def fed() -> dict[str, np.ndarray]:
    return feeds(width=200)


def check_is_one_of(bundle: Path, answers: list[np.ndarray]) -> None:
    """The bundle is whole, and computes what one of the models does."""
    got = parallax.InferenceSession(bundle, verify="full").run(None, fed())[0]
    assert any(np.allclose(got, want, rtol=1e-5, atol=1e-6) for want in answers)


def killed_again_and_again(tmp_path: Path, kills: int) -> None:
    models = two_models(tmp_path)
    answers = [expected(model, fed()) for model in models]
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "m.plx"
    rng = random.Random(11)
    seen: set[str] = set()
    for turn in range(kills):
        process = python(COMPILE_FOREVER, *models, target, tmp_path / "cache")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(turn % 3):
            assert process.stdout.readline() == "compiled\n"
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
        if target.exists():
            check_is_one_of(target, answers)
            seen.add(read_manifest(target)[0].generation)
    parallax.compile(models[0], target, min_gain=0, threads=2)
    check_is_one_of(target, answers[:1])
    assert os.listdir(folder) == ["m.plx"], "the next writer clears away what the dead ones left"
    assert sorted(os.listdir(target)) == sorted([generation(target).name, "manifest.json"])
    assert len(seen) >= kills // 3


def test_a_writer_killed_at_any_moment_leaves_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, 6)


@pytest.mark.slow
def test_fifty_kills_leave_the_old_bundle_or_the_new_one(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, 50)


PUBLISH_AND_DIE = """
import os, sys
import parallax
# What it loads, children need not.
parallax.compile(sys.argv[1], os.path.join(os.path.dirname(sys.argv[2]), "..", "before.plx"))
from parallax.bundle import _publish
step, calls = 0, 0
def dying(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == step:
            os._exit(9)
        return function(*arguments, **keywords)
    return call
class Patched:
    def __getattr__(self, name):
        return getattr(os, name)
patched = Patched()
for name in ("rename", "replace", "fsync"):
    setattr(patched, name, dying(getattr(os, name)))
_publish.os = patched
_publish.shutil.rmtree = dying(_publish.shutil.rmtree)
for line in sys.stdin:
    step = int(line)
    child = os.fork()
    if child == 0:
        parallax.compile(sys.argv[1], sys.argv[2])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
def test_a_writer_that_dies_before_any_step_of_publishing_leaves_a_whole_bundle(replaces: bool, tmp_path: Path) -> None:
    models = two_models(tmp_path)
    answers = [expected(model, fed()) for model in models]
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "m.plx"
    if replaces:
        parallax.compile(models[0], target)
    step, status, survived = 0, 9, set()
    process = python(PUBLISH_AND_DIE, models[1], target, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    while status == 9:
        step += 1
        print(step, file=process.stdin, flush=True)
        status = int(process.stdout.readline())
        assert status in (0, 9)
        if replaces or target.exists():
            check_is_one_of(target, answers)
            survived.add(read_manifest(target)[0].source.path)
    process.communicate()
    assert step > 6
    check_is_one_of(target, answers[1:])
    prune_leftovers(target)
    assert os.listdir(folder) == ["m.plx"]


COMPILE_SOME = """
import sys
import parallax
model, target, times, cache = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
for _ in range(times):
    parallax.compile(model, target, cache_dir=cache)
"""


def test_writers_and_readers_of_one_target_do_not_hurt_each_other(tmp_path: Path) -> None:
    models = two_models(tmp_path)
    answers = [expected(model, fed()) for model in models]
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "m.plx"
    writers = [python(COMPILE_SOME, model, target, 12, tmp_path / "cache") for model in models]
    opened = 0
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            check_is_one_of(target, answers)
            opened += 1
        else:
            time.sleep(0.01)
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    assert opened > 3
    check_is_one_of(target, answers)
    prune_leftovers(target)
    assert os.listdir(folder) == ["m.plx"]
    assert len(os.listdir(target)) == 2


def test_an_open_session_outlives_the_replacement_of_its_bundle(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("mapped files cannot be removed on this system, so they stay")
    bundle = compiled(tmp_path, width=200)
    session = parallax.InferenceSession(bundle)
    want = session.run(None, fed())[0]
    parallax.compile(branching(tmp_path / "other.onnx", width=200, seed=9), bundle)
    np.testing.assert_array_equal(session.run(None, fed())[0], want)


def test_the_work_of_a_living_writer_is_not_pruned(tmp_path: Path) -> None:
    target = tmp_path / "m.plx"
    with Workspace(target) as workspace:
        (workspace.folder / "file").write_text("content")
        assert prune_leftovers(target) == ()
        assert prune_folder(tmp_path) == ()
        assert (workspace.folder / "file").exists()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_dead_writer_are_pruned_and_nothing_else(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    stale = [
        bundle / "g-00000000000000aa",
        tmp_path / ".m.plx.00000000000000aa.tmp",
        tmp_path / ".model.plx.00000000000000bb.tmp",
    ]
    for folder in stale:
        folder.mkdir()
        (folder / "part").write_text("x")
    (tmp_path / ".model.plx.00000000000000bb.lock").touch()
    kept = tmp_path / ".model.plx.notanumber.tmp"
    kept.mkdir()
    assert set(prune_leftovers(bundle)) == {stale[0], stale[2]}
    assert set(prune_folder(tmp_path)) == {stale[1]}
    assert not any(folder.exists() for folder in stale)
    assert not (tmp_path / ".model.plx.00000000000000bb.lock").exists()
    assert kept.exists()
    parallax.InferenceSession(bundle)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "m.plx"

    def fill_the_disk() -> None:
        with Workspace(target) as workspace:
            (workspace.folder / "file").write_text("content")
            raise OSError(28, "no space left on device")

    with pytest.raises(parallax.ConfigError, match="no space"):
        fill_the_disk()
    assert os.listdir(tmp_path) == []


HOLD = """
import sys, time
from pathlib import Path
from parallax.bundle._locks import try_lock
assert try_lock(Path(sys.argv[1]), create=True)
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_until_its_owner_ends_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process: subprocess.Popen[str] = python(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert try_lock(path, create=True) is None
    os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    lock = try_lock(path, create=False)
    assert lock is not None
    lock.release()
    assert not path.exists()
    assert try_lock(path, create=False) is None


def test_two_writers_publish_one_after_the_other(tmp_path: Path) -> None:
    bundle = compiled(tmp_path)
    other = branching(tmp_path / "other.onnx", seed=4)
    first = generation(bundle).name
    # Between another writer's start and end, the bundle is replaced twice: only what it replaced itself may go.
    with Workspace(bundle) as early:
        parallax.compile(other, bundle)
        second = generation(bundle).name
        (early.folder / "unused").write_text("x")
    assert {first} != {second}
    assert read_bundle(bundle).manifest.generation == second
