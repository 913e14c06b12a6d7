"""Whether what training needs is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from parallax.errors import MissingExtraError

_NEEDED: Final = ("torch", "gymnasium", "stable_baselines3", "onnxscript")


def require_extra() -> None:
    """Raises: MissingExtraError if the extra ``train`` is not installed. Loads nothing of it."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"training needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            fix="pip install 'parallax-runtime[train]'",
        )
