"""Keep it: a plan compiled for one machine, in a folder that opens in milliseconds.

A bundle holds the plan, per segment the graph as ONNX Runtime optimised it for this CPU, with its weights packed
and ready to be mapped, and a manifest that says what it was made from and for. It is checked before it is used:
what is damaged is refused, what was made for elsewhere is made anew or refused, nothing is trusted.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.bundle._cache import (
        cache_folder,
        cached_bundle,
        find_cached_bundle,
        note_use,
        prune_cache,
        rebuilt_bundle,
    )
    from parallax.bundle._device_checks import is_placing_policy, is_safe_to_open
    from parallax.bundle._device_parts import DeviceParts, describe_parts, device_differences
    from parallax.bundle._digest import CheckedFiles, settled, signature
    from parallax.bundle._folder import BUNDLE_SUFFIX, MANIFEST_NAME, Verify, looks_like_bundle
    from parallax.bundle._identity import (
        describe_mismatch,
        mismatch_error,
        parallax_version,
        provider_word,
        rebuild_command,
        runtime_build,
    )
    from parallax.bundle._known_sources import known_source
    from parallax.bundle._manifest import (
        BUNDLE_FORMAT_VERSION,
        AskedDevice,
        CompileOptions,
        Manifest,
        SourceFile,
        SourceRecord,
    )
    from parallax.bundle._names import ModelNames
    from parallax.bundle._open import (
        LARGE_WEIGHT_BYTES,
        Bundle,
        mapped_defaults,
        mapped_options,
        read_bundle,
        use_bundle,
    )
    from parallax.bundle._publish import prune_folder, prune_leftovers, remove_tree, resolve_target
    from parallax.bundle._read import read_manifest
    from parallax.bundle._requirement import counted_bundle, estimate_bundle
    from parallax.bundle._segments import open_executor, read_interface
    from parallax.bundle._write import describe_source, write_bundle
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_cache": "cache_folder cached_bundle find_cached_bundle note_use prune_cache rebuilt_bundle",
            "_device_checks": "is_placing_policy is_safe_to_open",
            "_device_parts": "DeviceParts describe_parts device_differences",
            "_digest": "CheckedFiles settled signature",
            "_folder": "BUNDLE_SUFFIX MANIFEST_NAME Verify looks_like_bundle",
            "_identity": (
                "describe_mismatch mismatch_error parallax_version provider_word rebuild_command runtime_build"
            ),
            "_known_sources": "known_source",
            "_manifest": "BUNDLE_FORMAT_VERSION AskedDevice CompileOptions Manifest SourceFile SourceRecord",
            "_names": "ModelNames",
            "_open": "LARGE_WEIGHT_BYTES Bundle mapped_defaults mapped_options read_bundle use_bundle",
            "_publish": "prune_folder prune_leftovers remove_tree resolve_target",
            "_read": "read_manifest",
            "_requirement": "counted_bundle estimate_bundle",
            "_segments": "open_executor read_interface",
            "_write": "describe_source write_bundle",
        },
    )

__all__ = [
    "BUNDLE_FORMAT_VERSION",
    "BUNDLE_SUFFIX",
    "LARGE_WEIGHT_BYTES",
    "MANIFEST_NAME",
    "AskedDevice",
    "Bundle",
    "CheckedFiles",
    "CompileOptions",
    "DeviceParts",
    "Manifest",
    "ModelNames",
    "SourceFile",
    "SourceRecord",
    "Verify",
    "cache_folder",
    "cached_bundle",
    "counted_bundle",
    "describe_mismatch",
    "describe_parts",
    "describe_source",
    "device_differences",
    "estimate_bundle",
    "find_cached_bundle",
    "is_placing_policy",
    "is_safe_to_open",
    "known_source",
    "looks_like_bundle",
    "mapped_defaults",
    "mapped_options",
    "mismatch_error",
    "note_use",
    "open_executor",
    "parallax_version",
    "provider_word",
    "prune_cache",
    "prune_folder",
    "prune_leftovers",
    "read_bundle",
    "read_interface",
    "read_manifest",
    "rebuild_command",
    "rebuilt_bundle",
    "remove_tree",
    "resolve_target",
    "runtime_build",
    "settled",
    "signature",
    "use_bundle",
    "write_bundle",
]
