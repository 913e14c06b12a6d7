"""Make the table of what OpenVINO computes as ONNX Runtime does: src/parallax/backends/openvino/openvino_table.json.

    python tools/openvino_table.py                    # all operators; a quarter of an hour on two cores
    python tools/openvino_table.py --only RoiAlign    # one, with what its trials differed in; nothing is written
    python tools/openvino_table.py --check            # compare with the file instead of writing it

Models of one operator (of ONNX's backend test suite, and variations of those) are run in both libraries and compared
value by value; see tests/conformance/_operator_trials.py for what is tried, and parallax/backends/openvino/_table.py
for what the file means. What a row loses depends on the processor, too: what was found on another one stays. Run it
again for another release of OpenVINO, or when ONNX Runtime has new operators.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "src" / "parallax" / "backends" / "openvino" / "openvino_table.json"

sys.path.insert(0, str(ROOT))

from parallax.backends import open_backend  # noqa: E402
from parallax.backends.openvino._table import parse_table  # noqa: E402
from tests.conformance._operator_sweep import render, sweep  # noqa: E402


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="an operator, or domain:operator; may be repeated")
    parser.add_argument("--check", action="store_true", help="do not write: fail if the file would change")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--progress", type=Path, help="a file for the results of each operator, to go on from when run again"
    )
    parser.add_argument("--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    keys = [(name.rpartition(":")[0], name.rpartition(":")[2]) for name in arguments.only]
    swept = sweep(
        "openvino",
        keys,
        workers=arguments.workers,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
        progress=arguments.progress,
    )
    version = open_backend("openvino").info.version
    before = arguments.output.read_text("utf-8") if arguments.output.exists() else ""
    is_same_release = bool(before) and parse_table(before).is_for(version)
    text = render(swept, version, known=before if is_same_release else "")
    if keys:
        for entry in swept.values():
            for name, failed in entry.failures.items():
                print(name, failed)
        print(text)
        return 0
    if arguments.check:
        same = arguments.output.read_text("utf-8") == text
        print("the table is as the file has it" if same else "the table differs from the file")
        return 0 if same else 1
    arguments.output.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
