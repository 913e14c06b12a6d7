"""This package loads and checks models, makes a `parallax.graph.OpGraph` of each, and cuts sub-models out of them.

Weights are never read or copied here: files are mapped, and a weight is a view. ONNX's messages do
not leave this package.
"""

from typing import TYPE_CHECKING

from parallax import _lazy

if TYPE_CHECKING:
    from parallax.model._arrange import save_arranged
    from parallax.model._batch_axis import BatchAxis, NoBatchAxis, find_batch_axis
    from parallax.model._bodies import Body, scan_axes
    from parallax.model._computed import ComputedModel, compute_constants
    from parallax.model._declaring import declaring_model
    from parallax.model._files import HeldFiles, OpenFile, hold_files
    from parallax.model._graph_only import GraphOnly, read_graph_only
    from parallax.model._handover import SegmentInterface, proto_with_weights, segment_interface
    from parallax.model._kept_part import keep_part, read_part
    from parallax.model._model import Model, load_model, read_model
    from parallax.model._names import tensor_names
    from parallax.model._open_batch import open_batch_axis
    from parallax.model._probes import Probe, probe_model
    from parallax.model._rows import RowSplit, begins_rows, split_rows
    from parallax.model._save import save_segment
    from parallax.model._segment_graph import segment_graph
    from parallax.model._segment_model import SegmentModel
    from parallax.model._slim import slim_model
    from parallax.model._source import ModelSource
    from parallax.model._stored import StoredGraph, read_stored_graph
    from parallax.model._stored_parts import StoredWeight
    from parallax.model._summary import ModelSummary, read_summary
    from parallax.model._survey import Survey
    from parallax.model._tiles import SlicedGraph, Step, cut_weight_bytes, is_shape_question, slice_stretches
    from parallax.model._weighted_probe import weighted_probe
else:
    __getattr__, __dir__ = _lazy.exports(
        __name__,
        {
            "_arrange": "save_arranged",
            "_batch_axis": "BatchAxis NoBatchAxis find_batch_axis",
            "_bodies": "Body scan_axes",
            "_computed": "ComputedModel compute_constants",
            "_declaring": "declaring_model",
            "_files": "HeldFiles OpenFile hold_files",
            "_summary": "ModelSummary read_summary",
            "_handover": "SegmentInterface proto_with_weights segment_interface",
            "_kept_part": "keep_part read_part",
            "_model": "Model load_model read_model",
            "_names": "tensor_names",
            "_open_batch": "open_batch_axis",
            "_graph_only": "GraphOnly read_graph_only",
            "_probes": "Probe probe_model",
            "_rows": "RowSplit begins_rows split_rows",
            "_tiles": "SlicedGraph Step cut_weight_bytes is_shape_question slice_stretches",
            "_save": "save_segment",
            "_segment_graph": "segment_graph",
            "_segment_model": "SegmentModel",
            "_slim": "slim_model",
            "_source": "ModelSource",
            "_stored": "StoredGraph read_stored_graph",
            "_stored_parts": "StoredWeight",
            "_survey": "Survey",
            "_weighted_probe": "weighted_probe",
        },
    )

__all__ = [
    "BatchAxis",
    "Body",
    "ComputedModel",
    "GraphOnly",
    "HeldFiles",
    "Model",
    "ModelSource",
    "ModelSummary",
    "NoBatchAxis",
    "OpenFile",
    "Probe",
    "RowSplit",
    "SegmentInterface",
    "SegmentModel",
    "SlicedGraph",
    "Step",
    "StoredGraph",
    "StoredWeight",
    "Survey",
    "begins_rows",
    "compute_constants",
    "cut_weight_bytes",
    "declaring_model",
    "find_batch_axis",
    "hold_files",
    "is_shape_question",
    "keep_part",
    "load_model",
    "open_batch_axis",
    "probe_model",
    "proto_with_weights",
    "read_graph_only",
    "read_model",
    "read_part",
    "read_stored_graph",
    "read_summary",
    "save_arranged",
    "save_segment",
    "scan_axes",
    "segment_graph",
    "segment_interface",
    "slice_stretches",
    "slim_model",
    "split_rows",
    "tensor_names",
    "weighted_probe",
]
