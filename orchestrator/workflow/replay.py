"""Runs workflow code against its history: ``Replay.feed(facts)`` goes in, ``Replay.pending`` commands come out.

Owns: the live coroutine, the futures of unfinished steps, the calls that today's code made, and the check
that code and history agree. Does not own: what becomes of a command (``turn``), storage, time. It does no
I/O, reads no clock and knows no framework.

Facts are fed one at a time, and the code runs until idle after each. Where history already holds a start,
the command the code gives is matched against it; what is left in ``pending`` is new.
"""

from __future__ import annotations

import random
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from orchestrator.errors import NonDeterminismError, ReplayDiscarded, SerializationError
from orchestrator.workflow import codec
from orchestrator.workflow.history import Began, Cancelled, Ended, Fact, Finished, Started
from orchestrator.workflow.language.commands import (
    PATCH,
    CancelStep,
    Command,
    Complete,
    Fail,
    Mark,
    StartStep,
    StepCall,
)
from orchestrator.workflow.language.definition import (
    Definition,
    ReceivedEvent,
    ScheduledRun,
    WorkflowEvent,
    load_params,
)
from orchestrator.workflow.language.step import WorkflowStep
from orchestrator.workflow.loop import CALLBACKS_PER_RUN, StepFuture, WorkflowLoop, workflow_context

RUNS_UNTIL_STUCK = 100
"""Budgets of callbacks in a row after which code that never becomes idle is held."""
_STARTS = (StartStep, Mark)


@dataclass(slots=True, frozen=True)
class Origin:
    """What a replay starts from: what was fixed when the instance was created, and the limits of the deployment."""

    instance: UUID
    name_id: str
    run: int
    params: str
    created_at: float
    max_steps: int | None = None
    max_payload_bytes: int = codec.MIB
    """How long the text of the workflow's result may be."""
    max_state_bytes: int | None = None
    """How large all values of the instance may be together; ``None`` for no limit."""
    seed: int = 0
    """The run that began at the top, whose chance it is: a restart from a step keeps it."""
    schedule: tuple[str, float] | None = None
    """The cron expression that created the instance, and the moment it was for."""
    success_retention_s: float = 7 * 86_400.0
    """How long the deployment keeps what ends well, where neither instance nor workflow says: for its children."""
    error_retention_s: float = 7 * 86_400.0
    retention_limit_s: float = 30 * 86_400.0
    """No child is kept for longer after its end, whatever its workflow says."""


class Replay:
    """One run of the code of one instance, kept alive between turns and fed what happens."""

    def __init__(self, definition: Definition, origin: Origin) -> None:
        self.definition = definition
        self.origin = origin
        self.calls: dict[str, StepCall] = {}
        self.pending: deque[Command] = deque()
        self.now = origin.created_at
        self.idle = True
        self.ended = False
        """The code has returned or raised, or was ended from outside."""
        self.over = False
        """History holds the end."""
        self.dead = False
        self.steps = 0
        self._runs = 0
        self._futures: dict[str, StepFuture] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._coming: list[Fact] = []
        """Facts that are being fed and have not had their turn, last first."""
        self._ahead: set[str] | None = None
        """Of what is coming, the keys of starts, cancellations and marks: made when the code first asks for a mark."""
        self._dice: random.Random | None = None
        # Sets are walked by hashes: kept history must find them as they were, so the seed and not the run.
        self._loop = WorkflowLoop(hash((origin.instance.int, origin.seed)))  # type: ignore[abstract]

    # -- fed from outside ---------------------------------------------------------------------------------

    def feed(self, facts: Iterable[Fact]) -> None:
        """Feed facts in order of ``seq``, running the code after each.

        Raises ``NonDeterminismError`` where code and history differ, ``SerializationError`` where a recorded
        value no longer fits today's annotations: the instance is then blocked, not failed.
        """
        self._coming = coming = list(facts)
        coming.reverse()
        self._ahead = None
        while coming and not self.over:  # what follows the end was done to the steps, not by the code
            while not self.idle:
                self.run()
            match fact := coming.pop():
                case Started() | Cancelled():
                    self._match(fact)
                case Finished():
                    self._finish(fact)
                case Began(at=at):
                    self.now = max(self.now, at)
                    self._begin()
                case Ended():
                    self._end()
                    self.over = True
                    self.pending.clear()  # its own end, if it came to one, is what was recorded

    def run(self) -> bool:
        """Go on with code that has used up its budget; whether it is idle now."""
        self.idle = self._loop.run(CALLBACKS_PER_RUN)
        self._runs = 0 if self.idle else self._runs + 1
        if self._runs > RUNS_UNTIL_STUCK:
            raise NonDeterminismError(
                f"The workflow's code has run {RUNS_UNTIL_STUCK * CALLBACKS_PER_RUN:,} callbacks without waiting "
                "for any step: it spins (for example on asyncio.sleep(0)). Wait for a step instead."
            )
        return self.idle

    def discard(self) -> None:
        """End this replay: first mark it dead, so that ``finally:`` blocks which call steps are unwound."""
        self.dead = True
        self._loop.close()
        self._futures.clear()

    # -- called by the code, through WorkflowStep ----------------------------------------------------------

    def key_of(self, kind: str, name: str) -> tuple[str, int]:
        """The key of the next step of this kind and name, and its 1-based count."""
        self.check_alive()
        count = self._counts.get((kind, name), 0) + 1
        self._counts[kind, name] = count
        return f"{kind}:{name}:{count}", count

    def start(self, command: StartStep) -> StepFuture:
        """Take a command to start a step; the future gets what history records as its end."""
        future = StepFuture(self._loop, self._cancel, command.key)
        self.calls[command.key] = command.call
        self._futures[command.key] = future
        self.pending.append(command)
        return future

    def mark(self, key: str, line: int | None) -> bool:
        """Whether the mark ``key`` is recorded, or is to be: the code has come to all that history holds."""
        if self._ahead is None:
            self._ahead = _commanded(reversed(self._coming))
        if self._ahead and key not in self._ahead and self._is_behind(self._ahead):
            return False
        self.pending.append(Mark(key, line))
        return True

    def check_alive(self) -> None:
        if self.dead or self.ended:
            raise ReplayDiscarded(f"The replay of instance {self.origin.name_id} is over.")

    @property
    def dice(self) -> random.Random:
        """The instance's own generator, seeded alike on every replay."""
        if self._dice is None:
            self._dice = random.Random(f"{self.origin.instance}:{self.origin.seed}")
        return self._dice

    # -- inside -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        origin, definition = self.origin, self.definition
        event = WorkflowEvent(
            payload=load_params(definition, origin.params),
            timestamp=datetime.fromtimestamp(origin.created_at, UTC),
            instance_id=origin.name_id,
            workflow_name=definition.name,
            schedule=_scheduled(origin),
        )
        limit = origin.max_steps or definition.options.max_steps
        coroutine = definition.start(event, WorkflowStep(self, limit))
        task = self._loop.create_task(coroutine, name="workflow", context=workflow_context())
        task.add_done_callback(self._returned)
        self.run()

    def _finish(self, fact: Finished) -> None:
        # Commands may be pending here: ends are recorded without the code while an instance is blocked. What the
        # code asks for after the first of them was not started then; it is new, or found in order later.
        self.now = max(self.now, fact.at)
        future = self._futures.pop(fact.key, None)
        if future is None:
            self._not_awaited(fact)
            return
        call = self.calls[fact.key]
        if call.rollback is None:
            del self.calls[fact.key]
        if fact.error is not None:
            future.set_exception(codec.revive(fact.error, self.definition.error_classes))
        else:
            future.set_result(self._value(call, fact))
        self.run()

    def _value(self, call: StepCall, fact: Finished) -> Any:
        if fact.output is None:
            return None
        try:
            return revive_output(call.kind, fact.output, call.annotation)
        except SerializationError as error:
            raise SerializationError(
                f"The recorded result of step {call.key!r} no longer fits its annotation {call.annotation!r}: {error}"
            ) from error

    def _is_behind(self, ahead: set[str]) -> bool:
        """Whether history holds a start, a cancellation or a mark that the code has not come to."""
        given = {
            _cancellation(each.key) if isinstance(each, CancelStep) else each.key
            for each in self.pending
            if isinstance(each, StartStep | CancelStep | Mark)
        }
        return not ahead <= given

    def _match(self, fact: Started | Cancelled) -> None:
        if self._ahead:
            self._ahead.discard(_commanded_by(fact))
        command = self.pending.popleft() if self.pending else None
        kinds = _STARTS if isinstance(fact, Started) else CancelStep
        if not isinstance(command, kinds) or command.key != fact.key:
            raise _difference(fact, command)
        if isinstance(command, CancelStep):
            self.forget(command.key)

    def _not_awaited(self, fact: Finished) -> None:
        """A step ended that the code has given up meanwhile, by cancelling it or by its own end."""
        cancelled = CancelStep(fact.key)
        if cancelled in self.pending:
            self.pending.remove(cancelled)  # too late: the step had ended
            self.forget(fact.key)
        elif not self.ended:
            raise NonDeterminismError(
                f"History has the end of step {fact.key!r} (seq {fact.seq}), which the code has not started.",
                expected=f"end of {fact.key!r}",
            )

    def _cancel(self, key: str) -> None:
        if self.dead or self.ended:
            return
        self._futures.pop(key, None)
        self.pending.append(CancelStep(key))

    def forget(self, key: str) -> None:
        """Drop the call of a cancelled step, unless its compensation may still need it."""
        call = self.calls.get(key)
        if call is not None and call.rollback is None:
            del self.calls[key]

    def _returned(self, task: Any) -> None:
        if self.dead or self.ended:
            return
        if task.cancelled():
            error: BaseException | None = RuntimeError("The workflow's code cancelled itself.")
        else:
            error = task.exception()
        if error is None:
            try:
                output = self._result(task.result())
            except Exception as refused:
                error = refused
            else:
                self.pending.append(Complete(output))
        if error is not None:
            text = "".join(traceback.format_exception(error))
            self.pending.append(Fail(codec.encode_error(error), text))
        self._end()

    def _result(self, value: Any) -> str:
        """The text of what the code returned, if whoever asks for the result will be able to read it."""
        what = f"the result of workflow {self.definition.name!r}"
        text = codec.encode(value, what=what, limit=self.origin.max_payload_bytes)
        annotation = self.definition.return_type
        if annotation is not Any:
            try:
                codec.decode(text, annotation)
            except Exception as error:  # validators of the user's own may raise anything
                raise SerializationError(
                    f"{what} does not fit its annotation {annotation!r}: {error}"
                ) from error
        return text

    def _end(self) -> None:
        self.ended = True
        self._futures.clear()
        self._loop.close()
        self.idle = True


def _scheduled(origin: Origin) -> ScheduledRun | None:
    if origin.schedule is None:
        return None
    cron, at = origin.schedule
    return ScheduledRun(cron, datetime.fromtimestamp(at, UTC))


def revive_output(kind: str, output: str, annotation: Any) -> Any:
    """A recorded output as the code sees it: a typed value, or the event that a wait received."""
    if kind == "wait":
        record = codec.decode(output)
        return ReceivedEvent(
            payload=record["payload"],
            timestamp=datetime.fromtimestamp(record["timestamp"], UTC),
            type=record["type"],
        )
    return codec.decode(output, annotation)


def _commanded(facts: Iterable[Fact]) -> set[str]:
    """Keys of what the code did, by these facts. What follows its end was done to the steps, not by the code."""
    found = set()
    for fact in facts:
        if isinstance(fact, Started | Cancelled):
            found.add(_commanded_by(fact))
        elif isinstance(fact, Ended):
            break
    return found


def _commanded_by(fact: Started | Cancelled) -> str:
    return fact.key if isinstance(fact, Started) else _cancellation(fact.key)


def _cancellation(key: str) -> str:
    return f"-{key}"  # no step has such a key


def _difference(fact: Started | Cancelled, command: Command | None) -> NonDeterminismError:
    """That the code gave ``command``, or none, where history has ``fact``."""
    expected = _expected(fact)
    came = "nothing" if command is None else _describe(command)
    but = "the code did not come to it" if command is None else f"the code came to the {came}"
    text = f"The history (seq {fact.seq}) has the {expected}, but {but}."
    return NonDeterminismError(text, expected=expected, came=came)


def _expected(fact: Started | Cancelled) -> str:
    if isinstance(fact, Cancelled):
        return f"cancellation of {fact.key!r}"
    kind, _, rest = fact.key.partition(":")
    return f"mark of step.patched({rest.rpartition(':')[0]!r})" if kind == PATCH else f"start of {fact.key!r}"


def _describe(command: Command) -> str:
    match command:
        case StartStep(call=call):
            where = f" (line {call.line})" if call.line else ""
            return f"start of {call.key!r}{where}"
        case CancelStep(key=key):
            return f"cancellation of {key!r}"
        case Mark(name=name, line=line):
            return f"mark of step.patched({name!r})" + (f" (line {line})" if line else "")
        case Complete():
            return "end of the workflow"
        case Fail(error=error):
            return f"failure of the workflow ({codec.error_info(error)})"
