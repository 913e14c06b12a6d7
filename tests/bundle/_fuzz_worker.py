"""A process that opens damaged bundles, one after the other, and says of each what came of it before it goes on.

Arguments: a folder with bundles and their answers (see `test_fuzz`), the first seed, and the one to stop before.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import parallax
from parallax.backends.ort import RUNTIME_EXCEPTIONS
from tests.bundle._mutations import mutate

if sys.platform != "win32":
    import resource


def outcome(bundle: Path, cache: Path, feeds: dict[str, Any], answers: list[Any]) -> str:
    """What opening and running it ends in."""
    try:
        session = parallax.InferenceSession(bundle, verify="full", cache_dir=cache)
        got = session.run(None, feeds)
        names = [argument.name for argument in session.get_outputs()]
    except parallax.InternalError as error:
        return f"foreign: {error}"
    except parallax.ParallaxError as error:
        return f"refused: {type(error).__name__}: {error.what}"
    except RUNTIME_EXCEPTIONS as error:
        return f"refused: {type(error).__name__}"
    except Exception as error:
        return f"foreign: {type(error).__name__}: {ascii(str(error))[:300]}"
    is_right = len(names) == len(got) == len(answers) and all(
        one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
        for one, other in zip(got, answers, strict=True)
    )
    return "right" if is_right else "other"


def main() -> None:
    folder, first, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(4)
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    subjects = sorted(path for path in folder.iterdir() if path.is_dir())
    for seed in range(first, stop):
        subject = subjects[seed % len(subjects)]
        with np.load(subject / "feeds.npz") as stored:
            feeds = dict(stored)
        with np.load(subject / "answers.npz") as stored:
            answers = [stored[name] for name in sorted(stored)]
        place = folder.parent / "work" / str(seed)
        shutil.copytree(subject / "m.plx", place / "m.plx")
        kind = mutate(seed, place / "m.plx")
        print(json.dumps({"seed": seed, "subject": subject.name, "kind": kind}), flush=True)
        found = outcome(place / "m.plx", folder.parent / "cache", feeds, answers)
        print(json.dumps({"seed": seed, "outcome": found}), flush=True)
        for path in (place, *place.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
