"""Digests of models' files that are remembered on this machine, so that a bundle is found without reading the model."""

from __future__ import annotations

import os
from pathlib import Path

from parallax.bundle._digest import CheckedFiles, signature
from parallax.bundle._manifest import SourceFile, SourceRecord


def known_source(path: str, cache_dir: Path | None) -> SourceRecord | None:
    """Return the digests of a model's files; None unless all are remembered and no file was written to since."""
    files = []
    for name, (expected, digest) in source_files(path, cache_dir).load().items():
        location, _, place = name.partition("\n")
        try:
            if signature(Path(place)) != expected:
                return None
        except OSError:
            return None
        files.append(SourceFile(location=location, size=expected[2], sha256=digest))
    # The model itself comes first, as it was stored.
    return SourceRecord(path=os.path.abspath(path), files=tuple(files)) if files else None


def source_files(path: str, cache_dir: Path | None) -> CheckedFiles:
    """The store of what is remembered of the model at ``path``."""
    return CheckedFiles(f"source {os.path.realpath(path)}", cache_dir)
