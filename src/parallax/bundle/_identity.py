"""What a bundle was made for, compared with what is here: packed weights suit one CPU and one runtime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import onnxruntime

from parallax.bundle._manifest import AskedDevice, CompileOptions, Manifest
from parallax.errors import BundleMismatchError
from parallax.profile import hardware_fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def parallax_version() -> str:
    """The version of this package."""
    # Looked up when asked: the package's own module, which holds it, imports this one.
    return str(importlib.import_module("parallax").__version__)


def runtime_build() -> str:
    """What ONNX Runtime tells of its build: two builds of one version may pack weights differently."""
    return str(onnxruntime.get_build_info())


def describe_mismatch(manifest: Manifest, *, cores: int | None) -> tuple[str, ...]:
    """Say in which ways the bundle was not made for this process; empty if it was.

    Args:
        cores: those the session is to use; None compares no cores.
    """
    compared = [
        ("Parallax", manifest.parallax_version, parallax_version()),
        ("ONNX Runtime", manifest.runtime_version, onnxruntime.__version__),
        ("the runtime's build", manifest.runtime_build, runtime_build()),
        ("machine", manifest.machine, hardware_fingerprint()),
    ]
    if cores is not None:
        compared.append(("cores", str(manifest.cores), str(cores)))
    return tuple(f"{what}: made for {made!r}, here is {here!r}" for what, made, here in compared if made != here)


def mismatch_error(manifest: Manifest, path: Path, differences: tuple[str, ...]) -> BundleMismatchError:
    """The refusal, with the command that makes the bundle anew."""
    return BundleMismatchError(
        "this bundle was not made for here: " + "; ".join(differences),
        where=str(path),
        fix=f"make it anew: {rebuild_command(manifest, path)}",
    )


def rebuild_command(manifest: Manifest, path: Path) -> str:
    """The command that compiles the bundle's source again with the same options."""
    source = manifest.source.path or "MODEL"
    if manifest.portable is not None:
        source = str(path / manifest.portable)
    return compile_command(manifest.options, source, str(path), portable=manifest.portable is not None)


def compile_command(options: CompileOptions, source: str, target: str, *, portable: bool) -> str:
    """The command that compiles a model with these options."""
    import shlex  # only for a message

    words = ["parallax", "compile", source, "--output", target]
    for name, shape in options.shapes:
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    if options.policy != "adaptive":
        words += ["--policy", options.policy]
    if options.split != "auto":
        words += ["--split", options.split]
    if options.min_gain is not None:
        words += ["--min-gain", options.min_gain]
    if options.tune:
        words.append("--tune")
    if options.slim:
        words.append("--slim")
    if options.objective != "latency":
        words += ["--objective", options.objective]
    if options.memory_limit is not None:
        words += ["--memory-limit", str(options.memory_limit)]
    if options.memory_budget is not None:
        words += ["--memory-budget", str(options.memory_budget), "--margin", str(options.margin)]
    if options.padding is not None:
        words += ["--padding", options.padding]
    for device in options.devices:
        words += ["--provider", provider_word(device)]
    if portable:
        words.append("--portable")
    return shlex.join(words)


def provider_word(device: AskedDevice) -> str:
    """A device as ``--provider`` takes it."""
    options = [f"{key}={value}" for key, value in device.options]
    if device.memory_bytes is not None:
        options.append(f"memory_budget={device.memory_bytes}")
    return ",".join([device.name, *options])
