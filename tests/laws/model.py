"""Random programs as workflows, random operations on them, and what must hold whatever happens.

Owns: the programs (JSON, run by one workflow that interprets them), the operations that may meet an instance, the
expectations of the table of statuses, and the invariants of a record. Does not own: choosing (``test_model``), the kit
(``orchestrator.testing``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
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
from orchestrator.workflow import codec
from orchestrator.workflow.execution import AttemptRow, Transition
from orchestrator.workflow.history import BUSY, FINAL, InboxEvent, StepRow
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
    return ctx.idempotency_key


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


async def fail(step: WorkflowStep, node: dict[str, Any]) -> None:
    raise Failure("as the program says")


PARTS = {
    "do": do, "sleep": sleep, "wait": wait, "every": every, "first": first, "repeat": repeat, "leave": leave,
    "fail": fail,
}  # fmt: skip


def programs(delays: Iterable[float], seconds: Iterable[float]) -> st.SearchStrategy[Program]:
    """Programs whose retries wait for one of ``delays``, and whose sleeps and time-outs last one of ``seconds``."""
    names, caught = st.sampled_from("abc"), st.booleans()
    lasting = st.sampled_from([*seconds])
    step = st.fixed_dictionaries(
        {
            "part": st.just("do"), "name": names, "caught": caught, "undo": st.booleans(),
            "limit": st.integers(0, 2), "delay": st.sampled_from([*delays]), "final": st.booleans(),
            "failures": st.sampled_from([0, 0, 0, 1, 3]),
        }
    )  # fmt: skip
    waits = st.fixed_dictionaries(
        {
            "part": st.just("wait"), "name": names, "caught": caught, "type": st.sampled_from(EVENTS),
            "seconds": st.sampled_from([max(1.0, each) for each in seconds]),
        }
    )  # fmt: skip
    sleeps = st.fixed_dictionaries({"part": st.just("sleep"), "name": names, "seconds": lasting})
    fails = st.fixed_dictionaries({"part": st.just("fail")})
    leaves = st.one_of(step, step, step, waits, sleeps, st.one_of(waits, fails))

    def nested(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
        some = st.lists(inner, min_size=1, max_size=3)
        several = st.fixed_dictionaries(
            {"part": st.sampled_from(["every", "first", "repeat", "leave"]), "branches": some, "caught": caught,
             "times": st.integers(1, 2), "seconds": lasting}
        )  # fmt: skip
        return st.lists(st.one_of(leaves, several), min_size=1, max_size=3)

    return st.recursive(st.lists(leaves, min_size=1, max_size=3), nested, max_leaves=5)


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
    if status in (Status.PAUSED, Status.QUEUED) or (status is Status.WAITING and not is_blocked):
        assert not busy, f"{status} with steps in flight: {busy}"
    if status is Status.WAITING_FOR_PAUSE:
        assert busy, "a pause waits for nothing"


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
            r.key for r in held.values() if r.has_rollback and r.has_begun and handler_key(r.key) not in held
        ]
        assert not missing, f"never undone: {missing}"
