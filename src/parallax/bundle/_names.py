"""What a bundle keeps of the model to find out what a caller's session options mean to it.

The optimised graphs no longer have all of the model's tensors, so that an initializer that is given under one of their
names would be ignored without a word.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.errors import BundleError
from parallax.model import Model, tensor_names

_MAX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """Names of a compiled model, as it was."""

    tensors: tuple[str, ...]
    interface: bytes | None
    """As `Model.interface` gives it."""


def store_names(model: Model) -> bytes:
    """The names of a model, as they lie in a bundle: compressed JSON."""
    interface = model.interface()
    record = {
        "tensors": sorted(tensor_names(model)),
        "interface": None if interface is None else base64.b64encode(interface).decode(),
    }
    return zlib.compress(json.dumps(record).encode())


def read_names(path: Path) -> ModelNames:
    """Raises: BundleError if the file cannot be read, or is not what `store_names` makes."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(path.read_bytes(), _MAX_BYTES)
        record = json.loads(text)
        tensors, interface = record["tensors"], record["interface"]
        if not all(isinstance(name, str) for name in tensors):
            raise TypeError("a name is no text")
        return ModelNames(
            tensors=tuple(tensors), interface=None if interface is None else base64.b64decode(interface, validate=True)
        )
    except (OSError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"cannot read the names of the model's tensors: {error}", where=str(path), fix="compile the model again"
        ) from error
