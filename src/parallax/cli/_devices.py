"""``parallax devices``: what could run models here, and what stands in the way of the rest."""

from __future__ import annotations

from rich.console import Console

from parallax.backends import FoundBackend, find_backends
from parallax.cli._console import Screen, make_table, print_line, print_table


def list_devices(*, screen: Screen) -> None:
    """Every backend by the name that ``--provider`` and ``providers=`` take; loads what is installed."""
    with screen.progress() as progress:
        progress("looking", 0, 1)
        found = find_backends()
        progress("looking", 1, 1)
    report = {"devices": [_describe(entry) for entry in found]}
    screen.show(report, lambda console: _render(found, console))


def _describe(entry: FoundBackend) -> dict[str, object]:
    info = entry.info
    return {
        "name": entry.name,
        "usable": info is not None,
        "is_emulated": entry.name.startswith("emulated:"),
        "device": None if info is None else info.device,
        "kind": None if info is None else info.kind.value,
        "version": None if info is None else info.version,
        "memory": None if info is None else info.memory.name,
        "obstacle": entry.obstacle,
        "remedy": entry.remedy,
    }


def _render(found: tuple[FoundBackend, ...], console: Console) -> None:
    table = make_table("name", "kind", "device", "version", left=4)
    table.columns[0].no_wrap = True  # it is there to be copied
    for entry in found:
        if entry.info is not None:
            table.add_row(entry.name, entry.info.kind.value, entry.info.device, entry.info.version)
    print_table(console, table, optional=("version", "device"))
    missing = [entry for entry in found if entry.info is None]
    if missing:
        print_line(console, "\nnot usable here")
        table = make_table("name", "why", "remedy", left=3)
        for entry in missing:
            table.add_row(entry.name, entry.obstacle, entry.remedy or "-")
        print_table(console, table)
    print_line(console, "\nparallax inspect MODEL --provider NAME says what a device would take of a model.")
