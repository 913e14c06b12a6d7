"""The modules and tests that the mutation tool names exist: a renamed file must not silently leave its list."""

from __future__ import annotations

from tools.mutants import DEFAULT, ROOT, TESTS


def _names_modules(name: str) -> bool:
    module = ROOT / "src" / "parallax" / name
    return module.is_dir() if name.endswith("/") else module.with_suffix(".py").is_file()


def test_every_module_and_test_that_is_named_exists() -> None:
    assert [name for name in (*TESTS, *DEFAULT) if not _names_modules(name)] == []
    assert [path for paths in TESTS.values() for path in paths if not (ROOT / path).exists()] == []
