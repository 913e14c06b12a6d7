"""Whether tuning kept a plan for models of a structure: asked when one is opened, and told without loading a planner.

The key of a kept plan names the versions of all that it was measured with; to find those takes milliseconds. A note
under the model's structure alone says whether there is anything to look for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallax.profile import Cache

if TYPE_CHECKING:
    from pathlib import Path


def may_be_remembered(structure_digest: str, cache_dir: Path | None) -> bool:
    """Whether some plan was kept for a model of this structure. Some ten microseconds where none was."""
    return Cache(cache_dir).load(_note(structure_digest)) is not None


def note_remembered(structure_digest: str, cache_dir: Path | None) -> None:
    """To be called when a plan is kept."""
    Cache(cache_dir).store(_note(structure_digest), {"tuned": True})


def _note(structure_digest: str) -> str:
    return f"tuned-1|{structure_digest}"
