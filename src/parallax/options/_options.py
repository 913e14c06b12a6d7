"""Parallax's own options: one frozen record, from which everything else that concerns them follows.

`Options` states of each option, once, its type, its default, the check of its value, what it means and what it
excludes. The keywords of ``InferenceSession`` and ``compile``, their signatures and docstrings, what a session on a
bundle refuses and what a pickled session takes along are derived from it. To add an option: a field, the same name in
one of the two ``TypedDict`` (which type checkers read), and an entry in the docstring. All three are in this file, and
a test compares them.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict, TypeVar

from parallax._record import dataclass
from parallax.backends import FaultPolicy
from parallax.bundle import Verify
from parallax.errors import ConfigError
from parallax.options._keywords import (
    HarmlessProgress,
    Progress,
    check_backends,
    check_calibration,
    check_faults,
    check_folder,
    check_idle_trim,
    check_margin,
    check_memory_budget,
    check_min_gain,
    check_objective,
    check_observers,
    check_padding,
    check_policy,
    check_progress,
    check_shapes,
    check_split,
    check_switch,
    check_threads,
    check_together,
    check_trace,
    check_verify,
    is_same,
)
from parallax.options._unknown_keywords import refuses_unknown, unknown_keyword
from parallax.schedule import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from parallax.engine import Observer, TraceSink
    from parallax.options._providers import Device
    from parallax.schedule.placement import Placer

F = TypeVar("F", bound=Callable[..., Any])

Split = Literal["auto", "never", "always"]
"""Whether a model is divided into segments; see `Options`."""

Padding = Literal["trim"]
"""How padded places of inputs are run; see `Options`."""

Objective = Literal["auto", "latency", "throughput", "energy", "edp"]
"""What a session is to be good at; see `Options`."""


class CompileKeywords(TypedDict, total=False):
    """The fields of `Options` that ``compile`` takes as keywords, for type checkers."""

    threads: int | None
    policy: str | Placer
    split: Split
    shapes: Mapping[str, Sequence[int]] | None
    calibration: Mapping[str, Any] | None
    tune: bool
    min_gain: float | None
    cache_dir: str | os.PathLike[str] | None
    progress: Progress | None
    memory_budget: int | str | float | None
    margin: float
    padding: Padding | None
    slim: bool
    objective: Objective


class OptionKeywords(CompileKeywords, total=False):
    """All fields of `Options`, as keywords, for type checkers."""

    trace: TraceSink | None
    observers: Sequence[Observer]
    verify: Verify
    cache: bool
    idle_trim_s: float | None
    backends: Sequence[str] | None
    faults: FaultPolicy | None
    adapt: bool


class SessionKeywords(OptionKeywords, total=False):
    """The keywords of ``InferenceSession``: `Options`, and those that ONNX Runtime reads without naming them."""

    enable_fallback: bool | int
    disabled_optimizers: Sequence[str] | None
    read_config_from_model: bool | int


class OptionRule(NamedTuple):
    """What holds of an option beside its type and its default."""

    check: Callable[[Any], Any]
    """Returns the value as it is kept. Raises: ConfigError naming the option and saying what to write."""
    is_decided: bool
    """A bundle has decided it, so that a session on one refuses it."""
    is_carried: bool
    """A pickled session takes it along."""


def _rule(check: Callable[[Any], Any], *, is_decided: bool = False, is_carried: bool = True) -> dict[str, OptionRule]:
    return {"rule": OptionRule(check=check, is_decided=is_decided, is_carried=is_carried)}


@refuses_unknown
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How Parallax plans and runs a model: all options of its own, checked when the record is made.

    The keywords of ``InferenceSession`` and ``compile`` are these fields, and both take a record as ``options=``. It
    can be kept, used for several sessions, and varied with ``dataclasses.replace``. What is ONNX Runtime's
    (``sess_options``, ``providers``, ``provider_options``) is not part of it.

    Args:
        threads: number of cores to use, at least 1. Default: what affinity, cgroup quota and
            ``intra_op_num_threads`` allow.
        policy: name of the way in which work is placed: "adaptive" (the default) runs at the same time what gains by
            it, "sequential" runs one thing after the other. On the CPU alone, the latter leaves the model whole, as
            ``split="never"`` does. Another name is that of a placer, and an object may be one (see
            `parallax.schedule.placement.Placer`): it shares the model between the CPU and all devices of ``providers=``
            at once. Of what it proposes, and of the CPU alone, what is predicted to be quickest is taken. Without
            devices it is "adaptive". Settings follow a name, as in "greedy,partitions=3". "parallax-paper" (or a
            `parallax.schedule.placement.PaperPolicy` with thresholds of one's own) is a baseline for comparisons: it
            runs the model as the Parallax paper would, with devices and without, even where that is slower than the
            whole model. It excludes ``tune``, ``min_gain`` and ``split``. "sparoa" is "adaptive" with ``adapt=True``.
            Sources: "adaptive" is list scheduling by longest remaining path, with widths and devices that a simulator
            compares; branches, layers and "parallax-paper" are after arXiv 2512.11532; other placers' sources are in
            ``docs/placement.md``.
        split: whether the model is divided into segments: "auto" (the default) where it gains at least ``min_gain``;
            "never", so that it runs whole, on the CPU or on a device that takes all of it; "always", at every branch
            and with all that a device takes on it, whether that gains or not. "never" excludes ``tune`` and
            ``min_gain``; "always" excludes ``tune``, ``min_gain`` above 0 and ``policy="sequential"``; both exclude
            placers. The three words mean what they do in GNU tools (``ls --color=auto``).
        shapes: input name -> concrete shape, for planning models with dynamic dimensions. Other shapes still run.
            Default: none. Not for a session on a bundle.
        calibration: feeds (input name -> array) to measure with under ``tune``. Default: random ones. Not for a
            session on a bundle.
        tune: whether to profile the model, search plans, measure the best against the whole model, keep the winner
            and cache it on disk; later sessions on the same model and machine open with it. Default: False. Not for a
            session on a bundle.
        min_gain: least predicted gain for which the model is split, as a fraction of the latency, 0 to below 1.
            Default: 0.15 from tables alone. 0 means ``split="always"``. Not for a session on a bundle.
        cache_dir: folder where plans, profiles and bundles are kept. Default: the user's cache folder.
        progress: called with (stage, steps done, steps in all) during tuning and compiling. Default: none.
        memory_budget: what a session may hold at once to run: bytes, a size ("256MiB"), or a share of what is free
            when it opens (0.5, "50%"; container limits count). It covers, for all runs of the session together, the
            tensors between segments, the outputs, what segments make inside while they run, and private copies of
            weights; not mapped weights (a bundle's), the caller's inputs, what the runtime keeps of a model's graph,
            and opening itself. ``margin`` is left free for what estimates do not see. Less memory means fewer segments
            at a time, and runs of other threads that wait; what could not run even alone is refused. While memory is
            short on the machine, less is used. Default: no budget.
        margin: share of ``memory_budget`` that is left free for what estimates do not see, 0 to below 1. Less of it
            lets more run at once, at the risk that the session takes more than its budget. Default: 0.1.
        padding: "trim" runs the model without the places that its mask hides in every row: inputs are trimmed to the
            longest row, where it is proven on the graph that outputs stay the same (within 1e-5: sums are added up in
            another order); otherwise it is refused, with the node that stands in the way. Runs whose mask is other than
            ones and then zeros in each row, by values or by IO binding are run in full. See ``docs/sparsity.md``.
            Default: all places are run. Not for a session on a bundle, which is compiled with it.
        slim: whether channels, neurons and attention heads that zeros in weights make superfluous are removed before
            anything is planned, where that is proven to change nothing but rounding (inputs and weights are taken to
            be finite). The plan says how much went, or what stood in the way. Default: False. Not for a session on a
            bundle, which is compiled with it.
        trace: receives a span per segment and run, by its method ``record``. Default: none. Not for ``compile``.
        observers: callables that are given every event of runs, as records of `parallax.events` (``RunAdmitted``,
            ``SegmentStarted``, ``SegmentEnded``, ...), from any thread. One that raises is detached, and the error
            logged; the run goes on. Default: none. Not for ``compile``.
        verify: which digests of a bundle's large files are computed: "once" (of those that were written to since they
            were last found right; the default), "full" (of all) or "never". Not for ``compile``.
        cache: whether to open a model given by path from a bundle in ``cache_dir``, which is compiled the first time
            (this takes longer than opening, and about twice the weights on disk). Bundles that were not used for
            longest are removed beyond 4 GiB. Devices of ``providers=`` have bundles of their own. Of no effect where
            ``sess_options`` are given, since what those hold cannot all be seen, or where a provider of ONNX Runtime's
            gets the whole model. Default: False. Not for ``compile``.
        idle_trim_s: seconds above 0 without a run after which the session gives back, as ``trim`` does, what it keeps
            for the next one; ``float("inf")`` is never. Default: 30 with a budget, else never. Not for ``compile``.
        backends: names of what may compute beside ONNX Runtime's CPU kernels (see ``parallax.backends.open_backend``),
            where ``tune`` finds it faster; () for none. Default: OpenVINO, if it is installed
            (``pip install 'parallax-runtime[openvino]'``) and neither ``sess_options`` nor ``providers`` nor a budget
            are given. Outputs then agree within 1e-4 of their magnitude instead of bit for bit. What a backend fails
            at is run on the CPU. Not for ``compile``.
        faults: what is done about a backend that misbehaves: failures in a row after which it is disabled, a
            deadline for each of its calls, whether its NaNs are checked (see ``parallax.backends.FaultPolicy``). By
            default three failures disable it for 30 s, then longer; there is no deadline, and nothing is checked.
            Not for ``compile``.
        adapt: whether the session follows the machine: it keeps a few more plans ready, which are compiled in the
            background and hold weights of their own, and switches to one where a device, or the cores, have become
            slower or quicker. What it knows and did is ``InferenceSession.adaptation``; where it cannot be done, the
            plan says so. Default: False. Not for a session on a bundle, nor for ``compile``.
        objective: "latency" (the default): quick runs, each on all threads. "throughput": callers that keep coming run
            side by side on one thread each, where that serves more. "auto": likewise, for 5% more that hardly take
            memory (a bundle in the cache is made for that). Both: whole models on the CPU, not for ``compile``.
            "energy", "edp": the plan of the least modelled joules, or joules x seconds (``docs/energy.md``). The plan
            says where it cannot be done.

    Raises:
        ConfigError: the value of a field is of no use, or two fields exclude each other. It names them and says what
            to write.

    Example::

        options = parallax.Options(threads=4, tune=True)
        session = parallax.InferenceSession("model.onnx", options=options)
    """

    threads: int | None = field(default=None, metadata=_rule(check_threads))
    policy: str | Placer = field(default="adaptive", metadata=_rule(check_policy))
    split: Split = field(default="auto", metadata=_rule(check_split))
    shapes: Mapping[str, Sequence[int]] | None = field(default=None, metadata=_rule(check_shapes, is_decided=True))
    calibration: Mapping[str, Any] | None = field(
        default=None, repr=False, metadata=_rule(check_calibration, is_decided=True, is_carried=False)
    )
    # What tuning found is remembered on this machine; another one must not begin to measure when it is sent a copy.
    tune: bool = field(
        default=False, metadata=_rule(functools.partial(check_switch, "tune"), is_decided=True, is_carried=False)
    )
    min_gain: float | None = field(default=None, metadata=_rule(check_min_gain, is_decided=True))
    cache_dir: str | os.PathLike[str] | None = field(
        default=None, metadata=_rule(functools.partial(check_folder, "cache_dir"))
    )
    progress: Progress | None = field(default=None, metadata=_rule(check_progress, is_carried=False))
    memory_budget: int | str | float | None = field(default=None, metadata=_rule(check_memory_budget))
    margin: float = field(default=0.1, metadata=_rule(check_margin))
    padding: Padding | None = field(default=None, metadata=_rule(check_padding, is_decided=True))
    slim: bool = field(default=False, metadata=_rule(functools.partial(check_switch, "slim"), is_decided=True))
    trace: TraceSink | None = field(default=None, metadata=_rule(check_trace, is_carried=False))
    observers: Sequence[Observer] = field(default=(), metadata=_rule(check_observers, is_carried=False))
    verify: Verify = field(default="once", metadata=_rule(check_verify))
    cache: bool = field(default=False, metadata=_rule(functools.partial(check_switch, "cache"), is_decided=True))
    idle_trim_s: float | None = field(default=None, metadata=_rule(check_idle_trim))
    backends: Sequence[str] | None = field(default=None, metadata=_rule(check_backends))
    faults: FaultPolicy | None = field(default=None, metadata=_rule(check_faults))
    adapt: bool = field(default=False, metadata=_rule(functools.partial(check_switch, "adapt"), is_decided=True))
    objective: Objective = field(default="latency", metadata=_rule(check_objective))

    def __post_init__(self) -> None:
        for name, rule in OPTION_RULES.items():
            object.__setattr__(self, name, rule.check(getattr(self, name)))
        check_together(self)

    def carried(self) -> Options:
        """Return the options that a pickled session takes along, the others at their defaults."""
        return replace(self, **{name: _DEFAULTS[name] for name, rule in OPTION_RULES.items() if not rule.is_carried})


OPTION_RULES: Final[Mapping[str, OptionRule]] = {entry.name: entry.metadata["rule"] for entry in fields(Options)}
"""By name of the option, in the order of the record."""

_DEFAULTS: Final[Mapping[str, Any]] = {entry.name: entry.default for entry in fields(Options)}
_KEPT_DEFAULTS: Final[Mapping[str, Any]] = {name: rule.check(_DEFAULTS[name]) for name, rule in OPTION_RULES.items()}
"""As a record has them."""

COMPILE_OPTIONS: Final = tuple(name for name in OPTION_RULES if name in CompileKeywords.__annotations__)
"""Names of the options that ``compile`` takes."""

STOCK_KEYWORDS: Final = frozenset(SessionKeywords.__annotations__) - frozenset(OPTION_RULES)
"""Names of the keywords that ONNX Runtime's own class reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningOptions(Options):
    """Options as one session or compilation goes by them: checked, with what they came to when it began."""

    shapes: Mapping[str, tuple[int, ...]] | None = None
    cache_dir: Path | None = None
    backends: tuple[str, ...] | None = None
    """None: those that are installed, where neither providers nor session options were given."""
    faults: FaultPolicy = field(default_factory=FaultPolicy)
    budget_bytes: int | None = None
    """What ``memory_budget`` came to."""
    devices: tuple[Device, ...] = ()
    """The accelerators of ``providers=`` that plans are made for."""

    @classmethod
    def of(cls, options: Options) -> PlanningOptions:
        """Take the planning options of a record that was just given: a share of free memory is one of what is free
        now."""
        stated = {name: getattr(options, name) for name in OPTION_RULES}
        if options.policy == Plan.SPAROA_POLICY:
            stated |= {"policy": "adaptive", "adapt": True}
        if options.progress is not None:
            stated["progress"] = HarmlessProgress(options.progress)
        budget = options.memory_budget
        return cls(**stated, budget_bytes=None if budget is None else _budget_bytes(budget))

    def __post_init__(self) -> None:
        """Checks nothing: the values are those of a record that was checked."""

    @property
    def is_split_forced(self) -> bool:
        """Whether the model is split wherever it can be, whether it gains or not."""
        from parallax.planner import is_split_forced  # no bundle is planned

        return is_split_forced(self)

    @property
    def is_kept_whole(self) -> bool:
        """Whether a model that runs on the CPU alone is not to be split."""
        from parallax.planner import is_kept_whole  # likewise

        return is_kept_whole(self)

    @property
    def is_watched(self) -> bool:
        """Whether runs are counted: for a budget, or to know when the session idles."""
        return self.budget_bytes is not None or self.idle_trim_s not in (None, float("inf"))


def _budget_bytes(memory_budget: int | str | float) -> int:
    from parallax.machine import free_memory_bytes  # for sessions with a budget alone
    from parallax.memory import parse_bytes

    return parse_bytes(memory_budget, free_bytes=free_memory_bytes())


# -- from keywords ----------------------------------------------------------------------------------------------------


def gather_options(options: Any, keywords: Mapping[str, Any]) -> Options:
    """The record of one call: the one given, with keywords for fields that it leaves at their defaults.

    Args:
        options: an `Options`, or None.
        keywords: names of fields -> values, not checked yet.

    Raises: ConfigError for a value of no use, and for a keyword that contradicts the record.
    """
    if options is None:
        return Options(**keywords)
    if not isinstance(options, Options):
        raise ConfigError(
            f"options={options!r:.80} is no parallax.Options",
            fix="write options=parallax.Options(threads=2); what is ONNX Runtime's goes into sess_options=",
        )
    for name, value in keywords.items():
        stated, given = getattr(options, name), OPTION_RULES[name].check(value)
        if not (is_same(stated, given) or is_same(stated, _KEPT_DEFAULTS[name])):
            raise ConfigError(
                f"{name}={value!r:.80} contradicts options.{name}={stated!r:.80}",
                fix=f"leave one of them out, or write options=dataclasses.replace(options, {name}=...)",
            )
    return replace(options, **keywords) if keywords else options


_COMPILE_PARAMETERS: Final = (
    "model",
    "target",
    "options",
    "providers",
    "provider_options",
    "portable",
    "memory_limit",
)
"""Of ``compile``, beside options."""


def gather_compile_options(options: Any, keywords: Mapping[str, Any]) -> PlanningOptions:
    """Gather the options of ``compile``.

    Raises:
        ConfigError: also for a keyword that ``compile`` does not have, and for an option of the record that is a
            session's alone.
    """
    for name in keywords:
        if name not in COMPILE_OPTIONS:
            is_of_sessions = name in OPTION_RULES
            raise unknown_keyword(
                "compile",
                name,
                () if is_of_sessions else (*COMPILE_OPTIONS, *_COMPILE_PARAMETERS),
                otherwise="it is an option of sessions: give it to the InferenceSession that opens the bundle"
                if is_of_sessions
                else "help(parallax.compile) lists its options",
            )
    gathered = gather_options(options, keywords)
    for name in OPTION_RULES:
        is_planned = (
            gathered.objective not in ("auto", "throughput") if name == "objective" else name in COMPILE_OPTIONS
        )
        if not is_planned and not is_same(getattr(gathered, name), _KEPT_DEFAULTS[name]):
            raise ConfigError(
                f"{name}= is an option of sessions, not of what is compiled",
                where="options",
                fix="leave it out here, and give it to the InferenceSession that opens the bundle",
            )
    # Beside ONNX Runtime's CPU kernels, a bundle runs on the devices that it names, and on no others.
    return replace(PlanningOptions.of(gathered), backends=())


# -- signatures and docstrings, for people who ask for them while a program runs --------------------------------------


def shows_options(names: Sequence[str], *, takes_others: bool) -> Callable[[F], F]:
    """A decorator for a function that takes these fields of `Options` as ``**keywords``.

    ``inspect.signature``, ``help`` and notebooks then show each with its type and default. Static tools see them by
    the ``TypedDict``.

    Args:
        takes_others: whether the function has further keywords, which it does not name.
    """

    def decorate(function: F) -> F:
        shown = inspect.signature(function)
        named = [entry for entry in shown.parameters.values() if entry.kind is not inspect.Parameter.VAR_KEYWORD]
        others = [entry for entry in shown.parameters.values() if entry.kind is inspect.Parameter.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_DEFAULTS[name],
                annotation=Options.__annotations__[name],
            )
            for name in names
        ]
        parameters = [*named, *keywords, *(others if takes_others else ())]
        vars(function)["__signature__"] = shown.replace(parameters=parameters)
        function.__doc__ = with_option_docs(function.__doc__, names)
        return function

    return decorate


_KEYWORDS_ENTRY: Final = "    keywords: "
"""How the entry begins, in the "Args" of a docstring, after which those of the options are put."""


def with_option_docs(doc: str | None, names: Sequence[str]) -> str | None:
    """A docstring with the entries of these options after that of its keywords; None where there is none (``-OO``)."""
    entries = option_docs()
    if doc is None or not entries:
        return doc
    before, entry, rest = inspect.cleandoc(doc).partition(_KEYWORDS_ENTRY)
    if not entry:
        return doc
    first, *lines = rest.split("\n")
    end = next((number for number, line in enumerate(lines) if not line.startswith(" " * 8)), len(lines))
    return "\n".join([before + entry + first, *lines[:end], *(entries[name] for name in names), *lines[end:]])


def option_docs() -> dict[str, str]:
    """By name, the entries of the docstring of `Options`, indented by four blanks; {} where it has none (``-OO``)."""
    section = inspect.cleandoc(Options.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in section.split("\n") if section else ():
        if line.startswith(" " * 8):
            found[name] += f"\n{line}"
        else:
            name = line.strip().partition(":")[0]
            found[name] = line
    return found
