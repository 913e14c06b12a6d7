"""An order to compile a model into the cache for sessions that share its weights, in this process or another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallax._record import dataclass
from parallax.bundle import cached_bundle, find_cached_bundle
from parallax.errors import ModelFileError
from parallax.options import PlanningOptions

if TYPE_CHECKING:
    from parallax.bundle import CompileOptions, SourceRecord, Verify
    from parallax.model import HeldFiles, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOrder:
    """A model that is to be compiled without being split."""

    path: str
    """Absolute."""
    states: tuple[tuple[str, tuple[int, ...]], ...]
    """Location ("" for the model's own file) and `FileState` of each file that its session holds."""
    cache_dir: str | None
    """Absolute."""
    verify: Verify
    threads: int | None
    slim: bool

    @classmethod
    def of(cls, path: str, files: HeldFiles, options: PlanningOptions) -> ShareOrder:
        """For a session that was given ``path`` and ``options``, and holds ``files``."""
        return cls(
            path=path,
            states=tuple([(location, tuple(state)) for location, state in _states(files).items()]),
            cache_dir=None if options.cache_dir is None else str(options.cache_dir.absolute()),
            verify=options.verify,
            threads=options.threads,
            slim=options.slim,
        )

    def to_json(self) -> str:
        """As JSON, in ASCII, for the command line of another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShareOrder:
        """The order that `to_json` wrote."""
        stated: dict[str, Any] = json.loads(text)
        states = tuple([(location, tuple(state)) for location, state in stated["states"]])
        return cls(**{**stated, "states": states})

    @property
    def options(self) -> PlanningOptions:
        """What the model is compiled with."""
        return PlanningOptions(
            cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
            verify=self.verify,
            threads=self.threads,
            split="never",
            slim=self.slim,
        )

    def check(self, files: HeldFiles) -> None:
        """Raises: ModelFileError if these files, just opened, are not those that the session holds."""
        found = _states(files)
        if any(found.get(location) != state for location, state in self.states):
            raise ModelFileError(
                "other files lie at its path by now", where=self.path, fix="leave a model's files in place"
            )


def find_ordered(order: ShareOrder) -> Path | None:
    """Return the bundle if it is in the cache; None if it is not, or if the model must be read to know that."""
    options = order.options
    return find_cached_bundle(
        order.path,
        record=partial(_record, options),
        verify=options.verify,
        cache_dir=options.cache_dir,
    )


def compile_ordered(order: ShareOrder) -> Path | None:
    """Return the bundle, compiled here unless it is in the cache; None, with a log line, where that cannot be done."""
    options = order.options
    return cached_bundle(
        order.path,
        _compiler(order, options),
        record=partial(_record, options),
        verify=options.verify,
        cache_dir=options.cache_dir,
    )


def _compiler(order: ShareOrder, options: PlanningOptions) -> Callable[[Model, Path, SourceRecord, int | None], Path]:
    from parallax.opening._compile import compiler_for

    compile_model = compiler_for(options)

    def compile_checked(model: Model, target: Path, source: SourceRecord, memory_limit: int | None) -> Path:
        order.check(model.files)
        return compile_model(model, target, source, memory_limit)

    return compile_checked


def _record(options: PlanningOptions, memory_limit: int | None) -> CompileOptions:
    from parallax.opening._compile import recorded_options  # loads the compiler

    return recorded_options(options, memory_limit=memory_limit)


def _states(files: HeldFiles) -> dict[str, tuple[int, ...]]:
    own = {} if files.model is None else {"": files.model.state}
    return {**own, **{location: file.state for location, file in files.external.items()}}
