"""The first lines of ``parallax inspect``: is it worth it, what would it do here, is it right; what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from parallax.cli._console import print_line
from parallax.cli._plan_view import form_of
from parallax.cli._units import milliseconds, size
from parallax.cli._verdict import AS_FAST, speed
from parallax.planner import DEFAULT_MIN_GAIN
from parallax.schedule import Plan

YES, PERHAPS, NO, UNKNOWN = "yes", "perhaps", "no", "unknown"


def describe_answers(
    arguments: str,
    plan: Plan | None,
    *,
    prediction: Mapping[str, Any],
    memory: Mapping[str, Any],
    weight_bytes: int,
    offload: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The three answers, each with a text and the command that says more.

    Args:
        arguments: the model and its shapes, as one would type them.
        plan: of a session that is opened with no options; None where ONNX Runtime cannot open the model.
        prediction: of what the tables say of splitting it, see `parallax.cli._inspect`.
        memory: likewise.
        offload: of the device that was asked for, see `parallax.cli._offload`.
    """
    if plan is None:
        worth = _answer(UNKNOWN, None, "ONNX Runtime, which computes, cannot open this model", f"run {arguments}")
    elif offload is not None:
        worth = _worth_on_device(offload, f"{arguments} --provider {offload['asked']}")
    elif plan.provenance.source == "measured" and not plan.provenance.is_noisy:
        worth = _worth_as_measured(plan, arguments)
    else:
        worth = _worth_as_predicted(plan, prediction, arguments)
    return {
        "worth_it": worth,
        "here": _here(arguments, plan, prediction=prediction, memory=memory, weight_bytes=weight_bytes)
        if offload is None
        else _here_with_device(offload, f"{arguments} --provider {offload['asked']}"),
        "right": _right(arguments, plan) if offload is None else _right_on_device(offload, arguments),
    }


def render_answers(answers: Mapping[str, Any], console: Console) -> None:
    """One line each, the first one whether it is worth it."""
    worth, here, right = answers["worth_it"], answers["here"], answers["right"]
    print_line(console, f"worth it: {worth['answer']}, {worth['text']}. Next: parallax {worth['next']}")
    print_line(console, f"here: {here['text']}. Next: parallax {here['next']}")
    print_line(console, f"right: {right['text']}. Next: parallax {right['next']}\n")


def _answer(answer: str, factor: float | None, text: str, then: str, *, basis: str = "predicted") -> dict[str, Any]:
    return {"answer": answer, "times_faster": factor, "basis": basis, "text": text, "next": then}


def _worth_as_measured(plan: Plan, arguments: str) -> dict[str, Any]:
    whole_ns, chosen_ns = plan.provenance.whole_ns, plan.provenance.chosen_ns
    if plan.is_whole or not whole_ns or not chosen_ns:
        return _answer(
            NO,
            None,
            "not for speed: measured on this machine, no plan is clearly faster than the whole model in ONNX Runtime; "
            "what is left to gain is start-up and memory",
            f"compile {arguments} -o model.plx",
            basis="measured",
        )
    words = speed(chosen_ns / whole_ns)
    compared = "as fast as the whole model, and steadier" if words == AS_FAST else f"{words} than the whole model"
    return _answer(
        YES,
        whole_ns / chosen_ns,
        f"measured on this machine, {form_of(plan)} it is {compared}; sessions open with that plan",
        f"bench {arguments}",
        basis="measured",
    )


def _worth_as_predicted(plan: Plan, prediction: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    ratios = [row["ratio_to_uncut"] for row in prediction["candidates"] if row["ratio_to_uncut"] is not None]
    best = min(ratios, default=1.0)
    if not plan.is_whole:
        text = f"cost tables predict that {form_of(plan)} it is {speed(best)} than the whole model; sessions open so"
        return _answer(YES, 1 / best if best else None, text, f"bench {arguments}")
    if speed(best).endswith("faster"):
        text = (
            f"cost tables predict up to {speed(best)} split than whole, too little to split it unmeasured "
            f"({plan.provenance.reason})"
        )
        return _answer(PERHAPS, 1 / best, text, f"tune {arguments}")
    text = (
        f"not for speed: no split is predicted to be faster than the whole model in ONNX Runtime, on "
        f"{_cores(prediction['cores'])}; what is left to gain is start-up and memory"
    )
    return _answer(NO, None, text, f"compile {arguments} -o model.plx")


def _worth_on_device(offload: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    cpu_ms, ours_ms = offload["placements"][0]["ms"], offload["placements"][-1]["ms"]
    figures = "emulated, a model and no measurement" if offload["is_emulated"] else offload["figures"]
    if not offload["gains"] or ours_ms >= cpu_ms:
        return _answer(NO, None, f"nothing is predicted to gain on {offload['name']}", f"bench {arguments}")
    text = (
        f"beside {offload['name']} it is predicted to be {speed(ours_ms / cpu_ms)} than on the CPU alone (figures of "
        f"the device: {figures})"
    )
    answer = YES if ours_ms <= (1 - DEFAULT_MIN_GAIN) * cpu_ms else PERHAPS
    return _answer(answer, cpu_ms / ours_ms, text, f"bench {arguments}")


def _here(
    arguments: str,
    plan: Plan | None,
    *,
    prediction: Mapping[str, Any],
    memory: Mapping[str, Any],
    weight_bytes: int,
) -> dict[str, Any]:
    form = "it does not run" if plan is None else form_of(plan)
    parts = [f"{form} ({_cores(prediction['cores'])} here)"]
    if prediction["uncut_ms"] and plan is not None:
        chosen_ns = plan.provenance.chosen_ns
        if plan.provenance.source == "measured" and chosen_ns:
            parts.append(f"{milliseconds(chosen_ns)} ms as measured")
        else:
            predicted_ns = chosen_ns if chosen_ns and not plan.is_whole else prediction["uncut_ms"] * 1e6
            parts.append(f"about {milliseconds(predicted_ns)} ms by the cost tables, which are rough")
    if memory["run_peak_bytes"] is not None:
        parts.append(f"a run holds {size(memory['run_peak_bytes'])} beside {size(weight_bytes)} of weights")
    return {"text": "; ".join(parts), "next": f"inspect {arguments} --provider NAME (see parallax devices)"}


def _here_with_device(offload: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    held = offload["memory"]["held_bytes"]
    text = str(offload["reason"]) + (f"; it holds {size(held)} of the device's memory" if held else "")
    return {"text": text, "next": f"run {arguments}"}


def _right_on_device(offload: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    if offload["is_emulated"]:
        text = "an emulated device computes with this CPU's kernels, so that its answers are right"
    else:
        text = "the device's kernels compute what it takes; what it fails at runs on the CPU"
    return {"text": text, "next": f"bench {arguments} --provider {offload['asked']} (compares every output)"}


def _right(arguments: str, plan: Plan | None) -> dict[str, Any]:
    if plan is not None and plan.is_whole:
        text = "whole, the model is run by ONNX Runtime's own session, so that its answers are the same bits"
    else:
        text = (
            "ONNX Runtime's kernels compute: answers are the same bits, or within 1e-4 of their magnitude where a "
            "split lets it choose others"
        )
    return {"text": text, "next": f"bench {arguments} (compares every output)"}


def _cores(number: int) -> str:
    return f"{number} core{'s' if number > 1 else ''}"
