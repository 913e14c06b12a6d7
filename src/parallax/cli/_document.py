"""The JSON document of a command as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def document_text(report: Mapping[str, Any]) -> str:
    """Return the document that ``--json`` prints, with its last line end. Raises: ValueError for NaN and infinities."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"
