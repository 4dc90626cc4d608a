"""Lets an application's task run as a step only if its attempt is claimed for this worker.

Owns: the wrapped ``run`` of tasks, and the claim. Does not own: which worker this is (``presence``), nor how the
attempt ends (``reports``).

``task_prerun`` cannot stop a task: Celery logs what its receivers raise and goes on. So the claim is made in ``run``,
which Celery's tracer calls right after it, and which retries of its own (``autoretry_for``) wrap in the same way. What
it raises, ``Ignore``, ends the message on every pool without a result.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from celery.exceptions import Ignore
from celery.utils.imports import symbol_by_name

from orchestrator.dispatch.foreign.presence import Presence
from orchestrator.dispatch.foreign.reports import AGAIN_S, HOLDING, Holding, Reports
from orchestrator.dispatch.foreign.signatures import HEADER, attempt_of
from orchestrator.failpoints import reach
from orchestrator.ports import monotonic, pause
from orchestrator.settings import Settings
from orchestrator.store import session
from orchestrator.store.records import reports
from orchestrator.store.steps import Claim
from orchestrator.workflow.language.config import StepConfig

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""For so long a task waits for its claim while Postgres is away; then its message is dropped, and sent again later."""
RETRIED_S = 0.05
"""Between looks whether whoever retries has put its claim aside."""
_GUARDED = "_orchestrator_run"


class Guard:
    """Wraps tasks of one app. Used before Celery builds their tracers."""

    def __init__(self, presence: Presence, attempts: Reports, settings: Settings) -> None:
        self._presence = presence
        self._reports = attempts
        self._lease = settings.lease

    def wrap(self, task: Any) -> None:
        """Have ``task`` ask for its claim whenever it was sent as a step."""
        if getattr(task, "native", False):
            return
        run = getattr(task, _GUARDED, None) or task.run  # an earlier worker of this process has wrapped it

        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            request = task.request
            headers = request.headers
            if headers is not None and HEADER in headers and not request.called_directly:
                self._enter(task, request, attempt_of(headers))
            return run(*args, **kwargs)

        setattr(task, _GUARDED, run)
        task.run = guarded
        task.Request = self._reports.request_class(symbol_by_name(task.Request))

    def _enter(self, task: Any, request: Any, claim: Claim | None) -> None:
        """Claim the attempt; raises ``Ignore`` if it is not to be run here."""
        if (
            claim is None or getattr(request, HOLDING, None) is not None
        ):  # not of our making; a body that calls itself
            return
        holding = self._claim(claim, is_retry=bool(request.retries))
        if holding is None:
            logger.info(
                "Task %s[%s] is not run: its attempt is over, or runs elsewhere.", task.name, request.id
            )
            raise Ignore(f"the attempt is over, or runs elsewhere: {claim}")
        setattr(request, HOLDING, holding)
        reach("signature.after_claim")

    def _claim(self, claim: Claim, *, is_retry: bool) -> Holding | None:
        """The claim, or ``None`` if this attempt is not to be run here."""
        patience = monotonic() + PATIENCE_S
        is_again = False
        while True:
            worker = self._presence.worker
            if worker is not None:
                try:
                    before = monotonic()
                    with self._presence.engine.begin() as connection:
                        got = reports.claim(connection, claim, worker, again=is_again)
                        standing = None if got is not None else reports.standing(connection, claim)
                    if got is not None:
                        config, claimed_at, now = got
                        timeout = StepConfig.from_json(config).timeout_s
                        return Holding(claim, before + claimed_at + timeout + self._lease - now)
                    # Still handed out: this worker was taken for dead, and comes back as a new one at its next beat.
                    # Running: Celery sends the message of a retry before it says so, and puts the claim aside then.
                    if standing != "handed" and not (is_retry and standing == "running"):
                        return None
                except Exception as error:
                    if not (session.is_away(error) or session.is_contention(error)):
                        raise
                    logger.warning("The claim of %s waits for Postgres: %s", claim, error)
                    is_again = True
            if monotonic() >= patience:
                return None
            pause(RETRIED_S if is_retry and worker is not None else AGAIN_S)
