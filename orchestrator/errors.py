"""Every exception of the package, and the two small records that exceptions carry.

Owns: the class, the stable ``code`` and the ``retryable`` flag of every error, and how one of our errors
is rebuilt from its ``args`` (:func:`rebuilt`). Does not own how an error is stored (``workflow/codec``), nor
what happens next when one is raised.

All that an error knows stands in its ``args`` as plain JSON values, and its attributes are read from there.
So an error that went through pickle or through a stored record still has all its attributes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as people and programs outside see it: the class name it was raised under, and its text."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name

    @classmethod
    def of(cls, value: "ErrorInfo | Mapping[str, Any]") -> "ErrorInfo":
        """The record itself, or the one written down in a mapping with ``name`` and ``message``."""
        return value if isinstance(value, ErrorInfo) else cls(str(value["name"]), str(value["message"]))


@dataclass(frozen=True, slots=True)
class RollbackStatus:
    """How a rollback ended, or that it still goes on (``outcome`` is then ``None``).

    ``error`` is the first handler error, ``errors`` are all of them, in the order they became final.
    """

    outcome: str | None
    error: ErrorInfo | None = None
    errors: tuple[ErrorInfo, ...] = ()

    @classmethod
    def of(cls, value: "RollbackStatus | Mapping[str, Any]") -> "RollbackStatus":
        """The record itself, or the one written down in a mapping of its fields."""
        if isinstance(value, RollbackStatus):
            return value
        error = value.get("error")
        errors = tuple(ErrorInfo.of(each) for each in value.get("errors") or ())
        return cls(value.get("outcome"), None if error is None else ErrorInfo.of(error), errors)


def rebuilt(cls: type[E], args: tuple[Any, ...]) -> E:
    """An error of ``cls`` that holds ``args``; its ``__init__`` is not called."""
    # An OSError takes errno, strerror and filename apart in its __new__.
    error = cls.__new__(cls, *args) if cls.__new__ is OSError.__new__ else cls.__new__(cls)
    if not error.args:
        error.args = args
    return error


class OrchestratorError(Exception):
    """Base of every error this package raises on purpose.

    ``code`` is stable over releases. ``retryable`` says whether the same call, unchanged, may succeed later.
    ``ends_retries`` says that a step whose body raises it is not retried, whatever its retry limit.
    """

    code: ClassVar[str] = "orchestrator_error"
    retryable: ClassVar[bool] = False
    ends_retries: ClassVar[bool] = False

    @property
    def message(self) -> str:
        """The text of the error, without the name of its class."""
        return str(self._arg(0, ""))

    def __str__(self) -> str:
        return self.message

    def _arg(self, index: int, default: Any = None) -> Any:
        return self.args[index] if len(self.args) > index else default

    def _text(self, index: int) -> str | None:
        value = self._arg(index)
        return None if value is None else str(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return (rebuilt, (type(self), self.args), self.__dict__ or None)


class NonRetryableError(OrchestratorError):
    """Raised by a step body to fail the step at once, without the retries it has left.

    ``name`` replaces the class name in what is recorded and shown.
    """

    code = "non_retryable"
    ends_retries = True

    def __init__(self, message: str = "", name: str | None = None) -> None:
        super().__init__(*((message,) if name is None else (message, name)))

    @property
    def name(self) -> str:
        """The name it is recorded under: the one given, or that of its class."""
        return str(self._arg(1) or type(self).__name__)


class StepFailed(OrchestratorError):
    """The final error of a step whose class may not, or cannot, be revived here."""

    code = "step_failed"

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(name, message)

    @property
    def name(self) -> str:
        """Name of the class that was raised in the body."""
        return str(self._arg(0, "Error"))

    @property
    def message(self) -> str:
        """The text of the error that was raised in the body."""
        return str(self._arg(1, ""))

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


class StepTimeout(OrchestratorError):
    """One attempt of a step, or an awaited child, took longer than its timeout."""

    code = "step_timeout"
    retryable = True


class EventTimeout(OrchestratorError):
    """No event of the awaited type was received before the wait was due."""

    code = "event_timeout"


class RetryDelayError(OrchestratorError):
    """A delay function threw, took over five seconds, or returned something that is no duration."""

    code = "retry_delay_error"
    ends_retries = True


class SerializationError(OrchestratorError):
    """A value cannot be stored as JSON, or a stored one does not fit its annotation."""

    code = "serialization_error"
    ends_retries = True


class PayloadTooLarge(OrchestratorError):
    """A value, or the state of an instance, is over its limit; the text names both sizes."""

    code = "payload_too_large"
    ends_retries = True


class StepLimitExceeded(OrchestratorError):
    """The workflow started more steps than its ``max_steps``."""

    code = "step_limit_exceeded"


class WorkerLost(OrchestratorError):
    """The worker that ran an attempt died, or lost its lease, in mid-attempt."""

    code = "worker_lost"
    retryable = True


class WorkerShutdown(OrchestratorError):
    """The worker was shut down in order and handed an unfinished attempt back."""

    code = "worker_shutdown"
    retryable = True


class Cancelled(OrchestratorError):
    """The step was cancelled by the workflow code, or by a verb on its instance."""

    code = "cancelled"


class Abandoned(OrchestratorError):
    """The workflow returned while this step, which it never awaited, was unfinished."""

    code = "abandoned"


class NonDeterminismError(OrchestratorError):
    """A replay did something else than its record says; ``expected`` and ``came`` name both sides."""

    code = "non_determinism"

    def __init__(self, message: str, expected: str | None = None, came: str | None = None) -> None:
        super().__init__(message, expected, came)

    @property
    def expected(self) -> str | None:
        """What the record says came next, or ``None`` if it says nothing more."""
        return self._text(1)

    @property
    def came(self) -> str | None:
        """What the code did instead, or ``None`` if it ended."""
        return self._text(2)


class NotDurable(OrchestratorError):
    """Workflow code did what no replay can repeat; the text names the durable call to use instead."""

    code = "not_durable"
    ends_retries = True


class RollbackMissing(OrchestratorError):
    """Today's code no longer reaches a step that has to be compensated, so its handler cannot be rebuilt."""

    code = "rollback_missing"


class InvalidName(OrchestratorError):
    """A workflow name, step name or event type breaks its rule."""

    code = "invalid_name"


class InvalidConfig(OrchestratorError):
    """An option, a duration or a definition makes no sense; the text says which, and what would."""

    code = "invalid_config"


class InvalidParams(OrchestratorError):
    """The parameters of an instance do not validate into the annotation of its workflow's event."""

    code = "invalid_params"


class UnknownWorkflow(OrchestratorError):
    """No workflow of that name and version is registered in this process."""

    code = "unknown_workflow"


class _AboutInstance(OrchestratorError):
    """What the errors about one instance share: its id, and a usual text around it."""

    usual: ClassVar[str] = "{!r}"

    def __init__(self, instance_id: str, message: str | None = None) -> None:
        super().__init__(*((instance_id,) if message is None else (instance_id, message)))

    @property
    def instance_id(self) -> str:
        """The id that the instance was addressed by."""
        return str(self._arg(0, ""))

    @property
    def message(self) -> str:
        """The text of the error."""
        return str(self._arg(1) or self.usual.format(self.instance_id))


class InvalidInstanceId(OrchestratorError):
    """An instance id breaks its rule."""

    code = "invalid_instance_id"


class InstanceExists(_AboutInstance):
    """An instance of that id exists and is still retained. A ``message`` replaces the usual text."""

    code = "instance_exists"
    usual = "an instance with the id {!r} exists already"


class InstanceNotFound(_AboutInstance):
    """No instance of that id exists. A ``message`` replaces the usual text."""

    code = "instance_not_found"
    usual = "there is no instance with the id {!r}"


class InvalidTransition(OrchestratorError):
    """The instance's status does not allow this verb."""

    code = "invalid_transition"


class RateLimited(OrchestratorError):
    """The creation rate is used up; ``retry_after`` says for how many seconds."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message, retry_after)

    @property
    def retry_after(self) -> float:
        """Seconds until the call may succeed."""
        return float(self._arg(1, 0.0))


class TooManyQueued(OrchestratorError):
    """As many instances of the workflow are queued as its limit allows."""

    code = "too_many_queued"
    retryable = True


class _Ended(_AboutInstance):
    """What the errors of an instance that has no result share: how its rollback went."""

    @property
    def rollback(self) -> RollbackStatus | None:
        """How the rollback went; ``None`` if there was none."""
        return None if self._arg(1) is None else RollbackStatus.of(self._arg(1))

    @property
    def message(self) -> str:
        """The text of the error."""
        return self.usual.format(self.instance_id)


class WorkflowTerminated(_Ended):
    """The awaited instance was terminated, so it has no result."""

    code = "workflow_terminated"
    usual = "instance {!r} was terminated"

    def __init__(self, instance_id: str, rollback: RollbackStatus | None = None) -> None:
        OrchestratorError.__init__(self, instance_id, None if rollback is None else asdict(rollback))


class WorkflowFailed(_Ended):
    """The awaited instance failed; ``error`` is what it failed with, ``rollback`` how that was undone."""

    code = "workflow_failed"
    usual = "instance {!r} failed with "

    def __init__(self, instance_id: str, error: ErrorInfo, rollback: RollbackStatus | None = None) -> None:
        undone = None if rollback is None else asdict(rollback)
        OrchestratorError.__init__(self, instance_id, undone, asdict(error))

    @property
    def error(self) -> ErrorInfo:
        """The error the instance ended with."""
        return ErrorInfo.of(self._arg(2, {"name": "Error", "message": ""}))

    @property
    def message(self) -> str:
        """The text of the error."""
        return super().message + str(self.error)


class ServiceUnavailable(OrchestratorError):
    """A service cannot be reached; the text says which, and what was kept."""

    code = "service_unavailable"
    retryable = True

    def __init__(self, message: str, service: str | None = None) -> None:
        super().__init__(message, service)

    @property
    def service(self) -> str | None:
        """Which one: ``postgres``, ``redis`` or ``broker``, if that is known."""
        return self._text(1)


class SchemaNotMigrated(OrchestratorError):
    """The database has not the tables of this release."""

    code = "schema_not_migrated"

    def __init__(self, message: str = "the database is not up to date: run `orchestrator migrate`") -> None:
        super().__init__(message)


class WorkflowSignal(BaseException):
    """Base of what unwinds workflow code from outside. No ``Exception``: code must not swallow it."""


class ReplayDiscarded(WorkflowSignal):
    """The replay was evicted; step calls in its ``finally`` blocks raise this as well."""
