"""What the shell offers when Tab is pressed: models, names of the zoo, bundles."""

from __future__ import annotations

import os
from collections.abc import Iterator

_MODEL_ENDINGS = (".onnx", ".ort", ".plx")
_ZOO_PREFIX = "zoo:"


def complete_model(incomplete: str) -> list[str]:
    """Names of zoo models with their prefix; files of models, bundles, and folders that may hold some."""
    found = [f"{_ZOO_PREFIX}{name}" for name in _zoo_names()] if _may_be_zoo(incomplete) else []
    return [*(name for name in found if name.startswith(incomplete)), *_paths(incomplete, _MODEL_ENDINGS)]


def complete_zoo_name(incomplete: str) -> list[str]:
    """Names of zoo models, without a prefix."""
    return [name for name in _zoo_names() if name.startswith(incomplete)]


def complete_bundle(incomplete: str) -> list[str]:
    """Bundles, and folders that may hold some."""
    return list(_paths(incomplete, (".plx",)))


def _may_be_zoo(incomplete: str) -> bool:
    return _ZOO_PREFIX.startswith(incomplete) or incomplete.startswith(_ZOO_PREFIX)


def _zoo_names() -> tuple[str, ...]:
    from parallax.zoo import names  # files of the package, which are listed only now

    return names()


def _paths(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Entries of a folder that begin so: those with one of these endings, and other folders, with a slash."""
    folder, beginning = os.path.split(incomplete)
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(beginning) or (entry.name.startswith(".") and not beginning):
            continue
        path = os.path.join(folder, entry.name)
        if entry.name.endswith(endings):
            yield path
        elif entry.is_dir():
            yield f"{path}/"
