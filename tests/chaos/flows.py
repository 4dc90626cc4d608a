"""What the workers of the chaos tests run: workflows whose every body tells the witness that it ran.

Owns: the workflows, their expected results, and what a worker is told through ``CHAOS_*`` variables (an arm that
is set only once compensation has begun, doubled messages). Imported by workers and by the tests.
"""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator import Retries, RollbackContext, StepContext, failpoints, workflow
from tests.chaos.witness import Witness

SLEEP_S = 0.3
QUICK = Retries(limit=3, delay=0.05, backoff="constant")
ONCE = Retries(limit=0)
TWICE = Retries(limit=1, delay=0.01, backoff="constant")
"""Where ``limit`` is 0 the first loss of a worker is final, and the error another one."""

witness = Witness(os.environ.get("CHAOS_WITNESS_URL", ""))


def arm_late() -> None:
    """Arm what ``CHAOS_ARM_LATE`` names, now that an instance is about to fail."""
    failpoints._armed.update(failpoints.parse(os.environ.pop("CHAOS_ARM_LATE", "")))


def reserve(ctx: StepContext, n: int) -> int:
    with witness.body(ctx.idempotency_key, ctx.attempt):
        time.sleep(0.01)
        failpoints.reach("body.middle")
        return n * 10


async def add(ctx: StepContext, a: int, b: int) -> int:
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        await asyncio.sleep(0.02)
        failpoints.reach("body.middle")
        return a + b


def charge(ctx: StepContext, amount: int, flaky: bool) -> int:
    with witness.body(ctx.idempotency_key, ctx.attempt):
        failpoints.reach("body.middle")
        if flaky and ctx.attempt == 1:
            raise ConnectionError("the bank is away")
        return amount


def refuse(ctx: StepContext) -> None:
    with witness.body(ctx.idempotency_key, ctx.attempt):
        arm_late()
        raise ValueError("refused")


async def undo(r: RollbackContext) -> None:
    async with witness.abody(r.idempotency_key, r.attempt):
        await asyncio.sleep(0.01)
        failpoints.reach("body.undo")


def undo_sync(r: RollbackContext) -> None:
    with witness.body(r.idempotency_key, r.attempt):
        failpoints.reach("body.undo")


@workflow(name="chaos-order")
async def order(event: Any, step: Any) -> Any:
    """In sequence, in parallel, a sleep, an event, a retry; every fourth, or each if asked, is undone."""
    n, fails = event.payload["n"], event.payload["fails"]
    a = await step.do("reserve", reserve, n, retries=QUICK, rollback=undo_sync)
    b, c = await asyncio.gather(
        step.do("left", add, a, 1, retries=QUICK, rollback=undo),
        step.do("right", add, a, 2, retries=QUICK, rollback=undo),
    )
    await step.sleep("breathe", SLEEP_S)
    go = await step.wait_for_event("go", type="go", timeout=600)
    d = await step.do("charge", charge, b + c + go.payload["bonus"], n % 5 == 0, retries=QUICK, rollback=undo)
    if fails:
        await step.do("refuse", refuse, retries=TWICE)
    return {"n": n, "total": d}


def total(n: int, bonus: int) -> int:
    """What ``order`` must return."""
    return 2 * (n * 10) + 3 + bonus


FORWARD = {"do:reserve:1", "do:left:1", "do:right:1", "sleep:breathe:1", "wait:go:1", "do:charge:1"}
UNDONE = {f"do:{name}:1:rollback" for name in ("reserve", "left", "right", "charge")}


async def long(ctx: StepContext, seconds: float) -> str:
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        await asyncio.sleep(seconds)
        return "awake"


def long_sync(ctx: StepContext, seconds: float) -> str:
    with witness.body(ctx.idempotency_key, ctx.attempt):
        time.sleep(seconds)
        return "awake"


@workflow(name="chaos-marathon")
async def marathon(event: Any, step: Any) -> Any:
    """Two long bodies side by side, one on the loop, one in a thread, and a short one after them."""
    seconds, retries = event.payload["seconds"], Retries(limit=event.payload.get("limit", 5), delay=0.05)
    both = await asyncio.gather(
        step.do("loop", long, seconds, retries=retries),
        step.do("thread", long_sync, seconds, retries=retries),
    )
    return [*both, await step.do("after", long, 0.0)]


@workflow(name="chaos-lone")
async def lone(event: Any, step: Any) -> Any:
    """One long body on the loop, which may be tried once only."""
    return await step.do("loop", long, event.payload["seconds"], retries=ONCE)


@workflow(name="chaos-nap")
async def nap(event: Any, step: Any) -> Any:
    """A body, a sleep, a body: the witness sees how long the sleep really was."""
    await step.do("before", long, 0.0)
    await step.sleep("nap", event.payload["seconds"])
    return await step.do("behind", long, 0.0)


async def end_unseen(ctx: StepContext, seconds: float, folder: str) -> str:
    """Tells the witness before it works, and a file when it has: it needs no Postgres to end."""
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        pass
    await asyncio.sleep(seconds)
    (Path(folder) / ctx.instance_id).touch()
    return "ended"


@workflow(name="chaos-unseen")
async def unseen(event: Any, step: Any) -> Any:
    return await step.do(
        "unseen", end_unseen, event.payload["seconds"], event.payload["folder"], retries=ONCE
    )


async def wait_to_be_told(ctx: StepContext, file: str) -> str:
    """Its first attempt runs until it is cancelled, and leaves a file; any other ends at once."""
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        if ctx.attempt > 1:
            return "again"
        try:
            await asyncio.sleep(600)
        finally:
            Path(file).touch()
        return "never told"


@workflow(name="chaos-told")
async def told(event: Any, step: Any) -> Any:
    return await step.do("told", wait_to_be_told, event.payload["file"], retries=QUICK)


def double_messages() -> None:
    """Have this process publish every step message ``CHAOS_COPIES`` times."""
    from orchestrator.dispatch.publisher import Publisher

    once, copies = Publisher.steps, int(os.environ["CHAOS_COPIES"])

    def often(self: Publisher, handouts: Any) -> None:
        for _ in range(copies):
            once(self, handouts)

    Publisher.steps = often  # type: ignore[method-assign]


def end_with(owner: int) -> None:
    """End this process soon after its owner: tests that are killed cannot end their workers."""
    while os.getppid() == owner:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("CHAOS_OWNER"):
    threading.Thread(target=end_with, args=(int(os.environ["CHAOS_OWNER"]),), daemon=True).start()
if os.environ.get("CHAOS_COPIES"):
    double_messages()
