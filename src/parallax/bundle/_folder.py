"""What a bundle looks like from outside: how its folder and the files in it are named."""

from __future__ import annotations

import os
import re
from typing import Final, Literal

BUNDLE_SUFFIX: Final = ".plx"

MANIFEST_NAME: Final = "manifest.json"

GENERATION = re.compile(r"g-[0-9a-f]{16}")
"""Names of the folders that hold a bundle's files; a bundle that is compiled again gets another one."""

Verify = Literal["once", "full", "never"]
"""Which digests of large files are computed when a bundle is opened. ``once``: of those that were not found right
before, or were written to since. ``full``: of all. ``never``: of none; sizes are still compared. Small files
(manifest, plan, graphs) are always read whole and checked."""


def looks_like_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is meant as a bundle: a folder with a manifest, or one that is named like a bundle."""
    return os.path.isdir(path) and (
        os.fspath(path).endswith(BUNDLE_SUFFIX) or os.path.isfile(os.path.join(path, MANIFEST_NAME))
    )


def data_path(graph: str) -> str:
    """Where the data of a graph lie, if it has any beside it."""
    return graph.removesuffix(".onnx") + ".data"


def is_dropping(name: str) -> bool:
    """Whether a file of this name was left by a file manager or network file system, not by people."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith((".nfs", "._"))
