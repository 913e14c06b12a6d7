"""What a proof about padding says: which inputs may be cut, by which mask, and what outputs are filled up with."""

from __future__ import annotations

from parallax._record import dataclass


class NotTrimmable(Exception):
    """Padding cannot be proven to be without effect; the text says why. Whoever asks catches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutInput:
    """An input with the sequence axis."""

    name: str
    axes: tuple[int, ...]
    """Those along which it is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedOutput:
    """An output that keeps the sequence axis, whose value at padded places is the same in every full run."""

    name: str
    axes: tuple[int, ...]
    value: str
    """That value: a number as ``repr`` writes a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimming:
    """How a model is run without its padding.

    It holds for masks whose rows are ones and then zeros, with a one at least. Where the rows of the mask have n ones
    at most, all ``inputs`` may be cut to their first n places.
    """

    mask: str
    """The input that says what is padding. Its last axis is the sequence."""
    inputs: tuple[CutInput, ...]
    """All that are cut, the mask among them."""
    outputs: tuple[PaddedOutput, ...]
    """Those that are filled up again; the others do not have the axis."""
    shortest: int
    """Places that are kept at least: the model reads so many, by their numbers."""
    longest: int | None
    """Length up to which the model runs; None where nothing in it says. Longer feeds are left as they are, so that the
    model refuses them."""
    rows: tuple[int, ...] | None = None
    """For each output of the model, in its order, the axis along which the rows of a batch lie (-1: it has none), where
    rows may be run apart; None where they may not, or where that would not pay. The inputs have them along axis 0."""

    def describe(self) -> str:
        """What is done, in words."""
        names = ", ".join(repr(entry.name) for entry in self.inputs)
        told = f"padding is trimmed: {names} are cut to the longest row of {self.mask!r}"
        if self.outputs:
            filled = ", ".join(repr(entry.name) for entry in self.outputs)
            told += f", and {filled} filled up again"
        if self.rows is not None:
            told += "; rows of unlike lengths run in groups"
        return told
