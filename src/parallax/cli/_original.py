"""The model that a bundle was compiled from, if it is still to be found and still the same."""

from __future__ import annotations

from pathlib import Path

from parallax.bundle import Bundle, describe_source
from parallax.errors import ParallaxError
from parallax.model import load_model


def find_original(bundle: Bundle) -> tuple[Path | None, str]:
    """Path of the model that a bundle was made from, or None and why there is none.

    The copy in a portable bundle, or the file that was compiled, whose digest must be the one that was noted.
    """
    if bundle.portable_path is not None:
        return bundle.portable_path, ""
    source = bundle.manifest.source
    remedy = "compile with --portable, which keeps the model in the bundle"
    if source.path is None:
        return None, f"the bundle was compiled from bytes; {remedy}"
    path = Path(source.path)
    if not path.is_file():
        return None, f"{source.path}, which the bundle was compiled from, is not there; {remedy}"
    try:
        found = describe_source(load_model(path))
    except ParallaxError as error:
        return None, f"{source.path}, which the bundle was compiled from, cannot be read: {error}"
    if found.digest != source.digest:
        return None, f"{source.path} was changed since the bundle was compiled from it; compile it again"
    return path, ""
