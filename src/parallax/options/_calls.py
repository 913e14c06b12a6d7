"""Arguments of runs that are of no use: which one it is, and what to write.

ONNX Runtime says of most of them that "incompatible function arguments" were given, or what attribute an ``int`` does
not have. A run does not look at them beforehand: they are looked at once it has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from parallax.backends.ort import both
from parallax.errors import ConfigError, InputError
from parallax.schedule import Plan


def check_arguments(output_names: Any, input_feed: Any, run_options: Any) -> None:
    """Raises: InputError or ConfigError for the first that is of no use, also of the class that ONNX Runtime raises."""
    if output_names is not None:
        _check_names(output_names)
    if not hasattr(input_feed, "keys"):
        raise both(InputError, AttributeError)(
            f"input_feed={input_feed!r:.80} maps no names of inputs to arrays", fix='feed {"x": array}'
        )
    for name in input_feed:
        if not isinstance(name, str):
            raise both(InputError, TypeError)(
                f"{name!r:.80} is no name of an input", fix="get_inputs() lists the inputs"
            )
    _check_options(run_options)


def check_values(output_names: Any, values: Any, run_options: Any) -> None:
    """Check the arguments of ``run_with_ort_values``."""
    check_arguments(output_names, values, run_options)
    for name, value in values.items():
        if not isinstance(value, onnxruntime.OrtValue):
            raise both(InputError, AttributeError)(
                f"a {type(value).__name__} is no OrtValue",
                where=f"input {name!r}",
                fix="give OrtValue.ortvalue_from_numpy(array), or call run()",
            )


def check_callback(callback: Any) -> None:
    """Raises: ConfigError unless it can be called. None, which ONNX Runtime takes, is told nothing."""
    if callback is not None and not callable(callback):
        raise both(ConfigError, TypeError)(
            f"callback={callback!r:.80} cannot be called", fix="give a function of (results, user_data, error_text)"
        )


def check_binding(iobinding: Any, run_options: Any) -> None:
    """Raises: ConfigError unless it is a binding, with run options or none."""
    if not isinstance(iobinding, onnxruntime.IOBinding):
        raise both(ConfigError, AttributeError)(
            f"iobinding={iobinding!r:.80} is no IOBinding", fix="give what session.io_binding() returns"
        )
    _check_options(run_options)


def check_plan(plan: Any) -> None:
    """Raises: ConfigError unless it is a plan."""
    if not isinstance(plan, Plan):
        raise ConfigError(
            f"plan={plan!r:.80} is no Plan", fix="give the plan of a session of this model, or Plan.from_json(...)"
        )


def check_reason(reason: Any) -> None:
    """Raises: ConfigError unless it is text."""
    if not isinstance(reason, str):
        raise ConfigError(f"reason={reason!r:.80} is no text", fix="say in words why the plan is changed")


def check_many(feeds: Any) -> None:
    """Raises: InputError for what are no feeds of several runs."""
    if isinstance(feeds, str | bytes | Mapping) or not hasattr(feeds, "__iter__"):
        raise both(InputError, TypeError)(
            f"feeds={feeds!r:.80} are not the feeds of several runs", fix='give [{"x": array}, {"x": array}]'
        )


def _check_names(output_names: Any) -> None:
    is_list = isinstance(output_names, Sequence) and not isinstance(output_names, str | bytes)
    if not is_list or not all(isinstance(name, str) for name in output_names):
        raise both(InputError, TypeError)(
            f"output_names={output_names!r:.80} is no list of names", fix='write ["y"], or None for all outputs'
        )


def _check_options(run_options: Any) -> None:
    if run_options is not None and not isinstance(run_options, onnxruntime.RunOptions):
        raise both(ConfigError, TypeError)(
            f"run_options={run_options!r:.80} is no RunOptions", fix="write parallax.RunOptions(), or leave it out"
        )
