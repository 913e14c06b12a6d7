"""The environment of processes whose start is measured."""

from __future__ import annotations

import os


def as_installed() -> dict[str, str]:
    """Variables of this process, without the one that keeps Python from storing what it compiles.

    Installed packages are compiled. Sources that are used where they lie are compiled by their first import, unless
    Python was told not to store the result: then each process would compile ours anew, and none ONNX Runtime's.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
