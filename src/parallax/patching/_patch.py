"""``parallax.patch``: our class in the place of ONNX Runtime's, for libraries that open sessions themselves."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import Any, Final, NamedTuple, Self

import onnxruntime
from onnxruntime.capi import onnxruntime_inference_collection as collection

from parallax.backends.ort import StockSession
from parallax.session import InferenceSession

logger = logging.getLogger(__name__)

_NAME: Final = "InferenceSession"
_OWN: Final = ("parallax", "onnxruntime.capi")
"""Modules in these packages keep what they hold: both classes are made of it."""

_lock = threading.RLock()
_in_force: list[Patch] = []  # (lock)


class Place(NamedTuple):
    """A name that held ONNX Runtime's class."""

    holder: Any
    """A module, or a class in one."""
    name: str
    label: str
    """How to write it, such as ``"rapidocr.inference.InferenceSession"``."""
    before: Any
    """What it held."""


class Patch:
    """Keeps ``parallax.InferenceSession`` in the place of ONNX Runtime's class, from `patch` until it is undone.

    A context manager: at its end, each name holds again what it held before.

    Attributes:
        replaced: the names that were given our class, such as ``"onnxruntime.InferenceSession"``.
        missed: what goes on using ONNX Runtime's own class, in words: subclasses that were defined before, and names
            that could not be set.
    """

    def __init__(self) -> None:
        places, self._places = _places(), list[Place]()
        missed = []
        for place in places:
            try:
                setattr(place.holder, place.name, InferenceSession)
            except (AttributeError, TypeError) as error:
                missed.append(f"{place.label} (cannot be set: {error})")
            else:
                self._places.append(place)
        missed += [f"{_label(kind)} (a subclass, defined before)" for kind in _subclasses(StockSession)]
        self.replaced: tuple[str, ...] = tuple(place.label for place in self._places)
        self.missed: tuple[str, ...] = tuple(missed)
        self._modules = frozenset(sys.modules)
        self._is_undone = False

    def undo(self) -> tuple[str, ...]:
        """Put back what was there before. A name that holds something else by now is left alone. Only once.

        Returns: names that still hold our class: of modules that were imported meanwhile, and took it from
            ``onnxruntime``.
        """
        with _lock:
            if self._is_undone:
                return ()
            self._is_undone = True
            if self in _in_force:
                _in_force.remove(self)
            for place in reversed(self._places):
                if vars(place.holder).get(place.name) is InferenceSession:
                    setattr(place.holder, place.name, place.before)
            return tuple(
                place.label for place in _held(InferenceSession) if _module_name(place.holder) not in self._modules
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self.undo()
        if left:
            logger.info("modules imported while onnxruntime was patched keep parallax's class: %s", ", ".join(left))

    def __repr__(self) -> str:
        """What was replaced, and what was not."""
        missed = f"; not reached: {', '.join(self.missed)}" if self.missed else ""
        return f"<Patch of {', '.join(self.replaced) or 'nothing'}{missed}>"


def patch() -> Patch:
    """Put ``parallax.InferenceSession`` in the place of ``onnxruntime.InferenceSession``, in the whole process.

    Sessions that libraries open from now on are ours, also where a module that is loaded already ran ``from onnxruntime
    import InferenceSession``. Sessions that are open stay what they are, and so do subclasses that were defined before;
    what was not reached is named, in a warning of the log and in ``Patch.missed``. Processes that are spawned later
    are not patched.

    Returns: a `Patch`; it says what was replaced, undoes it (as does `unpatch`), and is a context manager.

    Example::

        with parallax.patch():
            engine = rapidocr.RapidOCR()
        text = engine(image)
    """
    with _lock:
        made = Patch()
        _in_force.append(made)
    if made.missed:
        logger.warning(
            "goes on with ONNX Runtime's own class: %s; call parallax.patch() before they are imported",
            ", ".join(made.missed),
        )
    return made


def unpatch() -> tuple[str, ...]:
    """Undo all that `patch` did and that is still in force, the last first.

    Returns: names that still hold our class, as `Patch.undo` does.
    """
    left: dict[str, None] = {}
    with _lock:
        while _in_force:
            left.update(dict.fromkeys(_in_force[-1].undo()))
    return tuple(left)


def _places() -> list[Place]:
    """Every name that holds ONNX Runtime's class, or what another tool put in its place."""
    known = [
        Place(onnxruntime, _NAME, f"onnxruntime.{_NAME}", onnxruntime.InferenceSession),
        Place(collection, _NAME, f"{collection.__name__}.{_NAME}", collection.InferenceSession),
    ]
    found = [place for place in known if place.before is not InferenceSession]
    return found + list(_held(StockSession))


def _held(kind: type) -> Iterator[Place]:
    """Names of modules, and of classes in them, that hold this class; without those of our package and the runtime."""
    for module_name, module in sorted(sys.modules.items()):
        if not isinstance(module, ModuleType) or _is_own(module_name):
            continue
        for name, value in list(vars(module).items()):
            if value is kind:
                yield Place(module, name, f"{module_name}.{name}", value)
            elif isinstance(value, type) and getattr(value, "__module__", None) == module_name:
                for attribute, held in list(vars(value).items()):
                    if held is kind:
                        yield Place(value, attribute, f"{_label(value)}.{attribute}", held)


def _is_own(module_name: str) -> bool:
    return module_name == "onnxruntime" or any(
        module_name == package or module_name.startswith(f"{package}.") for package in _OWN
    )


def _subclasses(kind: Any) -> list[type]:
    """Classes derived from it that are not ours, in the order of their names."""
    found: set[type] = set()
    stack: list[type] = [kind]
    while stack:
        derived: type
        for derived in stack.pop().__subclasses__():
            if derived not in found:
                found.add(derived)
                stack.append(derived)
    return sorted((each for each in found if not _is_ours(each)), key=_label)


def _is_ours(kind: type) -> bool:
    return issubclass(kind, InferenceSession) or any(
        base.__module__.partition(".")[0] == "parallax" for base in kind.__mro__
    )


def _label(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _module_name(holder: Any) -> str:
    return str(holder.__name__ if isinstance(holder, ModuleType) else holder.__module__)
