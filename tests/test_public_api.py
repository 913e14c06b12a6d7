"""What is public is said in one place per package: `__all__` of its `__init__.py`.

A failure names the two ways to mend it: export the name, or make it private.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import parallax

PUBLIC_MODULES = {"parallax.errors", "parallax.types"}
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
    """Names a reader would take for public: neither private, nor a submodule, nor brought in by an import.

    Those that a package gives when they are asked for are among what `dir` lists.
    """
    return {
        name
        for name, value in ((name, getattr(module, name)) for name in dir(module))
        if not name.startswith("_")
        and name != "TYPE_CHECKING"
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


def _stated_imports(package: str) -> dict[str, tuple[str, str]]:
    """Name -> module and name there, as a package's ``__init__`` states them for type checkers alone."""
    path = importlib.import_module(package).__file__
    assert path is not None
    blocks = [
        node.body
        for node in ast.parse(Path(path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for block in blocks
        for node in block
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", [name for name in PUBLIC if name not in PUBLIC_MODULES])
def test_a_package_gives_at_run_time_what_it_states_to_type_checkers(package: str) -> None:
    module = importlib.import_module(package)
    stated = _stated_imports(package)
    assert stated, f"{package} states no names: see parallax._lazy"
    for name, (home, there) in stated.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), there), name
    defined = {name for name in module.__all__ if name not in stated}
    assert defined <= vars(module).keys(), "a name stands in __all__ alone"
    assert set(module.__all__) <= set(dir(module))


def test_names_that_do_not_exist_are_refused_as_python_refuses_them() -> None:
    with pytest.raises(AttributeError, match=r"module 'parallax' has no attribute 'Nothing'"):
        parallax.Nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match=r"cannot import name 'Nothing' from 'parallax\.engine'"):
        exec("from parallax.engine import Nothing")


def test_everything_can_be_imported_at_once_and_listed() -> None:
    names: dict[str, object] = {}
    exec("from parallax import *", names)
    assert set(parallax.__all__) <= names.keys()
    assert names["InferenceSession"] is parallax.InferenceSession
    assert {*parallax.__all__, "backends", "errors", "session"} <= set(dir(parallax))


FACES = {"backends": 24, "memory": 24, "partition": 41, "schedule": 31}
"""How many names these packages export at most. A package may shrink, and its number with it, but not grow."""

FOR_BACKENDS_OF_OTHERS = {
    "BackendFactory",
    "BackendInfo",
    "HOST_MEMORY",
    "Interface",
    "MemoryDomain",
    "TensorArgument",
    "UnfitFeedsError",
}
"""Of `parallax.backends`: what other distributions need to write a backend, and nothing else of ours does."""


@pytest.mark.parametrize("package", FACES)
def test_every_export_serves_another_package(package: str) -> None:
    exported = set(importlib.import_module(f"parallax.{package}").__all__)
    unused = exported - _imported_elsewhere(package) - (FOR_BACKENDS_OF_OTHERS if package == "backends" else set())
    assert not unused, f"no other package imports them: take them out of parallax.{package}: {sorted(unused)}"
    assert len(exported) <= FACES[package], f"parallax.{package} exports {len(exported)} names: keep some to itself"


def _imported_elsewhere(package: str) -> set[str]:
    """Names that modules of other packages import from this package's face."""
    root = Path(parallax.__file__).parent
    return {
        alias.name
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] != package
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == f"parallax.{package}"
        for alias in node.names
    }
