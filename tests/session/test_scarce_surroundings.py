"""Processes without descriptors, disk or ``/proc``: an answer, or a refusal of ours; never a foreign exception."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bundle._models import branching, compiled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs limits and mounts of Linux")

# What is tried, in a process of its own: each prints how it ended.
TRY = """
import json, logging, os, resource, sys
import numpy as np
import onnxruntime
import parallax
from parallax import compile
from parallax.backends.ort import RUNTIME_EXCEPTIONS
logging.disable(logging.CRITICAL)
onnxruntime.set_default_logger_severity(4)
folder, limit, value = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, bundle, cache = f"{folder}/model.onnx", f"{folder}/model.plx", f"{folder}/small/cache"
split = {"min_gain": 0, "threads": 2}
ways = {
    "whole": lambda: parallax.InferenceSession(model),
    "split": lambda: parallax.InferenceSession(model, **split),
    "bundle": lambda: parallax.InferenceSession(bundle),
    "cache": lambda: parallax.InferenceSession(model, cache=True, cache_dir=cache),
    "budget": lambda: parallax.InferenceSession(model, memory_budget="1GiB"),
    "share": lambda: parallax.InferenceSession(model, memory_budget=0.5),
    "compile": lambda: parallax.InferenceSession(
        compile(model, f"{folder}/small/new.plx", cache_dir=cache, memory_limit="1GiB")
    ),
    "tune": lambda: parallax.InferenceSession(model, tune=True, cache_dir=f"{cache}-tuned"),
}
feeds = {"x": np.ones((3, 64), np.float32)}
answer = onnxruntime.InferenceSession(model).run(None, feeds)[0]
# Without /proc a machine cannot be told from others, and so refuses bundles that were made with it.
before = ("whole", "split", "budget") if limit == "proc" else ("whole", "split", "budget", "bundle")
opened = {name: ways[name]() for name in before}
held = []
if limit == "descriptors":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for descriptor in held[:value]:
            os.close(descriptor)
elif limit == "file":
    resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))

def ended(make):
    try:
        got = make().run(None, feeds)[0]
    except parallax.InternalError as error:
        return f"foreign: {error}"
    except (parallax.ParallaxError, *RUNTIME_EXCEPTIONS):
        return "refused"
    except Exception as error:
        return f"foreign: {error!r}"
    return "right" if np.allclose(got, answer, rtol=1e-4, atol=1e-5) else "wrong"

print(json.dumps({**{name: ended(make) for name, make in ways.items()},
                  **{f"open {name}": ended(lambda: session) for name, session in opened.items()}}))
"""

can_mount = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="this process may not mount",
)


def tried(folder: Path, limit: str, value: int = 0, *, mount: str | None = None) -> dict[str, str]:
    """How each way ended, in a process with that limit, or with something else mounted somewhere."""
    command = [sys.executable, "-c", TRY, str(folder), limit, str(value)]
    if mount is not None:
        command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert process.returncode == 0, process.stderr
    found: dict[str, str] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    compiled(tmp_path)
    branching(tmp_path / "model.onnx")
    (tmp_path / "small").mkdir()
    return tmp_path


def assert_ours(found: dict[str, str]) -> None:
    assert {name: how for name, how in found.items() if how not in ("right", "refused")} == {}


@pytest.mark.parametrize("spare", [0, 2])
def test_without_descriptors_what_is_open_runs_and_the_rest_is_refused_or_answers(spare: int, folder: Path) -> None:
    found = tried(folder, "descriptors", spare)
    assert_ours(found)
    assert {how for name, how in found.items() if name.startswith("open ")} == {"right"}


@pytest.mark.parametrize("limit_bytes", [1000, 60_000])
def test_without_room_in_files_only_what_writes_is_refused(limit_bytes: int, folder: Path) -> None:
    found: dict[str, Any] = tried(folder, "file", limit_bytes)
    assert_ours(found)
    assert {name for name, how in found.items() if how == "refused"} <= {"compile", "tune"}
    assert not (folder / "small" / "new.plx").exists()


@can_mount
@pytest.mark.parametrize("options", ["size=40k", "ro"], ids=["full", "read-only"])
def test_on_a_full_or_read_only_disk_only_what_writes_is_refused(options: str, folder: Path) -> None:
    found = tried(folder, "none", mount=f"mount -t tmpfs -o {options} none {folder}/small")
    assert_ours(found)
    assert {name for name, how in found.items() if how == "refused"} == {"compile"}


@can_mount
def test_without_proc_everything_answers_but_bundles_for_a_machine_that_can_be_told(folder: Path) -> None:
    found = tried(folder, "proc", mount="mount -t tmpfs none /proc")
    assert found.pop("bundle") == "refused"
    # The runtime itself opens no external data without it.
    assert found.pop("compile") in ("right", "refused")
    assert found == dict.fromkeys(found, "right")
