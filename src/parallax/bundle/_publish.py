"""Making a bundle appear whole or not at all, and clearing away what dead writers left.

A bundle's files lie in one folder below it, its *generation*; ``manifest.json`` says which. A writer fills a
generation in a temporary folder beside the target, and then either renames that folder to the target (a new bundle)
or moves the generation in and replaces the manifest (a bundle compiled again). Both end in one atomic rename, so that a
writer killed at any moment leaves the old bundle or the new one. The last of several writers wins; each
removes the generation that it replaced, and nothing else that may be in use.

Whether a leftover's writer is dead is told by a lock file beside it, which the system unlocks when its owner ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from parallax.bundle._folder import GENERATION, MANIFEST_NAME, is_dropping
from parallax.bundle._locks import LockFile, try_lock
from parallax.bundle._read import read_manifest
from parallax.errors import BundleError, ConfigError

logger = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<id>[0-9a-f]{16})\.(?P<kind>tmp|lock)", re.DOTALL)
_PREFIX = "g-"


class Workspace:
    """A place to fill with a new generation of the bundle at ``target``; a context manager.

    What is not published when the block ends is removed.

    Raises: ConfigError if ``target`` cannot be a bundle: no such parent, or something else is there.
    """

    def __init__(self, target: Path) -> None:
        self.target = resolve_target(target)
        self._id = secrets.token_hex(8)
        self.generation = _PREFIX + self._id
        self._root = self.target.with_name(f".{self.target.name}.{self._id}.tmp")
        self._lock: LockFile | None = None

    @property
    def folder(self) -> Path:
        """The new generation's folder, to be filled."""
        return self._root / self.generation

    @property
    def scratch(self) -> Path:
        """A folder for files that are not to be published."""
        return self._root / "scratch"

    def __enter__(self) -> Workspace:
        try:
            prune_leftovers(self.target)
            self._lock = try_lock(_lock_path(self.target, self._id), create=True)
            if self._lock is None:
                raise PermissionError(errno.EACCES, "its lock file cannot be made")
            self.folder.mkdir(parents=True)
            self.scratch.mkdir()
        except OSError as error:
            self._clean()
            raise _unwritable(self.target, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clean()
        if isinstance(error, OSError):
            raise _unwritable(self.target, error) from error

    def publish(self, manifest: bytes) -> None:
        """Flush everything to the disk and make it the bundle at ``target``."""
        shutil.rmtree(self.scratch)
        with open(self._root / MANIFEST_NAME, "xb") as file:
            file.write(manifest)
        _flush_tree(self._root)
        if self._appeared():
            _flush(self.target.parent)
            return
        replaced = _current_generation(self.target)
        os.rename(self.folder, self.target / self.generation)
        _flush(self.target)
        os.replace(self._root / MANIFEST_NAME, self.target / MANIFEST_NAME)
        _flush(self.target)
        if replaced is not None and replaced != self.generation:
            # Processes that mapped it keep their pages; where an open file cannot be removed (Windows), it stays
            # until the next writer.
            remove_tree(self.target / replaced)

    def _appeared(self) -> bool:
        """Rename the whole folder to the target, if nothing is there; whether that worked."""
        if os.path.lexists(self.target / MANIFEST_NAME):
            return False
        try:
            os.rename(self._root, self.target)
        except OSError:
            # An empty folder is replaced on POSIX, but not on Windows; or another writer was quicker.
            if not self.target.is_dir():
                raise
            return False
        return True

    def _clean(self) -> None:
        remove_tree(self._root)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def remove_tree(path: Path) -> bool:
    """Remove a folder and all that is in it, links not followed; whether that worked. What is left is logged."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return True
    except (OSError, RecursionError) as error:  # RecursionError: folders in folders, more than any of ours
        logger.warning("cannot remove %s: %s", path, error)
        return False
    return True


def resolve_target(target: str | os.PathLike[str]) -> Path:
    """Where a bundle is to lie, links followed.

    Raises: ConfigError if a bundle cannot be written there, or would replace what is not one.
    """
    try:
        path = Path(os.path.realpath(os.fsdecode(target)))
        _check_target(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL; OSError: names that are too long, forbidden folders
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise ConfigError(
            f"no bundle can lie there: {reason}", where=os.fsdecode(target)[:200], fix="name another place"
        ) from error
    return path


def _check_target(target: Path) -> None:
    """Fail before the work rather than after it.

    Raises:
        ConfigError: a bundle cannot be written to ``target``, or would replace what is not one.
        OSError: the system does not let us look.
    """
    if not target.name:
        raise ConfigError("a bundle needs a folder of its own", where=str(target), fix="name one")
    if not target.parent.is_dir():
        raise ConfigError(
            f"cannot write the bundle: there is no folder {str(target.parent)!r}",
            where=str(target),
            fix="make it first",
        )
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise ConfigError("there is a file in the bundle's place", where=str(target), fix="remove it, or name another")
    foreign = [name for name in os.listdir(target) if not _is_ours(name)]
    if foreign:
        raise ConfigError(
            f"there is a folder in the bundle's place, with {foreign[0]!r} in it, which no bundle has",
            where=str(target),
            fix="remove it, or name another place",
        )


def prune_leftovers(target: Path) -> tuple[Path, ...]:
    """Remove what writers of the bundle at ``target`` left that died; returns what was removed.

    Never touches the work of a living process, nor the generation that the manifest names.
    """
    removed = []
    for path, owner in _leftovers(target):
        lock_path = _lock_path(target, owner)
        lock = try_lock(lock_path, create=False)
        if lock is None and (path == lock_path or os.path.lexists(lock_path)):
            continue  # its writer lives, or the lock file went with what it guarded
        try:
            # Asked only now: a writer lets go of its lock after it has published.
            if path.name == _current_generation(target):
                continue
            if path == lock_path or remove_tree(path):
                removed.append(path)
        finally:
            if lock is not None:
                lock.release()
    return tuple(removed)


def prune_folder(folder: Path) -> tuple[Path, ...]:
    """Prune all bundles that lie, or were to lie, in ``folder``."""
    names = {match["name"] for entry in os.listdir(folder) if (match := _LEFTOVER.fullmatch(entry)) is not None}
    names.update(entry.name for entry in folder.iterdir() if (entry / MANIFEST_NAME).is_file())
    return tuple(path for name in sorted(names) for path in prune_leftovers(folder / name))


def _leftovers(target: Path) -> Iterator[tuple[Path, str]]:
    """Folders and lock files of writers that may be dead, with the writer's number."""
    for entry in os.listdir(target.parent):
        match = _LEFTOVER.fullmatch(entry)
        if match is not None and match["name"] == target.name:
            yield target.parent / entry, match["id"]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.listdir(target):
            if GENERATION.fullmatch(entry) is not None:
                yield target / entry, entry.removeprefix(_PREFIX)


def _current_generation(target: Path) -> str | None:
    try:
        return read_manifest(target)[0].generation
    except BundleError:
        return None  # damaged, and about to be replaced


def _is_ours(name: str) -> bool:
    return name == MANIFEST_NAME or GENERATION.fullmatch(name) is not None or is_dropping(name)


def _lock_path(target: Path, owner: str) -> Path:
    return target.with_name(f".{target.name}.{owner}.lock")


def _unwritable(target: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write the bundle: {error.strerror or error}",
        where=str(target),
        fix="free space, or name another place",
    )


def _flush_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = os.path.join(folder, name)
            _keep_others_out(path)
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _keep_others_out(folder)
        _flush(Path(folder))


def _keep_others_out(path: str) -> None:
    """Nobody else is to write to a bundle, whatever this process lets others do by default: it holds what is run."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.chmod(path, mode & ~(stat.S_IWGRP | stat.S_IWOTH))


def _flush(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut, where the system lets folders be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
