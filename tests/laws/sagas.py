"""Random programs that do and undo things.

Owns: the programs (JSON, run by one workflow for each policy) and the journal of bodies and handlers that really ran.
Does not own: what was to be undone (``oracle``), nor choosing and disturbing (``test_saga_oracle``, here and on real
servers).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple

from orchestrator import NonRetryableError, Retries, RollbackContext, StepContext, workflow
from orchestrator.client.workflow import Workflow
from orchestrator.workflow.language.config import RollbackPolicy

Program = list[dict[str, Any]]

NAMES = "abcd"
LONG_S = 30.0
SHORT_S = 0.02
"""The time-out of what takes too long."""


# -- the journal ----------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A body began or ended, or a handler was called (``told``)."""

    what: str
    key: str
    attempt: int
    told: RollbackContext | None = None


journal: defaultdict[str, list[Line]] = defaultdict(list)
"""By instance, what really ran, in order."""


def note(what: str, idempotency_key: str, attempt: int, told: RollbackContext | None = None) -> None:
    instance, _, key = idempotency_key.split(":", 2)
    journal[instance].append(Line(what, key, attempt, told))


@contextmanager
def noted(ctx: StepContext) -> Iterator[None]:
    note("begin", ctx.idempotency_key, ctx.attempt)
    try:
        yield
    finally:
        note("end", ctx.idempotency_key, ctx.attempt)


# -- bodies and handlers --------------------------------------------------------------------------------------------


class Code:
    """What today's code does not undo."""

    without: str = ""


code = Code()


def value(ctx: StepContext, node: dict[str, Any]) -> str | None:
    return None if node["gives_none"] else f"{ctx.name}:{ctx.count}#{ctx.attempt}"


def fate(attempt: int, failures: int, is_final: bool) -> None:
    if attempt <= failures:
        raise NonRetryableError("gave up") if is_final else ConnectionError(f"attempt {attempt}")


def work(ctx: StepContext, node: dict[str, Any]) -> str | None:
    with noted(ctx):
        fate(ctx.attempt, node["failures"], node["final"])
        return value(ctx, node)


async def takes_time(ctx: StepContext, node: dict[str, Any]) -> str | None:
    with noted(ctx):
        try:
            late = node["body"] == "late" and ctx.attempt <= node["failures"]
            await asyncio.sleep(LONG_S if late else node["takes"])
        except asyncio.CancelledError:
            if node["stubborn"]:
                return f"half {ctx.name}"
            raise
        fate(ctx.attempt, node["failures"], node["final"])
        return value(ctx, node)


def handler(node: dict[str, Any]) -> Callable[[RollbackContext], Any] | None:
    undo = node["undo"]
    if undo == "none" or node["name"] in code.without:
        return None

    def at_once(r: RollbackContext) -> None:
        note("undo", r.idempotency_key, r.attempt, r)
        fate(r.attempt, node["undo_failures"], node["undo_final"])

    async def in_time(r: RollbackContext) -> str:
        note("undo", r.idempotency_key, r.attempt, r)
        await asyncio.sleep(LONG_S if undo == "late" and r.attempt <= node["undo_failures"] else 0)
        fate(r.attempt, node["undo_failures"], node["undo_final"])
        return "what it returns is of no account"

    return at_once if undo == "sync" else in_time


def undoing(node: dict[str, Any]) -> dict[str, Any]:
    chosen = handler(node)
    if chosen is None:
        return {}
    retries = Retries(limit=node["undo_limit"], delay=node["delay"], backoff="constant")
    late = {"rollback_timeout": SHORT_S} if node["undo"] == "late" else {}
    return {"rollback": chosen, "rollback_retries": retries, **late}


# -- programs -------------------------------------------------------------------------------------------------------


async def run(step: Any, program: Program) -> list[Any]:
    return [await one(step, node) for node in program]


async def one(step: Any, node: dict[str, Any]) -> Any:
    try:
        return await PARTS[node["part"]](step, node)
    except Exception:
        if not node["caught"]:
            raise
        return "caught"


async def do(step: Any, node: dict[str, Any]) -> Any:
    retries = Retries(limit=node["limit"], delay=node["delay"], backoff="constant")
    late = {"timeout": SHORT_S} if node["body"] == "late" else {}
    body = work if node["body"] == "sync" else takes_time
    return await step.do(node["name"], body, node, retries=retries, **late, **undoing(node))


async def wait(step: Any, node: dict[str, Any]) -> Any:
    waited = step.wait_for_event(node["name"], type="x", timeout=node["seconds"], **undoing(node))
    return (await waited).payload


async def sleep(step: Any, node: dict[str, Any]) -> None:
    await step.sleep(node["name"], node["seconds"])


async def every(step: Any, node: dict[str, Any]) -> list[Any]:
    return list(await asyncio.gather(*[run(step, branch) for branch in node["branches"]]))


async def group(step: Any, node: dict[str, Any]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for branch in node["branches"]:
            tasks.create_task(run(step, branch))


async def first(step: Any, node: dict[str, Any]) -> Any:
    tasks = [asyncio.create_task(run(step, branch)) for branch in node["branches"]]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    winner = next(task for task in tasks if task.done())
    losers = [task for task in tasks if not task.done()]
    for task in losers:
        task.cancel()
    await asyncio.gather(*losers, return_exceptions=True)
    return winner.result()


async def repeat(step: Any, node: dict[str, Any]) -> list[Any]:
    return [await helper(step, node["branches"][0]) for _ in range(node["times"])]


async def helper(step: Any, program: Program) -> list[Any]:
    """A coroutine within a coroutine, which tidies up."""
    try:
        return await run(step, program)
    finally:
        await step.do("tidy", work, TIDY, **undoing(TIDY))


async def fail(step: Any, node: dict[str, Any]) -> None:
    raise LookupError("as the program says")


PARTS = {
    "do": do, "wait": wait, "sleep": sleep, "every": every, "group": group, "first": first, "repeat": repeat,
    "fail": fail,
}  # fmt: skip
TIDY = {
    "name": "tidy", "body": "sync", "failures": 0, "final": False, "gives_none": False, "undo": "sync",
    "undo_failures": 0, "undo_final": False, "undo_limit": 1, "delay": 0.0,
}  # fmt: skip


async def saga(event: Any, step: Any) -> list[Any]:
    return await run(step, event.payload)


POLICIES: dict[str, RollbackPolicy] = {
    f"{order}_{on_error}": RollbackPolicy(order=order, on_error=on_error)  # type: ignore[arg-type]
    for order in ("sequential", "parallel")
    for on_error in ("stop", "continue")
}
WORKFLOWS: dict[str, Workflow] = {
    name: workflow(name=f"saga_oracle_{name}", rollback=policy)(saga) for name, policy in POLICIES.items()
}


def drawn(seed: int, delays: Sequence[float], seconds: Sequence[float]) -> Program:
    """The program that is drawn from this seed; two out of three say that they fail."""
    dice = Random(seed)
    program = _program(dice, delays, seconds, 0)
    if dice.random() < 0.67:
        program.append({"part": "fail", "name": "fail", "caught": False})
    return program


def _program(dice: Random, delays: Sequence[float], seconds: Sequence[float], depth: int) -> Program:
    count = dice.choice((2, 3, 4, 5) if depth == 0 else (1, 1, 2, 3))
    return [_node(dice, delays, seconds, depth) for _ in range(count)]


def _node(dice: Random, delays: Sequence[float], seconds: Sequence[float], depth: int) -> dict[str, Any]:
    leaves = ("do", "do", "do", "do", "do", "wait", "sleep")
    part = dice.choice((*leaves, "every", "group", "first", "repeat") if depth < 2 else leaves)
    if depth and dice.random() < 0.06:
        part = "fail"
    node = {
        "part": part, "name": dice.choice(NAMES), "caught": dice.random() < 0.5,
        "body": dice.choice(("sync", "sync", "async", "async", "late")), "takes": dice.choice((0.0, 0.0, 0.003)),
        "failures": dice.choice((0, 0, 0, 1, 3)), "final": dice.random() < 0.3, "limit": dice.randrange(3),
        "stubborn": dice.random() < 0.5, "gives_none": dice.random() < 0.3, "delay": dice.choice(delays),
        "undo": dice.choice(("none", "sync", "sync", "async", "async", "late")),
        "undo_failures": dice.choice((0, 0, 0, 0, 1, 2)), "undo_final": dice.random() < 0.3,
        "undo_limit": dice.randrange(3), "seconds": max(1.0, dice.choice(seconds)), "times": dice.choice((1, 2)),
    }  # fmt: skip
    if part in ("every", "group", "first", "repeat"):
        several = range(dice.choice((2, 2, 3)))
        node["branches"] = [_program(dice, delays, seconds, depth + 1) for _ in several]
    return node
