"""What a caller's ``onnxruntime.SessionOptions`` hold beside what can be read from them.

ONNX Runtime's binding takes initializers, files of external data, sizes of free dimensions and libraries of custom
operators into such an object, and tells of none of them. A segment is opened with options of our own, so it would do
without. They are found by asking for them: a copy of the object refuses a name that it already has, and a model of
inputs alone, opened with the object itself, shows the sizes of its dimensions. What is found keeps the model whole,
for the runtime's own session gets the caller's object as it is.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as C

from parallax.backends.ort import FOREIGN_EXCEPTIONS, IDENTITY, open_quietly
from parallax.bundle import ModelNames
from parallax.model import Model, tensor_names
from parallax.options._config_keys import first_entry_decided, first_entry_for_whole

logger = logging.getLogger(__name__)

_CUSTOM_OPERATORS: Final = "RegisterCustomOps"
"""The function by which ONNX Runtime registers a library's operators."""

_MAPPED_FILE: Final = re.compile(r"^\S+ r-x\S* \S+ \S+ [1-9]\d* +(/.+)$", re.MULTILINE)


def why_given_options_stay_whole(session_options: Any, model: Model) -> str | None:
    """Why segments would not compute what a session of the whole model with these options does, or None.

    Takes some ten milliseconds, most of it for reading config entries. Options that can be read but for those are
    `why_not_cut`'s affair, which comes first.

    Args:
        session_options: the caller's, which are left as they are.
        model: without shapes that were fixed for planning.
    """
    entry = first_entry_for_whole(session_options)
    if entry is not None:
        return f"the session option {entry[0]}={entry[1]!r} is for the whole model"
    library = custom_operator_library()
    if library is not None:
        return (
            f"the session options may hold the custom operators of {library}, which is loaded: "
            "only the whole session knows those"
        )
    return why_content_matters(session_options, model)


def why_content_matters(session_options: Any, model: Model) -> str | None:
    """What the options hold that cannot be read from them and concerns this model, in words; or None."""
    shows = functools.partial(_why_inputs_differ, model.interface())
    return why_hidden_content_matters(session_options, tensor_names(model), model.files.external, shows)


def why_not_with_bundle(
    session_options: Any, names: ModelNames | None, locations: Iterable[str], *, is_trimmed: bool
) -> str | None:
    """Why a compiled model would not compute what the model with these options does, or None.

    Args:
        names: of the model; None where the bundle does not have them.
        locations: names of its files of external data.
        is_trimmed: whether its runs leave out padding, so that its inputs must be free to be shorter.
    """
    level = session_options.graph_optimization_level
    if level != onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL:
        return f"graph_optimization_level ({level.name}) is decided when a bundle is compiled"
    entry = first_entry_decided(session_options)
    if entry is not None:
        return f"the session option {entry[0]}={entry[1]!r} is decided when a bundle is compiled"
    if names is None:
        return "it does not say which initializers session options could give; compile it again"
    shows = functools.partial(_why_inputs_differ, names.interface) if is_trimmed else None
    return why_hidden_content_matters(session_options, names.tensors, locations, shows)


def why_not_with_split_bundle(session_options: Any, names: ModelNames | None) -> str | None:
    """Say why a bundle in parts, which open with options of our own, cannot take the caller's; None if it can."""
    library = custom_operator_library()
    if library is not None:
        return f"the session options may hold the custom operators of {library}, which is loaded"
    entry = first_entry_for_whole(session_options)
    if entry is not None:
        return f"the session option {entry[0]}={entry[1]!r} is for the whole model"
    return None if names is None else _why_inputs_differ(names.interface, session_options)


def why_hidden_content_matters(
    session_options: Any,
    tensors: Iterable[str],
    locations: Iterable[str],
    why_inputs_differ: Callable[[Any], str | None] | None = None,
) -> str | None:
    """What options hold that cannot be read from them and concerns a model, in words; or None.

    Args:
        tensors: names of the model's tensors, initializers among them.
        locations: names of its files of external data.
        why_inputs_differ: is given the options to open a model of its inputs with.
    """
    try:
        copied = copied_options(session_options)
        found = _name_held(copied, tensors, locations)
        if found is not None:
            return found
        if why_inputs_differ is not None:
            return why_inputs_differ(session_options)
        open_quietly(session_options, IDENTITY)
    except FOREIGN_EXCEPTIONS as error:
        # Initializers for external data that the model opened here does not have; a load that is to be cancelled; ...
        return f"a model of inputs alone cannot be opened with the session options: {error}"
    return None


def copied_options(session_options: Any) -> Any:
    """A copy of an ``onnxruntime.SessionOptions``: but for execution providers and custom operators, which are lost.

    Raises: what ONNX Runtime raises for options that no session can be made with.
    """
    return C.InferenceSession(session_options, IDENTITY, False, False).session_options


def _name_held(copied: Any, tensors: Iterable[str], locations: Iterable[str]) -> str | None:
    """Which of these names the options have content for. ``copied`` gets them all, and is of no use afterwards."""
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))
    for name in sorted(tensors):
        if _has(copied.add_initializer, name, value):
            return f"the session options give initializer {name!r} (add_initializer)"
        if _has(copied.add_external_initializers, [name], [value]):
            return f"the session options give initializer {name!r} (add_external_initializers)"
    spellings = {spelling for name in locations for spelling in (name, os.path.normpath(name), os.path.basename(name))}
    for name in sorted(spellings):
        if _has(copied.add_external_initializers_from_files_in_memory, [name], [b""], [0]):
            return f"the session options give the content of file {name!r}"
    return None


def _has(add: Callable[..., None], *content: Any) -> bool:
    """Whether adding a name is refused, which it is if it was added before."""
    try:
        add(*content)
    except RuntimeError:
        return True
    return False


def _why_inputs_differ(interface: bytes | None, session_options: Any) -> str | None:
    """Which input a session with these options shows in another shape than the model has it, if one is."""
    plain = onnxruntime.SessionOptions()
    plain.intra_op_num_threads = 1
    shown = open_quietly(session_options, IDENTITY if interface is None else interface).inputs_meta
    stated = C.InferenceSession(plain, IDENTITY if interface is None else interface, False, False).inputs_meta
    for before, after in zip(stated, shown, strict=True):
        if list(before.shape) != list(after.shape):
            return f"the session options fix free dimensions of input {after.name!r}; give shapes= instead to split"
    return None


def custom_operator_library() -> str | None:
    """The first library in this process that could have been given to ``register_custom_ops_library``, or None.

    Such operators may replace the runtime's own, so that a model does not show them. Where the system does not
    tell what is loaded, there may be one.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            paths = dict.fromkeys(_MAPPED_FILE.findall(file.read()))
    except OSError as error:
        logger.debug("loaded libraries cannot be listed: %s", error)
        return "a library (which are loaded cannot be told here)"
    return next((path for path in paths if _offers_operators(path)), None)


@functools.lru_cache(maxsize=4096)
def _offers_operators(path: str) -> bool:
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # the program itself, or a file that is mapped but no library
        return False
    return hasattr(library, _CUSTOM_OPERATORS)
