"""How an application's tasks that are steps end: written to Postgres by the process that saw it.

Owns: Celery's signals for it, the text of outcomes, and patience with a Postgres that is away. Does not own: the claim
(``guard``), the table (``store.records.reports``), nor the turn that takes a report.

The process that ran the body reports results, failures and retries; the worker's main process what it alone sees: a
child that died, a hard time limit, a revoked message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from celery import signals, states
from celery.exceptions import Reject, TimeLimitExceeded, WorkerLostError
from kombu.exceptions import EncodeError

from orchestrator.dispatch.foreign.presence import Presence
from orchestrator.dispatch.foreign.signatures import HEADER, attempt_of
from orchestrator.errors import (
    Cancelled,
    NonRetryableError,
    OrchestratorError,
    SerializationError,
    StepFailed,
    StepTimeout,
)
from orchestrator.failpoints import reach
from orchestrator.ports import dice, monotonic, pause
from orchestrator.store import session
from orchestrator.store.records import reports
from orchestrator.store.records.reports import Report
from orchestrator.store.session import Connection
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec

logger = logging.getLogger(__name__)

AGAIN_S = 0.5
"""Between tries while Postgres is away."""
PATIENCE_S = 60.0
"""For so long a report is tried, where the time of the attempt is not known."""
MAIN_PATIENCE_S = 5.0
"""And where Celery's consumer waits for it. What is not written is found at the end of the attempt's time."""


class Holding(NamedTuple):
    """An attempt that a body runs here; kept on the task's request."""

    claim: Claim
    until: float
    """When its time is over, on the monotonic clock: nobody takes a report after that."""


HOLDING = "_orchestrator_holding"
_REQUEST = "_orchestrator_request"
"""Where a request class of ours keeps the one that it derives from."""


class Reports:
    """Listens to the signals of one app's tasks; ``hint`` asks for a turn of an instance."""

    def __init__(self, app: Any, presence: Presence, limit: int, hint: Callable[[Claim], None]) -> None:
        self._app = app
        self._presence = presence
        self._limit = limit
        self._hint = hint
        self._received: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._classes: dict[type[Any], type[Any]] = {}

    def request_class(self, base: type[Any]) -> type[Any]:
        """Celery's request of a task, that also puts the claim aside when Celery puts the message back
        (``reject_on_worker_lost``, ``Reject(requeue=True)``): no signal tells of that."""
        base = getattr(base, _REQUEST, base)
        if base not in self._classes:
            put_aside = self._put_aside

            class AttemptRequest(base):
                def reject(self, requeue: bool = False) -> None:
                    claim = attempt_of(self._request_dict) if requeue and not self.acknowledged else None
                    if claim is not None:
                        put_aside(claim, monotonic() + MAIN_PATIENCE_S)
                    super().reject(requeue)

            setattr(AttemptRequest, _REQUEST, base)
            self._classes[base] = AttemptRequest
        return self._classes[base]

    def listen(self) -> None:
        """Connect to Celery's signals, in this process and those it forks."""
        for signal, receiver in self._receivers():
            signal.connect(receiver, weak=False)

    def close(self) -> None:
        """Listen no longer: the worker has ended, and its process may go on."""
        for signal, receiver in self._receivers():
            signal.disconnect(receiver)

    def _receivers(self) -> list[tuple[Any, Callable[..., None]]]:
        return [
            (signals.task_received, self._note),
            (signals.task_success, self._succeeded),
            (signals.task_failure, self._failed),
            (signals.task_retry, self._retried),
            (signals.task_postrun, self._ran),
            (signals.task_revoked, self._revoked),
        ]

    # -- where the body ran ------------------------------------------------------------------------------------

    def _succeeded(self, sender: Any, result: Any = None, **_: Any) -> None:
        holding = self._held(sender)
        if holding is not None:
            reach("signature.after_body")
            self._report(result_of(holding.claim, result, self._limit), holding.until)

    def _failed(
        self, sender: Any, task_id: str = "", exception: Any = None, einfo: Any = None, **_: Any
    ) -> None:
        if not self._is_ours(sender):
            return
        holding = self._held(sender)
        if holding is not None and sender.request.id == task_id:
            self._report(failure_of(holding.claim, exception, einfo), holding.until)
            return
        request = self._received.get(task_id)
        claim = attempt_of(request.request_dict) if request is not None else None
        if claim is not None:
            self._report(failure_of(claim, exception, einfo), monotonic() + MAIN_PATIENCE_S)

    def _retried(self, sender: Any, request: Any = None, **_: Any) -> None:
        claim = attempt_of(getattr(request, "headers", None)) if self._is_ours(sender) else None
        if claim is not None:
            self._put_aside(claim, monotonic() + PATIENCE_S)

    def _ran(self, sender: Any, state: str = "", retval: Any = None, **_: Any) -> None:
        """The end of a task that neither failed nor succeeded, as Celery sees it."""
        if state not in (states.IGNORED, states.REJECTED):
            return
        holding = self._held(sender)
        if holding is None:
            return
        if isinstance(retval, Reject):
            if retval.requeue and sender.acks_late:  # its request puts the message back, and the claim aside
                return
            error: Exception = StepFailed("Reject", f"The task rejected its message: {retval.reason!r}")
            self._report(Report(holding.claim, error=codec.encode_error(error), dice=dice()), holding.until)
            return
        error = NonRetryableError(
            "The task raised Ignore (self.replace() does), so it has no result that could be the step's. Return a "
            "value, or make each part a step."
        )
        self._report(Report(holding.claim, error=codec.encode_error(error), is_final=True), holding.until)

    # -- in the worker's main process --------------------------------------------------------------------------

    def _note(self, request: Any = None, **_: Any) -> None:
        if HEADER in (getattr(request, "request_dict", None) or ()):
            self._received[request.id] = request

    def _revoked(
        self,
        sender: Any,
        request: Any = None,
        terminated: Any = False,
        expired: Any = False,
        **_: Any,
    ) -> None:
        claim = attempt_of(getattr(request, "headers", None)) if self._is_ours(sender) else None
        if claim is None:
            return
        error: OrchestratorError
        if expired:
            error = StepTimeout(
                f"the message of step {claim.key!r} expired (expires=) before it was taken up"
            )
        else:
            what = "terminated" if terminated else "revoked"
            error = Cancelled(f"The task of step {claim.key!r} was {what}.")
        report = Report(claim, error=codec.encode_error(error), dice=dice())
        self._report(report, monotonic() + MAIN_PATIENCE_S)

    # -- writing -------------------------------------------------------------------------------------------------

    def _is_ours(self, task: Any) -> bool:
        """Signals are sent by the tasks of every app in the process."""
        return getattr(task, "app", None) is self._app

    def _held(self, task: Any) -> Holding | None:
        return getattr(task.request, HOLDING, None) if self._is_ours(task) else None

    def _put_aside(self, claim: Claim, until: float) -> None:
        self._insist(lambda connection: reports.put_aside(connection, claim), until, claim)

    def _report(self, report: Report, until: float) -> None:
        stored = self._insist(lambda connection: reports.store(connection, report), until, report.claim)
        if stored:
            reach("signature.after_report")
            self._hint(report.claim)
        elif stored is False:
            logger.info(
                "The end of %s is not recorded: the attempt is over, or has been reported.", report.claim
            )

    def _insist(self, verb: Callable[[Connection], bool | None], until: float, claim: Claim) -> bool | None:
        """Run ``verb`` in a transaction, again and again while Postgres is away: its answer, or ``None``."""
        while True:
            try:
                with self._presence.engine.begin() as connection:
                    return verb(connection)
            except Exception as error:
                if not (session.is_away(error) or session.is_contention(error)):
                    raise
                if monotonic() >= until:
                    logger.error(
                        "The end of %s could not be recorded; the attempt counts as lost: %s", claim, error
                    )
                    return None
                logger.warning("The end of %s waits for Postgres: %s", claim, error)
            pause(AGAIN_S)


def result_of(claim: Claim, value: Any, limit: int) -> Report:
    """The report of a body that returned; a value that cannot be stored is a failure for good."""
    try:
        text = codec.encode(value, what=f"the result of step {claim.key!r}", limit=limit)
    except OrchestratorError as error:
        return Report(claim, error=codec.encode_error(error), is_final=True)
    return Report(claim, output=text)


def failure_of(claim: Claim, error: Any, einfo: Any) -> Report:
    """The report of a body that raised, as Celery tells it."""
    trace = getattr(einfo, "traceback", None) or ""
    if isinstance(error, WorkerLostError):
        return Report(claim, loss="lost", traceback=str(trace))
    if isinstance(error, TimeLimitExceeded):
        error = StepTimeout(f"the task of step {claim.key!r} was killed at its hard time limit: {error}")
    elif isinstance(error, EncodeError):  # by Celery's result backend
        error = SerializationError(
            f"the result of step {claim.key!r} is not fit for its result backend: {error}"
        )
    elif isinstance(error, Reject):
        error = StepFailed("Reject", f"The task rejected its message: {error.reason!r}")
    elif hasattr(error, "exc_cls_name"):  # Celery's stand-in for one that cannot be pickled
        error = StepFailed(str(error.exc_cls_name), " ".join(map(str, error.exc_args)))
    elif not isinstance(error, BaseException):
        error = StepFailed(type(error).__name__, str(error))
    final = isinstance(error, OrchestratorError) and error.ends_retries
    text = str(trace).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return Report(claim, error=codec.encode_error(error), traceback=text, is_final=final, dice=dice())
