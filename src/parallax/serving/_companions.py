"""Further sessions on a session's model: on one thread, with its batch axis opened, or for shapes of a device."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from parallax import _lazy
from parallax.errors import ConfigError, ParallaxError
from parallax.options import CPU_PROVIDER, Options

if TYPE_CHECKING:
    from parallax.model import Model

logger = _lazy.logger(__name__)

_OF_ITS_FILE: Final = ("locations", "states", "digest", "bundle")
"""What a pickled session says of the file that it was opened from."""


class SharedBundle(Protocol):
    """The part of `parallax.opening.OpenedBundle` that is used here."""

    @property
    def path(self) -> str:
        """Absolute."""
        ...

    @property
    def model_digest(self) -> str:
        """Digest of the model that the bundle was compiled from."""
        ...

    @property
    def options(self) -> Options:
        """The options that the bundle is opened with."""
        ...


class Companions:
    """Opens sessions on the model of another one, with its options, in the way in which a pickled one arrives.

    Args:
        session: the other one.

    Attributes:
        why_none: why no session is to be opened beside it; "" where one may.
        why_no_model: why its model cannot be read; "" where it can.
    """

    def __init__(self, session: Any) -> None:
        self._kind: type[Any] = type(session)
        self._session = session
        self._files = ExitStack()
        self._state: Mapping[str, Any] = {}
        self.why_none = self.why_no_model = ""
        try:
            self._state = session.__getstate__()
        except ParallaxError as error:
            self.why_no_model = self.why_none = f"no further session can be opened on its model: {error}"
            return
        if self.is_bundle and not self._state["providers"]:
            # Sessions on the model itself are to have the devices that the bundle came with.
            devices = [device.entry for device in session._opened.devices or ()]
            self._state = {**self._state, "providers": [*devices, CPU_PROVIDER] if devices else None}
        if self._state["options"].memory_budget is not None:
            self.why_none = "the session has a memory budget, which further sessions would not keep"
        elif session._observers.events.attached:
            self.why_none = "the session is observed, and runs of further sessions would not be seen"

    @property
    def is_bundle(self) -> bool:
        """Whether the session runs a bundle."""
        return "bundle" in self._state

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Of inputs, as the session was given them."""
        return {} if not self._state else self._state["options"].shapes or {}

    def read_model(self) -> Model:
        """The model of the session. Raises: ParallaxError if there is none to be read."""
        from parallax.model import read_model

        source = self._state["source"]
        if self.is_bundle:
            from parallax.bundle import use_bundle

            options = self._state["options"]
            source = use_bundle(
                source, lambda bundle: bundle.portable_path, verify=options.verify, cache_dir=options.cache_dir
            )
            if source is None:
                raise ConfigError(
                    "the bundle does not keep the model", fix="compile it with portable=True (--portable)"
                )
        return read_model(source)

    def open(self, *, threads: int) -> Any:
        """The same model on so many threads. Raises: as ``InferenceSession``.

        Where the model has a bundle, the weights of that are mapped, and shared with all sessions that map them.
        """
        shared = self.open_shared(threads=threads)
        if shared is not None:
            return shared
        return self._open({**self._state, "options": replace(self._state["options"], threads=threads)})

    def open_shared(self, *, threads: int) -> Any | None:
        """The same model on so many threads, if a bundle has weights to share; else None."""
        try:
            bundle = self._session.sharing().find()
            return None if bundle is None else self._open(self._state_of(bundle, threads=threads))
        except ParallaxError as error:
            logger.info("a further session holds weights of its own: %s", error)
            return None

    def open_model(
        self, path: Path, *, threads: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Any:
        """The model at ``path``, with the session's options. Raises: as ``InferenceSession``.

        Args:
            threads: None: as the session has them.
            shapes: to plan it for.
        """
        options = replace(self._state["options"], shapes=shapes, cache=False)
        if threads is not None:
            options = replace(options, threads=threads)
        state = {name: value for name, value in self._state.items() if name not in _OF_ITS_FILE}
        return self._open({**state, "source": str(path), "options": options})

    def saved(self, model: Model) -> Path:
        """A file with this model, until `close`. Raises: OSError if there is no room for it."""
        from parallax.model import save_segment

        folder = self._files.enter_context(
            tempfile.TemporaryDirectory(prefix="parallax-batch-", ignore_cleanup_errors=True)
        )
        path = Path(folder) / "model.onnx"
        save_segment(model.extract_whole(), path)
        return path

    def close(self) -> None:
        """Remove the files; to be called when the sessions on them are gone."""
        self._files.close()

    def _state_of(self, bundle: SharedBundle, *, threads: int) -> dict[str, Any]:
        """The state of a session on a bundle of the model. It has no options of planning: the bundle holds the plan."""
        own = {name: value for name, value in self._state.items() if name not in _OF_ITS_FILE}
        options = Options(threads=threads, cache_dir=bundle.options.cache_dir, verify=bundle.options.verify)
        return {**own, "source": bundle.path, "bundle": bundle.model_digest, "options": options}

    def _open(self, state: Mapping[str, Any]) -> Any:
        made = object.__new__(self._kind)
        made.__setstate__(dict(state))
        return made
