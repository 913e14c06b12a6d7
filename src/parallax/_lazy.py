"""Names that a package offers, each imported when it is first asked for (PEP 562).

``import parallax`` costs what is used of it and no more: whoever opens a bundle loads no planner, no tuner and no
``onnx``. A package's ``__init__`` states its names twice, to type checkers as imports and to Python as a table:

    if TYPE_CHECKING:
        from parallax.engine._executor import Executor
    else:
        __getattr__, __dir__ = _lazy.exports(__name__, {"_executor": "Executor"})

A test compares the two, and both with ``__all__``. Modules themselves import as ever; an import that stands inside a
function is one that most processes never need.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import logging


def exports(
    package: str, names: Mapping[str, str], *, packages: Collection[str] = (), otherwise: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names lie in its modules.

    Thread-safe: Python loads a module once, and all who ask for one of its names meanwhile wait for that.

    Args:
        package: its ``__name__``.
        names: module of the package -> the names that it gives, separated by blanks; ``name=other`` where the package
            calls ``name`` what the module calls ``other``.
        packages: packages inside it that are loaded when they are asked for by name.
        otherwise: a module that has the public names which this package does not. It is asked anew each time.
    """
    homes: dict[str, tuple[str, str]] = {}
    for module, listed in names.items():
        for entry in listed.split():
            name, _, other = entry.partition("=")
            homes[name] = (f"{package}.{module}", other or name)

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is not None:
            value = getattr(import_module(home[0]), home[1])
        elif name in packages:
            value = import_module(f"{package}.{name}")
        elif otherwise is not None and is_offered(otherwise, name):
            return getattr(import_module(otherwise), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # From now on Python finds it without asking.
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        others: Collection[str] = ()
        if otherwise is not None:
            others = [name for name in dir(import_module(otherwise)) if is_offered(otherwise, name, is_listed=True)]
        return sorted({*vars(sys.modules[package]), *homes, *packages, *others})

    return get, listing


def is_offered(module: str, name: str, *, is_listed: bool = False) -> bool:
    """Whether a module has a public name of its own making, not one that it merely imports from elsewhere.

    Args:
        is_listed: only what tells where it was made, as classes and functions do, and figures and texts do not.
    """
    if name.startswith("_"):
        return False
    missing = object()
    value = getattr(import_module(module), name, missing)
    if value is missing:
        return False
    home = value.__name__ if isinstance(value, type(sys)) else getattr(value, "__module__", None)
    if not isinstance(home, str):
        return not is_listed
    return home == module or home.startswith(f"{module}.")


def logger(name: str) -> logging.Logger:
    """``logging.getLogger(name)``, which is not loaded before something is logged."""
    return cast("logging.Logger", _Logger(name))


class _Logger:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import logging

        found = getattr(logging.getLogger(self._name), attribute)
        setattr(self, attribute, found)
        return found
