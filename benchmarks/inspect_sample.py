"""What `parallax inspect` says of a model and an emulated phone, for the README: see `tools/readme_figures.py`."""

from __future__ import annotations

import os
import subprocess
import sys

from _common import describe_machine, make_parser, say

COMMAND = ("inspect", "zoo:yolov8n", "--provider", "emulated:pixel-6-gpu")
FIRST, LAST = "It supports", "Fragments:"
"""Shown are the first paragraph, which answers a newcomer's questions, and the lines from one of these to the other.
Between them is the model's structure, and after them a long table."""


def main() -> None:
    parser = make_parser(__doc__, "inspect_sample")
    arguments = parser.parse_args()
    machine = describe_machine()
    done = subprocess.run(
        [sys.executable, "-m", "parallax", *COMMAND],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "120"},
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    (first,) = [number for number, line in enumerate(lines) if line.startswith(FIRST)]
    (last,) = [number for number, line in enumerate(lines) if line.startswith(LAST)]
    answers = lines[: lines.index("")]
    path = arguments.output.with_suffix(".txt")
    head = f"$ parallax {' '.join(COMMAND)}    # {machine['date'].split()[0]}, {machine['commit']}, in part"
    path.write_text("\n".join([head, *answers, "...", *lines[first : last + 1]]) + "\n", encoding="utf-8")
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
