"""``parallax bundle``: what is in a compiled bundle, whether it is whole, and what may be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from parallax.bundle import (
    Bundle,
    Manifest,
    describe_mismatch,
    looks_like_bundle,
    provider_word,
    read_bundle,
    rebuild_command,
)
from parallax.cli._console import Screen, make_table, print_line, print_table
from parallax.cli._plan_view import describe_plan, summarise_plan
from parallax.cli._units import size
from parallax.errors import ConfigError
from parallax.machine import available_cores


def show_bundle(path: Path, *, screen: Screen) -> None:
    """Say what the bundle was made from and for, and whether it can be opened here."""
    bundle = read_bundle(path, verify="never")
    report = describe_bundle(bundle)

    def render(console: Console) -> None:
        render_manifest(bundle.manifest, console)
        print_line(console, f"plan: {summarise_plan(bundle.plan)}")
        render_fit(report, console)

    screen.show(report, render)


def verify_bundle(path: Path, *, screen: Screen) -> None:
    """Compute the digest of every file; a bundle that is not whole is refused with what is wrong."""
    bundle = read_bundle(path, verify="full")
    report = describe_bundle(bundle) | {"whole": True}

    def render(console: Console) -> None:
        total = sum(record.size for record in bundle.manifest.files)
        print_line(console, f"whole: {len(bundle.manifest.files)} files, {size(total)}, every digest as recorded")
        render_fit(report, console)

    screen.show(report, render)


def prune_bundles(path: Path | None, *, cache_dir: Path | None, screen: Screen) -> None:
    """Remove what dead writers left of one bundle, of all in a folder, or in the cache, which is cut to its limit."""
    from parallax.bundle import cache_folder, prune_cache, prune_leftovers

    if path is not None and cache_dir is not None:
        raise ConfigError("PATH and --cache-dir say both what to prune", fix="leave one of them out")
    removed: list[tuple[Path, int]]
    if path is None:
        folder = cache_folder(cache_dir)
        removed = list(prune_cache(folder)) if folder.is_dir() else []
    elif looks_like_bundle(path):
        removed = [(leftover, 0) for leftover in prune_leftovers(path.resolve())]
    elif path.is_dir():
        removed = list(prune_cache(path, limit_bytes=None))
    else:
        raise ConfigError("there is no such folder", where=str(path), fix="give a bundle, or a folder of bundles")
    report = {"removed": [{"path": str(entry), "bytes": held} for entry, held in removed]}

    def render(console: Console) -> None:
        for entry, _ in removed:
            print_line(console, f"removed {entry}")
        if not removed:
            print_line(console, "nothing to remove")

    screen.show(report, render)


def describe_bundle(bundle: Bundle, *, cores: int | None = None) -> dict[str, Any]:
    """What is known of a bundle without opening its graphs.

    Args:
        cores: that a session on it is to use; None: those that it was compiled for, or all.
    """
    manifest = bundle.manifest
    differences = describe_mismatch(manifest, cores=cores or _cores(manifest))
    return {
        "path": str(bundle.path),
        "format_version": manifest.format_version,
        "parallax": manifest.parallax_version,
        "onnxruntime": manifest.runtime_version,
        "machine": manifest.machine,
        "cores": manifest.cores,
        "source": {
            "path": manifest.source.path,
            "files": [
                {"location": file.location, "bytes": file.size, "sha256": file.sha256} for file in manifest.source.files
            ],
        },
        "options": {
            "threads": manifest.options.threads,
            "policy": manifest.options.policy,
            "shapes": {name: list(shape) for name, shape in manifest.options.shapes},
            "min_gain": manifest.options.min_gain,
            "tune": manifest.options.tune,
            "memory_limit": manifest.options.memory_limit,
            "memory_budget": manifest.options.memory_budget,
            "margin": manifest.options.margin,
            "padding": manifest.options.padding,
            "split": manifest.options.split,
            "devices": [provider_word(device) for device in manifest.options.devices],
            "slim": manifest.options.slim,
            "objective": manifest.options.objective,
        },
        "devices": [
            {"name": device.name, "version": device.version, "hardware": device.hardware} for device in manifest.devices
        ],
        "portable": manifest.portable is not None,
        "weight_bytes": manifest.weight_bytes,
        "files": [{"path": record.path, "bytes": record.size, "sha256": record.sha256} for record in manifest.files],
        "plan": describe_plan(bundle.plan),
        "fits_here": not differences,
        "differences": list(differences),
        "rebuild": rebuild_command(manifest, bundle.path),
    }


def _cores(manifest: Manifest) -> int:
    return manifest.options.threads or available_cores()


def render_manifest(manifest: Manifest, console: Console) -> None:
    """What it was made from, with and for, and its largest files."""
    source = manifest.source
    print_line(console, f"compiled from {source.path or 'bytes'}, sha256 {source.files[0].sha256}")
    print_line(console, f"with Parallax {manifest.parallax_version}, ONNX Runtime {manifest.runtime_version}")
    print_line(console, f"for {manifest.machine}, {manifest.cores} cores")
    for device in manifest.devices:
        on = f", {device.hardware}" if device.hardware else ""
        print_line(console, f"parts of it run on {device.name} ({device.version}{on})")
    if manifest.options.padding is not None:
        print_line(console, "runs leave out the places that the mask hides in every row (--padding trim)")
    print_line(console, f"portable: {'the model is kept' if manifest.portable is not None else 'no'}")
    table = make_table("file", "size")
    for record in sorted(manifest.files, key=lambda record: -record.size)[:_LISTED_FILES]:
        table.add_row(record.path, size(record.size))
    print_table(console, table)
    if len(manifest.files) > _LISTED_FILES:
        print_line(console, f"... and {len(manifest.files) - _LISTED_FILES} smaller files")


# Enough to see what is large; --json lists all.
_LISTED_FILES = 12


def render_fit(report: dict[str, Any], console: Console) -> None:
    """Whether it can be opened here, and what would make it so."""
    if report["fits_here"]:
        print_line(console, "made for this machine")
        return
    for difference in report["differences"]:
        print_line(console, f"not made for here: {difference}")
    print_line(console, f"to make it anew: {report['rebuild']}")
