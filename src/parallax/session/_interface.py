"""A split model's inputs and outputs, as far as its segments know them."""

from __future__ import annotations

from typing import Any

from parallax._record import dataclass
from parallax.bundle import Bundle
from parallax.engine import Executor
from parallax.errors import BundleError
from parallax.graph import ELEMENT_TYPES, NUMPY_TYPES, TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A model's inputs and outputs, as far as feeding it goes."""

    inputs: tuple[TensorInfo, ...]
    overridable: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_interface(bundle: Bundle, executor: Executor) -> Interface:
    """The interface of a cut bundle, from what its segments say of it.

    Raises: BundleError if no segment knows a name that the manifest lists.
    """
    known: dict[str, Any] = {}
    for segment in executor.segments:
        session = segment.session
        for argument in (*session.inputs_meta, *session.overridable_initializers, *session.outputs_meta):
            known.setdefault(argument.name, argument)
    names = bundle.manifest.interface
    try:
        return Interface(
            inputs=tuple(_tensor(known[name]) for name in names.inputs),
            overridable=tuple(_tensor(known[name]) for name in names.overridable if name in known),
            outputs=tuple(_tensor(known[name]) for name in names.outputs),
        )
    except KeyError as error:
        raise BundleError(f"no graph of the bundle knows {error}", where=bundle.folder) from error


_TYPE_CODES = {ELEMENT_TYPES[code].runtime_type: code for code in NUMPY_TYPES}


def _tensor(argument: Any) -> TensorInfo:
    return TensorInfo(name=argument.name, dtype=_TYPE_CODES[argument.type], shape=tuple(argument.shape))
