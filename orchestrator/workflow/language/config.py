"""How a step is configured, and what its functions are told about the attempt they are.

Owns: retries and how long to wait between them, the configuration that is recorded when a step first starts (and
how it is written down), the policy of a rollback, the contexts that bodies and handlers receive. Does not own when
an attempt is made or whether it is retried (``turn``), nor the arguments of ``step.do`` itself (``replay``).
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import ldexp
from typing import Any, Literal, Protocol, get_args

from orchestrator.errors import ErrorInfo, InvalidConfig
from orchestrator.workflow.language.durations import MAX_SECONDS, Duration, bounded, positive, seconds
from orchestrator.workflow.language.names import check_event_type

Backoff = Literal["constant", "linear", "exponential"]
DelayFunction = Callable[["StepContext", Exception], Duration | Awaitable[Duration]]

MAX_RETRIES = 10_000
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_EVENT_TIMEOUT: Duration = "24 hours"
_CACHE = 4_096


@dataclass(frozen=True)
class Retries:
    """How often, and after which delays, a failed attempt is repeated.

    ``limit`` counts retries, so there are ``limit + 1`` attempts. ``delay`` is a duration, or a function
    ``(ctx, error) -> duration``, sync or async, asked anew after each failure. ``backoff`` multiplies it on the
    failed attempt n by 1 (``constant``), n (``linear``) or 2**(n-1) (``exponential``). ``max_delay`` bounds the
    product; ``jitter`` j then spreads it evenly over ±j of itself.

    Raises ``InvalidConfig``.
    """

    limit: int = 5
    delay: Duration | DelayFunction = "10 seconds"
    backoff: Backoff = "exponential"
    max_delay: Duration | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        if not callable(self.delay):
            seconds(self.delay, what="Retries.delay")
        if self.backoff not in get_args(Backoff):
            choices = " | ".join(get_args(Backoff))
            raise InvalidConfig(f"Retries.backoff is {self.backoff!r}; expected {choices}")
        if self.max_delay is not None:
            seconds(self.max_delay, what="Retries.max_delay")
        _check_jitter(self.jitter)

    @property
    def delay_s(self) -> float | None:
        """The delay in seconds; ``None`` if a function says it."""
        return None if callable(self.delay) else _capped(self.delay, "Retries.delay")

    @property
    def max_delay_s(self) -> float | None:
        """The bound of the multiplied delay in seconds, if there is one."""
        return None if self.max_delay is None else _capped(self.max_delay, "Retries.max_delay")

    def wait_s(self, failed_attempt: int, base_s: float, dice: float) -> float:
        """Seconds to wait after the failed attempt (1-based); see :func:`backoff_s`."""
        return backoff_s(self.backoff, failed_attempt, base_s, self.max_delay_s, self.jitter, dice)


def backoff_s(
    backoff: Backoff,
    failed_attempt: int,
    base_s: float,
    max_delay_s: float | None,
    jitter: float,
    dice: float,
) -> float:
    """Seconds between a failed attempt (1-based) and the next one; never more than 365 days.

    ``base_s`` is the delay before multiplication, ``dice`` a number in [0, 1) that decides the jitter.
    """
    ceiling = MAX_SECONDS if max_delay_s is None else min(max_delay_s, MAX_SECONDS)
    delay_s = min(base_s, MAX_SECONDS)
    if backoff == "linear":
        delay_s *= failed_attempt
    elif backoff == "exponential":
        try:
            delay_s = ldexp(delay_s, failed_attempt - 1)
        except OverflowError:
            delay_s = ceiling
    delay_s = min(delay_s, ceiling)
    return min(delay_s * (1.0 + jitter * (2.0 * dice - 1.0)), MAX_SECONDS)


@dataclass(frozen=True)
class StepConfig:
    """The configuration of a ``do`` step or of a rollback handler, fixed when it first starts.

    ``delay_s`` is ``None`` where a delay function decides; the function itself is read from today's code.
    """

    retries_limit: int = 5
    delay_s: float | None = 10.0
    backoff: Backoff = "exponential"
    max_delay_s: float | None = None
    jitter: float = 0.0
    timeout_s: float = DEFAULT_TIMEOUT_S
    sensitive: bool = False
    queue: str | None = None
    task: str | None = None
    """The Celery task that a signature names, where the step has one for its function."""

    @classmethod
    def build(
        cls,
        retries: Retries | None = None,
        timeout: Duration | None = None,
        sensitive: bool = False,
        queue: str | None = None,
    ) -> "StepConfig":
        """The configuration from the options as users write them; ``None`` stands for the default.

        Raises ``InvalidConfig``.
        """
        if isinstance(retries, Retries) and callable(retries.delay):  # a cache would keep its closure alive
            return _built.__wrapped__(retries, timeout, sensitive, queue)
        try:
            return _built(retries, timeout, sensitive, queue)
        except TypeError:  # something that cannot be hashed is no valid option either: let the checks say so
            return _built.__wrapped__(retries, timeout, sensitive, queue)

    @property
    def has_delay_function(self) -> bool:
        """Whether a function of today's code has to say the delay after a failure."""
        return self.delay_s is None

    def retries(self, delay: DelayFunction | None = None) -> Retries:
        """The retries again, as a body finds them in its context; ``delay`` is today's delay function."""
        written: Duration | DelayFunction = delay or 0.0 if self.delay_s is None else self.delay_s
        return Retries(self.retries_limit, written, self.backoff, self.max_delay_s, self.jitter)

    def wait_s(self, failed_attempt: int, dice: float, base_s: float | None = None) -> float:
        """Seconds to wait after the failed attempt (1-based) before the next one; see :func:`backoff_s`.

        ``base_s`` is what the delay function returned, and is needed exactly if there is one.
        """
        base_s = self.delay_s if base_s is None else base_s
        if base_s is None:
            raise InvalidConfig("the delay comes from a function; its answer is missing")
        return backoff_s(self.backoff, failed_attempt, base_s, self.max_delay_s, self.jitter, dice)

    def to_json(self) -> str:
        """The configuration as compact ASCII JSON."""
        return _step_text(self)

    @staticmethod
    def from_json(text: str) -> "StepConfig":
        """The configuration that ``text`` describes. Fields this release does not know are passed over."""
        return _step_read(text)


@dataclass(frozen=True)
class WaitConfig:
    """The configuration of a ``wait_for_event`` step, fixed when it first starts."""

    type: str
    timeout_s: float = 86_400.0
    sensitive: bool = False

    @classmethod
    def build(
        cls, type: str, timeout: Duration | None = DEFAULT_EVENT_TIMEOUT, sensitive: bool = False
    ) -> "WaitConfig":
        """The configuration from the options as users write them; a timeout is 1 second to 365 days.

        Raises ``InvalidName`` for the event type, ``InvalidConfig`` for the rest.
        """
        chosen = DEFAULT_EVENT_TIMEOUT if timeout is None else timeout
        timeout_s = bounded(chosen, what="timeout", least=1.0)
        return cls(check_event_type(type), timeout_s, _flag(sensitive, "sensitive"))

    def to_json(self) -> str:
        """The configuration as compact ASCII JSON."""
        return _wait_text(self)

    @staticmethod
    def from_json(text: str) -> "WaitConfig":
        """The configuration that ``text`` describes. Fields this release does not know are passed over."""
        return _wait_read(text)


@dataclass(frozen=True)
class RollbackPolicy:
    """How the handlers of a failed workflow are run.

    ``order``: one at a time in reverse start order, or all at once. ``on_error``: whether the first handler that
    fails for good stops the chain, or the others still run. Raises ``InvalidConfig``.
    """

    order: Literal["sequential", "parallel"] = "sequential"
    on_error: Literal["stop", "continue"] = "stop"

    def __post_init__(self) -> None:
        if self.order not in ("sequential", "parallel"):
            raise InvalidConfig(f"RollbackPolicy.order is {self.order!r}; expected sequential | parallel")
        if self.on_error not in ("stop", "continue"):
            raise InvalidConfig(f"RollbackPolicy.on_error is {self.on_error!r}; expected stop | continue")


class CancelFlag(Protocol):
    """What a sync body can poll, or wait on, to learn that nobody waits for its result any more."""

    def is_set(self) -> bool:
        """Whether the attempt was cancelled or has timed out."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Block until that happens, at most ``timeout`` seconds; whether it has."""
        ...


@dataclass(frozen=True)
class StepContext:
    """What the body of a step may know about the attempt it is."""

    name: str
    count: int
    """Which occurrence of the name this is in the run, from 1."""
    attempt: int
    """Which attempt this is, from 1."""
    instance_id: str
    workflow_name: str
    retries: Retries
    timeout: float
    """Seconds this attempt may take."""
    idempotency_key: str
    """The same on every attempt and every duplicate of this step; another one after a restart."""
    cancelled: CancelFlag = field(compare=False, repr=False)


@dataclass(frozen=True)
class RollbackContext:
    """What a rollback handler is given: its one argument."""

    error: ErrorInfo
    """Why the instance is rolled back."""
    output: Any
    """The recorded value of the forward step; ``None`` if it has none, see ``has_output``."""
    has_output: bool
    args: tuple[Any, ...]
    """The arguments of the forward step."""
    step: StepContext
    """The context of the forward step."""
    attempt: int
    """Which attempt of this handler it is, from 1."""
    idempotency_key: str
    """The same on every attempt of this handler, and not that of the forward step."""


def _check_limit(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= MAX_RETRIES:
        raise InvalidConfig(f"Retries.limit is {limit!r}; it must be a whole number from 0 to {MAX_RETRIES}")


def _check_jitter(jitter: object) -> None:
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise InvalidConfig(f"Retries.jitter is {jitter!r}; it must be a number from 0 to 1")


def _capped(duration: Duration, what: str) -> float:
    return min(seconds(duration, what=what), MAX_SECONDS)


def _flag(value: bool, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidConfig(f"{what} is {value!r}; it must be True or False")
    return value


@lru_cache(_CACHE, typed=True)
def _built(
    retries: Retries | None, timeout: Duration | None, sensitive: bool, queue: str | None
) -> StepConfig:
    chosen = Retries() if retries is None else retries
    if not isinstance(chosen, Retries):
        raise InvalidConfig(f"retries is {retries!r}; expected Retries(limit=…, delay=…)")
    if queue is not None and not (queue and str(queue).isprintable() and isinstance(queue, str)):
        raise InvalidConfig(f"queue is {queue!r}; it must be the name of a queue, in printable characters")
    return StepConfig(
        retries_limit=chosen.limit,
        delay_s=chosen.delay_s,
        backoff=chosen.backoff,
        max_delay_s=chosen.max_delay_s,
        jitter=float(chosen.jitter),
        timeout_s=DEFAULT_TIMEOUT_S if timeout is None else positive(timeout, what="timeout"),
        sensitive=_flag(sensitive, "sensitive"),
        queue=queue,
    )


@lru_cache(_CACHE)
def _step_text(config: StepConfig) -> str:
    fields = asdict(config)
    if config.task is None:  # the rule
        del fields["task"]
    return json.dumps(fields, separators=(",", ":"))


@lru_cache(_CACHE)
def _step_read(text: str) -> StepConfig:
    fields = json.loads(text)
    return StepConfig(**{name: fields[name] for name in StepConfig.__dataclass_fields__ if name in fields})


@lru_cache(_CACHE)
def _wait_text(config: WaitConfig) -> str:
    return json.dumps(asdict(config), separators=(",", ":"))


@lru_cache(_CACHE)
def _wait_read(text: str) -> WaitConfig:
    fields = json.loads(text)
    return WaitConfig(**{name: fields[name] for name in WaitConfig.__dataclass_fields__ if name in fields})
