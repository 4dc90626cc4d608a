"""What a test pretends: sleeps that take no time, results, errors and time-outs of steps, events.

Owns: which fakes there are, which step each is for, and whether it was used. Does not own: applying them (``turns``,
``bodies``).

A fake changes what comes from outside (a moment, an outcome, an event), never what the engine decides: code, retries,
histories and rollbacks run as in production.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from orchestrator.errors import InvalidConfig
from orchestrator.workflow import codec, saga
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.commands import SLEEP, WAIT
from orchestrator.workflow.language.names import check_event_type, check_step_name

LONG_AGO = 1.0
"""A wait that was due then is served by no event: it times out."""


def name_of(key: str) -> str:
    """The name of a step, from its key; that of the forward step for a rollback."""
    _, _, name_count = saga.forward_key(key).partition(":")
    return name_count.rpartition(":")[0]


@dataclass(slots=True)
class Named:
    """Steps by name; ``every`` stands for all of them."""

    names: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    every: bool = False

    def add(self, names: Iterable[str]) -> None:
        chosen = [check_step_name(name) for name in names]
        self.names.update(chosen)
        self.every = self.every or not chosen

    def __contains__(self, name: str) -> bool:
        if name in self.names:
            self.used.add(name)
            return True
        return self.every


@dataclass(slots=True)
class Failure:
    """Attempts of a step that fail with ``error``, or by running out of time where it is ``None``."""

    name: str
    error: Exception | None
    left: float
    is_used: bool = False


@dataclass(slots=True)
class Faked:
    """What an attempt comes to without running: ``value``, or ``error``, or a time-out where both are ``None``."""

    value: Any = None
    has_value: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Event:
    """An event for every instance it is meant for; ``sent`` says which got it, and under which number."""

    type: str
    payload: str
    sent: list[tuple[UUID, int]] = field(default_factory=list)


class Fakes:
    """The fakes of one instance, or of all. ``above``: those of all, which one instance's own go before."""

    def __init__(self, above: Fakes | None = None) -> None:
        self._above = above
        self.sleeps = Named()
        self.delays = Named()
        self.forced = Named()
        self.events: list[Event] = []
        self._results: dict[str, Any] = {}
        self._used: set[str] = set()
        self._failures: list[Failure] = []

    # -- set by the test ------------------------------------------------------------------------------------

    def result(self, name: str, value: Any) -> None:
        self._results[check_step_name(name)] = value

    def failure(self, name: str, error: Any, times: Any) -> None:
        check_step_name(name)
        if isinstance(error, type) and issubclass(error, Exception):
            error = error()
        if error is not None and not isinstance(error, Exception):
            raise InvalidConfig(f"mock_step_error({name!r}) needs an exception, not {error!r:.80}")
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise InvalidConfig(
                f"times is {times!r}; it must be a whole number of at least 1, or None for always"
            )
        self._failures.append(Failure(name, error, float("inf") if times is None else times))

    def event(self, type: str, payload: Any) -> Event:
        event = Event(check_event_type(type), codec.encode(payload, what=f"event {type!r}"))
        self.events.append(event)
        return event

    # -- asked by the kit -----------------------------------------------------------------------------------

    def due(self, row: StepRow, now: float) -> float | None:
        """When this open step is due by a fake; ``None`` if none is for it."""
        name = name_of(row.key)
        for fakes in self._chain():
            if row.status == "pending" and name in fakes.delays:
                return min(now, row.due_at or now)
            if row.status == "waiting" and row.kind == SLEEP and name in fakes.sleeps:
                return min(now, row.due_at or now)
            if row.status == "waiting" and row.kind == WAIT and name in fakes.forced:
                return LONG_AGO
        return None

    def forces(self) -> bool:
        """Whether a wait may be made to time out, whatever events there are."""
        return any(fakes.forced.names for fakes in self._chain())

    def attempt(self, name: str) -> Faked | None:
        """What the next attempt of this step comes to without running; ``None`` if it runs."""
        for fakes in self._chain():
            for failure in fakes._failures:
                if failure.name == name and failure.left > 0:
                    failure.left -= 1
                    failure.is_used = True
                    return Faked(error=failure.error)
            if name in fakes._results:
                fakes._used.add(name)
                return Faked(fakes._results[name], has_value=True)
        return None

    def unused(self, waiting: set[tuple[UUID, int]], steps: set[str]) -> list[str]:
        """The mocks that no step came to use; ``waiting`` are the events that nobody has taken, ``steps`` the keys of
        the steps there were. A delay that is disabled need not come up: its step will do."""
        names = {name_of(key) for key in steps}
        found = [f"mock_step_result({name!r})" for name in self._results if name not in self._used]
        for failure in self._failures:
            if not failure.is_used:
                verb = "force_step_timeout" if failure.error is None else "mock_step_error"
                found.append(f"{verb}({failure.name!r})")
        for named, verb in (
            (self.sleeps, "disable_sleeps"),
            (self.delays, "disable_retry_delays"),
            (self.forced, "force_event_timeout"),
        ):
            found.extend(f"{verb}({name!r})" for name in sorted(named.names - named.used - names))
        found.extend(f"mock_event({e.type!r})" for e in self.events if all(at in waiting for at in e.sent))
        return found

    def _chain(self) -> Iterator[Fakes]:
        fakes: Fakes | None = self
        while fakes is not None:
            yield fakes
            fakes = fakes._above
