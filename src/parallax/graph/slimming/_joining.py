"""Operands that are joined element by element, shapes aligned from the right as numpy aligns them."""

from __future__ import annotations

import numpy as np

from parallax.graph._op_graph import Node
from parallax.graph.slimming._channels import Channels, label, value_of, values_along
from parallax.graph.slimming._records import Indices, Values


def join(channels: Channels, node: Node, axis: int, rank: int) -> tuple[Indices, list[Values]] | None:
    """Join the inputs of a node along one axis of its output: channels of all of them go only together.

    Args:
        axis: of the output.
        rank: of the output.

    Returns: the channels, and per input their values (of one element where an input is broadcast along the axis);
        None where no input has channels there, or one of them cannot lose any.
    """
    ids: Indices | None = None
    values: list[Values] = []
    claims: list[tuple[int, int]] = []
    obstacle = ""
    tracked: list[tuple[str, int]] = []
    for position, name in enumerate(node.inputs):
        shape = channels.shape(name) if name else ()
        array = channels.array(node, position) if name else None
        if array is not None:
            shape = array.shape
        if shape is None:
            obstacle = obstacle or f"the rank of {name!r}, which {label(node)} joins them with, is not known"
            values.append(np.array([np.nan]))
            continue
        own = axis - (rank - len(shape))
        if own < 0 or shape[own] == 1:
            values.append(np.array([value_of(array)]))
        elif array is not None:
            claims.append((position, own))
            values.append(values_along(array, own))
        elif own in channels.axes(name):
            tracked.append((name, own))
            values.append(channels.axes(name)[own].values)
        else:
            obstacle = obstacle or f"{label(node)} joins them with {name!r}, which cannot lose any"
            values.append(np.array([np.nan]))
    if not tracked:
        return None
    tracks = [channels.axes(name)[own] for name, own in tracked]
    ids = tracks[0].ids
    if any(len(entry) not in (1, len(ids)) for entry in values):
        obstacle = obstacle or f"{label(node)} joins sizes that do not fit"
    if obstacle:
        for track in tracks:
            channels.pin(track.ids, obstacle)
        return None
    for name, own in tracked:
        channels.link(ids, channels.take(name, own).ids)
    for position, own in claims:
        channels.claim(position, own, ids)
    return ids, values
