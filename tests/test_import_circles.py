"""No files import each other in a circle, not even for the sake of types or inside functions."""

from __future__ import annotations

from collections import defaultdict

import grimp

from parallax.graph import strong_components


def circles(imports: grimp.ImportGraph) -> list[list[str]]:
    """Modules that reach each other by imports, packages' own files included."""
    names = sorted(imports.modules)
    index = {name: number for number, name in enumerate(names)}
    neighbours = [[index[other] for other in imports.find_modules_directly_imported_by(name)] for name in names]
    members: dict[int, list[str]] = defaultdict(list)
    for name, component in zip(names, strong_components(neighbours), strict=True):
        members[component].append(name)
    return [found for found in members.values() if len(found) > 1]


def test_no_files_import_each_other() -> None:
    assert circles(grimp.build_graph("parallax", cache_dir=None)) == []


def test_a_circle_would_be_found() -> None:
    imports = grimp.build_graph("parallax", cache_dir=None)
    imports.add_import(importer="parallax.errors", imported="parallax.session._session")
    assert any({"parallax.errors", "parallax.session._session"} <= set(found) for found in circles(imports))
