"""How what is opened beside a session shares its weights, or why it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from parallax import _lazy
from parallax.bundle import known_source
from parallax.errors import BudgetError, ParallaxError
from parallax.opening._narrow import narrow_weight_bytes, why_not_narrow
from parallax.opening._source import OpenedBundle

if TYPE_CHECKING:
    from parallax.model import Glimpse, Model
    from parallax.opening._shared_weights import BundleToShare
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest

logger = _lazy.logger(__name__)


class Sharing(NamedTuple):
    """How what is opened beside a session shares its weights."""

    opened: Opened
    """What the session has open, which is not nothing."""
    request: OpeningRequest
    look: Model | Glimpse | None
    """What the session loaded or looked at; None where it did neither."""
    providers: tuple[str, ...]
    """That ONNX Runtime registered for it."""

    def why_not_narrow(self) -> str | None:
        """Why the session cannot serve its callers side by side, or None."""
        return why_not_narrow(self.opened, self.request, self.providers)

    def bundle(self) -> BundleToShare:
        """What of the session's model is compiled, whole, into the cache. Nothing in it is the session.

        Raises: ConfigError: it cannot be; says why.
        """
        from parallax.model import HeldFiles
        from parallax.opening._shared_weights import BundleToShare, not_shared  # load the compiler

        source, options, look = self.request.source, self.request.options, self.look
        if source.is_bundle:
            raise not_shared("the bundle that was opened is not there any more", fix="keep it while it is used")
        files = source.files if look is None else getattr(look, "files", None) or getattr(look, "source", None)
        if source.path is None or not isinstance(files, HeldFiles):
            raise not_shared("the model was given as bytes", fix="give its path")
        if options.budget_bytes is not None:
            raise not_shared("a memory budget counts what was opened", fix="open a bundle")
        return BundleToShare(source.path, files, options)

    def find(self) -> OpenedBundle | None:
        """The bundle whose weights a further session on one thread may share: the session's, or one in the cache.

        None where there is none, and where the session was opened with what such a one cannot be opened with.
        """
        if self.why_not_narrow() is not None or self.opened.bundle is not None:
            return None
        shared = self.opened.shared_bundle
        if shared is not None:
            return OpenedBundle.of(shared, str(shared.path), OpenedBundle.options_for(self.request.options))
        path, options = self.request.source.path, self.request.options
        if path is None or known_source(path, options.cache_dir) is None:
            return None  # without the compiler being loaded to look
        try:
            return self.bundle().find()
        except ParallaxError as error:
            logger.debug("no bundle is shared: %s", error)
            return None

    def is_needed(self, most_growth: float | None) -> bool:
        """Whether there is no room for a replica with weights of its own; see `narrow_weight_bytes`."""
        try:
            narrow_weight_bytes(self.opened, self.look, self.request, most_growth=most_growth)
        except BudgetError:
            return True
        return False
