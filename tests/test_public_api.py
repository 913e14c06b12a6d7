"""What is public is said in one place per package: `__all__` of its `__init__.py`.

A failure names the two ways to mend it: export the name, or make it private.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import parallax

PUBLIC_MODULES = {"parallax.errors"}
"""Modules that are public themselves; all others are packages, or start with an underscore."""


def _modules() -> list[tuple[str, bool]]:
    found = [("parallax", True)]
    found += [(info.name, info.ispkg) for info in pkgutil.walk_packages(parallax.__path__, "parallax.")]
    return found


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


MODULES = _modules()
PUBLIC = [name for name, is_package in MODULES if name in PUBLIC_MODULES or (is_package and not _is_private(name))]


def _public_names(module: ModuleType) -> set[str]:
    """Names a reader would take for public: neither private, nor a submodule, nor brought in by an import."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__).startswith("parallax")
    }


def test_a_module_is_private_unless_it_is_listed() -> None:
    stray = {
        name for name, is_package in MODULES if not is_package and not _is_private(name) and name not in PUBLIC_MODULES
    }
    assert not stray, f"start the file's name with an underscore, or list it in PUBLIC_MODULES: {sorted(stray)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_all_names_exactly_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    assert exported is not None, f"{name} has no __all__"
    assert len(exported) == len(set(exported)), "a name stands twice in __all__"
    missing = [entry for entry in exported if not hasattr(module, entry)]
    assert not missing, f"{name}.__all__ names what does not exist: {missing}"
    hidden = _public_names(module) - set(exported)
    assert not hidden, f"add to {name}.__all__, or import under a name that starts with an underscore: {sorted(hidden)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_things_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    bare = [
        entry
        for entry in module.__all__
        if (inspect.isclass(value := getattr(module, entry)) or inspect.isroutine(value)) and not _own_docstring(value)
    ]
    assert not bare, f"write a docstring in {name} for: {bare}"


def _own_docstring(value: object) -> bool:
    doc = inspect.getdoc(value)
    if not doc:
        return False
    # A dataclass without a docstring gets its signature for one.
    return not (inspect.isclass(value) and doc.startswith(f"{value.__name__}("))


def test_every_error_of_the_tree_is_importable_from_the_root() -> None:
    from parallax import errors

    assert set(errors.__all__) <= set(parallax.__all__)
    for name in errors.__all__:
        assert getattr(parallax, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), parallax.ParallaxError)
