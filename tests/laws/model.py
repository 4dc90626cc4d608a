"""Random programs as workflows, random operations on them, and what must hold whatever happens.

Owns: the programs (JSON, run by one workflow that interprets them), the operations that may meet an instance, the
expectations of the table of statuses, and the invariants of a record. Does not own: choosing (``test_model``), the kit
(``orchestrator.testing``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from orchestrator import (
    NonRetryableError,
    Retries,
    RollbackContext,
    StepContext,
    WorkflowEvent,
    WorkflowStep,
    workflow,
)
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.execution import AttemptRow, Transition
from orchestrator.workflow.history import BUSY, FINAL, InboxEvent, StepRow
from orchestrator.workflow.language.commands import INVOKE
from orchestrator.workflow.saga import handler_key
from orchestrator.workflow.status import FINISHED, TRANSITIONS, Status

Program = list[dict[str, Any]]

EVENTS = ("x", "y")


class Failure(Exception):
    """The program says so."""


ran: Counter[tuple[str, int]] = Counter()
"""Bodies that were called, by idempotency key and attempt."""


def work(ctx: StepContext, failures: int, is_final: bool) -> str:
    ran[ctx.idempotency_key, ctx.attempt] += 1
    if ctx.attempt <= failures:
        raise NonRetryableError("gave up") if is_final else ConnectionError(f"attempt {ctx.attempt}")
    return f"{ctx.idempotency_key}#{ctx.attempt}"


def undo(r: RollbackContext) -> None:
    ran[r.idempotency_key, r.attempt] += 1
    if r.args[1]:
        raise NonRetryableError("cannot be undone")


@workflow(name="model", errors=[Failure])
async def model(event: WorkflowEvent[list[Any]], step: WorkflowStep) -> list[Any]:
    return await run(step, event.payload)


async def run(step: WorkflowStep, program: Program) -> list[Any]:
    return [await one(step, node) for node in program]


async def one(step: WorkflowStep, node: dict[str, Any]) -> Any:
    try:
        return await PARTS[node["part"]](step, node)
    except Exception:
        if not node.get("caught"):
            raise
        return "caught"


async def do(step: WorkflowStep, node: dict[str, Any]) -> Any:
    retries = Retries(limit=node["limit"], delay=node["delay"], backoff="constant")
    handler = undo if node["undo"] else None
    return await step.do(
        node["name"], work, node["failures"], node["final"], retries=retries, rollback=handler
    )


async def sleep(step: WorkflowStep, node: dict[str, Any]) -> None:
    await step.sleep(node["name"], node["seconds"])


async def wait(step: WorkflowStep, node: dict[str, Any]) -> Any:
    event = await step.wait_for_event(node["name"], type=node["type"], timeout=node["seconds"])
    return event.payload


async def every(step: WorkflowStep, node: dict[str, Any]) -> list[Any]:
    return list(await asyncio.gather(*[run(step, branch) for branch in node["branches"]]))


async def first(step: WorkflowStep, node: dict[str, Any]) -> Any:
    tasks = [asyncio.create_task(run(step, branch)) for branch in node["branches"]]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    winner = next(task for task in tasks if task.done())
    losers = [task for task in tasks if not task.done()]
    for task in losers:
        task.cancel()
    await asyncio.gather(*losers, return_exceptions=True)
    return winner.result()


async def repeat(step: WorkflowStep, node: dict[str, Any]) -> list[Any]:
    return [await run(step, node["branches"][0]) for _ in range(node["times"])]


async def leave(step: WorkflowStep, node: dict[str, Any]) -> None:
    """Start steps and never await them."""
    asyncio.create_task(run(step, node["branches"][0]))  # noqa: RUF006
    await step.sleep("beside", node["seconds"])


async def invoke(step: WorkflowStep, node: dict[str, Any]) -> Any:
    timeout = node["seconds"] or None
    return await step.invoke(node["name"], model, node["branches"][0], timeout=timeout)


async def fail(step: WorkflowStep, node: dict[str, Any]) -> None:
    raise Failure("as the program says")


PARTS = {
    "do": do, "sleep": sleep, "wait": wait, "every": every, "first": first, "repeat": repeat, "leave": leave,
    "fail": fail, "invoke": invoke,
}  # fmt: skip


def programs(delays: Sequence[float], seconds: Sequence[float]) -> st.SearchStrategy[Program]:
    """Programs whose retries wait for one of ``delays``, and whose sleeps and time-outs last one of ``seconds``.

    Drawn from a seed: hypothesis by itself prefers programs of one step, in which hardly anything meets.
    """

    return st.integers(0, 2**32).map(lambda seed: drawn(seed, delays, seconds))


def drawn(seed: int, delays: Sequence[float], seconds: Sequence[float]) -> Program:
    """The program that is drawn from this seed."""
    return _program(Random(seed), delays, seconds, depth=0)


def _program(dice: Random, delays: Sequence[float], seconds: Sequence[float], depth: int) -> Program:
    count = dice.choice((2, 3, 4, 5) if depth == 0 else (1, 1, 2, 3))
    return [_node(dice, delays, seconds, depth) for _ in range(count)]


def _node(dice: Random, delays: Sequence[float], seconds: Sequence[float], depth: int) -> dict[str, Any]:
    leaves = ("do", "do", "do", "do", "wait", "wait", "sleep")
    part = dice.choice((*leaves, "every", "first", "repeat", "leave", "invoke") if depth < 2 else leaves)
    if dice.random() < 0.04:
        part = "fail"
    node: dict[str, Any] = {"part": part, "name": dice.choice("abc"), "caught": dice.random() < 0.7}
    if part == "do":
        node |= {
            "limit": dice.randrange(3),
            "delay": dice.choice(delays),
            "failures": dice.choice((0, 0, 0, 1, 3)),
        }
        node |= {"final": dice.random() < 0.3, "undo": dice.random() < 0.7}
    elif part == "wait":
        node |= {"type": dice.choice("xxxy"), "seconds": max(1.0, dice.choice(seconds))}
    else:
        node |= {"seconds": dice.choice(seconds), "times": dice.choice((1, 2, 2))}
    if part in ("every", "first", "repeat", "leave", "invoke"):
        several = range(dice.choice((2, 2, 3)))
        node["branches"] = [_program(dice, delays, seconds, depth + 1) for _ in several]
    return node


# -- the table of statuses, as semantics §4 tells it ---------------------------------------------------------------

UNFINISHED = frozenset(Status) - FINISHED
REFUSED: frozenset[Status] = frozenset()

AFTER: dict[str, dict[Status, frozenset[Status]]] = {
    "pause": {
        Status.QUEUED: frozenset({Status.PAUSED}),
        Status.RUNNING: frozenset({Status.WAITING_FOR_PAUSE, Status.PAUSED}),
        Status.WAITING: frozenset({Status.PAUSED}),
        Status.WAITING_FOR_PAUSE: frozenset({Status.WAITING_FOR_PAUSE}),
        Status.PAUSED: frozenset({Status.PAUSED}),
        Status.ROLLING_BACK: frozenset({Status.ROLLING_BACK}),
    },
    "resume": {
        Status.QUEUED: frozenset({Status.QUEUED}),
        Status.RUNNING: frozenset({Status.RUNNING}),
        Status.WAITING: frozenset({Status.WAITING}),
        Status.WAITING_FOR_PAUSE: frozenset({Status.RUNNING}),
        Status.PAUSED: frozenset({Status.QUEUED}),
        Status.ROLLING_BACK: frozenset({Status.ROLLING_BACK}),
    },
    "terminate": {status: frozenset({Status.TERMINATED}) for status in UNFINISHED - {Status.ROLLING_BACK}},
    "undo": {
        # With nothing to undo it ends at once; with bodies in flight it is running until they have ended.
        status: frozenset({Status.TERMINATED, Status.ROLLING_BACK, Status.RUNNING})
        for status in UNFINISHED - {Status.ROLLING_BACK}
    },
    "restart": {status: frozenset({Status.QUEUED, Status.RUNNING}) for status in Status},
    "event": {status: frozenset({status}) for status in UNFINISHED},
}
"""For each verb and status, what the instance may be right after it; what is missing is refused."""


# -- what must hold of a record --------------------------------------------------------------------------------------


def check_transitions(before: Status, transitions: Iterable[Transition]) -> None:
    """Each step from one status to another stands in the table."""
    for each in transitions:
        after = Status(each.status)
        assert after in TRANSITIONS[before], f"{before} became {after}"
        before = after


def check_rows(status: Status, rows: Iterable[StepRow], *, is_blocked: bool = False) -> None:
    """Status and steps agree (semantics §4)."""
    rows = list(rows)
    busy = [row.key for row in rows if row.status in BUSY]
    if status in FINISHED:
        unfinished = [row.key for row in rows if row.status not in FINAL]
        assert not unfinished, f"{status} with open steps: {unfinished}"
    if status is Status.PAUSED or (status in (Status.QUEUED, Status.WAITING) and not is_blocked):
        assert not busy, f"{status} with steps in flight: {busy}"
    if status is Status.WAITING_FOR_PAUSE:
        assert busy, "a pause waits for nothing"


def check_alarm(status: Status, alarm_at: float, next_due: float, *, is_blocked: bool) -> None:
    """What is unfinished has an alarm, or stands in the queue, or is paused (protocols §7)."""
    if status in FINISHED or status in (Status.PAUSED, Status.QUEUED):
        assert alarm_at == FOREVER, f"{status} and rings at {alarm_at}"
    else:
        assert alarm_at < FOREVER, f"{status} and nothing will ever wake it"
    if status is Status.WAITING and not is_blocked:
        assert alarm_at <= next_due, "it rings too late for what is due"


def check_seqs(
    rows: Iterable[StepRow], attempts: Iterable[AttemptRow], transitions: Iterable[Transition], seq: int
) -> None:
    """Every fact has a number of its own, and none is above that of the instance."""
    numbers = [row.started_seq for row in rows]
    numbers += [row.finished_seq for row in rows if row.finished_seq is not None]
    numbers += [each.seq for each in (*attempts, *transitions)]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    assert not twice, f"two facts with one seq: {twice}"
    assert max(numbers, default=0) <= seq


def check_attempts(rows: Iterable[StepRow], attempts: Iterable[AttemptRow]) -> None:
    """Each hand-out is recorded once, and what is recorded of a step came from its last one (semantics §2.1)."""
    twice = [
        fence for fence, count in Counter((each.key, each.fence) for each in attempts).items() if count > 1
    ]
    assert not twice, f"hand-outs whose end was recorded twice: {twice}"
    for row in rows:
        if row.kind == "do" and row.status == "done":
            text = str(codec.decode(row.output or ""))
            assert text.endswith(f":{row.run}:{row.key}#{row.attempt}"), (
                f"{row.key} (attempt {row.attempt}) has {text}"
            )


def check_moved(rows: Iterable[StepRow], since: int, seq: int) -> None:
    """After a restart from the step that started at ``since``, when the instance stood at ``seq``, no fact of the time
    between is left: what ended then is fed again (protocols §10)."""
    for row in rows:
        assert row.started_seq < since or row.started_seq > seq
        assert row.finished_seq is None or row.finished_seq < since or row.finished_seq > seq, (
            f"{row.key} is not moved"
        )


def check_paused(before: Status, after: Status, old: Iterable[StepRow], new: Iterable[StepRow]) -> None:
    """While a pause is pending what is in flight ends, and nothing starts or is handed out; a paused instance stays as
    it is (semantics §4). ``before`` and ``after`` a turn, which no verb caused."""
    if before is Status.PAUSED:
        assert after is Status.PAUSED, f"a paused instance became {after} by itself"
    if before is Status.WAITING_FOR_PAUSE and after in (Status.RUNNING, Status.WAITING, Status.QUEUED):
        raise AssertionError(f"a pending pause was forgotten: {after}")
    if before in (Status.PAUSED, Status.WAITING_FOR_PAUSE) and after in (
        Status.PAUSED,
        Status.WAITING_FOR_PAUSE,
    ):
        was = {row.key: row for row in old}
        for row in new:
            assert row.key in was, f"{row.key} was started in a pause"
            assert row.status != "handed", f"{row.key} was handed out in a pause"
            assert row.kind == "do" or row.status == was[row.key].status, f"{row.key} went on in a pause"


def check_kept(before: Iterable[StepRow], after: dict[str, StepRow]) -> None:
    """What has ended stays as it ended: no step is recorded twice."""
    for row in before:
        if row.status not in FINAL:
            continue
        now = after.get(row.key)
        assert now is not None, f"{row.key} is gone"
        same = (now.status, now.output, now.error, now.finished_seq) == (
            row.status, row.output, row.error, row.finished_seq,
        )  # fmt: skip
        assert same, f"{row.key} was recorded twice: {row} and {now}"


def taken(rows: Iterable[StepRow]) -> list[tuple[str, int]]:
    """The events that waits have got, as type and payload, in the order in which they did."""
    ended = [row for row in rows if row.kind == "wait" and row.status == "done"]
    ended.sort(key=lambda row: row.finished_seq or 0)
    events = [codec.decode(row.output or "") for row in ended]
    return [(event["type"], event["payload"]) for event in events]


def check_events(
    rows: Iterable[StepRow], inbox: Iterable[InboxEvent], sent: Iterable[tuple[str, int]]
) -> None:
    """Every event that was accepted is taken by one wait or still there, first in first out (semantics §3.2)."""
    got = taken(rows)
    left = [(event.type, codec.decode(event.payload)) for event in inbox]
    assert Counter([*got, *left]) == Counter(sent), f"sent {sent}, taken {got}, left {left}"
    for kind in EVENTS:
        numbers = [payload for name, payload in got if name == kind]
        assert numbers == sorted(numbers), f"events of type {kind} were taken out of order: {numbers}"


def check_undone(rows: Iterable[StepRow], status: Status) -> None:
    """Handlers were started in reverse start order, one per step, and only for steps that were to be undone."""
    held = {row.key: row for row in rows}
    handlers = sorted((r for r in held.values() if r.kind == "rollback"), key=lambda row: row.started_seq)
    forward = [held[row.key.removesuffix(":rollback")] for row in handlers]
    assert all(row.has_rollback and row.has_begun for row in forward)
    order = [row.started_seq for row in forward]
    assert order == sorted(order, reverse=True), f"undone in the order {order}"
    failed = any(row.status == "failed" for row in handlers)
    if handlers and not failed and status in (Status.ERRORED, Status.TERMINATED):
        missing = [
            r.key
            for r in held.values()
            if r.has_rollback and r.has_begun and r.kind != INVOKE and handler_key(r.key) not in held
        ]
        assert not missing, f"never undone: {missing}"
