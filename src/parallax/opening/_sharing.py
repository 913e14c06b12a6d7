"""How a session shares its weights with further sessions on its model, or why it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from parallax import _lazy
from parallax.errors import BudgetError, ParallaxError
from parallax.opening._narrow import narrow_weight_bytes, why_not_narrow
from parallax.opening._source import OpenedBundle

if TYPE_CHECKING:
    from parallax.model import Model, ModelSummary
    from parallax.opening._shared_weights import BundleToShare
    from parallax.opening._state import Opened
    from parallax.opening._whole_model import OpeningRequest

logger = _lazy.logger(__name__)


class Sharing(NamedTuple):
    """How one session shares its weights with further sessions on its model."""

    opened: Opened
    """What the session has open: neither `NOT_OPEN` nor `CLOSED`."""
    request: OpeningRequest
    look: Model | ModelSummary | None
    """The model that the session loaded or looked at; None where it did neither."""
    providers: tuple[str, ...]
    """The execution providers that ONNX Runtime registered for the session."""

    def why_not_narrow(self) -> str | None:
        """Why the session cannot serve its callers side by side, or None."""
        return why_not_narrow(self.opened, self.request, self.providers)

    def bundle(self) -> BundleToShare:
        """Return what finds or compiles the bundle of the session's model. It does not keep the session alive.

        Raises: ConfigError: the model can have no such bundle; says why.
        """
        from parallax.opening._shared_weights import BundleToShare, not_shared  # load the compiler

        source, options, look = self.request.source, self.request.options, self.look
        if source.is_bundle:
            raise not_shared("the bundle that was opened is not there any more", fix="keep it while it is used")
        files = source.files if look is None else look.files
        if source.path is None or files is None:
            raise not_shared("the model was given as bytes", fix="give its path")
        if options.budget_bytes is not None:
            raise not_shared("a memory budget counts what was opened", fix="open a bundle")
        return BundleToShare(source.path, files, options)

    def find(self) -> OpenedBundle | None:
        """Return the bundle whose weights a further session on one thread may share: the session's, or a cached one.

        None where there is none, and where the session was opened with settings that such a session cannot have.
        """
        if self.why_not_narrow() is not None or self.opened.bundle is not None:
            return None
        shared = self.opened.shared_bundle
        if shared is not None:
            return OpenedBundle.from_cache(shared, self.request.options)
        from parallax.bundle import known_source  # few sessions that can share look for what they could share

        path, options = self.request.source.path, self.request.options
        if path is None or known_source(path, options.cache_dir) is None:
            return None  # without the compiler being loaded to look
        try:
            return self.bundle().find()
        except ParallaxError as error:
            logger.debug("no bundle is shared: %s", error)
            return None

    def is_needed(self, most_growth: float | None) -> bool:
        """Whether a replica must share weights, as `narrow_weight_bytes` finds no room for weights of its own."""
        try:
            narrow_weight_bytes(self.opened, self.look, self.request, most_growth=most_growth)
        except BudgetError:
            return True
        return False
