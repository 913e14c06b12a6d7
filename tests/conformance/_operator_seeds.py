"""Seeds of trials for what ONNX's backend suite lacks: operands as exporters write them, and values that differ."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper

from tests.conformance._operator_trials import MICROSOFT, TYPES, Array, Trial

OPSET: Final = 21

_RNG: Final = np.random.default_rng(12)


def _f(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


def _ints(*values: Any) -> Array:
    return np.array(values, np.int64)


def _seed(
    op_type: str, *arrays: Array | None, opset: int = OPSET, outputs: int = 1, domain: str = "", **attributes: Any
) -> Trial:
    plain = {name: value.encode() if isinstance(value, str) else value for name, value in attributes.items()}
    return Trial(
        op_type=op_type,
        domain=domain,
        opset=opset,
        arrays=tuple(None if array is None else np.asarray(array) for array in arrays),
        outputs=(True,) * outputs,
        attributes=plain,
    )


@functools.cache
def own_seeds() -> dict[tuple[str, str], list[Trial]]:
    """By operator."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for make in (
        _elementwise,
        _windows,
        _images,
        _moves,
        _choices,
        _recurrent,
        _products,
        _casts,
        _contributed,
        _exported,
    ):
        for trial in make():
            found.setdefault((trial.domain, trial.op_type), []).append(trial)
    return found


def _elementwise() -> Iterator[Trial]:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    for kind in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Log",
                 "Tanh", "Relu", "Elu", "Selu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "LeakyRelu",
                 "Reciprocal", "Acos", "Asin", "Atan", "Sinh", "Cosh", "Tan", "Asinh", "Acosh", "Atanh", "Celu",
                 "ThresholdedRelu", "Shrink", "Identity", "Mish", "Gelu"):  # fmt: skip
        yield _seed(kind, x)
        yield _seed(kind, np.float32([0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0, 1, -1, 2]))
    for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Equal", "Less", "Greater", "LessOrEqual",
                 "GreaterOrEqual", "PRelu"):  # fmt: skip
        yield _seed(kind, _f(2, 3, 4), _f(2, 3, 4) if kind != "Pow" else np.full((2, 3, 4), 2, np.float32))
        yield _seed(kind, _f(2, 3, 4), np.float32(0.5 if kind == "PRelu" else 2))
        yield _seed(kind, _f(2, 1, 4), _f(1, 3, 1))
    for dtype in (np.int32, np.int64):
        a, b = np.array([7, -7, 7, -7, 5, 0], dtype), np.array([3, 3, -3, -3, 5, 4], dtype)
        for kind in ("Div", "Mod", "Max", "Min", "Equal", "Less", "Greater", "Sub", "Mul"):
            yield _seed(kind, a, b)
            yield _seed(kind, a, np.array(3, dtype))
        yield _seed("Mod", a, b, fmod=1)
    yield _seed("Mod", np.float32([7.5, -7.5, 7.5, -7.5]), np.float32([2, 2, -2, -2]), fmod=1)
    yield _seed("Where", np.array([[True, False], [False, True]]), _f(2, 2), np.float32(-np.inf))
    yield _seed("Where", np.array([[True], [False]]), _f(1, 2), _f(3, 1, 1))
    yield _seed("Where", np.array([True, False]), _ints(1, 2), _ints(3))
    for low, high in (
        (np.float32(-0.5), np.float32(0.5)),
        (None, np.float32(0.5)),
        (np.float32(0), None),
        (None, None),
    ):
        yield _seed("Clip", _f(2, 3, 4), *((low, high) if high is not None else (low,) if low is not None else ()))
    yield _seed("Clip", np.arange(-5, 5, dtype=np.int32), np.int32(-2), np.int32(3))
    yield _seed("Not", np.array([True, False]))
    for kind in ("And", "Or", "Xor"):
        yield _seed(kind, np.array([[True], [False]]), np.array([True, False]))
    yield _seed("Sum", _f(2, 3), _f(3), _f(1, 3))
    yield _seed("Softmax", _f(2, 3, 4, 5), axis=1)
    masked = _f(4, 6)
    masked[:, 4:] = masked[1, 2:] = -np.inf
    for kind in ("Softmax", "LogSoftmax", "Hardmax"):
        yield _seed(kind, masked, axis=-1)
        yield _seed(kind, _f(3, 4, 2), axis=0, opset=11)


def _windows() -> Iterator[Trial]:
    for spatial in ((9,), (7, 8), (5, 6, 4)):
        rank = len(spatial)
        x, w = _f(2, 4, *spatial), _f(6, 4, *(3,) * rank)
        yield _seed("Conv", x, w)
        yield _seed("Conv", x, w, _f(6), kernel_shape=[3] * rank, pads=[1] * 2 * rank, strides=[2] * rank)
        yield _seed("Conv", x, _f(6, 2, *(3,) * rank), _f(6), group=2, dilations=[2] * rank, pads=[2] * 2 * rank)
        yield _seed("Conv", x, _f(4, 1, *(3,) * rank), group=4, pads=[1, 0] * rank)
        yield _seed("Conv", x, _f(5, 4, *(1,) * rank), _f(5))
        yield _seed("ConvTranspose", x, _f(4, 3, *(3,) * rank))
        yield _seed(
            "ConvTranspose",
            x,
            _f(4, 3, *(3,) * rank),
            _f(3),
            strides=[2] * rank,
            pads=[1] * 2 * rank,
            output_padding=[1] * rank,
        )
        yield _seed("ConvTranspose", x, _f(4, 2, *(2,) * rank), group=2, strides=[2] * rank)
        yield _seed(
            "ConvTranspose", x, _f(4, 3, *(3,) * rank), strides=[2] * rank, output_shape=[2 * size for size in spatial]
        )
        yield _seed("ConvTranspose", x, _f(4, 3, *(3,) * rank), dilations=[2] * rank)
        for kind in ("AveragePool", "MaxPool", "LpPool"):
            for more in (
                {},
                {"strides": [2] * rank},
                {"pads": [1] * 2 * rank, "strides": [2] * rank},
                {"pads": [1, 0] * rank},
                {"ceil_mode": 1, "strides": [2] * rank},
                {"ceil_mode": 1, "strides": [2] * rank, "pads": [1] * 2 * rank},
                {"dilations": [2] * rank},
                {"auto_pad": "SAME_LOWER", "strides": [2] * rank},
            ):
                yield _seed(kind, x, kernel_shape=[3] * rank, **more)
            yield _seed(kind, x, kernel_shape=[2] * rank)
        yield _seed("AveragePool", x, kernel_shape=[3] * rank, pads=[1] * 2 * rank, count_include_pad=1)
        yield _seed(
            "AveragePool",
            x,
            kernel_shape=[3] * rank,
            pads=[1] * 2 * rank,
            count_include_pad=1,
            ceil_mode=1,
            strides=[2] * rank,
        )
        yield _seed("MaxPool", x, kernel_shape=[2] * rank, outputs=2)
        for kind in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
            yield _seed(kind, x)
        yield _seed("InstanceNormalization", x, _f(4), _f(4))
        yield _seed("BatchNormalization", x, _f(4), _f(4), _f(4), np.abs(_f(4)) + 0.5)
        yield _seed("GroupNormalization", x, _f(4), _f(4), num_groups=2)
    yield _seed("LRN", _f(2, 6, 4, 4), size=3)
    for axis in (-1, 1):
        shape = (5,) if axis == -1 else (3, 5)
        yield _seed("LayerNormalization", _f(2, 3, 5), _f(*shape), _f(*shape), axis=axis)
        yield _seed("LayerNormalization", _f(2, 3, 5), _f(*shape), axis=axis, outputs=3)


def _images() -> Iterator[Trial]:
    x = _f(1, 3, 16, 16)
    rois = np.float32([[0, 0, 8, 8], [2, 2, 9, 9], [-1, -1, 20, 20], [3.5, 1.25, 3.75, 12]])
    for mode in ("avg", "max"):
        for ratio in (0, 1, 2, 3):
            for scale in (1.0, 0.5):
                for transformation in ("half_pixel", "output_half_pixel"):
                    yield _seed(
                        "RoiAlign",
                        x,
                        rois,
                        np.zeros(4, np.int64),
                        opset=16,
                        mode=mode,
                        sampling_ratio=ratio,
                        output_height=3,
                        output_width=2,
                        spatial_scale=scale,
                        coordinate_transformation_mode=transformation,
                    )
        yield _seed("RoiAlign", x, rois, np.zeros(4, np.int64), opset=16, mode=mode, output_height=3, output_width=3)
        yield _seed("RoiAlign", x, rois, np.zeros(4, np.int64), opset=10, mode=mode, output_height=3, output_width=3)
        yield _seed(
            "RoiAlign",
            x,
            rois,
            np.zeros(4, np.int64),
            opset=10,
            mode=mode,
            output_height=3,
            output_width=3,
            sampling_ratio=2,
        )
    yield _seed("MaxRoiPool", x, np.float32([[0, 0, 0, 8, 8], [0, 2, 2, 9, 9]]), pooled_shape=[3, 3])
    for scales in ([1, 1, 2, 2], [1, 1, 0.5, 0.5], [1, 1, 1.7, 0.6], [1, 1, 3, 1]):
        for mode in ("nearest", "linear", "cubic"):
            for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
                yield _seed(
                    "Resize",
                    _f(1, 2, 5, 6),
                    None,
                    np.float32(scales),
                    mode=mode,
                    coordinate_transformation_mode=transformation,
                    nearest_mode="floor",
                )
        yield _seed("Resize", _f(1, 2, 5, 6), None, np.float32(scales), mode="nearest")
        yield _seed("Resize", _f(1, 2, 5, 6), None, np.float32(scales), mode="linear", antialias=1)
        yield _seed("Upsample", _f(1, 2, 5, 6), np.float32(np.maximum(scales, 1)), opset=9)
        yield _seed("Upsample", _f(1, 2, 5, 6), np.float32(np.maximum(scales, 1)), opset=9, mode="linear")
    for mode in ("nearest", "linear", "cubic"):
        yield _seed("Resize", _f(1, 2, 5, 6), None, None, _ints(1, 2, 8, 3), mode=mode)
        yield _seed("Resize", _f(1, 2, 5, 6), None, None, _ints(8, 3), mode=mode, axes=[2, 3])
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (0, 1):
                yield _seed(
                    "GridSample", _f(1, 2, 5, 6), _f(1, 3, 4, 2), mode=mode, padding_mode=padding, align_corners=corners
                )
    boxes = np.float32([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 10, 1, 11], [0, 10, 1, 11], [0, 20, 1, 21]]])
    scores = np.float32([[[0.9, 0.75, 0.9, 0.95, 0.5], [0.3, 0.3, 0.9, 0.2, 0.1]]])
    for count, overlap in ((3, 0.5), (10, 0.0), (10, 1.0), (0, 0.5)):
        yield _seed("NonMaxSuppression", boxes, scores, _ints(count), np.float32([overlap]), np.float32([0.2]))
        yield _seed("NonMaxSuppression", boxes, scores, _ints(count), np.float32([overlap]), center_point_box=1)
    for mode in ("DCR", "CRD"):
        yield _seed("DepthToSpace", _f(1, 8, 2, 3), blocksize=2, mode=mode)


def _moves() -> Iterator[Trial]:
    x = _f(3, 4, 5)
    for axis in (0, 1, -1):
        yield _seed("Gather", x, _ints(0, -1, 2), axis=axis)
        yield _seed("Gather", x, _ints(1)[0], axis=axis)
        yield _seed("Gather", x, _ints(1)[0].astype(np.int32), axis=axis)
        yield _seed("Gather", x, _ints([0, 2], [1, -1]), axis=axis)
        yield _seed("Concat", x, x, x, axis=axis)
        yield _seed("Concat", x, axis=axis)
        yield _seed("Flatten", x, axis=axis)
        yield _seed("Unsqueeze", x, _ints(axis))
        yield _seed("Squeeze", _f(1, 3, 1), _ints(0 if axis != -1 else -1))
        yield _seed("Split", _f(6, 6, 6), _ints(1, 2, 3), axis=axis, outputs=3)
        yield _seed("Split", _f(6, 6, 6), axis=axis, outputs=2, opset=13)
        yield _seed("Split", _f(5, 5, 5), axis=axis, outputs=2, num_outputs=2)
    yield _seed("Concat", _ints(1, 2), _ints(3), _ints(-1), axis=0)
    yield _seed("Concat", _ints(1), _ints(3), axis=0)
    for starts, ends, axes, steps in (
        ([0], [2], [0], [1]), ([1], [2**31 - 1], [1], [1]), ([-2], [2**63 - 1], [2], [1]),
        ([-1], [-(2**63)], [1], [-1]),
        ([3], [0], [1], [-2]), ([0, 1], [-1, 3], [-1, -2], [2, 1]), ([5], [9], [0], [1]), ([0], [-1], [0], [1]),
    ):  # fmt: skip
        yield _seed("Slice", x, _ints(*starts), _ints(*ends), _ints(*axes), _ints(*steps))
        if steps == [1]:
            yield _seed("Slice", x, _ints(*starts), _ints(*ends), _ints(*axes))
    yield _seed("Slice", _ints(4, 5, 6, 7), _ints(1), _ints(3), _ints(0))
    yield _seed("Slice", x, np.int32([1]), np.int32([3]), np.int32([0]), np.int32([1]))
    for shape in ([12, 5], [-1], [0, -1], [3, 2, 2, 5], [1, 3, 4, 5, 1, 1]):
        yield _seed("Reshape", x, _ints(*shape))
    yield _seed("Reshape", _f(2, 0, 3), _ints(2, 0, 3), allowzero=1)
    yield _seed("Reshape", _ints(1, 2, 3, 4), _ints(2, 2))
    for perm in ([0, 2, 1], [2, 0, 1], [1, 0, 2]):
        yield _seed("Transpose", x, perm=perm)
    yield _seed("Transpose", _f(2, 3, 4, 5), perm=[0, 2, 1, 3])
    yield _seed("Transpose", _f(2, 3, 2, 3, 2, 2), perm=[0, 1, 3, 2, 4, 5])
    yield _seed("Transpose", x)
    for shape in ([3, 4, 5], [2, 1, 1, 1], [1], [1, 4, 1]):
        yield _seed("Expand", _f(3, 4, 5), _ints(*shape))
    yield _seed("Expand", _f(3, 1), _ints(2, 3, 6))
    yield _seed("Expand", _ints(7), _ints(2, 3))
    yield _seed("Expand", np.array([[True]]), _ints(2, 3))
    yield _seed("Tile", x, _ints(1, 2, 3))
    yield _seed("Tile", x, _ints(1, 1, 1))
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield _seed("Pad", x, _ints(1, 0, 2, 0, 2, 1), mode=mode)
        yield _seed("Pad", x, _ints(-1, 0, 2, 0, -2, 1), mode=mode)
    yield _seed("Pad", x, _ints(0, 0, 1, 0, 0, 1), np.float32(-1.5))
    yield _seed("Pad", x, _ints(0, 0, 1, 0, 0, 1), np.float32(-np.inf))
    yield _seed("Pad", x, _ints(1, 2), None, _ints(-1), opset=18)
    yield _seed("Pad", _ints(1, 2), _ints(1, 1), _ints(9)[0])
    yield _seed("Shape", x)
    yield _seed("Shape", x, start=1, end=-1)
    yield _seed("Size", x)
    for dtype in TYPES:
        if dtype.name in ("bfloat16",):
            continue
        value = helper.make_tensor("", helper.np_dtype_to_tensor_dtype(dtype), [1], [1])
        yield _seed("ConstantOfShape", _ints(2, 3), value=value)
    yield _seed("ConstantOfShape", _ints(2, 3))
    yield _seed("ConstantOfShape", np.zeros(0, np.int64))
    yield _seed("ConstantOfShape", _ints(2), value=helper.make_tensor("", TensorProto.FLOAT, [1], [float("-inf")]))
    for dtype, start, limit, delta in (
        (np.int64, 0, 5, 1),
        (np.int64, 7, -2, -3),
        (np.float32, 0, 2.6, 0.25),
        (np.int32, 3, 3, 1),
    ):
        yield _seed("Range", dtype(start), dtype(limit), dtype(delta))
    for upper in (0, 1):
        yield _seed("Trilu", x, upper=upper)
        yield _seed("Trilu", x, np.int64(1), upper=upper)
        yield _seed("Trilu", x, np.int64(-1), upper=upper)
    indices = _ints([0, 1, 2, 0, 3], [1, -1, 0, 2, 2])
    yield _seed("GatherElements", x[0], indices[:, :5] % 4, axis=0)
    yield _seed("GatherElements", x[0], _ints([0, -1, 2]), axis=1)
    yield _seed("GatherND", x, _ints([0, 1], [2, -1]))
    yield _seed("GatherND", x, _ints([1], [2], [-1]), batch_dims=1)
    yield _seed("ScatterND", x, _ints([0], [2]), _f(2, 4, 5))
    yield _seed("ScatterND", x, _ints([0, 1], [2, -1]), _f(2, 5))
    for reduction in ("none", "add", "mul", "max", "min"):
        yield _seed("ScatterND", x, _ints([1], [1]), _f(2, 4, 5), reduction=reduction)
        yield _seed("ScatterElements", x[0], _ints([1, 1, 0, 2, 3]), _f(1, 5), axis=0, reduction=reduction)
        yield _seed("ScatterElements", x[0], _ints([-1], [0], [1], [2]), _f(4, 1), axis=1, reduction=reduction)
    yield _seed("OneHot", _ints(1, -1, 9, 0), np.int64(4), np.float32([0, 1]))
    yield _seed("OneHot", _ints(1, -1, 9, 0), np.int64(4), _ints(2, 5), axis=0)
    yield _seed("Compress", x, np.array([True, False, True]), axis=0)
    yield _seed("Compress", x, np.array([True, False, True]))
    yield _seed("NonZero", np.float32([[1, 0], [0, 2]]))
    yield _seed("ReverseSequence", x, _ints(1, 4, 2, 3), time_axis=0, batch_axis=1)
    yield _seed("ReverseSequence", x, _ints(1, 4, 2), time_axis=1, batch_axis=0)
    for exclusive in (0, 1):
        for reverse in (0, 1):
            yield _seed("CumSum", x, np.int64(1), exclusive=exclusive, reverse=reverse)
            yield _seed("CumSum", _ints(1, 2, 3), np.int64(-1), exclusive=exclusive, reverse=reverse)
    yield _seed("Dropout", x)
    yield _seed("Dropout", x, np.float32(0.5))
    yield _seed("Dropout", x, np.float32(0.5), np.array(False))
    yield _seed("EyeLike", _f(3, 4), k=1)


def _choices() -> Iterator[Trial]:
    tied = np.float32([[3, 1, 3, 2, 1], [0, 0, 0, 0, 0], [-1, 5, 5, -1, 2]])
    whole = tied.astype(np.int64)
    for kind in ("ArgMax", "ArgMin"):
        for numbers in (tied, whole, tied.astype(np.int32)):
            for last in (0, 1):
                yield _seed(kind, numbers, axis=1, select_last_index=last, keepdims=0)
        yield _seed(kind, tied, axis=-1, keepdims=1)
    for largest in (0, 1):
        for numbers in (tied, whole):
            yield _seed("TopK", numbers, _ints(3), largest=largest, outputs=2)
            yield _seed("TopK", numbers, _ints(3), largest=largest, sorted=0, outputs=2)
            yield _seed("TopK", _f(4, 6), _ints(2), largest=largest, axis=0, outputs=2)
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        x = np.asarray(np.abs(_f(2, 3, 4)) + 0.25)
        yield _seed(f"Reduce{kind}", x, _ints(1))
        yield _seed(f"Reduce{kind}", x, _ints(-1, 0), keepdims=0)
        yield _seed(f"Reduce{kind}", x, _ints(2), keepdims=0)
        yield _seed(f"Reduce{kind}", x)
        yield _seed(f"Reduce{kind}", x, np.zeros(0, np.int64), noop_with_empty_axes=1)
        yield _seed(f"Reduce{kind}", _f(2, 3, 4), _ints(1))
        yield _seed(f"Reduce{kind}", whole, _ints(1))
        yield _seed(f"Reduce{kind}", whole.astype(np.int32), _ints(0), keepdims=0)
    masked = tied.copy()
    masked[1] = masked[:, 0] = -np.inf
    for kind in ("ReduceMax", "ReduceMin", "ReduceLogSumExp"):
        yield _seed(kind, masked, _ints(1))
        yield _seed(kind, -masked, _ints(1))


def _recurrent() -> Iterator[Trial]:
    steps, batch, size, hidden = 4, 2, 3, 5
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            x, w, r = _f(steps, batch, size), _f(ways, gates * hidden, size), _f(ways, gates * hidden, hidden)
            b, lengths = _f(ways, 2 * gates * hidden), np.int32([4, 2])
            state = [_f(ways, batch, hidden) for _ in range(2 if kind == "LSTM" else 1)]
            outs = 3 if kind == "LSTM" else 2
            common: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
            resets: list[dict[str, Any]] = [{"linear_before_reset": 1}, {}] if kind == "GRU" else [{}]
            for more in resets:
                yield _seed(kind, x, w, r, b, outputs=outs, **common, **more)
                yield _seed(kind, x, w, r, b, None, *state, outputs=outs, **common, **more)
                yield _seed(kind, x, w, r, b, lengths, *state, outputs=outs, **common, **more)
                yield _seed(kind, x, w, r, None, None, *state, outputs=outs, **common, **more)
                yield _seed(kind, x, w, r, outputs=outs, **common, **more)


def _products() -> Iterator[Trial]:
    for a, b in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (1, 6, 4, 5)),
                 ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,))):  # fmt: skip
        yield _seed("MatMul", _f(*a), _f(*b))
    for transposed in (0, 1):
        for bias in ((), (_f(5),), (_f(3, 5),), (_f(3, 1),), (np.float32(0.5),)):
            w = _f(5, 4) if transposed else _f(4, 5)
            yield _seed("Gemm", _f(3, 4), w, *bias, transB=transposed)
            yield _seed("Gemm", _f(3, 4), w, *bias, transB=transposed, alpha=0.5, beta=2.0)
        yield _seed("Gemm", _f(4, 3), _f(4, 5), transA=1)
    for equation, shapes in (("ij,jk->ik", ((2, 3), (3, 4))), ("bhid,bhjd->bhij", ((1, 2, 3, 4), (1, 2, 5, 4))),
                             ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))), ("i,j->ij", ((3,), (4,))),
                             ("bhij,bhjd->bhid", ((1, 2, 3, 5), (1, 2, 5, 4)))):  # fmt: skip
        yield _seed("Einsum", *(_f(*shape) for shape in shapes), equation=equation)
    for dtype in (np.uint8, np.int8):
        low, high = (0, 256) if dtype == np.uint8 else (-128, 128)
        left = _RNG.integers(low, high, (3, 4)).astype(dtype)
        right = _RNG.integers(low, high, (4, 5)).astype(dtype)
        yield _seed("MatMulInteger", left, right, dtype(3), dtype(5))
        yield _seed("QuantizeLinear", _f(3, 4) * 50, np.float32(0.5), dtype(7))
        yield _seed("QuantizeLinear", _f(3, 4) * 50, np.float32([0.5, 0.25, 1, 2]), np.zeros(4, dtype), axis=1)
        yield _seed("DequantizeLinear", left, np.float32(0.5), dtype(7))
        yield _seed("DequantizeLinear", left, np.float32([0.5, 0.25, 1, 2]), np.full(4, 3, dtype), axis=1)
        yield _seed("DequantizeLinear", left, np.float32([0.5, 0.25, 1]), axis=0)


def _casts() -> Iterator[Trial]:
    for source in TYPES:
        values = np.array([0, 1, 2, 100, 3], np.float32) if source != np.bool_ else np.array([0, 1, 1, 0, 1])
        values = np.append(values, [-1, -3.5, 0.5]) if source.name in ("float32", "float16", "bfloat16") else values
        for to in TYPES:
            yield _seed("Cast", values.astype(source), to=helper.np_dtype_to_tensor_dtype(to))
            yield _seed("CastLike", values.astype(source), np.zeros(1, to))
    for dtype in TYPES:
        typed = np.array([[0, 1], [1, 0]]).astype(dtype)
        for kind in ("Identity", "Reshape", "Transpose", "Concat", "Unsqueeze", "Gather", "Slice", "Where", "Expand"):
            more: tuple[Array, ...] = {
                "Reshape": (_ints(4),), "Concat": (typed,), "Unsqueeze": (_ints(0),), "Gather": (_ints(1),),
                "Slice": (_ints(0), _ints(1)), "Expand": (_ints(2, 2, 2),),
            }.get(kind, ())  # fmt: skip
            if kind == "Where":
                yield _seed(kind, np.array([True, False]), typed, typed[::-1].copy())
            elif kind == "Concat":
                yield _seed(kind, typed, *more, axis=0)
            else:
                yield _seed(kind, typed, *more)


def _contributed() -> Iterator[Trial]:
    """ONNX Runtime's own operators, those of them that OpenVINO knows."""
    x, bias = _f(2, 3, 8), _f(8)
    for kind in ("Gelu", "FastGelu", "QuickGelu"):
        yield _seed(kind, x, domain=MICROSOFT, opset=1)
    yield _seed("FastGelu", x, bias, domain=MICROSOFT, opset=1)
    yield _seed("BiasGelu", x, bias, domain=MICROSOFT, opset=1)
    yield _seed("BiasAdd", _f(2, 3, 320), _f(320), _f(2, 3, 320), domain=MICROSOFT, opset=1)
    for transposed in (0, 1):
        yield _seed(
            "FusedMatMul",
            _f(2, 3, 4),
            _f(2, 5, 4) if transposed else _f(2, 4, 5),
            transB=transposed,
            alpha=0.5,
            domain=MICROSOFT,
            opset=1,
        )
    yield _seed("SkipLayerNormalization", x, _f(2, 3, 8), bias, bias, domain=MICROSOFT, opset=1, epsilon=1e-5)
    yield _seed("SkipLayerNormalization", x, _f(2, 3, 8), bias, bias, bias, domain=MICROSOFT, opset=1, epsilon=1e-5)
    yield _seed("SkipSimplifiedLayerNormalization", x, _f(2, 3, 8), bias, domain=MICROSOFT, opset=1, epsilon=1e-5)
    yield _seed("SimplifiedLayerNormalization", x, bias, opset=17, axis=-1, epsilon=1e-5)
    yield _seed("FusedConv", _f(1, 3, 6, 6), _f(4, 3, 3, 3), _f(4), activation="Relu", domain=MICROSOFT, opset=1)
    yield _seed("FusedGemm", _f(3, 4), _f(4, 5), _f(5), activation="Relu", domain=MICROSOFT, opset=1)


def _exported() -> Iterator[Trial]:
    """Forms that exporters write and that none of the others shows."""
    for spatial in ((9,), (7, 8), (5, 6, 4)):
        rank = len(spatial)
        x, ones = _f(2, 4, *spatial), [1] * rank
        for bias in ((), (_f(6),)):
            yield _seed("Conv", x, _f(6, 4, *ones), *bias, kernel_shape=ones, dilations=ones, group=1, strides=ones)
            yield _seed("Conv", x, _f(6, 4, *ones), *bias, kernel_shape=ones, strides=[2] * rank, pads=[0] * 2 * rank)
            yield _seed("Conv", x, _f(6, 2, *ones), *bias, kernel_shape=ones, group=2, auto_pad="SAME_UPPER")
        for more in (
            {},
            {"pads": [1] * 2 * rank},
            {"pads": [1] * 2 * rank, "strides": [2] * rank, "ceil_mode": 0},
            {"pads": [1, 0] * rank, "strides": ones},
            {"pads": [0] * 2 * rank, "strides": [2] * rank},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER", "strides": [2] * rank},
            {"auto_pad": "VALID"},
        ):
            yield _seed("AveragePool", x, kernel_shape=[3] * rank, count_include_pad=1, **more)
            yield _seed("AveragePool", x, kernel_shape=[2] * rank, count_include_pad=1, **more)
    for size in (1, 2, 3, 4, 5, 6):
        x = _f(*(4,) * size)
        yield _seed("Split", x, _ints(1, 3), axis=0, outputs=2)
        yield _seed("Split", x, axis=size - 1, outputs=2, num_outputs=2)
        for indices in (_ints(1), _ints([0, -1], [2, 3]), _ints([[0, 1]], [[2, -1]]), _ints([[[0, 1]]], [[[3, 2]]])):
            yield _seed("Gather", x, indices, axis=0)
            yield _seed("Gather", x, indices, axis=size - 1)
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        for axis in (0, -1):
            yield _seed(f"Reduce{kind}", np.asarray(np.abs(_f(5)) + 0.25), _ints(axis))
            yield _seed(f"Reduce{kind}", np.asarray(np.abs(_f(5)) + 0.25), _ints(axis), keepdims=0)


def all_seeds() -> Mapping[tuple[str, str], list[Trial]]:
    """Our own before the suite's, by operator."""
    from tests.conformance._operator_trials import suite_seeds

    seeds = {key: list(own) for key, own in own_seeds().items()}
    for key, more in suite_seeds().items():
        seeds.setdefault(key, []).extend(more)
    return seeds
