"""The bundle that replicas share is compiled by a process of its own, which ends when it is wanted no more."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import parallax
from parallax.bundle import cache_folder, read_manifest
from parallax.errors import ConfigError
from parallax.model import hold_files
from parallax.opening import _compile_apart
from parallax.opening._compile_apart import compile_apart, why_no_python
from parallax.opening._share_order import ShareOrder, find_ordered
from parallax.options import Options, PlanningOptions
from tests.session._calling import (
    LIMIT_S,
    MANY,
    MODEL,
    calling,
    dense_chain,
    is_narrow,
    wait_until,
)


def stuck_program() -> str:
    """What children run that write half a bundle, and then do nothing until they are ended."""
    paths, _, _ = _compile_apart._program().partition("; from ")
    return (
        f"{paths}; import parallax.bundle._write as w, time; w.save_arranged = lambda *a: time.sleep(600); "
        "import parallax.opening._compile_child as c; c.main()"
    )


posix = pytest.mark.skipif(os.name != "posix", reason="left to systems with signals and process groups")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Those that are started, in their order."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **named: Any) -> Any:
        started.append(popen(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]) -> Iterator[Any]:
    """Children write half a bundle, and then do nothing until they are ended."""
    program = stuck_program()
    monkeypatch.setattr(_compile_apart, "_program", lambda: program)
    yield children
    for child in children:
        child.kill()


def saved(tmp_path: Path, model: bytes = MODEL) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    return path


def order_of(path: Path, cache: Path, *, slim: bool = False) -> ShareOrder:
    options = PlanningOptions.of(Options(threads=2, cache_dir=cache, slim=slim))
    return ShareOrder.of(str(path), hold_files(path), options)


def left_in(cache: Path) -> list[str]:
    folder = cache_folder(cache)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def is_half_written(cache: Path) -> bool:
    return any(name.endswith(".tmp") for name in left_in(cache))


# -- a real child --------------------------------------------------------------------------------------------------


def test_an_order_arrives_as_it_was_given(tmp_path: Path) -> None:
    order = order_of(saved(tmp_path), tmp_path / "c\udcff", slim=True)
    assert ShareOrder.from_json(order.to_json()) == order
    assert order.to_json().isascii()


def test_a_child_compiles_what_this_process_then_finds(tmp_path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    order = order_of(saved(tmp_path), tmp_path / "cache")
    assert find_ordered(order) is None
    made = compile_apart(order, is_wanted=lambda: True)
    assert made is not None
    assert made == find_ordered(order)
    assert len(children) == 1
    assert children[0].returncode == 0
    manifest, _ = read_manifest(made)
    assert manifest.source.path == order.path
    assert left_in(tmp_path / "cache") == [made.name]


def test_eight_callers_get_their_answers_while_and_after_a_child_compiles(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    children: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sharing_decided(narrow=True)
    monkeypatch.setattr("parallax.opening._shared_weights.compile_ordered", None)  # not in this process
    session = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted, MANY, least=50) as callers:
        wait_until(lambda: is_narrow(session))
        assert session.memory().weights_private_bytes == 0
    assert min(callers.ran) >= 50
    assert [child.returncode for child in children] == [0]
    session.close()
    # The next one finds it.
    again = parallax.InferenceSession(
        tmp_path / "model.onnx", threads=2, objective="auto", cache_dir=tmp_path / "cache"
    )
    with calling(again, wanted):
        wait_until(lambda: is_narrow(again))
    assert len(children) == 1


@pytest.mark.parametrize("external", [False, True])
def test_a_child_compiles_no_other_files_than_those_that_are_held(tmp_path: Path, external: bool) -> None:
    path = saved(tmp_path)
    order = order_of(path, tmp_path / "cache")
    if external:
        order = replace(order, states=(*order.states, ("weights.bin", (1, 2, 3, 4))))
    else:
        other = tmp_path / "other.onnx"
        other.write_bytes(dense_chain(depth=3))
        os.replace(other, path)
    with pytest.raises(ConfigError, match="no bundle of it can be cached"):
        compile_apart(order, is_wanted=lambda: True)
    assert left_in(tmp_path / "cache") == []


def test_a_file_that_changes_while_a_child_compiles_is_not_shared(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing_decided(narrow=True)
    path = saved(tmp_path)
    other = tmp_path / "other.onnx"
    other.write_bytes(dense_chain(depth=3))

    def compile_and_replace(order: ShareOrder, *, is_wanted: Callable[[], bool]) -> Path | None:
        made = compile_apart(order, is_wanted=is_wanted)
        os.replace(other, path)
        return made

    monkeypatch.setattr(_compile_apart, "compile_apart", compile_and_replace)
    session = parallax.InferenceSession(path, threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted):
        wait_until(lambda: "other files lie at its path by now" in session.plan.provenance.reason)
        assert session._opened.shared_bundle is None


# -- ends ----------------------------------------------------------------------------------------------------------


def test_close_ends_the_child_and_nothing_half_written_stays(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], stuck: list[subprocess.Popen[bytes]]
) -> None:
    sharing_decided(narrow=True)
    session = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted) as callers:
        wait_until(lambda: is_half_written(tmp_path / "cache"))
        follower = session._callers
        session.close()
        wait_until(lambda: callers.closed == MANY)
    follower.join(LIMIT_S)
    assert not follower._thread.is_alive()
    assert stuck[0].poll() is not None
    assert left_in(tmp_path / "cache") == []


def test_a_session_that_is_dropped_ends_its_child(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], stuck: list[subprocess.Popen[bytes]]
) -> None:
    sharing_decided(narrow=True)
    session: Any = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted):
        wait_until(lambda: is_half_written(tmp_path / "cache"))
        gone, follower = weakref.ref(session), session._callers
    del session
    gc.collect()
    assert gone() is None
    follower.join(LIMIT_S)
    assert stuck[0].poll() is not None
    assert left_in(tmp_path / "cache") == []


def test_a_fork_does_not_wait_for_the_child(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], stuck: list[subprocess.Popen[bytes]]
) -> None:
    from parallax.adapting._background import WORK

    sharing_decided(narrow=True)
    session = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted):
        wait_until(lambda: bool(stuck))
        assert WORK.turn.acquire(timeout=LIMIT_S)  # which a fork takes
        WORK.turn.release()
        assert stuck[0].poll() is None
    session.close()


_PARENT = """
import subprocess, sys, threading, time
from tests.session import _calling, test_compile_apart as here
from parallax.opening import _compile_apart
from pathlib import Path
import parallax
tmp = Path(sys.argv[1])
program = here.stuck_program()
_compile_apart._program = lambda: program
popen = subprocess.Popen
def start(*a, **k):
    child = popen(*a, **k)
    (tmp / "pid").write_text(str(child.pid))
    return child
subprocess.Popen = start
order = here.order_of(tmp / "model.onnx", tmp / "cache")
WAY = sys.argv[2]
if WAY == "interrupt":
    try:
        _compile_apart.compile_apart(order, is_wanted=lambda: True)
    except KeyboardInterrupt:
        sys.exit(7)
from parallax.adapt import CALLER_RULES
from parallax.adapting import _serving_callers
from dataclasses import replace
_serving_callers.CALLER_RULES = {n: replace(r, most_growth=1.0) for n, r in CALLER_RULES.items()}
session = parallax.InferenceSession(tmp / "model.onnx", threads=2, objective="auto", cache_dir=tmp / "cache")
over = threading.Event()
def call():
    while not over.is_set():
        session.run(None, {"x": _calling.INPUTS[0]})
threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads: thread.start()
while not here.is_half_written(tmp / "cache"): time.sleep(0.01)
(tmp / "half").write_text("")
if WAY == "kill": time.sleep(600)
over.set()
for thread in threads: thread.join()
"""


def _start_parent(tmp_path: Path, way: str) -> subprocess.Popen[bytes]:
    saved(tmp_path)
    command = [sys.executable, "-c", _PARENT, str(tmp_path), way]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, stderr=subprocess.PIPE
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@posix
@pytest.mark.parametrize("way", ["exit", "kill", "interrupt"])
def test_the_child_ends_with_its_parent(tmp_path: Path, way: str) -> None:
    parent = _start_parent(tmp_path, way)
    try:
        wait_until(lambda: is_half_written(tmp_path / "cache") or parent.poll() is not None)
        child = int((tmp_path / "pid").read_text())
        if way == "kill":
            wait_until(lambda: (tmp_path / "half").exists())
            parent.kill()
        elif way == "interrupt":
            os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        _, said = parent.communicate(timeout=LIMIT_S)
        assert parent.returncode == {"exit": 0, "kill": -signal.SIGKILL, "interrupt": 7}[way], said.decode()
        wait_until(lambda: not _is_running(child))
        if way != "kill":
            assert left_in(tmp_path / "cache") == []
            assert b"Traceback" not in said
        else:  # the next one clears away what this one left
            assert compile_apart(order_of(tmp_path / "model.onnx", tmp_path / "cache"), is_wanted=lambda: True)
            assert not is_half_written(tmp_path / "cache")
    finally:
        parent.kill()
        parent.wait()


# -- no child ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"executable": ""}, "which Python"),
        ({"executable": "/usr/bin/blender"}, "no Python interpreter"),
        ({"frozen": True}, "frozen"),
        ({"executable": "/nowhere/python3"}, "No such file"),
    ],
)
def test_without_a_child_it_is_compiled_here_with_one_line_in_the_log(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, Any],
    why: str,
) -> None:
    sharing_decided(narrow=True)
    for name, value in changed.items():
        monkeypatch.setattr(sys, name, value, raising=False)
    _is_shared_all_the_same(tmp_path, wanted, caplog, why)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os._exit(3)", "ended with 3"),
        ("print('{}')", "ended with 0"),
        ("import json; print(json.dumps({'bundle': 3, 'said': []}))", "ended with 0"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_a_child_that_fails_leaves_it_to_this_process(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    program: str,
    why: str,
) -> None:
    sharing_decided(narrow=True)
    monkeypatch.setattr(_compile_apart, "_program", lambda: program)
    _is_shared_all_the_same(tmp_path, wanted, caplog, why)


@posix
def test_where_a_child_is_killed_this_process_does_not_try_as_well(
    tmp_path: Path, wanted: list[Any], sharing_decided: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing_decided(narrow=True)
    monkeypatch.setattr(_compile_apart, "_program", lambda: "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr("parallax.opening._shared_weights.compile_ordered", None)
    session = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted):
        wait_until(lambda: "the process that compiled it was killed" in session.plan.provenance.reason)
    assert session._opened.shared_bundle is None


def test_a_child_that_says_much_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of(saved(tmp_path), tmp_path / "cache")
    program = _compile_apart._program()
    monkeypatch.setattr(_compile_apart, "_program", lambda: f"print('much' * 100_000); {program}")
    assert compile_apart(order, is_wanted=lambda: True) == find_ordered(order) is not None


def test_a_bundle_that_only_a_child_speaks_of_is_not_taken(
    tmp_path: Path,
    wanted: list[Any],
    sharing_decided: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sharing_decided(narrow=True)
    other = parallax.compile(dense_chain(depth=3), tmp_path / "other.plx")
    answer = json.dumps({"bundle": str(other), "said": ["look"]})
    monkeypatch.setattr(_compile_apart, "_program", lambda: f"print({answer!r})")
    _is_shared_all_the_same(tmp_path, wanted, caplog, None)
    assert "look" in caplog.messages


def _is_shared_all_the_same(
    tmp_path: Path, wanted: list[Any], caplog: pytest.LogCaptureFixture, why: str | None
) -> None:
    caplog.set_level(logging.INFO, logger="parallax")
    session = parallax.InferenceSession(saved(tmp_path), threads=2, objective="auto", cache_dir=tmp_path / "cache")
    with calling(session, wanted):
        wait_until(lambda: is_narrow(session))
    assert session.memory().weights_private_bytes == 0
    told = [message for message in caplog.messages if "compiled in this process" in message]
    assert len(told) == (0 if why is None else 1)
    assert why is None or why in told[0]


def test_this_python_can_be_started() -> None:
    assert why_no_python() is None


def test_what_a_child_may_not_write_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file in its place")
    with pytest.raises(ConfigError, match="no bundle of it can be cached"):
        compile_apart(order_of(saved(tmp_path), cache), is_wanted=lambda: True)
    assert any("can be cached" in message for message in caplog.messages)
