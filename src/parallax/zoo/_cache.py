"""Materialised models on disk: made once, whole or not at all, safe when several processes ask at once."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from parallax.errors import ConfigError
from parallax.profile import default_cache_folder
from parallax.zoo._card import info, read_structure_bytes
from parallax.zoo._structure import FORMAT_VERSION, materialise, read_structure


def load(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Path of a zoo model's .onnx file, made on first use.

    The file is written under a temporary name and renamed when complete, so another process sees all of it or nothing;
    two processes that make it at once make the same bytes. Its name holds a digest of the stored structure: a changed
    structure gets a file of its own. Weights are random, with the shapes and deviations of the architecture's
    initialisation: right for time and memory, meaningless as predictions.

    Args:
        cache_dir: where to keep it; by default `zoo` in `parallax.profile.default_cache_folder()`. Created if missing.
        progress: called with (bytes written, bytes in all) while the file is being made.

    Raises: ConfigError for an unknown name, or a folder that cannot be written.
    """
    compressed = read_structure_bytes(name)
    digest = hashlib.sha256(f"{FORMAT_VERSION}\n".encode() + compressed).hexdigest()
    folder = Path(cache_dir) if cache_dir is not None else default_cache_folder() / "zoo"
    path = folder / f"{name}-{digest[:16]}.onnx"
    # A file of the wrong size was cut short after the rename (power loss, a full disk on another system): make it anew.
    if path.is_file() and path.stat().st_size == info(name).file_bytes:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(compressed, path, progress)
    except OSError as error:
        raise ConfigError(
            f"cannot write zoo model {name!r}: {error.strerror or error}",
            where=str(folder),
            fix=f"free {info(name).file_bytes / 2**20:.0f} MiB there, or pass another cache_dir",
        ) from error
    return path


def _write_whole(compressed: bytes, path: Path, progress: Callable[[int, int], None] | None) -> None:
    # Not tempfile: its files are private to the user, and a cache folder may be shared on purpose.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as target:
            materialise(read_structure(compressed), target, progress=progress)
        try:
            os.replace(temporary, path)
        except PermissionError:
            # Windows refuses to replace a file that is open: then another process made it and already uses it.
            if not path.is_file():
                raise
    finally:
        temporary.unlink(missing_ok=True)
