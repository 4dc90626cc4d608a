"""A till that two steps charge side by side while one of them fails, and the book of who captured and refunded when.

Owns: the book (a table), the bodies that hold just before they capture, their handlers, the workflow, and what the book
must say. Does not own: workers, nor which interleavings there are (``test_money_race``). Bodies reach the book through
connections of their own, as a bank is reached. Imported by workers and by the test.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from orchestrator import NonRetryableError, Retries, RollbackContext, StepContext, workflow
from tests.chaos.witness import libpq

PATIENCE_S = 20.0
LOOK_S = 0.005
QUICK = Retries(limit=2, delay=0.02, backoff="constant")
HOLDS = ("free", "failed", "ending", "told")
"""Up to when a body that is about to capture holds: some time, its sibling has failed, the end of its instance is
recorded, it is told to stop."""

TABLE = """
CREATE TABLE IF NOT EXISTS money_book (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, instance text NOT NULL, key text NOT NULL, what text NOT NULL,
  saw text);
CREATE UNIQUE INDEX IF NOT EXISTS money_book_once ON money_book (key) WHERE what = 'captured'
"""
_ENTER = "INSERT INTO money_book (instance, key, what) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
_UNDO = """
INSERT INTO money_book (instance, key, what, saw) SELECT %(instance)s, %(key)s, CASE WHEN EXISTS (
  SELECT 1 FROM money_book WHERE key = %(key)s AND what = 'captured') THEN 'refunded' ELSE 'nothing' END, %(saw)s
"""
_HAS = "SELECT 1 FROM money_book WHERE instance = %s AND what = %s"
_ENDING = (
    "SELECT 1 FROM orchestrator_instances WHERE id = %s AND (ending IS NOT NULL OR ended_at IS NOT NULL)"
)


def plan(dice: random.Random) -> dict[str, Any]:
    """One interleaving. ``pace`` is in seconds."""
    hold = dice.choice(HOLDS)
    return {
        "a": dice.choice(["sync", "async"]),
        "b": dice.choice(["sync", "async"]),
        "order": dice.choice(["ab", "ba"]),
        "how": dice.choice(["fails", "fails", "terminated"]),
        "together": dice.choice(["gather", "group"]),
        "a_captures": dice.random() < 0.3,
        "a_waits": hold == "told" or dice.random() < 0.7,
        "a_pace": dice.random() * 0.03,
        "hold": hold,
        "b_pace": dice.random() * 0.03,
        "b_fails_once": hold != "told" and dice.random() < 0.25,
        "b_returns": dice.random() < 0.5,
    }


class Till:
    """The bodies, over the database of that URL (by default that of this process's environment)."""

    def __init__(self, url: str = "") -> None:
        self._url = url

    @property
    def url(self) -> str:
        return libpq(self._url or os.environ["ORCHESTRATOR_DATABASE_URL"])

    # -- in a thread, or in a process --------------------------------------------------------------------------

    def charge_a(self, ctx: StepContext, plan: dict[str, Any]) -> str:
        with psycopg.connect(self.url, autocommit=True) as book:
            if plan["a_captures"]:
                book.execute(_ENTER, entry(ctx, "captured"))
            if plan["a_waits"]:
                self._wait(book, _HAS, (ctx.instance_id, "about"))
            time.sleep(plan["a_pace"])
            if plan["how"] == "fails":
                book.execute(_ENTER, entry(ctx, "failed"))
                raise NonRetryableError("declined")
        return ctx.idempotency_key

    def charge_b(self, ctx: StepContext, plan: dict[str, Any]) -> str:
        with psycopg.connect(self.url, autocommit=True) as book:
            book.execute(_ENTER, entry(ctx, "about"))
            if plan["hold"] == "told":
                ctx.cancelled.wait(PATIENCE_S)
            elif found := fact(ctx, plan):
                self._wait(book, *found)
            time.sleep(plan["b_pace"])
            book.execute(_ENTER, entry(ctx, "captured"))
        return answer(ctx, plan)

    def refund(self, r: RollbackContext) -> None:
        with psycopg.connect(self.url, autocommit=True) as book:
            book.execute(_UNDO, undoing(r))

    def _wait(self, book: psycopg.Connection[Any], query: str, parameters: tuple[str, ...]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not book.execute(query, parameters).fetchone() and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    # -- on the loop -------------------------------------------------------------------------------------------

    async def acharge_a(self, ctx: StepContext, plan: dict[str, Any]) -> str:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as book:
            if plan["a_captures"]:
                await book.execute(_ENTER, entry(ctx, "captured"))
            if plan["a_waits"]:
                await self._await(book, _HAS, (ctx.instance_id, "about"))
            await asyncio.sleep(plan["a_pace"])
            if plan["how"] == "fails":
                await book.execute(_ENTER, entry(ctx, "failed"))
                raise NonRetryableError("declined")
        return ctx.idempotency_key

    async def acharge_b(self, ctx: StepContext, plan: dict[str, Any]) -> str:
        """One that is told to stop captures all the same, as one whose request is under way does."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as book:
            await book.execute(_ENTER, entry(ctx, "about"))
            try:
                if plan["hold"] == "told":
                    await asyncio.sleep(PATIENCE_S)
                elif found := fact(ctx, plan):
                    await self._await(book, *found)
                await asyncio.sleep(plan["b_pace"])
                await book.execute(_ENTER, entry(ctx, "captured"))
            except asyncio.CancelledError:
                if plan["hold"] != "told":
                    raise
                await book.execute(_ENTER, entry(ctx, "captured"))
                if not plan["b_returns"]:
                    raise
        return answer(ctx, plan)

    async def arefund(self, r: RollbackContext) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as book:
            await book.execute(_UNDO, undoing(r))

    async def _await(
        self, book: psycopg.AsyncConnection[Any], query: str, parameters: tuple[str, ...]
    ) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await (await book.execute(query, parameters)).fetchone():
                await asyncio.sleep(LOOK_S)


def entry(ctx: StepContext, what: str) -> tuple[str, str, str]:
    return ctx.instance_id, ctx.idempotency_key, what


def undoing(r: RollbackContext) -> dict[str, Any]:
    return {"instance": r.step.instance_id, "key": r.step.idempotency_key, "saw": r.output}


def fact(ctx: StepContext, plan: dict[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """What a body that is about to capture holds for: a query that finds something then, and its parameters."""
    if plan["hold"] == "ending" or (plan["hold"] == "failed" and plan["how"] == "terminated"):
        return _ENDING, (ctx.idempotency_key.partition(":")[0],)
    return (_HAS, (ctx.instance_id, "failed")) if plan["hold"] == "failed" else None


def answer(ctx: StepContext, plan: dict[str, Any]) -> str:
    if plan["b_fails_once"] and ctx.attempt == 1:
        raise ConnectionError("captured, and the answer was lost")
    return ctx.idempotency_key


def race(till: Till) -> Callable[..., Any]:
    """The workflow: both charges at once, then a wait for an end from outside."""

    async def money_race(event: Any, step: Any) -> None:
        plan = event.payload
        a = till.charge_a if plan["a"] == "sync" else till.acharge_a
        b = till.charge_b if plan["b"] == "sync" else till.acharge_b
        charges = {
            "a": lambda: step.do("charge_a", a, plan, retries=QUICK, rollback=till.refund),
            "b": lambda: step.do("charge_b", b, plan, retries=QUICK, rollback=till.arefund),
        }
        if plan["together"] == "gather":
            await asyncio.gather(*[charges[name]() for name in plan["order"]])
        else:  # the code itself cancels the other, before it fails
            async with asyncio.TaskGroup() as group:
                for name in plan["order"]:
                    group.create_task(charges[name]())
        await step.wait_for_event("never", type="never")

    return money_race


forked = workflow(name="money-forked")(race(Till()))


@dataclass(frozen=True)
class Line:
    """One line of the book, in its order."""

    key: str
    what: str
    saw: str | None


def lines(book: psycopg.Connection[Any], instance: str) -> list[Line]:
    query = "SELECT key, what, saw FROM money_book WHERE instance = %s ORDER BY number"
    return [Line(*row) for row in book.execute(query, (instance,))]


def wrong(found: list[Line]) -> list[str]:
    """What is wrong with an instance that has been undone: money kept, or given back before it was taken."""
    complaints = []
    for key in {line.key for line in found}:
        of_key = [line.what for line in found if line.key == key]
        money = [what for what in of_key if what in ("captured", "refunded", "nothing")]
        if money not in ([], ["captured", "refunded"], ["nothing"]):
            complaints.append(f"{key}: {of_key}")
    return complaints
