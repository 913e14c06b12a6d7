"""What a caller may hand in as a model, brought to bytes that can be scanned in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]  # ships no types

from parallax.errors import ConfigError, ModelFileError, UnsupportedModelError
from parallax.model._files import HeldFiles, OpenFile, open_file
from parallax.model._message import strip_message
from parallax.model._wire import Buffer, Stripped, strip_weights

ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto
"""A file, its content, or the parsed message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model's bytes and where it came from.

    ``folders`` are where external data may lie: the model's own, and, where the path is a link
    (as in the caches of model hubs, which link model and data into one folder), that of its target.
    """

    data: Buffer | None
    """None for a message too large to serialise."""
    path: Path | None
    folders: Sequence[Path]
    message: onnx.ModelProto | None = None
    """Only where ``data`` is None."""
    file: OpenFile | None = None
    """What ``data`` is of, where there is a path."""
    held: HeldFiles | None = None
    """Files of external data to take, in place of those that lie in ``folders`` by now."""

    @property
    def where(self) -> str | None:
        return None if self.path is None else str(self.path)

    def split(self) -> Stripped:
        """Skeleton and payloads."""
        if self.data is not None:
            return strip_weights(self.data)
        assert self.message is not None
        return strip_message(self.message)

    def content(self) -> bytes:
        """The model's bytes, without external data. Raises: UnsupportedModelError if it is too large to have any."""
        if self.data is None:
            raise UnsupportedModelError(
                "a ModelProto over 2 GiB has no serialised form that ONNX Runtime could open",
                fix="save it with external data (onnx.save_model(..., save_as_external_data=True)) and load the path",
            )
        return self.data[:]


def open_source(source: ModelSource | HeldFiles) -> Source:
    """Map or take over a model's bytes.

    Bytes and messages have no folder, so external data is looked up in the working directory, as
    ONNX Runtime does. Held files are taken as they are, whatever lies at their paths.

    Raises:
        ModelFileError: missing, unreadable, a folder, empty, or evidently something else.
        UnsupportedModelError: a model in ONNX Runtime's own format.
        ConfigError: not a path, bytes or ModelProto.
    """
    if isinstance(source, onnx.ModelProto):
        return _open_message(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        opened = Source(data=bytes(source), path=None, folders=(Path(),))
    elif isinstance(source, HeldFiles):
        opened = _opened(source)
    elif isinstance(source, (str, os.PathLike)):
        opened = _open_path(source)
    else:
        raise ConfigError(
            f"a model is a path, bytes or onnx.ModelProto, not {type(source).__name__}", fix="pass one of these"
        )
    assert opened.data is not None
    _check_magic(opened.data[:32], opened.where)
    return opened


def _open_message(model: onnx.ModelProto) -> Source:
    try:
        return Source(data=model.SerializeToString(), path=None, folders=(Path(),))
    except EncodeError:  # over protobuf's limit of 2 GiB
        return Source(data=None, path=None, folders=(Path(),), message=model)


def _open_path(source: str | os.PathLike[str]) -> Source:
    path = Path(os.fsdecode(source))
    try:
        file = open_file(path)
        target = Path(os.path.realpath(path))
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = (exc.strerror or exc) if isinstance(exc, OSError) else exc
        raise ModelFileError(
            f"cannot read the model: {reason}", where=str(path), fix="give the path of an existing .onnx file"
        ) from exc
    folders = (path.parent,) if target.parent == path.parent else (path.parent, target.parent)
    return Source(data=file.buffer, path=Path(file.path), folders=folders, file=file)


def _opened(held: HeldFiles) -> Source:
    file = held.model
    if file is None:
        raise ConfigError("files that are held for a model given as bytes are no model by themselves")
    path = Path(file.path)
    return Source(data=file.buffer, path=path, folders=(path.parent,), file=file, held=held)


_LOOKALIKES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "run `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it and give the .onnx file inside"),
    (b"\x1f\x8b", "gzip-compressed", "decompress it first"),
    (b"<", "an HTML or XML page", "the download went wrong: fetch the model again"),
    (b"{", "JSON text", "convert it to ONNX's binary form"),
    (b"\x89HDF", "an HDF5 file", "export the model to ONNX"),
)


def _check_magic(head: bytes, where: str | None) -> None:
    if not head:
        raise ModelFileError("the model is empty (0 bytes)", where=where, fix="fetch or export it again")
    if head[4:8] == b"ORTM":
        raise UnsupportedModelError(
            "this is a model in ONNX Runtime's own .ort format, which has no graph to analyse",
            where=where,
            fix="give the .onnx file it was made from",
        )
    for magic, what, fix in _LOOKALIKES:
        if head.startswith(magic):
            raise ModelFileError(f"this is {what}", where=where, fix=fix)
