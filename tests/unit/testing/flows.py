"""Workflows that the tests of the kit run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from orchestrator import Retries, RollbackContext, StepContext, WorkflowEvent, WorkflowStep, workflow


@dataclass
class Order:
    id: int
    lines: list[str]


@dataclass
class Receipt:
    order: Order
    by: str


class Refused(Exception):
    pass


log: list[Any] = []
"""What bodies and handlers did; a test clears it first."""


def charge(order: Order) -> Order:
    log.append(("charge", order.id))
    order.lines.append("charged")
    return order


def refund(r: RollbackContext) -> None:
    log.append(("refund", r.output, r.args, r.has_output, r.error.name))


def decline(order: Order) -> None:
    raise Refused(f"order {order.id} is refused")


async def nap(seconds: float, value: Any = None) -> Any:
    await asyncio.sleep(seconds)
    return value


def third_time(ctx: StepContext) -> int:
    if ctx.attempt < 3:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return ctx.attempt


def context(ctx: StepContext) -> dict[str, Any]:
    return {"name": ctx.name, "attempt": ctx.attempt, "instance": ctx.instance_id, "key": ctx.idempotency_key}


@workflow(name="kit-order")
async def order(event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
    charged: Order = await step.do("charge", charge, event.payload, rollback=refund)
    approval = await step.wait_for_event("approval", type="approval", timeout="1 hour")
    await step.sleep("cool-off", "1 day")
    if approval.payload == "no":
        await step.do("ship", decline, charged, retries=Retries(limit=1, delay="1 minute"))
    return Receipt(charged, str(approval.payload))


@workflow(name="kit-retries")
async def retries(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    got: int = await step.do("connect", third_time, retries=Retries(limit=5, delay="10 seconds"))
    return got


@workflow(name="kit-race")
async def race(event: WorkflowEvent[None], step: WorkflowStep) -> str:
    fast, slow = step.do("fast", nap, 0, "fast"), step.do("slow", nap, 60, "slow")
    done, _ = await asyncio.wait([fast, slow], return_when=asyncio.FIRST_COMPLETED)
    slow.cancel()
    return str(done.pop().result())


@workflow(name="kit-fan")
async def fan(event: WorkflowEvent[int], step: WorkflowStep) -> list[Any]:
    return list(await asyncio.gather(*[step.do("part", nap, 0.01, i) for i in range(event.payload)]))


@workflow(name="kit-context")
async def told(event: WorkflowEvent[None], step: WorkflowStep) -> dict[str, Any]:
    got: dict[str, Any] = await step.do("tell", context)
    return got


@workflow(name="kit-chance")
async def chance(event: WorkflowEvent[None], step: WorkflowStep) -> tuple[UUID, float, datetime]:
    await step.sleep("a while", "1 minute")
    return step.uuid(), step.random(), step.now()


@workflow(name="kit-wall-clock")
async def wall_clock(event: WorkflowEvent[None], step: WorkflowStep) -> None:
    await step.do(f"at {datetime.now(UTC).isoformat()}", nap, 0)


@workflow(name="kit-scheduled")
async def scheduled(event: WorkflowEvent[None], step: WorkflowStep) -> Any:
    assert event.schedule is not None
    return [event.schedule.cron, event.schedule.scheduled_time]


@workflow(name="kit-endless")
async def endless(event: WorkflowEvent[None], step: WorkflowStep) -> None:
    while True:
        await step.sleep("round", "1 hour")


@workflow(name="kit-two-waits")
async def two_waits(event: WorkflowEvent[None], step: WorkflowStep) -> Any:
    try:
        await step.wait_for_event("first", type="go", timeout="1 hour")
    except TimeoutError:
        raise
    except Exception as error:
        first = type(error).__name__
    second = await step.wait_for_event("second", type="go", timeout="1 hour")
    return [first, second.payload]
