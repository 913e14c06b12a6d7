"""The model as plain values, and what can be computed from them alone: graphs, sizes, work, costs, what devices say.

Everything above rests on this package, and it rests on numpy alone: no file, clock, thread or runtime.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.graph._capability import Capability, RefusedNode
    from parallax.graph._costs import CostModel
    from parallax.graph._dag import Dag, find_barriers
    from parallax.graph._elements import (
        ELEMENT_TYPES,
        NUMPY_TYPES,
        RUNTIME_TYPES,
        STRING_TYPE,
        ElementType,
        packed_bytes,
        wrapped_type,
    )
    from parallax.graph._op_graph import CONSTANT_BYTES, Node, OpGraph, constant_value
    from parallax.graph._orders import (
        bottom_levels,
        contracted_order,
        critical_path,
        strong_components,
        top_levels,
        topological_order,
    )
    from parallax.graph._price import OperatorWork, Price, Work, operator_work
    from parallax.graph._shapes import Shapes, UnknownShape
    from parallax.graph._sizes import SizeExpression, SizeTable, bind_dims, size_expression
    from parallax.graph._tensor_bytes import tensor_bytes
    from parallax.graph._tensor_info import Dim, TensorInfo
    from parallax.graph._union_find import UnionFind
    from parallax.graph._verdict import Rejection, Verdict
    from parallax.graph._work import MAX_BODY_DEPTH, intensity, iteration_count, node_flops, node_work, shaped_work
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_capability": "Capability RefusedNode",
            "_costs": "CostModel",
            "_dag": "Dag find_barriers",
            "_elements": "ELEMENT_TYPES NUMPY_TYPES RUNTIME_TYPES STRING_TYPE ElementType packed_bytes wrapped_type",
            "_op_graph": "CONSTANT_BYTES Node OpGraph constant_value",
            "_orders": "bottom_levels contracted_order critical_path strong_components top_levels topological_order",
            "_price": "OperatorWork Price Work operator_work",
            "_shapes": "Shapes UnknownShape",
            "_sizes": "SizeExpression SizeTable bind_dims size_expression",
            "_tensor_bytes": "tensor_bytes",
            "_tensor_info": "Dim TensorInfo",
            "_union_find": "UnionFind",
            "_verdict": "Rejection Verdict",
            "_work": "MAX_BODY_DEPTH intensity iteration_count node_flops node_work shaped_work",
        },
    )

__all__ = [
    "CONSTANT_BYTES",
    "ELEMENT_TYPES",
    "MAX_BODY_DEPTH",
    "NUMPY_TYPES",
    "RUNTIME_TYPES",
    "STRING_TYPE",
    "Capability",
    "CostModel",
    "Dag",
    "Dim",
    "ElementType",
    "Node",
    "OpGraph",
    "OperatorWork",
    "Price",
    "RefusedNode",
    "Rejection",
    "Shapes",
    "SizeExpression",
    "SizeTable",
    "TensorInfo",
    "UnionFind",
    "UnknownShape",
    "Verdict",
    "Work",
    "bind_dims",
    "bottom_levels",
    "constant_value",
    "contracted_order",
    "critical_path",
    "find_barriers",
    "intensity",
    "iteration_count",
    "node_flops",
    "node_work",
    "operator_work",
    "packed_bytes",
    "shaped_work",
    "size_expression",
    "strong_components",
    "tensor_bytes",
    "top_levels",
    "topological_order",
    "wrapped_type",
]
