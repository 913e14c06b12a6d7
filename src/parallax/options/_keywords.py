"""Values of Parallax's own keywords, checked before anything is opened: each that is of no use is a ConfigError.

Only what a model says of them is left for later: whether it has an input of that name, in that shape.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import numpy as np

from parallax import _lazy
from parallax.backends import FaultPolicy
from parallax.bundle import Verify
from parallax.errors import ConfigError
from parallax.schedule import CPU_BACKEND, PAPER_POLICY, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.model import Model
    from parallax.planner import PlanChoices
    from parallax.schedule.placement import Placer

logger = _lazy.logger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all) during long work."""

_LARGEST: Final = 2**63 - 1


def check_switch(name: str, value: Any) -> bool:
    """Raises: ConfigError unless True or False: a text, say, would count as True whatever it says."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name}={value!r:.80} is neither True nor False", fix=f"write {name}=True, or leave it out")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Raises: ConfigError unless one of these."""
    if not isinstance(value, str) or value not in choices:
        known = [f'"{choice}"' for choice in choices]
        raise ConfigError(f"unknown {name} {value!r:.80}", fix=f"choose {', '.join(known[:-1])} or {known[-1]}")
    return value


def check_policy(policy: Any) -> str | Placer:
    """Raises: ConfigError unless it names one that there is, or is a placer."""
    if not isinstance(policy, str) or policy not in ("adaptive", "sequential"):
        from parallax.planner import open_placer  # finds those of other distributions

        open_placer(policy)
    return cast("str | Placer", policy)


def check_split(split: Any) -> str:
    """Raises: ConfigError unless it is one of the three answers."""
    return check_choice("split", split, ("auto", "never", "always"))


def check_objective(objective: Any) -> str:
    """Raises: ConfigError unless it is one of those that there are."""
    return check_choice("objective", objective, ("auto", "latency", "throughput", *Plan.ENERGY_OBJECTIVES))


def check_verify(verify: Any) -> Verify:
    """Raises: ConfigError unless it is a way to verify a bundle."""
    return cast(Verify, check_choice("verify", verify, get_args(Verify)))


def check_threads(threads: Any) -> int | None:
    """Raises: ConfigError unless None or an integer of at least 1."""
    if threads is None:
        return None
    count = _whole_number(threads)
    if count is None or count < 1:
        raise ConfigError(
            f"threads={threads!r:.80} is not a positive integer", fix="give the number of cores to use, or None"
        )
    return count


def check_min_gain(min_gain: Any) -> float | None:
    """Raises: ConfigError unless None or a finite number from 0 to below 1."""
    if min_gain is None:
        return None
    number = _number(min_gain)
    if number is None or not 0 <= number < 1:
        raise ConfigError(
            f"min_gain={min_gain!r:.80} is not a fraction from 0 to below 1",
            fix='give for example 0.15 to split where 15% less latency is predicted, or write split="always"',
        )
    return number


def check_memory_budget(budget: Any) -> int | str | float | None:
    """The budget as it was given: what a share comes to is decided when a session opens.

    Raises: ConfigError unless None or an amount of memory.
    """
    if budget is not None:
        from parallax.memory import parse_bytes  # for sessions with a budget alone

        parse_bytes(budget, free_bytes=1 << 62)
    return cast("int | str | float | None", budget)


def check_margin(margin: Any) -> float:
    """Raises: ConfigError unless a number from 0 to below 1."""
    number = _number(margin)
    if number is None or not 0 <= number < 1:
        raise ConfigError(
            f"margin={margin!r:.80} is no share from 0 to below 1",
            fix="give the share of memory_budget= that is to stay free, for example 0.1",
        )
    return number


def check_idle_trim(seconds: Any) -> float | None:
    """Raises: ConfigError unless None or a number above 0, which may be infinite."""
    if seconds is None:
        return None
    number = _number(seconds)
    if number is None or not number > 0:
        raise ConfigError(
            f"idle_trim_s={seconds!r:.80} is not a number of seconds above 0",
            fix='give for example 60, or float("inf") to keep memory for the next run however long that takes',
        )
    return number


def check_padding(padding: Any) -> Literal["trim"] | None:
    """Raises: ConfigError unless None or the way there is."""
    if padding is not None and not (isinstance(padding, str) and padding == "trim"):
        raise ConfigError(
            f"padding={padding!r:.80} is no way to run padding", fix='write padding="trim", or leave it out'
        )
    return None if padding is None else "trim"


def check_backends(backends: Any) -> tuple[str, ...] | None:
    """Raises: ConfigError unless None or names; whether they can be used here is found out when they are."""
    if backends is None:
        return None
    if isinstance(backends, str) or not isinstance(backends, Sequence):
        raise ConfigError(f"backends={backends!r} is no sequence of names", fix='write backends=("openvino",)')
    for name in backends:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"backends={backends!r} holds {name!r}", fix='give names, such as "openvino"')
    return tuple(dict.fromkeys(name for name in backends if name != CPU_BACKEND))


def check_faults(faults: Any) -> FaultPolicy:
    """The policy, or the default for None. Raises: ConfigError for anything else."""
    if faults is None:
        return FaultPolicy()
    if not isinstance(faults, FaultPolicy):
        raise ConfigError(
            f"faults={faults!r:.80} is no FaultPolicy", fix="write faults=parallax.backends.FaultPolicy(deadline_s=2.0)"
        )
    return faults


def check_folder(name: str, value: Any) -> Path | None:
    """Raises: ConfigError unless None or a path."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={value!r:.80} is no path", fix="give the path of a folder as text or pathlib.Path")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name}={value!r:.80} names no folder", fix="give the path of a folder")
    from pathlib import Path

    return Path(text)


def check_trace(trace: Any) -> Any:
    """Raises: ConfigError unless None or a sink with a method ``record``."""
    if trace is not None and not callable(getattr(trace, "record", None)):
        raise ConfigError(
            f"trace={trace!r:.80} has no method record(span)", fix="write trace=parallax.engine.TraceRecorder()"
        )
    return trace


def check_observers(observers: Any) -> tuple[Any, ...]:
    """Return them as a tuple, in the order given. Raises: ConfigError unless all of them can be called."""
    fix = "write observers=[parallax.engine.EventRecorder()], or any function of one event"
    if not isinstance(observers, Sequence):
        raise ConfigError(f"observers={observers!r:.80} is no list of callables", fix=fix)
    for observer in observers:
        if not callable(observer):
            raise ConfigError(f"{observer!r:.80} cannot be called", where="observers", fix=fix)
    return tuple(observers)


def check_progress(progress: Any) -> Any:
    """Raises: ConfigError unless None or something to call."""
    if progress is not None and not callable(progress):
        raise ConfigError(
            f"progress={progress!r:.80} cannot be called", fix="give a function of (stage, steps done, steps in all)"
        )
    return progress


def check_shapes(shapes: Any) -> dict[str, tuple[int, ...]] | None:
    """Input name -> sizes. Raises: ConfigError unless None or a mapping from names to sizes."""
    if shapes is None:
        return None
    example = 'write shapes={"x": (1, 3, 224, 224)}'
    if not isinstance(shapes, Mapping):
        raise ConfigError(f"shapes={shapes!r:.80} maps no input names to sizes", fix=example)
    return {_input_name("shapes", name, example): _checked_shape(name, sizes) for name, sizes in shapes.items()}


def _checked_shape(name: str, sizes: Any) -> tuple[int, ...]:
    where = f"shapes[{name!r:.80}]"
    if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
        raise ConfigError(
            f"{sizes!r:.80} is not a shape", where=where, fix="give a tuple of sizes, such as (1, 3, 224, 224)"
        )
    counts = [_whole_number(size) for size in sizes]
    for size, count in zip(sizes, counts, strict=True):
        if count is None or not 0 <= count <= _LARGEST:
            raise ConfigError(f"{size!r:.80} is not a size", where=where, fix="sizes are integers from 0 to 2**63 - 1")
    return tuple(count for count in counts if count is not None)


def check_calibration(calibration: Any) -> dict[str, Any] | None:
    """Input name -> array. Raises: ConfigError unless None or a mapping from names to what numpy makes an array of."""
    if calibration is None:
        return None
    example = 'write calibration={"x": array}'
    if not isinstance(calibration, Mapping):
        raise ConfigError(f"calibration={calibration!r:.80} maps no input names to arrays", fix=example)
    for name, value in calibration.items():
        _input_name("calibration", name, example)
        try:
            kind = np.asarray(value).dtype.kind
        except ValueError:  # rows of several lengths
            kind = "V"
        if value is None or kind not in "biufUSO" or (kind == "O" and not _holds_texts(value)):
            raise ConfigError(
                f"{type(value).__name__} is nothing to feed", where=f"calibration[{name!r:.80}]", fix="give an array"
            )
    return dict(calibration)


def _holds_texts(value: Any) -> bool:
    return all(isinstance(item, str | bytes) for item in np.asarray(value).ravel()[:1])


def check_calibration_names(calibration: Mapping[str, Any] | None, model: Model) -> None:
    """Raises: ConfigError if there are feeds for inputs that the model does not have, or none for one that it needs."""
    if calibration is None:
        return
    needed = [info.name for info in model.graph.inputs]
    known = [*needed, *(info.name for info in model.graph.overridable)]
    unknown = [name for name in calibration if name not in known]
    missing = [name for name in needed if name not in calibration]
    if unknown or missing:
        what = f"the model has no input {unknown[0]!r:.80}" if unknown else f"no array for input {missing[0]!r}"
        names = ", ".join(map(repr, known[:20])) or "none"
        raise ConfigError(what, where="calibration", fix=f"the model's inputs are: {names}")


def _input_name(keyword: str, name: Any, example: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"{name!r:.80} is no name of an input", where=keyword, fix=example)
    return name


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


class HarmlessProgress:
    """Calls a caller's function until it fails, which is logged: whoever watches some work must not break it.

    What is no error (KeyboardInterrupt, say) goes through, and ends the work.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress: Progress | None = progress

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._progress is None:
            return
        try:
            self._progress(stage, done, total)
        except Exception:
            self._progress = None
            logger.exception("the progress callback failed and is called no more; the work goes on")


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of an option say the same."""
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except ValueError:  # arrays of several elements, which are not the same objects
        return False


# -- options that exclude each other: none is to be passed over in silence -------------------------------------------


def check_together(options: PlanChoices) -> None:
    """Raises: ConfigError if two options exclude each other."""
    is_placer = False
    if options.policy not in ("adaptive", "sequential"):
        from parallax.planner import is_yardstick, open_placer  # few sessions name another

        if is_yardstick(options.policy):
            _check_yardstick(options)
            return
        is_placer = open_placer(options.policy) is not None
    is_forced = options.split == "always" or options.min_gain == 0
    if options.split == "auto" and not is_forced:
        return
    asked = "min_gain=0" if options.split == "auto" else f'split="{options.split}"'
    _refuse(
        asked,
        {
            "tune=True": options.tune,
            f"min_gain={options.min_gain}": options.split != "auto"
            and options.min_gain is not None
            and (options.split == "never" or options.min_gain > 0),
            f"policy={_shown(options.policy)}": is_placer or (is_forced and options.policy == "sequential"),
        },
        fix=f"leave one of them out: {{other}} says something else about splitting than {asked}",
    )


def _check_yardstick(options: PlanChoices) -> None:
    """Raises: ConfigError where something else is said of planning: a baseline runs as it is."""
    _refuse(
        f'policy="{PAPER_POLICY}"',
        {
            "tune=True": options.tune,
            f"min_gain={options.min_gain}": options.min_gain is not None,
            f'split="{options.split}"': options.split != "auto",
        },
        fix="leave one of them out: this policy is a baseline for comparisons, whose plan is run whatever it gains",
    )


def _refuse(asked: str, others: Mapping[str, bool], *, fix: str) -> None:
    """Raises: ConfigError for the first of the others that is given. ``fix``: with a place for its name."""
    for other, is_given in others.items():
        if is_given:
            raise ConfigError(f"{asked} and {other} exclude each other", fix=fix.format(other=other))


def _shown(policy: Any) -> str:
    return f'"{policy}"' if isinstance(policy, str) else type(policy).__name__
