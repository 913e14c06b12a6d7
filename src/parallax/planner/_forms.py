"""Plans of a model that is rewritten for one shape (split by rows, or with its constants computed), for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from parallax.backends.ort import RuntimeOptions, load_session
from parallax.engine import ShapeForm, ShapeForms, compile_plan
from parallax.memory import Budget
from parallax.model import Model, split_rows
from parallax.planner._candidates import PlanningContext
from parallax.planner._constants import with_constants
from parallax.planner._devices import DevicePlan, DeviceStudy, with_price
from parallax.planner._request import PlannedModel, PlanRequest
from parallax.planner._requirement import estimate_model
from parallax.planner._rows import in_rows_shapes, open_inputs
from parallax.planner._tables import DEFAULT_MIN_GAIN
from parallax.planner._whole import fed_in_full, make_provenance, whole_plan
from parallax.profile import fusion_safe_tensors
from parallax.schedule import Plan


def form_in_shapes(
    model: Model, plan: Plan, request: PlanRequest, shapes: Mapping[str, tuple[int, ...]]
) -> PlannedModel | None:
    """The plan of a model rewritten for other shapes than ``plan`` is for, at the same share of the rows, if any.

    Its costs are those of tables, so that it must be predicted to gain what any unmeasured plan must.

    Args:
        model: with its open dimensions.
        plan: in force, of the model rewritten.
        request: that it answers.
        shapes: of all inputs that the model leaves open.

    Returns: None where nothing is predicted to gain.

    Raises: BackendError, ConfigError, ModelError where the model or a device does not take these shapes.
    """
    made, stated = in_rows_shapes(model, shapes), tuple((name, tuple(shape)) for name, shape in shapes.items())
    computed = None if plan.constants_shapes is None else with_constants(made)
    if computed is not None:
        made = computed.model
    split = None
    if plan.rows_permille is not None:
        split = split_rows(made, plan.rows_permille / 1000, whole=plan.rows_whole, joins_once=plan.rows_joined)
        if split is None:
            return None
        made = split.model
    context = PlanningContext(made, cores=request.cores, fusion_safe=fusion_safe_tensors(made))
    best: tuple[DevicePlan, DeviceStudy] | None = None
    least = DEFAULT_MIN_GAIN if request.min_gain is None else request.min_gain
    for device in request.devices.values():
        study = DeviceStudy(context, with_price(device.backend, width=request.cores), split=split)
        found = study.best
        if found is None or found.simulated_ns > (1 - least) * study.cpu_ns:
            continue
        if best is None or found.simulated_ns < best[0].simulated_ns:
            best = found, study
    if best is None:
        return None
    found, study = best
    answer = replace(
        found.plan,
        structure_digest=model.structure_digest,
        rows_permille=plan.rows_permille,
        rows_whole=plan.rows_whole,
        rows_joined=plan.rows_joined,
        rows_shapes=() if split is None or computed is not None else stated,
        constants_shapes=None if computed is None else stated,
        provenance=make_provenance("tables", study.reason, whole_ns=study.cpu_ns, chosen_ns=found.simulated_ns),
    )
    return PlannedModel(plan=answer, model=made)


def forms_of_shapes(
    model: Model,
    planned: PlannedModel,
    request: PlanRequest,
    runtime: RuntimeOptions,
    *,
    has_budget: bool,
    in_memory: Callable[[Model], Model],
) -> ShapeForms | None:
    """What serves the shapes that a plan of a rewritten model is not for; None where the model takes no others.

    Further forms hold weights of their own, on devices too. So there are none under a budget of memory, or on a device
    that may hold but so much: then other shapes run whole.

    Args:
        model: with its open dimensions.
        planned: in force.
        request: that it answers.
        runtime: what segments inherit.
        has_budget: whether runs of the session keep to a budget.
        in_memory: reads small weights, as segments are to be made of.
    """
    if not planned.plan.is_rewritten or not open_inputs(model):
        return None
    static = {info.name: info.shape for info in planned.model.graph.inputs}
    own: dict[str, tuple[int, ...]] = {}
    for info in open_inputs(model):
        shape = static[info.name]
        assert shape is not None
        own[info.name] = tuple(size for size in shape if isinstance(size, int))
    interface = model.interface()
    assert interface is not None  # it has open inputs
    compiled = partial(compile_plan, backends=request.open_backends, faults=request.faults)

    def plan_whole() -> Plan:
        return fed_in_full(whole_plan(model, "shapes that the plan is not for", cores=request.cores), model)

    def make_whole() -> ShapeForm:
        whole = plan_whole()
        estimator = estimate_model(model, whole) if has_budget else None
        return ShapeForm(plan=whole, executor=compiled(in_memory(model), whole, runtime), estimator=estimator)

    def make_form(shapes: Mapping[str, tuple[int, ...]]) -> ShapeForm | None:
        form = form_in_shapes(model, planned.plan, request, shapes)
        if form is None:
            return None
        return ShapeForm(plan=form.plan, executor=compiled(in_memory(form.model), form.plan, runtime))

    def check_unsliced(budget: Budget, runs: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        estimator = estimate_model(model, plan_whole())
        requirement, shapes = max(
            ((estimator.requirement(run), run) for run in runs), key=lambda found: found[0].least_bytes
        )
        unsliced = Budget.of(budget.budget_bytes, weight_bytes=model.weight_bytes, margin=budget.margin)
        unsliced.check(requirement, shapes=shapes)

    may_have_forms = not has_budget and all(device.budget_bytes is None for device in request.devices.values())
    may_have_forms = may_have_forms and request.objective not in Plan.ENERGY_OBJECTIVES  # forms are planned by time
    return ShapeForms(
        own,
        make_whole=make_whole,
        make_form=make_form if may_have_forms else None,
        held_bytes=Budget.of(0, weight_bytes=model.weight_bytes).held_bytes,
        check_unsliced=check_unsliced if planned.plan.stretches else None,
        declared=load_session(interface),
    )
