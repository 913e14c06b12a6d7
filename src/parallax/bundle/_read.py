"""Reading a manifest, which anybody may have written: what is not of the form, or makes no sense, is refused."""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Final

from parallax._json_records import parse_json, read_record, write_record
from parallax.bundle._checks import check_manifest
from parallax.bundle._folder import MANIFEST_NAME
from parallax.bundle._manifest import BUNDLE_FORMAT_VERSION, CompileOptions, Manifest, body_digest
from parallax.errors import BundleError, PlanError

MAX_MANIFEST_BYTES: Final = 64 << 20
"""Larger than any manifest of ours: refused before it is read into memory."""


_FORM = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "manifest": (\{.*\})\}\n', re.DOTALL)

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_COMPILE_AGAIN = "compile the model again"


def read_manifest(folder: str | os.PathLike[str]) -> tuple[Manifest, bytes]:
    """Read and check the manifest of the bundle in ``folder``; also returns the bytes it was read from.

    Raises: BundleError if there is none, or it is damaged, of another format, or says what cannot be.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    try:
        text = _read_plain_file(path)
    except FileNotFoundError as error:
        raise BundleError(
            "this folder is not a bundle: it has no manifest", where=str(folder), fix="give a folder that was compiled"
        ) from error
    except OSError as error:
        raise BundleError(f"cannot read the manifest: {error.strerror or error}", where=path) from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError("the manifest is larger than any", where=path, fix=_COMPILE_AGAIN)
    try:
        manifest = _parse(text, path)
    except PlanError as error:
        raise BundleError(
            f"the manifest is damaged: {error.what}", where=error.where or path, fix=_COMPILE_AGAIN
        ) from error
    return manifest, text


def _read_plain_file(path: str) -> bytes:
    """What is in a file, as far as any manifest goes.

    Raises:
        OSError: it cannot be read.
        BundleError: it is a link, pipe, folder or device; none is opened, or waited for.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise BundleError("this is no file of a bundle", where=path, fix=_COMPILE_AGAIN)
    # It may have become something else since.
    descriptor = os.open(path, _READ_FLAGS)
    with open(descriptor, "rb") as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _parse(text: bytes, where: str) -> Manifest:
    form = _FORM.fullmatch(text)
    if form is None:
        if isinstance(parse_json(text), dict):
            raise BundleError(
                "this is not the manifest of a bundle, or one of an early version", where=where, fix=_COMPILE_AGAIN
            )
        raise BundleError("this is not a manifest at all", where=where, fix=_COMPILE_AGAIN)
    digest, body = form.groups()
    if digest != body_digest(body):
        raise BundleError("the manifest was changed since it was written", where=where, fix=_COMPILE_AGAIN)
    content = parse_json(body)
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version != BUNDLE_FORMAT_VERSION:
        assert isinstance(content, dict)
        raise BundleError(
            f"a bundle of format version {version}; this version of Parallax reads {BUNDLE_FORMAT_VERSION}",
            where=where,
            fix=f"make it anew: {_command(content, os.path.dirname(where))}",
        )
    manifest = read_record(Manifest, content, "manifest")
    check_manifest(manifest, where)
    return manifest


def _command(content: dict[str, Any], folder: str) -> str:
    """The command that makes a bundle of another format anew, as far as its manifest can be read here."""
    from parallax.bundle._identity import compile_command  # only for a message

    stated, source = content.get("options"), content.get("source")
    fields = write_record(CompileOptions())
    if isinstance(stated, dict):
        fields |= {name: value for name, value in stated.items() if name in fields}
    try:
        options = read_record(CompileOptions, fields, "options")
    except PlanError:
        options = CompileOptions()
    path = source.get("path") if isinstance(source, dict) else None
    portable = content.get("portable")
    if isinstance(portable, str):
        path = os.path.join(folder, portable)
    return compile_command(
        options, path if isinstance(path, str) else "MODEL", folder, portable=isinstance(portable, str)
    )
