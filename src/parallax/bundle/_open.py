"""Open a bundle: check it, and map what it holds. Nothing of a bundle that fails a check is run."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from parallax._record import dataclass
from parallax.backends.ort import MappedWeights
from parallax.bundle._checks import declaration_path, names_path
from parallax.bundle._content import read_content, read_declaration
from parallax.bundle._digest import SMALL_BYTES, CheckedFiles, Signature, file_digest, settled, signature
from parallax.bundle._folder import Verify, data_path, is_dropping
from parallax.bundle._manifest import FileRecord, Manifest
from parallax.bundle._read import read_manifest
from parallax.errors import BundleError, ConfigError
from parallax.schedule import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.bundle._names import ModelNames

T = TypeVar("T")

_ATTEMPTS = 8
_COMPILE_AGAIN = "compile the model again"

LARGE_WEIGHT_BYTES = 32 << 20
"""From here on, opening a bundle leaves enough free memory in the heap to be worth handing back."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that passed its checks. Its files must stay as they are while it is open."""

    folder: str
    """Absolute, links followed. As text: to load `pathlib` takes as long as to check a small bundle."""
    manifest: Manifest
    plan: Plan
    signatures: dict[str, Signature] = field(repr=False)

    @property
    def path(self) -> Path:
        """Its folder."""
        from pathlib import Path

        return Path(self.folder)

    def graph_path(self, index: int) -> str:
        """The optimised graph of one of the plan's segments; its weights lie beside it."""
        return os.path.join(self.folder, self.manifest.segments[index].graph)

    def data_path(self, index: int) -> str:
        """Path of the file that holds those weights."""
        return data_path(self.graph_path(index))

    def map_weights(self, index: int) -> MappedWeights:
        """The weights of one of the plan's segments that its session can be lent.

        Raises: BundleError if they do not lie in the file of its data.
        """
        weights = self.manifest.segments[index].weights
        path = self.data_path(index)
        try:
            return MappedWeights(path, weights)
        except (OSError, TypeError, ValueError) as error:
            raise BundleError(f"cannot map the weights: {error}", where=path, fix=_COMPILE_AGAIN) from error

    @property
    def portable_path(self) -> Path | None:
        """The model as it came, if it was kept."""
        return None if self.manifest.portable is None else self.path / self.manifest.portable

    def declaration(self) -> bytes | None:
        """What the runtime says of the whole model's outputs, as the engine stores it; None where it was not kept.

        Raises: BundleError if it cannot be read.
        """
        name = declaration_path(self.manifest.generation)
        return read_declaration(os.path.join(self.folder, name)) if name in self.signatures else None

    def names(self) -> ModelNames | None:
        """Names of the model that was compiled; None where they were not kept.

        Raises: BundleError if they cannot be read.
        """
        from parallax.bundle._names import read_names  # only for session options

        name = names_path(self.manifest.generation)
        return read_names(self.path / name) if name in self.signatures else None

    def check_unchanged(self) -> None:
        """Check that no file changed; call it once they are mapped. Raises: BundleError if one was changed since it
        was checked."""
        for name, expected in self.signatures.items():
            path = os.path.join(self.folder, name)
            if _stat_signature(path) != expected:
                raise BundleError("a file was changed while the bundle was opened", where=path)


def use_bundle(
    path: str | os.PathLike[str], use: Callable[[Bundle], T], *, verify: Verify = "once", cache_dir: Path | None = None
) -> T:
    """Open the bundle at ``path``, check it, and return what ``use`` makes of it.

    A bundle that another process replaces meanwhile is opened again: then ``use`` is called once more.

    Raises:
        BundleError: it is damaged, incomplete, or not a bundle.
        ConfigError: an unknown ``verify``.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"unknown verify={verify!r}", fix='choose "once", "full" or "never"')
    folder = os.path.realpath(path)
    for attempt in range(_ATTEMPTS):
        manifest, text = read_manifest(folder)
        try:
            bundle = _check(folder, manifest, verify, cache_dir)
            result = use(bundle)
            bundle.check_unchanged()
        except Exception:
            # Replacing a bundle replaces its manifest, then removes the files: what failed may have been the old one.
            if attempt + 1 < _ATTEMPTS and _is_replaced(folder, text):
                continue
            raise
        return result
    raise BundleError("the bundle was replaced again and again while it was opened", where=folder)


def read_bundle(path: str | os.PathLike[str], *, verify: Verify = "once", cache_dir: Path | None = None) -> Bundle:
    """Check the bundle at ``path``, whoever it was made for. Raises: as `use_bundle`."""
    return use_bundle(path, lambda bundle: bundle, verify=verify, cache_dir=cache_dir)


def _is_replaced(folder: str, text: bytes) -> bool:
    try:
        return read_manifest(folder)[1] != text
    except BundleError:
        return False


def _check(folder: str, manifest: Manifest, verify: Verify, cache_dir: Path | None) -> Bundle:
    _check_listing(folder, manifest)
    checked = CheckedFiles(folder, cache_dir)
    known = checked.load() if verify == "once" else {}
    signatures: dict[str, Signature] = {}
    lasting: dict[str, tuple[Signature, str]] = {}
    learnt = False
    for record in manifest.files:
        path = os.path.join(folder, record.path)
        began = time.time_ns()
        found = _stat_signature(path)
        if found[2] != record.size:
            raise BundleError(
                f"the file has {found[2]} bytes, not the {record.size} it was written with",
                where=path,
                fix=_COMPILE_AGAIN,
            )
        signatures[record.path] = found
        before = known.get(record.path)
        if record.size > SMALL_BYTES and before == (found, record.sha256):
            lasting[record.path] = before
            continue
        if record.size > SMALL_BYTES and verify == "never":
            continue
        _check_digest(path, record)
        if record.size > SMALL_BYTES and settled(found, began):
            lasting[record.path] = (found, record.sha256)
            learnt = True
    if learnt:
        checked.store(lasting)
    return Bundle(folder=folder, manifest=manifest, plan=read_content(folder, manifest), signatures=signatures)


def _check_digest(path: str, record: FileRecord) -> None:
    try:
        digest = file_digest(path)
    except OSError as error:
        raise BundleError(f"cannot read the file: {error.strerror or error}", where=path) from error
    if digest != record.sha256:
        raise BundleError(
            "the file was changed since it was written: its digest is another", where=path, fix=_COMPILE_AGAIN
        )


def _check_listing(folder: str, manifest: Manifest) -> None:
    """The generation's folder holds the files that the manifest names, and nothing else."""
    missing = {record.path for record in manifest.files}
    folders = {manifest.generation}
    for name in missing:
        parts = name.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    # Only what the manifest names is entered, so that no chain of folders leads on for ever.
    for name in sorted(folders):
        for entry in _entries(os.path.join(folder, name)):
            inner = f"{name}/{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            if inner in folders and is_folder:
                continue
            if is_dropping(entry.name) and not is_folder:
                continue
            if inner not in missing and inner not in folders:
                raise BundleError("this is not part of the bundle", where=entry.path, fix="remove it")
            if not entry.is_file(follow_symlinks=False):
                raise BundleError(
                    "this is a link or device, not a file of the bundle", where=entry.path, fix=_COMPILE_AGAIN
                )
            missing.discard(inner)
    for name in sorted(missing):
        raise BundleError("a file of the bundle is missing", where=os.path.join(folder, name), fix=_COMPILE_AGAIN)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder of the bundle, by name."""
    try:
        if stat.S_ISLNK(os.lstat(folder).st_mode):
            raise BundleError("this is a link, not a folder of the bundle", where=folder, fix=_COMPILE_AGAIN)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                entry.is_dir(follow_symlinks=False)  # from here on it is known, and asking raises nothing
            return found
    except OSError as error:
        raise BundleError(
            f"cannot read the folder: {error.strerror or error}", where=folder, fix=_COMPILE_AGAIN
        ) from error


def _stat_signature(path: str) -> Signature:
    try:
        return signature(path)
    except OSError as error:
        raise BundleError(f"cannot read the file: {error.strerror or error}", where=path) from error


# -- the session options that a bundle's graph is opened with where it runs whole --------------------------------------


@contextlib.contextmanager
def mapped_options(session_options: Any, weights: MappedWeights | None, weight_bytes: int) -> Iterator[Any]:
    """Options that open a bundle's graph: as it is, with little memory where the caller has no wishes.

    The caller's object is restored afterwards. Memory patterns (one block for all tensors of a run, sized by
    the run before) are left off: measured on the zoo, they gain nothing here and cost up to half as much again. So is
    memory reuse (which dead tensor's buffer a later one takes): to plan it compares all tensors with each other, which
    takes up to an eighth of the opening, and the allocator finds a free block as quickly.
    Weights are packed side by side, to be compared with what is stored, where memory is not scarce: that holds
    as many of them at once as there are threads.

    Args:
        weights: are lent to the session, where the options are not the caller's.
        weight_bytes: of all weights of the model.
    """
    import onnxruntime

    if session_options is None:
        made = mapped_defaults(weight_bytes)
        if weights is not None:
            weights.lend(made)
        yield made
        return
    level = session_options.graph_optimization_level
    session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        yield session_options
    finally:
        session_options.graph_optimization_level = level


def mapped_defaults(weight_bytes: int) -> Any:
    """The options of `mapped_options` where the caller has no wishes, with nothing lent."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made.enable_mem_pattern = made.enable_mem_reuse = False
    if weight_bytes < LARGE_WEIGHT_BYTES or _is_free(2 * weight_bytes):
        made.add_session_config_entry("session.prepack.enable_parallel", "1")
    return made


def _is_free(size_bytes: int) -> bool:
    """Whether so much memory can be had."""
    from parallax.machine import free_memory_bytes

    return size_bytes < free_memory_bytes()
