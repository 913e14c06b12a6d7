"""``parallax zoo export``: a reference model as a file of the user's own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from parallax import zoo
from parallax.cli._console import ProgressCallback, Screen, print_line
from parallax.cli._models import ZOO_PREFIX, find_model
from parallax.cli._open import check_writable
from parallax.cli._units import size
from parallax.errors import ConfigError

_BLOCK_BYTES = 8 << 20


def export_model(name: str, *, output: Path | None, replaces: bool, cache_dir: Path | None, screen: Screen) -> None:
    """Write the zoo model ``name`` to a file: whole, or not at all.

    Raises: ConfigError for an unknown name, a place that cannot be written, or a file that is there already.
    """
    name = name.removeprefix(ZOO_PREFIX)
    card = zoo.info(name)
    target = Path(f"{name}.onnx") if output is None else output
    check_writable(target)
    if target.exists() and not replaces:
        raise ConfigError(f"{str(target)!r} is there already", fix="add --force to replace it, or name another file")
    source = find_model(f"{ZOO_PREFIX}{name}", screen, cache_dir=cache_dir).path
    with screen.progress() as progress:
        try:
            _copy(source, target, progress)
        except OSError as error:
            raise ConfigError(
                f"cannot write {str(target)!r}: {error.strerror or error}", fix="name another place with --output"
            ) from error
    report = {"model": f"{ZOO_PREFIX}{name}", "path": str(target), "bytes": card.file_bytes}
    screen.show(report, lambda console: print_line(console, f"wrote {target}, {size(card.file_bytes)}: {card.title}"))


def _copy(source: Path, target: Path, progress: ProgressCallback) -> None:
    """Under another name first, so that nobody sees half of it."""
    temporary = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    total = source.stat().st_size
    done = 0
    try:
        with source.open("rb") as read, temporary.open("xb") as written:
            while block := read.read(_BLOCK_BYTES):
                written.write(block)
                done += len(block)
                progress(f"writing {target.name}", done, total)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
