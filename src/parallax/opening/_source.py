"""What a session was opened with is what it computes until it is dropped, whatever becomes of the file.

A session opens its model more than once: for IO binding if it runs in segments, in a forked child, for other providers.
By then another model may lie at the path, or none, or a relative path may lead elsewhere. So a session keeps what it
read: the mapped file or the bytes. The runtime is given the path only while that leads to the same files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import onnxruntime

from parallax._record import dataclass
from parallax.backends import ort
from parallax.bundle import looks_like_bundle
from parallax.errors import BundleError, ConfigError, ModelFileError
from parallax.options import PlanningOptions

if TYPE_CHECKING:
    from parallax.bundle import Bundle
    from parallax.model import HeldFiles, Model, ModelSummary
    from parallax.options import Device

T = TypeVar("T")

_MEMORY_BYTES = 32 << 20
"""Weights up to this size are copied for segments: a few milliseconds. A write into a mapped file ends the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBundle:
    """The bundle that a session runs."""

    path: str
    """Absolute."""
    model_digest: str
    """Of the model that it was compiled from."""
    options: PlanningOptions
    """What it was opened with."""
    devices: tuple[str, ...] = ()
    """Names of those that the session had then."""

    @classmethod
    def of(cls, bundle: Bundle, path: str, options: PlanningOptions, devices: Sequence[Device] = ()) -> OpenedBundle:
        return cls(
            path=os.path.abspath(path),
            model_digest=bundle.manifest.source.digest,
            options=options,
            devices=tuple([device.name for device in devices]),
        )

    @classmethod
    def from_cache(cls, bundle: Bundle, asked: PlanningOptions) -> OpenedBundle:
        """A bundle from the cache, for a session that was asked for this."""
        return cls.of(bundle, str(bundle.path), cls.options_for(asked))

    @staticmethod
    def options_for(asked: PlanningOptions) -> PlanningOptions:
        """Options to open a bundle from the cache with, for a session with these; the bundle holds what was planned."""
        return PlanningOptions(cache_dir=asked.cache_dir, verify=asked.verify, threads=asked.threads)

    def check_same(self, bundle: Bundle) -> None:
        """Raises: BundleError if ``bundle``, which lies there now, is of another model."""
        if bundle.manifest.source.digest != self.model_digest:
            raise BundleError(
                "another model's bundle has taken the place of the one that this session was opened with",
                where=self.path,
                fix="open a session on the new bundle; keep a bundle in place while sessions on it are open",
            )


class SessionSource:
    """The path or the bytes that one session was given, and the files behind them.

    Args:
        path: is made absolute, so that it stays the same file's when the working folder changes.
    """

    def __init__(self, path: str | None, data: bytes | None) -> None:
        self.path = None if path is None else os.path.abspath(path)
        self._data = data
        self.files: HeldFiles | None = None
        """Those of a model that the session itself does not look into."""

    @property
    def size_bytes(self) -> int:
        """Return the size of the model's file or bytes, 0 if there is no such file."""
        if self.path is None:
            return len(self._data or b"")
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0

    @property
    def is_bundle(self) -> bool:
        """Whether what was given is a bundle."""
        return self.path is not None and looks_like_bundle(self.path)

    def hold_of_bundle(self, bundle: Bundle) -> None:
        """Keep the files of the model that a bundle was made of: given with it, or kept in it. None may be there."""
        is_given = self.path is not None and not looks_like_bundle(self.path)
        path = self.path if is_given else bundle.portable_path
        self.files = None
        self.hold(None if path is None else str(path), [file.location for file in bundle.manifest.source.files[1:]])

    def read(self) -> Model:
        """The model, its graph not built yet. Raises: as `read_model`."""
        from parallax.model import read_model

        source = self.files or self.path or self._data
        assert source is not None
        return read_model(source)

    def look(self) -> ModelSummary | None:
        """What one look at the model shows; None where it has to be read."""
        from parallax.model import read_summary

        source = self.files or self.path or self._data
        return None if source is None else read_summary(source)

    def hold(self, path: str | None, locations: Sequence[str] = ()) -> None:
        """Keep the model's files at ``path``, if they can be opened: the runtime says what is wrong with them."""
        if path is None or self.files is not None:
            return
        from parallax.model import hold_files

        try:
            self.files = hold_files(path, locations)
        except (OSError, ValueError):
            self.files = None

    def open_whole(self, model: Model | None, session_options: Any, open_source: Callable[[str | bytes], T]) -> T:
        """What ``open_source`` makes of the whole model, given as a path or as bytes.

        Args:
            model: what the session loaded, if it did.
            session_options: the caller's, with which it is opened.

        Raises:
            ModelFileError: a file was written to, so that what the session was opened with is lost.
            UnsupportedModelError: the path leads elsewhere by now, and the model is too large for bytes.
        """
        files = self.files if model is None else model.files
        source = self.whole(model, session_options)
        if isinstance(source, bytes) or files is None:
            return open_source(source)
        try:
            opened = open_source(source)
            if files.are_at_path():
                return opened
        except ort.FOREIGN_EXCEPTIONS:
            if files.are_at_path():
                raise
        return open_source(self.whole(model, session_options))

    def whole(self, model: Model | None, session_options: Any) -> str | bytes:
        """A path that leads to what the session was opened with, or its bytes. Raises: as `open_whole`."""
        if model is not None:
            if model.files.external and not model.files.are_at_path():
                _check_embeddable(model, session_options)
            return model.whole()
        files = self.files
        if files is None or files.model is None:
            source = self._data if self.path is None else self.path
            assert source is not None
            return source
        files.check_intact()
        if files.are_at_path():
            return files.model.path
        data = files.model.buffer[:]
        # External data are named so. The runtime would look for them in the working folder.
        if not files.external and b"location" not in data:
            return data
        from parallax.model import read_model

        model = read_model(files)
        _check_embeddable(model, session_options)
        return model.embedded()


def _check_embeddable(model: Model, session_options: Any) -> None:
    """Raises: ModelFileError if the options say where external data are, which the model would have inside it."""
    if session_options is None:
        return
    from parallax.options import why_given_options_stay_whole

    reason = why_given_options_stay_whole(session_options, model)
    if reason is not None:
        raise ModelFileError(
            f"the model's files are no longer where they were when it was opened, and {reason}",
            where=None if model.path is None else str(model.path),
            fix="leave a model's files in place while it is used",
        )


def in_memory_if_small(model: Model) -> Model:
    """The model to make segments of: where its weights are small, no write into its files reaches them."""
    return model.in_memory() if 0 < model.files.mapped_bytes <= _MEMORY_BYTES else model


def needs_no_threads(session_options: Any, providers: Sequence[str]) -> bool:
    """Whether a session opened with these options has no threads of its own, so that a fork leaves it whole."""
    return (
        list(providers) == ["CPUExecutionProvider"]
        and session_options.intra_op_num_threads == 1
        and session_options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        and session_options.use_per_session_threads
    )


# -- copies that travel -----------------------------------------------------------------------------------------------


def travelling(
    source: SessionSource, model: Model | None, bundle: OpenedBundle | None, session_options: Any
) -> dict[str, Any]:
    """What a pickled session carries of its source.

    A path, made absolute, while it leads to the model: the receiver opens it there, and `check_arrived` refuses another
    model. Bytes otherwise, which hold all weights.

    Raises: ConfigError if the session options hold content for the model, which cannot be read from them.
    """
    if model is not None:
        model = model.as_given  # who slims it here slims it there
    if session_options is not None and model is not None:
        from parallax.options import why_content_matters

        held = why_content_matters(session_options, model)
        if held is not None:
            raise ConfigError(
                f"the session cannot be pickled: {held}", fix="open it where it is used, with those options"
            )
    if bundle is not None and bundle.path == source.path:
        return {"source": bundle.path, "bundle": bundle.model_digest}
    files = source.files if model is None else model.files
    if files is None:
        return {"source": source.whole(model, session_options)}
    if files.model is None and files.external:
        assert model is not None
        return {"source": model.embedded()}
    whole = source.whole(model, session_options)
    if isinstance(whole, bytes):
        return {"source": whole}
    return {
        "source": whole,
        "locations": tuple(files.external),
        "states": [file.state for file in files.all],
        "digest": files.digest,
    }


def check_arrived(state: Mapping[str, Any]) -> None:
    """Check what `travelling` made, before it is opened elsewhere.

    Raises: ModelFileError, BundleError if another model lies at the path by now, or there.
    """
    from parallax.bundle import read_manifest
    from parallax.model import hold_files

    path, digest = state["source"], state.get("digest")
    if "bundle" in state and read_manifest(path)[0].source.digest != state["bundle"]:
        raise BundleError(
            "another model's bundle lies here than the one of the session that was pickled",
            where=path,
            fix="put that bundle here",
        )
    if digest is None:
        return
    try:
        files = hold_files(path, state["locations"])
    except (OSError, ValueError):
        return  # opening it says what is wrong
    if [file.state for file in files.all] != state["states"] and files.digest != digest:
        raise ModelFileError(
            "another model lies here than the one of the session that was pickled",
            where=path,
            fix="put that model here; or give its bytes to the session instead of its path, which are pickled with it",
        )
