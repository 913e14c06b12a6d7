"""Who may run: everybody, in a session without a budget."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallax.session._gate import Grant
    from parallax.session._memory import SessionMemory


def admitted(
    memory: SessionMemory | None, feeds: Any, run_options: Any, *, is_unknown: bool = False
) -> contextlib.AbstractContextManager[Grant | None]:
    """Around one run of a whole model; waits until the budget allows it. ``memory``: None admits it at once.

    Args:
        is_unknown: the shapes of what is fed do not tell what the run needs.

    Raises: as ``SessionMemory.run``.
    """
    if memory is None:
        return contextlib.nullcontext()
    from parallax.session._estimate import UNKNOWN_NEED
    from parallax.session._memory import shapes_of

    return memory.run(shapes_of(feeds), need=UNKNOWN_NEED if is_unknown else None, run_options=run_options)
