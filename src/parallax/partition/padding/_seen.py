"""What is known of a tensor, whatever the length of the sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from parallax._record import dataclass
from parallax.partition.padding._entries import Entry, Kind
from parallax.partition.padding._lengths import ONE, ZERO, Length, product

Atoms = tuple[Length, ...]
"""The size of an axis as the sizes that it was made of, the outermost first; () is 1."""

Mark = tuple[int, int]
"""A place of the sequence among the axes of a tensor: which axis, which of its atoms."""


MOST_ITEMS = 64
"""Elements of a vector whose elements are followed one by one."""


class NotProven(Exception):
    """A rule cannot follow an operator; the text says why, with the operator as its subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What is known of a tensor's elements at the first place of the sequence, and at padded ones."""

    first: Entry
    padded: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Whole numbers that follow from where they stand: ``start`` + Σ slope of an axis × index along it."""

    start: Length
    slopes: tuple[Length, ...]
    """One for each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a tensor.

    Invariant: where the full run and the trimmed run both have an element (its index along each mark is below the
    number of places that are kept), it is the same in both, unless the tensor `depends_on` the length.
    """

    axes: tuple[Atoms, ...]
    entry: Entry = Kind.ORDINARY
    """Of all its elements."""
    edges: Mapping[Mark, Edge] = field(default_factory=dict)
    """Where more is known than ``entry`` says."""
    items: tuple[Length, ...] | None = None
    """The elements of a vector or a scalar of whole numbers, or of flags as 0 and 1, where they are known."""
    affine: Affine | None = None
    is_cut: bool = False
    """Whether an input that is cut goes into it."""
    is_masked: bool = False
    """Whether the mask was what kept padded places out of it, somewhere on the way."""

    @property
    def shape(self) -> tuple[Length, ...]:
        """Its sizes."""
        return tuple(map(product, self.axes))

    def edge(self, mark: Mark) -> Edge:
        """What is known at a mark."""
        return self.edges.get(mark) or Edge(first=self.entry, padded=self.entry)

    def depends_on(self, symbol: str) -> bool:
        """Whether its elements themselves depend on an open size."""
        known = [*(self.items or ())]
        if self.affine is not None:
            known += [self.affine.start, *self.affine.slopes]
        return any(symbol in length.symbols for length in known)

    def as_affine(self) -> Affine | None:
        """As numbers that follow from where they stand, where they do."""
        if self.affine is None and self.items is not None and len(self.items) == 1:
            return Affine(start=self.items[0], slopes=(ZERO,) * len(self.axes))
        return self.affine

    def aligned_affine(self, rank: int) -> Affine | None:
        """Likewise, after it was broadcast to so many axes."""
        found = self.as_affine()
        if found is None:
            return None
        return Affine(start=found.start, slopes=(*[ZERO] * (rank - len(found.slopes)), *found.slopes))


def axis_of(size: Length) -> Atoms:
    """An axis of this size, of which no more is known."""
    return () if size == ONE else (size,)


def marks_of(axes: Sequence[Atoms], sequence: Length) -> list[Mark]:
    """Where the sequence is among axes, in order."""
    return [
        (number, place) for number, atoms in enumerate(axes) for place, atom in enumerate(atoms) if atom == sequence
    ]


def regrouped(atoms: Iterable[Length], sizes: Sequence[Length]) -> tuple[Atoms, ...] | None:
    """The same elements in the same order, under axes of these sizes; None where the axes do not fall on atoms."""
    left = list(atoms)
    axes = []
    for size in sizes:
        group: list[Length] = []
        while size != ONE:
            if not left:
                return None
            quotient = size.divided_by(left[0])
            if quotient is not None:
                group.append(left.pop(0))
                size = quotient
                continue
            rest = None if left[0].number is None else left[0].divided_by(size)
            if rest is None:
                return None
            group.append(size)
            left[0], size = rest, ONE
        axes.append(_merged(group))
    return None if left else tuple(axes)


def _merged(atoms: Sequence[Length]) -> Atoms:
    """Neighbours that are numbers, as one."""
    made: list[Length] = []
    for atom in atoms:
        if made and made[-1].number is not None and atom.number is not None:
            made[-1] = made[-1] * atom
        else:
            made.append(atom)
    return tuple(atom for atom in made if atom != ONE)


def broadcast(shapes: Sequence[Sequence[Atoms]]) -> tuple[Atoms, ...]:
    """The axes of what operands of these shapes broadcast to, aligned at the last axis.

    Raises: NotProven where they are not known to fit.
    """
    rank = max(map(len, shapes))
    axes = []
    for place in range(-rank, 0):
        found: Atoms = ()
        for shape in shapes:
            own = shape[place] if -place <= len(shape) else ()
            if own and found and own != found:
                raise NotProven("the shapes of its inputs are not known to fit for every length")
            found = own or found
        axes.append(found)
    return tuple(axes)


def own_mark(mark: Mark, axes: Sequence[Atoms], rank: int) -> Mark | None:
    """Where a mark of a result of ``rank`` axes is in an operand that was broadcast; None where it lacks the axis."""
    axis = mark[0] - rank + len(axes)
    return (axis, mark[1]) if axis >= 0 and axes[axis] else None


def moved_edges(seen: Seen, axes: Sequence[Atoms], sequence: Length) -> dict[Mark, Edge]:
    """The edges of a tensor after its elements were put under other axes, in the same order."""
    before, after = marks_of(seen.axes, sequence), marks_of(axes, sequence)
    return {new: seen.edges[old] for old, new in zip(before, after, strict=True) if old in seen.edges}
