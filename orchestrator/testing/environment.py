"""``WorkflowEnvironment``: instances in the test's own process, and a clock that the test moves.

Owns: creating instances, the clock, whose fakes are whose, and the complaint about mocks nobody used. Does not own:
one instance's verbs (``instance``), turns, bodies and their order (``turns``, ``bodies``, ``driving``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from orchestrator.client.listing import checked_status
from orchestrator.client.orchestrator import check_outside
from orchestrator.client.workflow import Workflow
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.ports import FOREVER, MonotonicClock
from orchestrator.testing.controls import Controls
from orchestrator.testing.errors import StillWaiting, UnusedMock
from orchestrator.testing.instance import InstanceUnderTest, described
from orchestrator.testing.simulation import kin
from orchestrator.testing.simulation.bodies import Bodies
from orchestrator.testing.simulation.driving import Driver, outside
from orchestrator.testing.simulation.fakes import Event, Fakes
from orchestrator.testing.simulation.storage import Record, Storage
from orchestrator.testing.simulation.turns import Clock, Turns
from orchestrator.testing.twins import EnvironmentTwins
from orchestrator.workflow.language.definition import Definition, registry, validate_params
from orchestrator.workflow.language.durations import Duration, seconds
from orchestrator.workflow.language.names import check_instance_id
from orchestrator.workflow.status import Status


class WorkflowEnvironment(Controls, EnvironmentTwins):
    """Runs workflows without any server, on the engine's own decisions; a context manager.

    ``start``: where the clock stands at first (aware; the present by default). ``check_replay``: replay each instance
    from its record after every turn, and raise ``NonDeterminismError`` where that comes to something else than the
    live code did. ``strict``: at the end raise ``UnusedMock`` for mocks that no step used. ``seed``: let bodies that
    are under way at once end in an order drawn from it, instead of in start order.

    Not simulated: concurrency limits, creation rates, retention, schedules (``create(..., schedule=)`` stands for one
    firing), queues.
    """

    def __init__(
        self,
        *,
        start: datetime | None = None,
        check_replay: bool = True,
        strict: bool = True,
        seed: int | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.storage = Storage()
        self._clock = Clock(float(int(MonotonicClock().now())) if start is None else _instant(start, "start"))
        self._strict = strict
        self._fakes = Fakes()
        self._own: dict[UUID, Fakes] = {}
        self.bodies = Bodies()
        self.turns = Turns(self.storage, self._clock, self.fakes_of, self._find, check_replay=check_replay)
        self.turns.created = self._begin
        self._definitions: dict[tuple[str, str], Definition] = {}
        self.driver = Driver(self.turns, self.bodies, self.fakes_of, self.lock, seed)
        self._created = 0
        self._names: set[str] = set()

    def __enter__(self) -> WorkflowEnvironment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._strict:
            self._complain()

    def close(self) -> None:
        """Drop all instances' code and cancel bodies that are under way."""
        outside(self._close)

    # -- instances -------------------------------------------------------------------------------------------

    def create(
        self,
        workflow: Workflow,
        params: Any = None,
        *,
        id: str | None = None,
        schedule: tuple[str, datetime] | None = None,
    ) -> InstanceUnderTest:
        """Create an instance; it starts when the environment is driven. ``schedule`` is the cron expression and the
        moment that ``event.schedule`` tells of.

        Raises ``InstanceExists``, ``InvalidInstanceId``, ``InvalidParams``, ``SerializationError``,
        ``PayloadTooLarge``, ``InvalidConfig``.
        """
        check_outside("create")
        definition = _definition(workflow)
        with self.lock:
            # Made of a count, so that step.uuid() and step.random() are the same in every run of the test.
            uuid = uuid5(NAMESPACE_OID, f"orchestrator.testing:{self._created}")
            name_id = str(uuid) if id is None else check_instance_id(id)
            text = validate_params(definition, params)
            fired = None if schedule is None else (schedule[0], _instant(schedule[1], "schedule"))
            record = Record(uuid, name_id, definition, text, self._clock.now(), fired, state_bytes=len(text))
            self.storage.add(record)
            self._definitions[definition.name, definition.version] = definition
            self._created += 1
            self._begin(record)
        return InstanceUnderTest(self, definition, name_id, uuid)

    def get(self, workflow: Workflow, id: str) -> InstanceUnderTest:
        """The instance of that id, also one that the code itself has created. Raises ``InstanceNotFound``."""
        definition = _definition(workflow)
        record = self.storage.find(definition.name, id)
        if record is None:
            raise InstanceNotFound(id)
        return InstanceUnderTest(self, record.definition, id, record.id)

    def deploy(self, workflow: Workflow) -> None:
        """Let the instances of this workflow's name and version go on with its code, as after a deployment.

        Their code is replayed from their records; where it does not fit them they come to be blocked.
        """
        definition = _definition(workflow)
        with self.lock:
            self._definitions[definition.name, definition.version] = definition
            for record in self.storage:
                if (record.definition.name, record.definition.version) == (
                    definition.name,
                    definition.version,
                ):
                    record.definition = definition
                    self.turns.drop(record.id)
                    if record.blocked is not None:
                        self.turns.wake(record.id)

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """Where the clock stands; it moves by ``advance`` only."""
        return datetime.fromtimestamp(self._clock.now(), UTC)

    def run_until_idle(self) -> None:
        """Do everything that can be done without time passing: turns, bodies, retries and timers that are due."""
        check_outside("run_until_idle")
        self.drive()

    def advance(self, duration: Duration) -> None:
        """Let time pass: what comes due is done at its own moment, in order, with the clock standing there.

        ``duration`` is a ``timedelta``, seconds, or text such as ``"1 day"``. No real time passes.
        """
        check_outside("advance")
        until = self._clock.now() + seconds(duration, what="duration of advance()")
        outside(lambda: self._advance(until))

    def wait_for_status(self, status: Status | str) -> None:
        """Drive until every instance is ``status``. Raises ``StillWaiting``."""
        check_outside("wait_for_status")
        wanted = checked_status(status)
        if not self.drive(lambda: all(record.status is wanted for record in self.storage)):
            others = [described(record) for record in self.storage if record.status is not wanted]
            raise StillWaiting(f"Waiting for status {wanted.value!r} of all instances: " + "; ".join(others))

    def wait_for_step_result(self, name: str, count: int = 1) -> Any:
        """``wait_for_step_result`` of the only instance there is, beside children. Raises ``InvalidConfig`` if there
        are others."""
        records = [record for record in self.storage if record.parent_id is None]
        if len(records) != 1:
            raise InvalidConfig(
                f"There are {len(records)} instances: call wait_for_step_result() of the one you mean."
            )
        (record,) = records
        only = InstanceUnderTest(self, record.definition, record.name_id, record.id)
        return only.wait_for_step_result(name, count)

    # -- for the instances -------------------------------------------------------------------------------------

    def drive(self, until: Callable[[], bool] | None = None) -> bool:
        """Do what can be done now until ``until()`` holds; whether it does."""
        return outside(lambda: self.driver.run(until))

    def move(self, at: float) -> None:
        """Move the clock there, unless it stands later, and wake whom something is due for; nothing is driven."""
        with self.lock:
            self._clock.at = max(self._clock.at, at)
            self.turns.wake_due()

    def fakes_of(self, id: UUID) -> Fakes:
        """The fakes of one instance, before those of all."""
        if id not in self._own:
            self._own[id] = Fakes(self._fakes)
        return self._own[id]

    def deliver(self, record: Record, type: str, text: str) -> int:
        """Put an event into an instance's inbox, and give its number."""
        number = record.receive(type, text, self._clock.now())
        self.turns.wake(record.id)
        return number

    def fake_event(self, record: Record, event: Event) -> None:
        """Send a mocked event to an instance."""
        event.sent.append((record.id, self.deliver(record, event.type, event.payload)))

    def remove(self, record: Record) -> None:
        """Forget an instance; its bodies are told to stop."""
        self._names.update(record.steps)
        self.storage.remove(record.id)
        self.turns.drop(record.id)
        for relative in kin.relatives(self.storage, record):
            self.turns.wake(relative)
        self.bodies.revoke(None, record.id)

    # -- inside ------------------------------------------------------------------------------------------------

    def _begin(self, record: Record) -> None:
        """Let a new instance have the events that are mocked for all, and its first turn."""
        for event in self._fakes.events:
            self.fake_event(record, event)
        self.turns.wake(record.id)

    def _find(self, name: str, version: str) -> Definition:
        """The code of a child: what the test has created or deployed goes before what is registered."""
        return self._definitions.get((name, version)) or registry.get(name, version)

    def _advance(self, until: float) -> None:
        self.driver.run()
        while True:
            due = min((record.next_due() for record in self.storage), default=FOREVER)
            if due > until:
                break
            self.move(due)
            self.driver.run()
        self._clock.at = until

    def _close(self) -> None:
        with self.lock:
            self.turns.close()
        self.bodies.close()

    def _complain(self) -> None:
        waiting = {(record.id, event.number) for record in self.storage for event in record.inbox}
        self._names.update(key for record in self.storage for key in record.steps)
        unused = self._fakes.unused(waiting, self._names)
        for own in self._own.values():
            unused.extend(own.unused(waiting, self._names))
        if unused:
            steps = ", ".join(sorted(self._names)) or "none"
            raise UnusedMock(
                f"Nothing used {', '.join(unused)}. The steps there were: {steps}. Check the names, or pass "
                "WorkflowEnvironment(strict=False) where a mock may stay unused."
            )

    def _controlled(self) -> Fakes:
        return self._fakes

    def _refaked(self) -> None:
        with self.lock:
            for record in self.storage:
                self.turns.refake(record)

    def _send_fake(self, event: Event) -> None:
        with self.lock:
            for record in self.storage:
                if not record.is_finished:
                    self.fake_event(record, event)


def _definition(workflow: Any) -> Definition:
    definition = getattr(workflow, "definition", None)
    if not isinstance(definition, Definition):
        raise InvalidConfig(
            f"expected a workflow (a function or class under @workflow), not {workflow!r:.80}"
        )
    return definition


def _instant(when: Any, what: str) -> float:
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidConfig(f"{what} is {when!r:.80}; it must be a datetime with a time zone")
    return when.timestamp()
