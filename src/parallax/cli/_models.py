"""What ``MODEL`` on the command line may be: a file, ``zoo:NAME``, or a bundle where the command runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parallax import zoo
from parallax.bundle import looks_like_bundle
from parallax.cli._console import Screen
from parallax.errors import ModelFileError

ZOO_PREFIX = "zoo:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model to open; ``zoo_name`` is set where its inputs are known."""

    label: str
    path: Path
    zoo_name: str | None = None
    is_bundle: bool = False


def find_model(text: str, screen: Screen, *, bundles: bool = False, cache_dir: str | Path | None = None) -> ModelSource:
    """Resolve a MODEL argument; a zoo model is written to the cache folder on first use.

    Args:
        bundles: whether the command can do with a compiled model.
        cache_dir: in place of the user's cache folder.

    Raises:
        ModelFileError: there is no such file, or it is a folder.
        ConfigError: there is no such zoo model.
    """
    if text.startswith(ZOO_PREFIX):
        name = text.removeprefix(ZOO_PREFIX)
        with screen.progress() as progress:
            stage = f"writing {text}"
            path = zoo.load(
                name,
                cache_dir=None if cache_dir is None else Path(cache_dir) / "zoo",
                progress=lambda done, total: progress(stage, done, total),
            )
        return ModelSource(label=text, path=path, zoo_name=name)
    path = Path(text)
    if looks_like_bundle(path):
        if bundles:
            return ModelSource(label=text, path=path, is_bundle=True)
        raise ModelFileError(
            f"{text!r} is a compiled model", fix="name the .onnx file it was made from, or see `parallax bundle info`"
        )
    if path.is_dir():
        raise ModelFileError(f"{text!r} is a folder", fix="name the .onnx file in it")
    if not path.exists():
        known = text in zoo.names()
        fix = (
            f"did you mean {ZOO_PREFIX}{text}?"
            if known
            else "give a path to an .onnx file, or zoo:NAME (see `zoo list`)"
        )
        raise ModelFileError(f"there is no model file {text!r}", fix=fix)
    return ModelSource(label=text, path=path)
