"""A model's files as they were when it was opened, whatever lies at their paths by now.

A mapping stays with the file it was made of when another takes that file's place (as deployments do by renaming) or
when it is removed. Only a write into the file itself changes what is mapped, and that shows in its size or time of
modification.
"""

from __future__ import annotations

import functools
import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from parallax._record import dataclass
from parallax.errors import ModelFileError

if TYPE_CHECKING:
    from parallax.model._wire import Buffer

_READ_BYTES = 1 << 20
"""Files up to this size are read, which takes no longer than to map them and costs no file descriptor."""

_PIECE_BYTES = 8 << 20

FileState = tuple[int, int, int, int]
"""Device, inode, size in bytes, time of modification in ns. Not the time of status change: to rename or to link a file
moves it."""


def _state(found: os.stat_result) -> FileState:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """The content of a regular file, read or mapped when it was opened."""

    path: str
    """Absolute."""
    state: FileState
    buffer: Buffer = field(repr=False)

    @property
    def is_mapped(self) -> bool:
        """Whether a write into the file would change the content."""
        return isinstance(self.buffer, mmap.mmap)

    def is_at_path(self) -> bool:
        """Whether who opens the path now gets this content."""
        return _stat(self.path) == self.state

    def is_intact(self) -> bool:
        """Whether the content is still what it was; one system call."""
        buffer = self.buffer
        if not isinstance(buffer, mmap.mmap):
            return True
        found = _stat(self.path)
        if found is not None and found[:2] == self.state[:2]:
            return found == self.state
        # It is another file's path by now, so that nobody writes to this one by it.
        return buffer.size() == self.state[2]

    def in_memory(self) -> OpenFile:
        """The same, with its content copied into memory of this process if it is mapped."""
        return replace(self, buffer=self.buffer[:]) if self.is_mapped else self

    def sha256(self) -> str:
        """Hex digest of the content; reads all of it."""
        from hashlib import sha256  # few sessions name their model by its content

        digest = sha256()
        for start in range(0, len(self.buffer), _PIECE_BYTES):
            digest.update(self.buffer[start : start + _PIECE_BYTES])
        return digest.hexdigest()


def _stat(path: str) -> FileState | None:
    try:
        return _state(os.stat(path))
    except (OSError, ValueError):
        return None


def open_file(path: str | os.PathLike[str], *, place: str | None = None) -> OpenFile:
    """Open a regular file: its content stays what it is now unless it is written to.

    Args:
        place: the path to remember, if not this one.

    Raises:
        OSError: it is missing, not a regular file, or not readable.
        ValueError: a NUL in the path.
    """
    # Checked before opening: opening a pipe would block.
    kind = os.stat(path).st_mode if os.path.exists(path) else None
    if kind is None or not stat.S_ISREG(kind):
        raise OSError(
            "no such file" if kind is None else "is a folder" if stat.S_ISDIR(kind) else "is not a regular file"
        )
    with open(path, "rb") as file:
        state = _state(os.fstat(file.fileno()))
        mapped = state[2] > _READ_BYTES
        buffer: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
    return OpenFile(path=os.path.abspath(path if place is None else place), state=state, buffer=buffer)


@dataclass(frozen=True)
class HeldFiles:
    """The files that a model was read from. They are held as long as this object is."""

    model: OpenFile | None
    """None where the model was given as bytes."""
    external: Mapping[str, OpenFile] = field(default_factory=lambda: MappingProxyType({}))
    """Location, as the model states it -> the file of external data."""

    @property
    def all(self) -> tuple[OpenFile, ...]:
        """The model's first, then those of external data by location."""
        others = tuple(self.external[location] for location in sorted(self.external))
        return others if self.model is None else (self.model, *others)

    def are_at_path(self) -> bool:
        """Whether a runtime that opens the model's path (or its bytes, in the working folder) reads these files."""
        return all(file.is_at_path() for file in self.all) and (
            self.model is not None
            or all(os.path.abspath(location) == file.path for location, file in self.external.items())
        )

    def check_intact(self) -> None:
        """Raises: ModelFileError if a file was written to since it was opened, so that its content is lost."""
        for file in self._mapped:
            if not file.is_intact():
                raise ModelFileError(
                    "the file was written to while a session uses it, so what the session was opened with is lost",
                    where=file.path,
                    fix="open the model again, and put new versions into place by renaming, not by writing into a file",
                )

    @property
    def mapped_bytes(self) -> int:
        """Return how many bytes a write into the files would change."""
        return sum(file.state[2] for file in self._mapped)

    @functools.cached_property
    def in_memory(self) -> HeldFiles:
        """The same content in memory of this process, copied once, where no write into the files reaches it."""
        return HeldFiles(
            None if self.model is None else self.model.in_memory(),
            MappingProxyType({location: file.in_memory() for location, file in self.external.items()}),
        )

    @functools.cached_property
    def _mapped(self) -> tuple[OpenFile, ...]:
        return tuple(file for file in self.all if file.is_mapped)

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of locations and content; reads all of it when first asked."""
        from hashlib import sha256  # few sessions name their model by its content

        digest = sha256()
        for location, file in (("", self.model), *sorted(self.external.items())):
            if file is not None:
                digest.update(f"{location}\0{file.sha256()}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def hold_files(path: str | os.PathLike[str], locations: Sequence[str] = ()) -> HeldFiles:
    """Open a model's file and those of its external data, without looking into them.

    Args:
        locations: of external data, in the model's folder or, if the path is a link, in that of its target.

    Raises: as `open_file`.
    """
    folders = [os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))]
    external = {}
    for location in locations:
        places = [os.path.join(folder, location) for folder in folders]
        external[location] = open_file(next(filter(os.path.exists, places), places[0]))
    return HeldFiles(open_file(path), MappingProxyType(external))
