"""SHA-256 and BLAKE2b, without loading OpenSSL for a few kilobytes.

To load that library, as `hashlib` does, takes as long as to hash some hundred kilobytes without it. What Python itself
falls back to where there is no OpenSSL is taken then, as the standard library's ``random`` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

FEW_BYTES = 1 << 20
"""More are hashed by OpenSSL, which is several times as quick."""


def _find(name: str, *modules: str) -> Callable[..., Any]:
    for module in modules:
        try:
            found: Callable[..., Any] = getattr(import_module(module), name)
        except (ImportError, AttributeError):  # another version of Python, or another Python
            continue
        return found
    raise ImportError(f"no {name} in this Python")


_sha256 = _find("sha256", "_sha2" if sys.version_info >= (3, 12) else "_sha256", "hashlib")
blake2b = _find("blake2b", "_blake2", "hashlib")
"""As `hashlib.blake2b`, which is the same."""


def new_sha256(size: int) -> Any:
    """An object as `hashlib.sha256` makes it, for about ``size`` bytes."""
    if size <= FEW_BYTES and "hashlib" not in sys.modules:
        return _sha256()
    from hashlib import sha256

    return sha256()


def sha256_hex(data: bytes) -> str:
    """The hex digest of SHA-256."""
    digest = new_sha256(len(data))
    digest.update(data)
    return str(digest.hexdigest())
