"""Sizes of tensors as expressions over symbolic dimensions, bound to numbers in microseconds.

A dimension whose name is an expression of input dimensions ("2*batch", "past + sequence") is taken
apart; any other name is a symbol of its own, also the ones that shape inference makes up for sizes it
cannot follow. An unnamed dimension becomes a symbol of its tensor (``?tensor:axis``), an unknown rank one
symbol for the number of elements (``?tensor``). So every size can be learned from a run, by `bind_dims`.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from parallax._record import dataclass
from parallax.graph._elements import ELEMENT_TYPES, STRING_TYPE, packed_bytes
from parallax.graph._tensor_info import Dim, TensorInfo

MAX_TENSOR_BYTES: Final = 1 << 48
"""A size beyond this (256 TiB) comes from no machine; it counts as unknown, and the run fails on its own terms."""

_MAX_TERMS: Final = 32
_MAX_NAME: Final = 200
_Terms = dict[tuple[str, ...], int]
"""A polynomial: sorted symbols (repeated for powers) -> coefficient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeExpression:
    """The size of a tensor in bytes: ``ceil(bits × Σ coefficient × Π symbols / 8)``."""

    terms: tuple[tuple[int, tuple[str, ...]], ...]
    """(coefficient, symbols) per summand, ascending in symbols; a power repeats its symbol."""
    bits: int
    """Per element."""

    @property
    def symbols(self) -> frozenset[str]:
        """The dimensions it depends on."""
        return frozenset(name for _, names in self.terms for name in names)

    def bytes(self, dims: Mapping[str, int]) -> int | None:
        """The size for these dimensions; None where one is missing, or the result is no size."""
        elements = 0
        for coefficient, names in self.terms:
            for name in names:
                value = dims.get(name)
                if value is None:
                    return None
                coefficient *= value
            elements += coefficient
        size = packed_bytes(elements, self.bits)
        return size if 0 <= size <= MAX_TENSOR_BYTES else None


def size_expression(info: TensorInfo, *, symbols: Collection[str] = ()) -> SizeExpression | None:
    """How large a tensor is, in terms of its dimensions.

    Args:
        info: its type.
        symbols: names of the model's input dimensions, in whose terms other dimensions may be written.

    Returns: None for what is no flat block of bytes: strings, sequences, sparse tensors, unknown types.
    """
    element = ELEMENT_TYPES.get(info.dtype)
    if info.kind != "tensor" or element is None or element.code == STRING_TYPE:
        return None
    bits = element.bits
    unknown_count = SizeExpression(terms=((1, (f"?{info.name}",)),), bits=bits)
    if info.shape is None:
        return unknown_count
    total: _Terms = {(): 1}
    for axis, dim in enumerate(info.shape):
        total = _product(total, _dim_terms(info.name, axis, dim, symbols))
        if len(total) > _MAX_TERMS:
            return unknown_count
    ordered = sorted((names, count) for names, count in total.items() if count)
    return SizeExpression(terms=tuple((count, names) for names, count in ordered), bits=bits)


def bind_dims(infos: Iterable[TensorInfo], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The symbols that concrete shapes give a value: of inputs before a run, of any tensor after one.

    A symbol that two dimensions would bind to different values is left out, as exporters reuse names
    carelessly. Tensors without a shape here, and shapes of another rank than declared, teach nothing.
    """
    bound: dict[str, int] = {}
    conflicting: set[str] = set()

    def bind(symbol: str, value: int) -> None:
        if bound.setdefault(symbol, value) != value:
            conflicting.add(symbol)

    for info in infos:
        shape = shapes.get(info.name)
        if shape is None:
            continue
        if info.shape is None:
            count = 1
            for value in shape:
                count *= value
            bind(f"?{info.name}", count)
        elif len(info.shape) == len(shape):
            for axis, (dim, value) in enumerate(zip(info.shape, shape, strict=True)):
                if not isinstance(dim, int):
                    bind(dim or f"?{info.name}:{axis}", int(value))
    for symbol in conflicting:
        del bound[symbol]
    return bound


class SizeTable:
    """The sizes of many tensors, most of which have an expression in common with others.

    Each distinct expression is evaluated once per `bind`, constant ones never again.
    """

    __slots__ = ("_constant", "_index", "_open", "symbols")

    def __init__(self, expressions: Sequence[SizeExpression | None]) -> None:
        numbers: dict[SizeExpression | None, int] = {}
        self._index = [numbers.setdefault(expression, len(numbers)) for expression in expressions]
        self._constant: list[int | None] = [None] * len(numbers)
        self._open: list[tuple[int, SizeExpression]] = []
        symbols: set[str] = set()
        for expression, number in numbers.items():
            if expression is None:
                continue
            if expression.symbols:
                self._open.append((number, expression))
                symbols |= expression.symbols
            else:
                self._constant[number] = expression.bytes({})
        self.symbols: tuple[str, ...] = tuple(sorted(symbols))
        """Every dimension a size depends on, ascending."""

    def __len__(self) -> int:
        return len(self._index)

    def bind(self, dims: Mapping[str, int]) -> list[int | None]:
        """Return bytes per tensor, in the order of the table; None where they are not known."""
        values = self._constant
        if self._open:
            values = values.copy()
            for number, expression in self._open:
                values[number] = expression.bytes(dims)
        return [values[number] for number in self._index]


def _dim_terms(tensor: str, axis: int, dim: Dim, symbols: Collection[str]) -> _Terms:
    if isinstance(dim, int):
        return {(): dim}
    if dim is None:
        return {(f"?{tensor}:{axis}",): 1}
    if dim in symbols or len(dim) > _MAX_NAME:
        return {(dim,): 1}
    parsed = _parse(dim, symbols)
    return {(dim,): 1} if parsed is None else parsed


def _parse(text: str, symbols: Collection[str]) -> _Terms | None:
    """A polynomial over known symbols, or None: then the text is but a name."""
    try:
        return _terms_of(ast.parse(text.strip(), mode="eval").body, symbols)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _terms_of(node: ast.expr, symbols: Collection[str]) -> _Terms | None:
    if isinstance(node, ast.Name):
        return {(node.id,): 1} if node.id in symbols else None
    if isinstance(node, ast.Constant):
        return {(): node.value} if type(node.value) is int else None
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _terms_of(node.left, symbols), _terms_of(node.right, symbols)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Mult):
        product = _product(left, right)
        return product if len(product) <= _MAX_TERMS else None
    sign = {ast.Add: 1, ast.Sub: -1}.get(type(node.op))
    if sign is None:
        return None
    for names, count in right.items():
        left[names] = left.get(names, 0) + sign * count
    return left if len(left) <= _MAX_TERMS else None


def _product(left: _Terms, right: _Terms) -> _Terms:
    out: _Terms = {}
    for left_names, left_count in left.items():
        for right_names, right_count in right.items():
            names = tuple(sorted(left_names + right_names))
            out[names] = out.get(names, 0) + left_count * right_count
    return out
