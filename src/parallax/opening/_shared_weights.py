"""A session's model opened once more on a bundle, so that further sessions on the model share its weights.

Each C session that ONNX Runtime opens on a model packs the weights for itself. ONNX Runtime's interface for sharing
packed weights is not part of its Python package. The packed weights of a bundle are pages of a file, which all sessions
on the bundle map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from parallax.bundle import read_manifest
from parallax.engine import CountedRunner, WholeRunner
from parallax.errors import ConfigError
from parallax.model import HeldFiles
from parallax.opening._bundle_opening import BundleOpening
from parallax.opening._share_order import ShareOrder, compile_ordered, find_ordered
from parallax.opening._source import OpenedBundle
from parallax.options import PlanningOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest


class BundleToShare:
    """Finds or compiles the bundle of one session's model. Of the session it holds the model's files and nothing else.

    Args:
        path, files: of the model, as the session was given it.
        asked: what the session was asked for.
    """

    def __init__(self, path: str, files: HeldFiles, asked: PlanningOptions) -> None:
        self._files = files
        self._asked = asked
        self._order = ShareOrder.of(path, files, asked)

    def find(self) -> OpenedBundle | None:
        """Return the bundle if it is cached. Raises: ConfigError if other files lie at the model's path by now."""
        self._check_at_path()
        path = find_ordered(self._order)
        return None if path is None else self._opened(path)

    def compile_apart(self, is_wanted: Callable[[], bool]) -> OpenedBundle | None:
        """Have a child process compile the bundle; None, with a log line, where no child can.

        Args:
            is_wanted: asked while the child compiles. Once it returns False, the child is ended.

        Raises:
            ConfigError: the bundle is not wanted any more, or cannot be cached; says why.
            ParallaxError: as reading a bundle.
        """
        from parallax.opening._compile_apart import compile_apart

        try:
            path = compile_apart(self._order, is_wanted=is_wanted)
        except ConfigError as error:
            self._check_at_path()
            raise not_shared(error.what, fix=error.fix or "") from error
        # The path that the child names is not trusted: a bundle that this process finds was made of these files.
        return None if path is None else self.find()

    def compile_here(self) -> OpenedBundle:
        """Compile the bundle in this process, unless it is in the cache.

        Raises:
            ConfigError: it cannot be compiled or cached; says why.
            ParallaxError: as reading a bundle.
        """
        self._check_at_path()
        path = compile_ordered(self._order)
        if path is None:
            self._check_at_path()
            raise not_shared("no bundle of it can be cached", fix="name a folder with cache_dir=")
        return self._opened(path)

    def _opened(self, path: Path) -> OpenedBundle:
        self._check_at_path()
        return OpenedBundle(
            path=str(path),
            model_digest=read_manifest(path)[0].source.digest,
            options=OpenedBundle.options_for(self._asked),
        )

    def _check_at_path(self) -> None:
        if not self._files.are_at_path():
            raise not_shared(
                "other files lie at its path by now", fix="leave a model's files in place while it is used"
            )


def open_shared(request: OpeningRequest, opened: Opened, bundle: OpenedBundle) -> Opened:
    """Open the bundle in place of what a session has open, with the same plan and as many threads.

    Args:
        request: its ``open_stock`` opens beside what the session has open.
        opened: what the session has open, a whole model. Its runs are counted, and those of what is returned by the
            same count.

    Raises: ConfigError if the bundle is not one of the whole model; ParallaxError as opening it.
    """
    plan, runner = opened.plan, opened.runner
    assert plan is not None
    assert isinstance(runner, CountedRunner)
    threads = int(runner.sessions[0].session_options.intra_op_num_threads) or None
    made = BundleOpening(request.beside(threads=threads), bundle).open()
    if made is None or made.plan is None or not made.plan.is_whole:
        raise not_shared("the weights do not fit into memory", fix="open a bundle")
    made = made.with_plan(plan)
    assert isinstance(made.runner, WholeRunner)
    counted = CountedRunner.of(made.runner, runner.calls)
    return replace(made, runner=counted, bundle=None, shared_bundle=made.bundle, devices=opened.devices)


def not_shared(why: str, *, fix: str) -> ConfigError:
    return ConfigError(f"weights are not shared with a replica: {why}", fix=fix)
