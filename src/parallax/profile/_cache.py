"""Figures that were expensive to find, kept on disk between processes.

One JSON file per key. Several processes may share the folder: a file appears whole or not at all
(written beside its final name, flushed, then renamed), and two writers of one key leave one of the
two values. Losing the cache costs time, never an answer, so nothing here raises for what the disk
does: a damaged file is reported and replaced, an unwritable folder is reported once and done without. So is a folder
that somebody else could have written to (`_trust`): what it holds would decide what is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from parallax import _lazy
from parallax._hashing import sha256_hex
from parallax.errors import InternalError
from parallax.profile._trust import why_distrusted

if TYPE_CHECKING:
    from pathlib import Path

_LOGGER = _lazy.logger(__name__)

FORMAT_VERSION = 1
"""Of the file's envelope. Raised whenever an older file must not be read any more."""

_ABANDONED_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that died."""

_reported: set[str] = set()
_reported_lock = threading.Lock()


class Cache:
    """A folder of JSON values, looked up by key.

    Args:
        directory: where the files live; by default `default_cache_folder`.
            It is created at the first store.
        max_files: beyond this many files the least recently used are removed.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, *, max_files: int = 512) -> None:
        self._folder = _default_folder() if directory is None else os.fspath(directory)
        self.max_files = max_files

    @property
    def directory(self) -> Path:
        """Where the files live."""
        from pathlib import Path  # takes longer to load than most processes need the cache

        return Path(self._folder)

    def load(self, key: str) -> dict[str, object] | None:
        """The value stored under ``key``, or None.

        A file of another format version or of another key (a digest collision) counts as absent; a
        damaged one too, with a warning.
        """
        path = self._path(key)
        # Most sessions find nothing here, and to judge the folders above takes longer than all else.
        if not os.path.lexists(path) or not self._is_trusted(path):
            return None
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            _LOGGER.warning("ignoring unreadable cache file %s (%s); it will be replaced", path, error)
            return None
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError) as error:
            _LOGGER.warning("ignoring damaged cache file %s (%s); it will be replaced", path, error)
            return None
        if not isinstance(envelope, dict) or not isinstance(envelope.get("value"), dict):
            _LOGGER.warning("ignoring damaged cache file %s (not a cache entry); it will be replaced", path)
            return None
        if envelope.get("format") != FORMAT_VERSION or envelope.get("key") != key:
            return None
        with contextlib.suppress(OSError):  # a read-only cache still answers; it only forgets what was used last
            os.utime(path)
        return envelope["value"]  # type: ignore[no-any-return]

    def store(self, key: str, value: Mapping[str, object]) -> bool:
        """Keep ``value`` under ``key``, replacing what was there.

        Returns: whether it was kept. False, with one warning per folder and process, where the disk
            refuses, or others could change it.
        Raises: InternalError if the value has no JSON form; that is the caller's mistake.
        """
        try:
            text = json.dumps({"format": FORMAT_VERSION, "key": key, "value": dict(value)}, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise InternalError(f"a cache value has no JSON form: {error}", where=f"key {key!r}") from error
        try:
            make_private_folder(self._folder)
            if not self._is_trusted(self._folder):
                return False
            _write_atomically(self._path(key), text)
        except OSError as error:
            self._report_once(error)
            return False
        self._prune()
        return True

    def _path(self, key: str) -> str:
        return os.path.join(self._folder, f"{sha256_hex(key.encode('utf-8', 'surrogatepass'))}.json")

    def _is_trusted(self, path: str) -> bool:
        complaint = why_distrusted(path)
        if complaint is not None and _is_first(f"trust {self._folder}"):
            _LOGGER.warning(
                "ignoring the cache folder %s, in which others could plant what is run here: %s; give it to this user, "
                "or name another with cache_dir=",
                self._folder,
                complaint,
            )
        return complaint is None

    def _report_once(self, error: OSError) -> None:
        if _is_first(self._folder):
            _LOGGER.warning(
                "cannot write to the cache folder %s (%s); going on without caching: measured costs and plans will be "
                "found anew by each process",
                self._folder,
                error,
            )

    def _prune(self) -> None:
        """Drop the least recently used files beyond the limit, and what dead writers left behind."""
        now = time.time()
        kept: list[tuple[float, str]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process may prune at the same time
                    modified = entry.stat().st_mtime
                    if entry.name.endswith(".json"):
                        kept.append((modified, entry.path))
                    elif entry.name.endswith(".tmp") and now - modified > _ABANDONED_SECONDS:
                        os.unlink(entry.path)
        kept.sort()
        for _, path in kept[: max(0, len(kept) - self.max_files)]:
            with contextlib.suppress(OSError):
                os.unlink(path)


CACHE_VARIABLE: Final = "PARALLAX_CACHE_DIR"
"""An environment variable that names the folder for plans, costs, bundles and zoo models."""


def default_cache_folder() -> Path:
    """The folder that `CACHE_VARIABLE` names; else the user's cache folder for ``parallax``."""
    from pathlib import Path  # takes longer to load than most processes need the cache

    return Path(_default_folder())


def _default_folder() -> str:
    named = os.environ.get(CACHE_VARIABLE, "")
    if named:
        return os.path.abspath(named)
    if sys.platform == "linux":
        given, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
        if os.path.isabs(given) or (not given and os.path.isabs(home)):
            return os.path.join(given or os.path.join(home, ".cache"), "parallax")
    import platformdirs  # knows all else, and loads a dozen modules

    return platformdirs.user_cache_dir("parallax")


def make_private_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder that only this user may enter, and those above it; one that is there stays as it is.

    Raises: OSError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        os.mkdir(path, mode=0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _is_first(what: str) -> bool:
    """Whether this is to be reported: once per process."""
    with _reported_lock:
        is_first = what not in _reported
        _reported.add(what)
    return is_first


def _write_atomically(path: str, text: str) -> None:
    import tempfile  # most processes only read

    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
