"""Runs of a whole model, as observers see them: a plan of one segment on one lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallax.engine._observers import EventStream

if TYPE_CHECKING:
    from parallax.schedule import Plan


def observed_in_background(
    run_async: Callable[..., None], events: EventStream, plan: Plan, outputs: Sequence[str]
) -> Callable[..., None]:
    """ONNX Runtime's ``run_async`` of the whole model, with its runs told to observers before the callback is called.

    Args:
        plan: of the session.
        outputs: names of what the callback gets.
    """

    def run(names: Any, feeds: Mapping[str, Any], callback: Any, user_data: Any, run_options: Any) -> None:
        from parallax.engine._run_events import begin_whole_run

        observed = begin_whole_run(events, as_whole(plan))

        def ended(made: Any, user_data: Any, error: str) -> None:
            if error:
                observed.fail(RuntimeError(error))
            else:
                observed.end(tuple(feeds.items()), named_outputs(outputs, made))
            callback(made, user_data, error)

        try:
            run_async(names, feeds, ended, user_data, run_options)
        except BaseException as error:
            observed.fail(error)
            raise

    return run


def as_whole(plan: Plan) -> Plan:
    """A plan of one segment of the CPU's, for what runs beside the segments of this one; or this one, if it is that."""
    from parallax.schedule import CPU_BACKEND, Segment

    if len(plan.segments) == 1 and plan.segments[0].backend == CPU_BACKEND and not plan.segments[0].bodies:
        return plan
    made = {name for segment in plan.segments for name in segment.outputs}
    read = dict.fromkeys(name for segment in plan.segments for name in segment.inputs if name not in made)
    whole = Segment(
        index=0,
        name="whole_model",
        nodes=tuple(sorted({node for segment in plan.segments for node in segment.nodes})),
        inputs=tuple(read),
        outputs=(),
        predecessors=(),
        width=plan.cores,
        priority=0,
        lane=0,
        cost_ns=0,
        reason="what this run asked for takes the whole model's session",
    )
    return replace(plan, lanes=1, segments=(whole,))


def named_outputs(names: Sequence[str], made: Any) -> Sequence[tuple[str, Any]]:
    """What a run returned, by the names of outputs; nothing where it returned no sequence."""
    return tuple(zip(names, made, strict=False)) if isinstance(made, Sequence) else ()
