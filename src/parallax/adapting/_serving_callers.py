"""A session that follows its callers: a replica made for several, put in force and let go again between runs.

What is decided is decided by `parallax.adapt.CallerPolicy`. Here is what that needs of the world: a clock, and a thread
that samples how many runs are in flight while there are several, and sleeps otherwise. No run waits for it; but while
ONNX Runtime reads a model from its file, it holds Python's lock, so that runs begin and end later by as much, once.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from parallax import _lazy
from parallax.adapt import CALLER_RULES, CallerForm, CallerPolicy, CallerStep
from parallax.adapting._background import WORK
from parallax.engine import CountedRunner
from parallax.errors import BudgetError, BundleError, ConfigError, ParallaxError
from parallax.machine import trim_heap

if TYPE_CHECKING:
    from parallax.engine import Runner
    from parallax.opening import OpenedBundle, Sharing

logger = _lazy.logger(__name__)

_LOOK_S: Final = 1.0
"""While it sleeps, the thread looks so often whether the session is still there."""


class ServingSession(Protocol):
    """The part of a session that can serve its callers side by side."""

    def open_narrow(self, most_growth: float | None) -> CountedRunner:
        """Open the model once more, on one thread, in the memory that there is for it.

        Raises:
            BudgetError: there is no room for it.
            BundleError: the bundle that it would share weights with is not there any more.
            ParallaxError: it cannot be opened.
        """
        ...

    def sharing(self) -> Sharing:
        """Say how further sessions on its model share its weights. Raises: ConfigError: it was closed."""
        ...

    def share_weights(self, before: Runner, bundle: OpenedBundle) -> CountedRunner:
        """Run the model from ``bundle`` in place of ``before``, so that what `open_narrow` opens shares its weights.

        Returns: what runs then. Raises: ParallaxError: it cannot be done; says why.
        """
        ...

    def use_runner(self, before: Runner, after: Runner, reason: str) -> bool:
        """Put one in force if the other is; returns whether it was."""
        ...


class CallerFollower:
    """Follows the callers of one session, until it is stopped or the session is dropped.

    Args:
        session: is not kept alive by this.
        wide: what the session has open, whose runs are counted.
        objective: of the session: "auto" or "throughput".
        cores: that the session uses.
        clock: seconds.
    """

    def __init__(
        self,
        session: ServingSession,
        wide: CountedRunner,
        *,
        objective: str,
        cores: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls = wide.calls
        self._session = weakref.ref(session)
        # Not held: it is the session's, and its end is what this waits for.
        self._wide = weakref.ref(wide)
        self._rules = CALLER_RULES[objective]
        self._policy = CallerPolicy(self._rules, cores=cores)
        self._clock = clock
        self._narrow: CountedRunner | None = None
        self._has_shared = False  # since memory was given back last
        self._lock = threading.Lock()
        self._wish: Callable[[], object] | None = None  # (lock)
        self._thread: threading.Thread | None = None  # (lock)
        self._has_callers = threading.Event()
        self._is_stopped = threading.Event()
        self.calls.wake = self._wake
        self.calls.is_watched = False
        WORK.add(self)

    # -- callers of runs, and the session ---------------------------------------------------------------

    def _wake(self) -> None:
        """Called by runs that find another one in flight while nobody looks."""
        self.calls.is_watched = True
        self._has_callers.set()
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None or self._is_stopped.is_set():
                return
            thread = threading.Thread(target=self._follow, name="parallax-callers", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a later run tries again
                self.calls.is_watched = False
                logger.debug("nobody follows the callers of a session, as no thread can be started: %s", error)
            else:
                self._thread = thread

    def share(self, then: Callable[[], object]) -> None:
        """Have the session switch to a bundle, if its model is large, and call ``then``; both in the background.

        ``then`` is not called where the switch fails. A later call replaces one that is still waiting.
        """
        with self._lock:
            self._wish = then
        self._wake()

    def stop(self, why: str) -> None:
        """Have it end; the form in force stays so, until the session has something else in force."""
        if not self._is_stopped.is_set():
            logger.debug("the callers of a session are followed no more: %s", why)
        self._is_stopped.set()
        self.calls.is_watched = True  # nobody is to be woken any more
        self._has_callers.set()

    def join(self, timeout_s: float) -> None:
        """Wait until its thread has ended."""
        thread = self._thread
        if thread is not None and threading.current_thread() is not thread:
            thread.join(timeout_s)

    @property
    def narrow(self) -> CountedRunner | None:
        """What runs in the narrow form, while that is in force; else None."""
        return self._narrow if self._policy.form is CallerForm.NARROW else None

    @property
    def note(self) -> str:
        """What is known and done, in words for the reason of a plan."""
        return self._policy.describe()

    # -- the thread -------------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            while self._is_needed():
                self._grant()
                if not self._do(self._observe()):
                    break
                self._is_stopped.wait(self._policy.pause_s)
        except Exception:
            # A session that does not follow its callers is a session all the same.
            logger.exception("a session does not follow its callers any more; it goes on as it was opened")
            self._go_wide("following the callers failed")
        finally:
            self.stop("its thread ended")
            self._narrow = None

    def _observe(self) -> CallerStep:
        calls = self.calls
        return self._policy.observe(self._clock(), len(calls.in_flight), calls.ended)

    def _is_needed(self) -> bool:
        """Sleep while there are not several callers; returns False where the thread is to end."""
        if self._policy.may_sleep(self._clock()):
            self._has_callers.clear()
            self.calls.is_watched = False
            # A run that found others while somebody still watched is seen here; a later one wakes this thread.
            while len(self.calls.in_flight) < 2 and self._wish is None and not self._is_stopped.is_set():
                if self._has_callers.wait(_LOOK_S):
                    break
                if self._session() is None:
                    return False
            self.calls.is_watched = True
            self._policy.woken()
        return self._session() is not None and not self._is_stopped.is_set()

    def _grant(self) -> None:
        """Do what `share` was last called for."""
        with self._lock:
            wish, self._wish = self._wish, None
        if wish is None:
            return
        try:
            if self._narrow is None and self._needed_session().sharing().is_needed(self._rules.most_growth):
                self._share()
            with WORK.turn:
                wish()
        except Exception as error:  # whatever opening a session ends with
            logger.info("weights are not shared: %s", error)
            return
        trim_heap()  # weights that were not shared have been freed

    def _do(self, step: CallerStep) -> bool:
        """Returns whether to go on."""
        if step is CallerStep.MAKE:
            self._make()
            return True
        session = None if step is CallerStep.WAIT else self._session()
        if session is None:
            return step is CallerStep.WAIT
        if step is CallerStep.DROP:
            self._narrow = None
            self._policy.dropped()
            return True
        return self._use(session, CallerForm.NARROW if step is CallerStep.USE_NARROW else CallerForm.WIDE)

    def _use(self, session: ServingSession, form: CallerForm) -> bool:
        wide, narrow, reason = self._wide(), self._narrow, self._policy.reason
        if wide is None or narrow is None:
            return False
        before, after = (wide, narrow) if form is CallerForm.NARROW else (narrow, wide)
        if not session.use_runner(before, after, reason):
            return False  # the session has something else in force
        if self._is_stopped.is_set():
            self._go_wide("the callers are followed no more")
            return False
        self._policy.switched(form, self._clock(), len(self.calls.in_flight), self.calls.ended)
        logger.info("callers are served in the %s form now: %s", form.value, reason)
        if not self._policy.is_trying:
            before.trim()  # its arena has room for the runs of all callers
            if self._has_shared:
                trim_heap()  # weights that were not shared have been freed, and what the bundle was compiled with
                self._has_shared = False
        return True

    def _make(self) -> None:
        try:
            self._narrow = self._open()
        except Exception as error:  # whatever opening a session ends with
            logger.info("callers are not served side by side: %s", error)
            self._policy.refused(str(error), self._clock())
            return
        self._policy.made(self._clock())

    def _open(self) -> CountedRunner:
        """Open the replica. Raises: as ``ServingSession.open_narrow``."""
        try:
            return self._open_narrow(self._rules.most_growth)
        except (BudgetError, BundleError) as error:
            refusal = error.with_traceback(None)  # its frames hold the session, which may be dropped meanwhile
        try:
            self._share()
        except ParallaxError as obstacle:
            if not self._rules.may_copy:
                raise type(refusal)(
                    f"{refusal.what}; {obstacle.what}", where=refusal.where, fix=refusal.fix
                ) from obstacle
            logger.info("a replica holds weights of its own: %s", obstacle)
        return self._open_narrow(None)

    def _open_narrow(self, most_growth: float | None) -> CountedRunner:
        with WORK.turn:  # a fork waits for it
            return self._needed_session().open_narrow(most_growth)

    def _share(self) -> None:
        """Have the session switch to a bundle. While a child process compiles the bundle, the session may be dropped.

        Raises: ParallaxError: it cannot be done; says why.
        """
        wanted = self._needed_session().sharing().bundle()
        bundle = wanted.find() or wanted.compile_apart(self._is_wanted)
        with WORK.turn:
            if bundle is None:
                bundle = wanted.compile_here()
            wide = self._wide()
            if wide is None:
                raise _dropped()
            self._wide = weakref.ref(self._needed_session().share_weights(wide, bundle))
        self._has_shared = True

    def _is_wanted(self) -> bool:
        return not self._is_stopped.is_set() and self._session() is not None

    def _needed_session(self) -> ServingSession:
        session = self._session()
        if session is None or self._is_stopped.is_set():
            raise _dropped()
        return session

    def _go_wide(self, reason: str) -> None:
        session, wide, narrow = self._session(), self._wide(), self._narrow
        if session is not None and wide is not None and narrow is not None:
            session.use_runner(narrow, wide, reason)


def _dropped() -> ConfigError:
    return ConfigError(
        "the session was dropped, or does not follow its callers any more", fix="keep it open while it is used"
    )
