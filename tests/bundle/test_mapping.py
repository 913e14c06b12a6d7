"""Weights of a bundle are mapped from its file: shared, clean, and not copied."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.bundle._models import compiled, python

READ_SMAPS = """
import json, sys
import numpy as np
import parallax

def mappings(path):
    found, current = [], None
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            current = {"file": line.rstrip().partition(words[4])[2].strip(), "mode": words[1]}
            found.append(current)
        elif len(words) == 3 and words[2] == "kB":
            current[words[0][:-1]] = int(words[1])
    return [entry for entry in found if entry["file"].endswith(path)]

session = parallax.InferenceSession(sys.argv[1], verify=sys.argv[2])
opened = mappings(".data")
session.run(None, {"x": np.ones((3, 600), np.float32)})
print(json.dumps([opened, mappings(".data"), mappings("model.onnx")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped, in /proc/self/smaps")
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_weights_are_mapped_and_no_page_of_them_is_private(cut: bool, tmp_path: Path) -> None:
    process = python(READ_SMAPS, compiled(tmp_path, cut=cut, width=600, portable=True), "once")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    opened, after, portable = json.loads(output)
    weights_kb = 4 * 600 * 600 * 4 // 1024
    assert sum(entry["Rss"] for entry in opened) < weights_kb // 2, "opening a bundle reads no weights it keeps"
    assert sum(entry["Rss"] for entry in after) >= weights_kb, "a run reads each of them from the mapped file"
    for entry in after:
        assert entry["mode"].endswith("p"), "nothing that is written here reaches the file"
        assert entry["Anonymous"] == entry["Private_Dirty"] == entry["Shared_Dirty"] == 0
    assert sum(entry["Rss"] for entry in portable) == 0, "the model itself is read only when something asks for it"
