"""Rows of a batch in groups of like lengths: fewer places are run, but each run has a cost of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

RUN_PLACES: Final = 32
"""What a further run costs, in places. A run reads all weights from memory: at 10 GB/s and 100 billion operations per
second, as on two cores, that takes as long as 20 places of a dense model do, whatever its size."""

LEAST_WEIGHT_BYTES: Final = 32 << 20
"""Of models whose rows are run in groups. With fewer weights, a run's other costs are more than `RUN_PLACES`."""

_MOST_ROWS: Final = 128
"""More are run together: to find their groups takes time by the square of their number."""


def divide_rows(lengths: Sequence[int]) -> list[list[int]]:
    """The rows, by number, in the groups that cost least: each its rows times its longest, and `RUN_PLACES` more.

    Cost: some tenths of a microsecond times the square of the number of rows.

    Returns: groups, shortest first; one group of all rows in their order where nothing else is cheaper.
    """
    count = len(lengths)
    if not 1 < count <= _MOST_ROWS:
        return [list(range(count))]
    order = sorted(range(count), key=lengths.__getitem__)
    least = [0] + [0] * count
    begins = [0] * (count + 1)
    for end in range(1, count + 1):
        longest = lengths[order[end - 1]]
        costs = [least[begin] + (end - begin) * longest + RUN_PLACES for begin in range(end)]
        begins[end] = min(range(end), key=costs.__getitem__)
        least[end] = costs[begins[end]]
    groups = []
    end = count
    while end:
        groups.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return groups[::-1]
