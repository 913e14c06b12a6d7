"""From the arguments of a command to a model, its feeds and a session on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallax.cli._console import ProgressCallback, Screen
from parallax.cli._feeds import make_feeds, parse_shapes
from parallax.cli._models import ModelSource, find_model
from parallax.engine import TraceSink
from parallax.errors import ConfigError
from parallax.model import Model, load_model
from parallax.session import InferenceSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with one set of feeds for it."""

    source: ModelSource
    model: Model
    feeds: dict[str, Any]

    def open(
        self,
        *,
        threads: int | None,
        tune: bool = False,
        trace: TraceSink | None = None,
        progress: ProgressCallback | None = None,
    ) -> InferenceSession:
        """A session planned for the shapes of the feeds, and measured with them where it tunes.

        Shapes are given for open inputs only: a static model is then the same to the cache of plans as
        one opened without any.
        """
        open_inputs = {entry.name for entry in self.model.graph.inputs if not entry.is_static}
        return InferenceSession(
            self.source.path,
            threads=threads,
            shapes={name: value.shape for name, value in self.feeds.items() if name in open_inputs} or None,
            calibration=self.feeds if tune else None,
            tune=tune,
            trace=trace,
            progress=progress,
        )


def prepare(model: str, *, inputs: Sequence[str], shapes: Sequence[str], seed: int, screen: Screen) -> Subject:
    """Find and load the model, and read or make up its feeds, with a notice for each one made up."""
    concrete = parse_shapes(shapes)
    source = find_model(model, screen)
    loaded = load_model(source.path)
    graph = loaded.graph
    feeds, notices = make_feeds(
        inputs, graph.inputs, optional=graph.overridable, shapes=concrete, seed=seed, zoo_name=source.zoo_name
    )
    for notice in notices:
        screen.notice(notice)
    return Subject(source=source, model=loaded, feeds=feeds)


def check_writable(path: Path) -> None:
    """Fail before the work rather than after it. Raises: ConfigError if ``path`` cannot be a new file."""
    if path.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: it is a folder", fix="name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}", fix="make it first")
