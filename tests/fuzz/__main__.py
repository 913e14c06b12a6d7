"""``python -m tests.fuzz FIRST LAST``: try the models of these seeds and print what came of them."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import onnxruntime

from tests.fuzz._models import make_model
from tests.fuzz._modes import Counts, try_model


def main(first: int, last: int) -> int:
    """0 if there was no fault."""
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(4)
    counts = Counts()
    for seed in range(first, last):
        told = len(counts.faults)
        with tempfile.TemporaryDirectory(prefix="parallax-fuzz-", ignore_cleanup_errors=True) as folder:
            try_model(seed, make_model(seed), Path(folder), counts)
        for fault in counts.faults[told:]:
            print(fault, flush=True)
    print(counts.summary())
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
