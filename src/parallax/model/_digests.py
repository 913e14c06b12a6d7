"""What names a model in caches: its structure, shapes and small constants; large weights' values do not count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from parallax._hashing import blake2b


def skeleton_digest(skeleton: bytes) -> bytes:
    """Of a model without its large weights, serialised."""
    return bytes(blake2b(skeleton, digest_size=20).digest())


def structure_digest(skeleton: bytes, shapes: Mapping[str, Sequence[int]]) -> str:
    """Hex digest of a model with these shapes fixed.

    Args:
        skeleton: its `skeleton_digest`.
    """
    digest = blake2b(skeleton, digest_size=20)
    digest.update(json.dumps(sorted(shapes.items())).encode())
    return str(digest.hexdigest())
