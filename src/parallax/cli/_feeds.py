"""Inputs from the command line: ``--input`` and ``--shape``, and what is made up for those not given."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from parallax import zoo
from parallax.cli._types import numpy_dtype, show_shape, type_name
from parallax.errors import ConfigError, InputError
from parallax.graph import TensorInfo

Array = NDArray[Any]

# Random inputs may take this share of the memory that is free; beyond it a size is surely a slip.
_MEMORY_SHARE = 0.25

_FILLS = ("random", "zeros", "ones")


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``x=1,3,224,224`` (or ``x=1x3x224x224``) for each ``--shape``; ``x=`` is a scalar.

    Raises: ConfigError for anything else, NaN and negative sizes among it.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, sizes = text.partition("=")
        if not (separator and name):
            raise ConfigError(f"--shape {text!r} names no input", fix="write it as NAME=1,3,224,224")
        if name in shapes:
            raise ConfigError(f"--shape gives {name!r} twice", fix="give each input one shape")
        shapes[name] = tuple(_parse_size(size, text) for size in sizes.replace("x", ",").split(",") if sizes)
    return shapes


def _parse_size(size: str, text: str) -> int:
    if not (size.strip().isascii() and size.strip().isdecimal()):
        raise ConfigError(
            f"{size.strip()!r} in --shape {text!r} is not a size",
            fix="sizes are whole numbers from 0, separated by commas: NAME=1,3,224,224",
        )
    value = int(size)
    if value >= 2**63:
        raise ConfigError(f"{size.strip()} in --shape {text!r} is beyond 64 bits", fix="give a smaller size")
    return value


def make_feeds(
    specifications: Sequence[str],
    inputs: Sequence[TensorInfo],
    *,
    optional: Sequence[TensorInfo] = (),
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    zoo_name: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The feeds of a run.

    Args:
        specifications: what ``--input`` was given: ``NAME=FILE.npy``, ``NAME=FILE.npz`` (the array of that
            name, or its only one), ``FILE.npz`` (every array in it), ``NAME=random|zeros|ones``, or
            ``NAME=NUMBER[,NUMBER...]``. ``NAME=`` may be left out where the model has one input.
        inputs: the model's inputs that every run must feed.
        optional: inputs that have a default in the model, fed only where a specification names them.
        shapes: concrete shapes by input name; they size what is made up.
        seed: random values depend on it, the input's name and its shape only.
        zoo_name: of a zoo model, whose example inputs are taken for those not given.

    Returns: input name -> array, and notices on what was made up.
    Raises:
        ConfigError: a specification cannot be read as one.
        InputError: an array does not fit its input, or a file holds none.
    """
    known = {entry.name: entry for entry in (*inputs, *optional)}
    check_shapes(shapes, known)
    feeds: dict[str, Any] = {}
    notices: list[str] = []
    for specification in specifications:
        for name, value in _read_specification(specification, known, shapes=shapes, seed=seed, notices=notices):
            if name not in known:
                raise InputError(f"the model has no input {name!r}", fix=_which_inputs(name, known))
            if name in feeds:
                raise ConfigError(f"--input gives {name!r} twice", fix="give each input once")
            check_array(known[name], value)
            feeds[name] = value
    missing = [entry.name for entry in inputs if entry.name not in feeds]
    if missing and zoo_name is not None:
        examples = zoo.example_inputs(zoo_name, seed=seed, **_zoo_dims(zoo_name, shapes))
        feeds.update((name, examples[name]) for name in missing)
    else:
        for name in missing:
            feeds[name] = _fill(known[name], "random", shapes=shapes, seed=seed, notices=notices)
            notices.append(f"input {name!r} was not given: using random {_describe(feeds[name])}")
    return {name: feeds[name] for name in known if name in feeds}, notices


def check_shapes(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, TensorInfo]) -> None:
    """Hold what ``--shape`` gave against what the inputs declare.

    Raises: ConfigError for a name that is no input, InputError for another rank or another fixed size.
    """
    for name, shape in shapes.items():
        if name not in known:
            raise ConfigError(f"--shape names {name!r}, which is no input", fix=_which_inputs(name, known))
        _check_shape(known[name], shape, where=f"--shape {name}")


def _read_specification(
    text: str, known: Mapping[str, TensorInfo], *, shapes: Mapping[str, tuple[int, ...]], seed: int, notices: list[str]
) -> list[tuple[str, Any]]:
    name, separator, source = text.partition("=")
    if not separator or (name not in known and Path(text).is_file()):
        if text.lower().endswith(".npz"):
            return list(load_npz(Path(text)).items())
        if len(known) != 1:
            raise ConfigError(
                f"--input {text!r} names no input",
                fix=f"write NAME={text}; the inputs are {', '.join(known) or 'none'}",
            )
        name, source = next(iter(known)), text
    if name not in known:
        raise InputError(f"the model has no input {name!r}", fix=_which_inputs(name, known))
    return [(name, _read_value(known[name], source, shapes=shapes, seed=seed, notices=notices))]


def _read_value(
    entry: TensorInfo, source: str, *, shapes: Mapping[str, tuple[int, ...]], seed: int, notices: list[str]
) -> Any:
    if source in _FILLS:
        return _fill(entry, source, shapes=shapes, seed=seed, notices=notices)
    suffix = Path(source).suffix.lower()
    if suffix == ".npz":
        arrays = load_npz(Path(source))
        if entry.name in arrays:
            return arrays[entry.name]
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        raise InputError(
            f"{source!r} holds no array {entry.name!r}", fix=f"its arrays are {', '.join(map(repr, arrays)) or 'none'}"
        )
    if suffix == ".npy":
        return _load_npy(Path(source))
    numbers = _parse_numbers(source)
    if numbers is None:
        raise ConfigError(
            f"cannot read --input {entry.name}={source}",
            fix="give a .npy or .npz file, random, zeros, ones, or numbers separated by commas",
        )
    return _from_numbers(entry, numbers, shapes=shapes, notices=notices)


def _load_npy(path: Path) -> Array:
    with _reading(path):
        # Mapped first: a header that promises more than the file holds is refused before anything is allocated.
        mapped = np.lib.format.open_memmap(path, mode="r")
        return np.array(mapped)


def load_npz(path: Path) -> dict[str, Array]:
    """All arrays of an archive, by name. Raises: InputError if it is not there, or not whole."""
    with _reading(path), path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise for damaged files, a dozen types, into an InputError."""
    if not path.is_file():
        raise InputError(f"there is no input file {str(path)!r}", fix="give a .npy or .npz file that exists")
    try:
        yield
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"cannot read {str(path)!r}: {reason}", fix="write it with numpy.save or numpy.savez, without Python objects"
    )


def _parse_numbers(text: str) -> list[float | int] | None:
    numbers: list[float | int] = []
    for word in text.strip("[]").split(","):
        try:
            numbers.append(int(word))
        except ValueError:
            try:
                numbers.append(float(word))
            except ValueError:
                return None
    return numbers


def _from_numbers(
    entry: TensorInfo, numbers: Sequence[float | int], *, shapes: Mapping[str, tuple[int, ...]], notices: list[str]
) -> Array:
    dtype = element_dtype(entry)
    if dtype.kind in "iu" and not all(isinstance(number, int) for number in numbers):
        raise InputError(
            f"input {entry.name!r} takes whole numbers ({type_name(entry)})", fix="leave out the fractions"
        )
    try:
        values = np.array(numbers, dtype=dtype)
    except OverflowError as error:
        raise InputError(
            f"a number is out of range for input {entry.name!r} ({type_name(entry)})", fix=str(error)
        ) from error
    declared = entry.shape
    if entry.name not in shapes and declared is not None and len(declared) == 1 and not isinstance(declared[0], int):
        return values
    shape = choose_shape(entry, shapes, notices)
    if len(numbers) == 1:
        return np.full(_affordable(entry, shape, dtype), values[0], dtype=dtype)
    if len(numbers) != math.prod(shape):
        raise InputError(
            f"{len(numbers)} numbers do not fill input {entry.name!r} of shape {list(shape)}",
            fix=f"give one number, or {math.prod(shape)}; or say --shape {entry.name}=...",
        )
    return values.reshape(shape)


def _fill(
    entry: TensorInfo, kind: str, *, shapes: Mapping[str, tuple[int, ...]], seed: int, notices: list[str]
) -> Array:
    dtype = element_dtype(entry)
    shape = _affordable(entry, choose_shape(entry, shapes, notices), dtype)
    if dtype.kind == "O":
        text = {"random": "parallax", "zeros": "", "ones": "1"}[kind]
        return np.full(shape, text, dtype=object)
    if kind != "random":
        return np.zeros(shape, dtype) if kind == "zeros" else np.ones(shape, dtype)
    # The name is part of the seed, so that an input does not change when another one is given or left out.
    generator = np.random.Generator(np.random.PCG64([seed, *entry.name.encode()]))
    if dtype.kind in "biu":
        # 0 and 1 are safe for masks, token and segment ids, and indices into anything with two entries.
        return generator.integers(0, 2, size=shape).astype(dtype)
    return np.asarray(generator.standard_normal(shape, dtype=np.float32)).astype(dtype)


def element_dtype(entry: TensorInfo) -> np.dtype[Any]:
    """The numpy type of an input's elements. Raises: InputError where numpy has none, or for other than tensors."""
    dtype = numpy_dtype(entry)
    if dtype is None:
        raise InputError(
            f"input {entry.name!r} is of type {type_name(entry)}, which the command line cannot make",
            fix="feed it from Python with parallax.InferenceSession",
        )
    return dtype


def batch_shapes(
    inputs: Sequence[TensorInfo], batch: int, *, given: Mapping[str, tuple[int, ...]], zoo_name: str | None
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs that leave the size of the batch open, with that size: that of their first dimension.

    Which symbol stands for it, the first input tells whose first dimension is open.

    Args:
        given: inputs whose shape is known.
        zoo_name: of a zoo model, whose usual sizes other open dimensions get.

    Raises: ConfigError if no input leaves it open, or the shape of one says otherwise.
    """
    usual = {} if zoo_name is None else {entry.name: entry.typical_shape for entry in zoo.info(zoo_name).inputs}
    batched = [entry for entry in inputs if entry.shape and not isinstance(entry.shape[0], int)]
    if batched:
        symbol = batched[0].shape[0] if batched[0].shape else None
        shapes = {}
        for entry in batched:
            if entry.shape and entry.shape[0] == symbol:
                rest = usual.get(entry.name, choose_shape(entry, {}, []))[1:]
                shapes[entry.name] = given.get(entry.name, (batch, *rest))
        for name, shape in shapes.items():
            check_batch(name, shape, batch)
        return shapes
    fixed = next((entry for entry in inputs if entry.shape), None)
    if fixed is not None and fixed.shape and fixed.shape[0] == batch:
        return {}
    stated = "no input has a shape" if fixed is None else f"input {fixed.name!r} is {show_shape(fixed.shape)}"
    raise ConfigError(
        f"--batch {batch}: the model fixes the size of its batch ({stated})",
        fix="leave --batch out, or export the model with an open first dimension",
    )


def check_batch(name: str, shape: Sequence[int], batch: int) -> None:
    """Raises: ConfigError if an input does not begin with the size of the batch."""
    if not shape or shape[0] != batch:
        raise ConfigError(
            f"--batch {batch}, and input {name!r} has shape {list(shape)}",
            fix="give one of both, or the same size in both",
        )


def choose_shape(entry: TensorInfo, shapes: Mapping[str, tuple[int, ...]], notices: list[str]) -> tuple[int, ...]:
    """The given shape, or the declared one with a plausible size for each open dimension, with a notice."""
    if entry.name in shapes:
        return shapes[entry.name]
    declared = entry.shape
    if declared is None:
        notices.append(f"input {entry.name!r} declares no rank: using a scalar (set it with --shape)")
        return ()
    shape = tuple(
        dim if isinstance(dim, int) else _plausible_size(dim, axis, declared) for axis, dim in enumerate(declared)
    )
    if shape != declared:
        notices.append(
            f"input {entry.name!r} has open sizes {show_shape(declared)}: using {show_shape(shape)} "
            f"(set it with --shape {entry.name}={','.join(map(str, shape))})"
        )
    return shape


def _plausible_size(dim: object, axis: int, declared: Sequence[object]) -> int:
    name = str(dim or "").lower()
    if any(word in name for word in ("batch", "past", "cache")):
        return 1
    if any(word in name for word in ("seq", "len", "time", "frame", "token", "sample")):
        return 16
    # An image of unknown size: (batch, channels, height, width) is the layout of ONNX's convolutions.
    if len(declared) == 4 and axis >= 2:
        return 224
    return 1


def _affordable(entry: TensorInfo, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    needed = math.prod(shape) * dtype.itemsize
    allowed = int(psutil.virtual_memory().available * _MEMORY_SHARE)
    if needed > allowed:
        raise InputError(
            f"input {entry.name!r} of shape {list(shape)} would take {needed / 2**30:.1f} GiB",
            where=f"{allowed / 2**30:.1f} GiB may be used here",
            fix=f"give smaller sizes with --shape {entry.name}=...",
        )
    return shape


def check_array(entry: TensorInfo, value: Array) -> None:
    """Raises: InputError unless an input takes an array of this type and shape."""
    expected = element_dtype(entry)
    if expected.kind == "O":
        if value.dtype.kind not in "OSU":
            raise InputError(f"input {entry.name!r} takes strings, not {value.dtype}", fix="save an array of strings")
    elif value.dtype.newbyteorder("=") != expected:
        raise InputError(
            f"input {entry.name!r} takes {expected}, not {value.dtype}", fix=f"save it with .astype({str(expected)!r})"
        )
    _check_shape(entry, value.shape, where=f"input {entry.name!r}")


def _check_shape(entry: TensorInfo, shape: Sequence[int], *, where: str) -> None:
    declared = entry.shape
    if declared is None:
        return
    if len(shape) != len(declared):
        raise InputError(
            f"rank {len(shape)} (shape {list(shape)}) where rank {len(declared)} is declared",
            where=where,
            fix=f"the shape is {show_shape(declared)}",
        )
    for axis, (actual, expected) in enumerate(zip(shape, declared, strict=True)):
        if isinstance(expected, int) and actual != expected:
            raise InputError(
                f"size {actual} along axis {axis} where {expected} is declared",
                where=where,
                fix=f"the shape is {show_shape(declared)}",
            )


def _zoo_dims(zoo_name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of a zoo model's open dimensions, as --shape fixes them."""
    dims: dict[str, int] = {}
    for entry in zoo.info(zoo_name).inputs:
        for dim, size in zip(entry.shape, shapes.get(entry.name, ()), strict=False):
            if isinstance(dim, str) and dims.setdefault(dim, size) != size:
                raise ConfigError(
                    f"--shape gives dimension {dim!r} both {dims[dim]} and {size}", fix="inputs share it: give one size"
                )
    return dims


def _which_inputs(name: str, known: Mapping[str, TensorInfo]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(map(repr, known)) or "none"
    return f"did you mean {close[0]!r}? its inputs are {listed}" if close else f"its inputs are {listed}"


def _describe(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"
