"""From the arguments of a command to a model, its feeds and a session on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from parallax.backends.ort import RUNTIME_EXCEPTIONS
from parallax.cli._console import Screen
from parallax.cli._feeds import batch_shapes, check_batch, make_feeds, parse_shapes
from parallax.cli._models import ModelSource, find_model
from parallax.cli._providers import check_fallback, parse_providers
from parallax.cli._types import declared_by
from parallax.errors import BackendError, ConfigError, ParallaxError
from parallax.graph import TensorInfo
from parallax.model import load_model
from parallax.options import Options
from parallax.session import InferenceSession

_SPOKEN: tuple[type[Exception], ...] = (ParallaxError, *RUNTIME_EXCEPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with one set of feeds for it."""

    source: ModelSource
    inputs: tuple[TensorInfo, ...]
    """What every run must feed."""
    feeds: dict[str, Any]

    def run(self, session: onnxruntime.InferenceSession) -> list[Any]:
        """One run on the feeds. Raises: BackendError with the runtime's words, if it fails."""
        with runtime_errors_at(self.source.label, fix="check the shapes and values of the inputs (--shape, --input)"):
            outputs: list[Any] = session.run(None, self.feeds)
            return outputs

    def open(self, options: Options, *, providers: Sequence[str] = ()) -> InferenceSession:
        """A session planned for the shapes of the feeds, and measured with them where it tunes.

        Shapes are given for open inputs only: a static model is then the same to the cache of plans as
        one opened without any.

        Raises: ConfigError or BackendError for a provider that cannot be used here.
        """
        devices = parse_providers(providers)
        # Its errors come as exceptions, which are shown once, by us. (Not by session options: a model opened with
        # some is not cut unasked.)
        onnxruntime.set_default_logger_severity(4)
        with runtime_errors_at(self.source.label, fix="check that this ONNX Runtime knows the model's operators"):
            session = InferenceSession(
                self.source.path,
                providers=devices,
                options=replace(
                    options,
                    shapes=None if self.source.is_bundle else open_shapes(self),
                    calibration=self.feeds if options.tune else None,
                ),
            )
        check_fallback(providers, session)
        return session


def open_shapes(subject: Subject) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the feeds of inputs that the model leaves open; None where it leaves none."""
    open_inputs = {entry.name for entry in subject.inputs if not entry.is_static}
    return {name: value.shape for name, value in subject.feeds.items() if name in open_inputs} or None


@contextmanager
def runtime_errors_at(where: str, *, fix: str) -> Iterator[None]:
    """Give what ONNX Runtime says of a model, which names no remedy, the remedy ``fix``."""
    try:
        yield
    except _SPOKEN as error:
        if isinstance(error, ParallaxError) and error.fix is not None:
            raise
        # The runtime's words, whether the session passed them on as they are or in a class of ours.
        raise BackendError(" ".join(str(error).split()), where=where, fix=fix) from error


def prepare(
    model: str,
    *,
    inputs: Sequence[str],
    shapes: Sequence[str],
    seed: int,
    screen: Screen,
    cache_dir: str | os.PathLike[str] | None = None,
    batch: int | None = None,
    bundles: bool = False,
    providers: Sequence[str] = (),
) -> Subject:
    """Find and load the model, and read or make up its feeds, with a notice for each one made up.

    Args:
        batch: size of the batch, for inputs that leave it open and are given no shape.
        bundles: whether the command can do with a compiled model.
        providers: devices, with which a compiled model is opened to see its inputs.
    """
    concrete: Mapping[str, tuple[int, ...]] = parse_shapes(shapes)
    source = find_model(model, screen, bundles=bundles, cache_dir=None if cache_dir is None else Path(cache_dir))
    required, optional = _declared_inputs(source, providers)
    batched: dict[str, tuple[int, ...]] = {}
    if batch is not None:
        batched = batch_shapes(required, batch, given=concrete, zoo_name=source.zoo_name)
        concrete = {**concrete, **batched}
    feeds, notices = make_feeds(
        inputs, required, optional=optional, shapes=concrete, seed=seed, zoo_name=source.zoo_name
    )
    for name, shape in batched.items():
        check_batch(name, feeds[name].shape, shape[0])
    for notice in notices:
        screen.notice(notice)
    return Subject(source=source, inputs=required, feeds=feeds)


def _declared_inputs(
    source: ModelSource, providers: Sequence[str]
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """The inputs that a run must feed, and those that it may."""
    if source.is_bundle:
        session = InferenceSession(source.path, providers=parse_providers(providers))
        required, optional = session.get_inputs(), session.get_overridable_initializers()
        return tuple(map(declared_by, required)), tuple(map(declared_by, optional))
    graph = load_model(source.path).graph
    return graph.inputs, graph.overridable


def check_writable(path: Path) -> None:
    """Fail before the work rather than after it. Raises: ConfigError if ``path`` cannot be a new file."""
    if path.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: it is a folder", fix="name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}", fix="make it first")
