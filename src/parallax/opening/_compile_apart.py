"""Compiling a model in a child process of a lower priority.

Compiling it in this process would hold Python's lock while the runtime reads and packs the model, take cores from those
who call the session, and take memory of which this process would not give all back.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from parallax import _lazy
from parallax.errors import ConfigError

if TYPE_CHECKING:
    from parallax.opening._share_order import ShareOrder

logger = _lazy.logger(__name__)

_LOOK_S: Final = 0.05
"""Pause between two looks at whether the child is still wanted."""

_TOLD_BYTES: Final = 1 << 16
"""How much is read of the end of what the child printed."""

_KILLED: Final = -9
"""The return code of a child that SIGKILL ended."""


class _ChildFailedError(Exception):
    """There is no child, or it ended without an answer."""


def compile_apart(order: ShareOrder, *, is_wanted: Callable[[], bool]) -> Path | None:
    """Have a child process compile a model into the cache, and wait for it.

    Args:
        is_wanted: asked twenty times a second. Once it returns False, the child is killed, and what the child has
            written is removed.

    Returns: the bundle, as the child names it; None, with a log line, where no child can be started, or the child
        fails.

    Raises: ConfigError if the bundle is not wanted any more, the child was killed by others, or the child says that the
        model cannot be compiled into the cache.
    """
    try:
        answer = _answer_of_child(order, is_wanted)
    except (_ChildFailedError, OSError) as error:
        logger.info("a model is compiled in this process, as no child process can compile it: %s", error)
        return None
    for note in answer["said"]:
        logger.warning("%s", note)
    if answer["bundle"] is None:
        raise ConfigError("no bundle of it can be cached", fix="name a folder with cache_dir=")
    return Path(answer["bundle"])


def why_no_python() -> str | None:
    """Why this process's program cannot be started as a Python interpreter, or None."""
    if getattr(sys, "frozen", False):
        return "the program is frozen"
    if not sys.executable:
        return "it is not known which Python this is"
    # A program that embeds Python may name itself.
    if not os.path.basename(sys.executable).lower().startswith(("python", "pypy")):
        return f"{sys.executable!r:.200} is no Python interpreter"
    return None


def _answer_of_child(order: ShareOrder, is_wanted: Callable[[], bool]) -> dict[str, Any]:
    why = why_no_python()
    if why is not None:
        raise _ChildFailedError(why)
    with tempfile.TemporaryFile() as told:
        with _started(order, told) as child:
            while not _has_ended(child):
                if not is_wanted():
                    raise ConfigError("nobody waits for the bundle any more", fix="keep the session open")
        if child.returncode == _KILLED:
            # Memory may have run out: compiled here, the model could have this process killed as well.
            raise ConfigError("the process that compiled it was killed", fix="see whether there is memory for it")
        return _read_answer(told, child.returncode)


@contextlib.contextmanager
def _started(order: ShareOrder, told: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the child, and end it with the block."""
    child = subprocess.Popen(
        [sys.executable, *_flags(), "-c", _program(), order.to_json(), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=told,
        stderr=subprocess.STDOUT,
        **_group(),
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None  # a pipe; the child ends when this end of it is closed
        child.stdin.close()
        if child.returncode:
            _clear_away(order)


def _program() -> str:
    """What the child runs. It finds packages where this process does, and not in its working folder as well."""
    # An entry that is no folder or file is left as it is: an import hook may know what it means.
    path = [os.path.abspath(entry) if os.path.exists(entry or ".") else entry for entry in sys.path]
    return f"import sys; sys.path[:] = {path!a}; from parallax.opening._compile_child import main; main()"


def _flags() -> list[str]:
    stated = {"ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}
    return ["-P", *[flag for name, flag in stated.items() if getattr(sys.flags, name)]]


def _group() -> dict[str, Any]:
    """Puts the child into a process group of its own: Ctrl-C interrupts this process alone, which ends the child."""
    if sys.platform == "win32":
        lower = subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NO_WINDOW
        return {"creationflags": lower | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_LOOK_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read_answer(told: IO[bytes], code: int) -> dict[str, Any]:
    told.seek(max(0, told.seek(0, os.SEEK_END) - _TOLD_BYTES))
    lines = told.read().decode("utf-8", "replace").splitlines()
    last = lines[-1] if lines else ""
    try:
        answer = json.loads(last)
        if not code and isinstance(answer["said"], list) and isinstance(answer["bundle"], str | None):
            return dict(answer)
    except (ValueError, TypeError, KeyError):
        pass
    raise _ChildFailedError(f"it ended with {code}, and said last: {last[:300]!r}")


def _clear_away(order: ShareOrder) -> None:
    """Remove what a child that was killed had written so far."""
    from parallax.bundle import cache_folder, prune_folder

    folder = cache_folder(None if order.cache_dir is None else Path(order.cache_dir))
    with contextlib.suppress(OSError):
        prune_folder(folder)
