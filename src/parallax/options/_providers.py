"""A ``providers=`` list: the accelerators that Parallax plans for, and what is left to ONNX Runtime.

Parallax plans for backends of its own names ("emulated:pixel-6-gpu", "webgpu", ...), and for ONNX Runtime's providers
where the session is tuned. Else those get the whole model, as they do without Parallax. What is not installed here is
left to ONNX Runtime, which warns of it and goes on with the rest of the list.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import onnxruntime

from parallax._record import dataclass
from parallax.errors import ConfigError, MissingExtraError
from parallax.schedule import CPU_BACKEND

if TYPE_CHECKING:
    from parallax.backends import Backend

CPU_PROVIDER: Final = "CPUExecutionProvider"

MEMORY_OPTION: Final = "memory_budget"
"""An option of ours that every device has: what it may hold of the model, as `parallax.memory.parse_bytes` reads it."""

CPU_PROVIDERS: Final = frozenset({CPU_PROVIDER, "AzureExecutionProvider"})
"""On a CPU-only build these two are what "all available providers" means; Azure's only takes its own custom nodes."""

_ARENA_OPTION: Final = "gpu_mem_limit"
"""How CUDA's, TensorRT's, ROCm's and MIGraphX's providers name the bytes that their arena is limited to, beyond which
runs fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An accelerator that a session was given."""

    name: str
    options: Mapping[str, Any]
    memory_bytes: int | None = None
    """What it may hold; None: as much as it likes."""

    @property
    def key(self) -> str:
        """Names it in caches."""
        options = sorted((key, str(value)) for key, value in self.options.items())
        return f"{self.name} {options}" + ("" if self.memory_bytes is None else f" {self.memory_bytes} bytes")

    @property
    def entry(self) -> tuple[str, dict[str, Any]]:
        """Return the device as ``providers=`` takes it."""
        limit = {} if self.memory_bytes is None else {MEMORY_OPTION: self.memory_bytes}
        return self.name, {**self.options, **limit}


def leave_out_missing(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None
) -> tuple[Sequence[Any] | None, Sequence[Mapping[Any, Any]] | None, str]:
    """A ``providers=`` list without those backends of ours whose package is not installed, and its options.

    They are warned of, as ONNX Runtime warns of a provider that it lacks, and the rest of the list runs the model.

    Returns: both lists, and what was left out and why; "" if nothing was.
    """
    if not providers or isinstance(providers, str) or not isinstance(providers, Sequence):
        return providers, provider_options, ""
    missing = {}
    for position, entry in enumerate(providers):
        name = entry[0] if isinstance(entry, tuple) and entry else entry
        error = _missing_extra(name)
        if error is not None:
            missing[position] = error
            warnings.warn(f"{error.what}; the rest of providers= runs the model. To have it: {error.fix}", stacklevel=5)
    if not missing:
        return providers, provider_options, ""
    left = [entry for position, entry in enumerate(providers) if position not in missing]
    if isinstance(provider_options, Sequence) and len(provider_options) == len(providers):
        provider_options = [given for position, given in enumerate(provider_options) if position not in missing]
    if not left:
        left, provider_options = [CPU_PROVIDER], None
    return left, provider_options, "; ".join(f"{error.what} ({error.fix})" for error in missing.values())


def split_providers(
    providers: Sequence[Any] | None, provider_options: Sequence[Mapping[Any, Any]] | None, *, tunes: bool
) -> tuple[tuple[Device, ...], Sequence[Any] | None, Sequence[Mapping[Any, Any]] | None]:
    """The accelerators of a ``providers=`` list that Parallax plans for, and what is ONNX Runtime's own affair.

    Args:
        tunes: whether plans are measured, so that ONNX Runtime's own providers can be compared with.

    Raises: ConfigError for an entry that is neither a name nor a name with its options, and for lists of two lengths.
    """
    _check_list(providers)
    if not providers or not isinstance(providers, Sequence):
        return (), providers, provider_options  # ONNX Runtime takes others than sequences, too
    stated = provider_options if isinstance(provider_options, Sequence) else ()
    devices: list[Device] = []
    left: list[Any] = []
    left_options: list[Mapping[Any, Any]] = []
    for position, entry in enumerate(providers):
        name, options = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
        if options is None:
            options = stated[position] if position < len(stated) else {}
        if not _is_ours(name, tunes=tunes):
            if isinstance(options, Mapping) and MEMORY_OPTION in options:
                raise ConfigError(
                    f"{MEMORY_OPTION} of {name!r}, which gets the whole model",
                    fix="add tune=True, or give ONNX Runtime's own option" if tunes is False else "leave it out",
                )
            left.append(CPU_PROVIDER if name == CPU_BACKEND else entry)
            left_options.append(options)
        elif not isinstance(options, Mapping):
            raise ConfigError(
                f"{entry!r} is no provider", fix="give a name, or a tuple of a name and a dict of options"
            )
        else:
            devices.append(make_device(name, options))
    if devices and provider_options is not None and len(stated) != len(providers):
        from parallax.backends.ort import both

        # As ONNX Runtime has it, which does not get to see the list as it was given.
        raise both(ConfigError, ValueError)(
            f"{len(providers)} providers, and options for {len(stated)} of them",
            where="provider_options",
            fix="give a sequence of one dict for each provider, which may be empty",
        )
    if not devices:
        return (), providers, provider_options
    if not left:
        left, left_options = [CPU_PROVIDER], [{}]
    return tuple(devices), left, left_options if provider_options else None


def _check_list(providers: Any) -> None:
    """Raises: ConfigError for what ONNX Runtime would fail to take apart, or take for a list of letters."""
    from parallax.backends.ort import both

    if isinstance(providers, str) and providers:
        # In the class for which ONNX Runtime's constructor falls back to the CPU.
        raise both(ConfigError, RuntimeError)(
            f"providers={providers!r:.80} is no list", fix=f"write providers=[{providers!r:.80}]"
        )
    if providers and not hasattr(providers, "__iter__"):
        raise both(ConfigError, TypeError)(
            f"providers={providers!r:.80} is no list of providers", fix=f"write providers=[{CPU_PROVIDER!r}]"
        )


def _missing_extra(name: Any) -> MissingExtraError | None:
    """What is missing for a backend of that name; None too for what is no name."""
    if not isinstance(name, str) or name in CPU_PROVIDERS:
        return None
    from parallax.backends import missing_extra

    return missing_extra(name)


def _is_ours(name: Any, *, tunes: bool) -> bool:
    """Whether Parallax plans for it, if that is a name."""
    if not isinstance(name, str) or name in (CPU_BACKEND, CPU_PROVIDER):
        return False
    from parallax.backends import has_provider, is_backend_name

    return is_backend_name(name) or (tunes and name not in CPU_PROVIDERS and has_provider(name))


def make_device(name: str, options: Mapping[str, Any]) -> Device:
    """A device with its options, of which what it may hold is ours. Raises: ConfigError if that is no size."""
    own = {key: value for key, value in options.items() if key != MEMORY_OPTION}
    limit: int | None = None
    if MEMORY_OPTION in options:
        from parallax.memory import parse_bytes

        limit = parse_bytes(options[MEMORY_OPTION], where=f"{MEMORY_OPTION} of {name}")
    elif str(own.get(_ARENA_OPTION, "")).isdecimal():
        limit = int(own[_ARENA_OPTION])
    return Device(name=name, options=own, memory_bytes=limit or None)


def why_not_on_cpu(providers: Sequence[Any] | None) -> str | None:
    """Which of these entries of ONNX Runtime's gets the whole model, or None where all of it runs on the CPU.

    A provider that this build of ONNX Runtime lacks gets nothing: the runtime warns of it, and leaves it out.
    """
    known, available = onnxruntime.get_all_providers(), onnxruntime.get_available_providers()
    for entry in providers or ():
        name = entry[0] if isinstance(entry, tuple) and entry else entry
        if name not in CPU_PROVIDERS and (name not in known or name in available):
            return given_to(name)
    return None


def check_providers(providers: Sequence[Any] | None, provider_options: Sequence[Any] | None) -> None:
    """Check them as the base class does, which does so only when it opens the model itself. Raises: what it raises."""
    from onnxruntime.capi.onnxruntime_inference_collection import check_and_normalize_provider_args

    check_and_normalize_provider_args(providers, provider_options, onnxruntime.get_available_providers())


def given_to(name: Any) -> str:
    """The reason of a plan that leaves the model to a provider of ONNX Runtime's."""
    return f"the whole model is given to {name}, which leaves to the CPU what it does not take"


class AskedProviders:
    """The providers that a session was asked for, and what stood in their way."""

    def __init__(self) -> None:
        self._given: Sequence[Any] | None = None
        self._names: tuple[str, ...] = ()
        self._left_out = ""
        self._refusal = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of those that ONNX Runtime was to use."""
        return self._names

    def note(
        self, given: Sequence[Any] | None, kept: Sequence[Any] | None, left_out: str, *, is_fallback: bool
    ) -> None:
        """A session is about to be opened.

        Args:
            given: what it is asked for now.
            kept: of those, what was not left out beforehand.
            left_out: which were, and why; "" if none was.
            is_fallback: ONNX Runtime opens it again, after what was asked for first has failed.
        """
        error = sys.exc_info()[1]  # which ONNX Runtime's class handles while it opens a session again
        if is_fallback and error is not None:
            lines = str(error).splitlines()
            asked = f"providers={list(self._names)}" if self._names else "the session"
            self._refusal = f"ONNX Runtime failed with {asked}: {lines[0] if lines else type(error).__name__}"
        elif given is None or given is not self._given:  # else it is opened again, in a forked process
            self._names = _names_of(kept)
            self._refusal = ""
            self._left_out = left_out
        self._given = given

    def describe_fallback(self, running: Sequence[str]) -> str:
        """What the session fell back to and why; "" where all that was asked for is there.

        Args:
            running: the providers that it has.
        """
        why = [text for text in (self._refusal, self._left_out) if text]
        if not self._refusal:
            why += [_why_missing(name) for name in self.missing(running)]
        return f"fell back to {', '.join(running)}: {'; '.join(why)}" if why else ""

    def missing(self, running: Collection[str]) -> tuple[str, ...]:
        """Return those that the session does not have."""
        return tuple(name for name in self._names if name != CPU_BACKEND and name not in running)


def _names_of(providers: Any) -> tuple[str, ...]:
    """The names in a list; none of what ONNX Runtime takes for no list."""
    if not isinstance(providers, Sequence) or isinstance(providers, str):
        return ()
    names = [entry[0] if isinstance(entry, tuple) and entry else entry for entry in providers]
    return tuple([name for name in names if isinstance(name, str)])


def _why_missing(name: str) -> str:
    if name in onnxruntime.get_available_providers():
        return f"{name} could not be used (ONNX Runtime left it out when it opened the model, and logged why)"
    return (
        f"{name} is not in this installation of ONNX Runtime "
        "(to have it, install the distribution that does, such as onnxruntime-gpu for CUDA)"
    )


def open_devices(devices: Sequence[Device]) -> dict[str, Backend]:
    """Open devices by name, in order of preference. Raises: as `parallax.backends.open_backend`."""
    if not devices:
        return {}
    from parallax.backends import open_backend

    return {device.name: open_backend(device.name, device.options) for device in devices}
