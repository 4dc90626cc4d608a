"""What the browser looks at: one workflow of each look, served by a real worker.

What a body waits for or fails by comes from the params, so that a test says what it will see.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from orchestrator import (
    NonRetryableError,
    Retries,
    RollbackContext,
    RollbackPolicy,
    StepContext,
    WorkflowEvent,
    WorkflowStep,
    workflow,
)

AT_ONCE = Retries(limit=0)


@dataclass
class Purchase:
    """``price`` is in cents."""

    item: str
    price: int
    extras: list[str] = field(default_factory=list)


def quote(item: str) -> dict[str, int]:
    return {"length": len(item)}


def ask(item: str) -> str:
    return f"May we buy {item}?"


def order(item: str) -> str:
    return f"order of {item}"


def secret() -> str:
    return "1234-5678"


@workflow
async def browser_purchase(event: WorkflowEvent[Purchase], step: WorkflowStep) -> str:
    """Steps side by side, a person who is asked, a branch, a loop, a value that nobody may see."""
    wanted = event.payload
    await asyncio.gather(
        step.do("quote", quote, wanted.item),
        step.do("ask the boss", ask, wanted.item),
    )
    answer = await step.wait_for_event("decision", type="decision", timeout="36 hours")
    if not answer.payload["approved"]:
        await step.do("apologise", order, wanted.item)
        return "declined"
    await step.do("card number", secret, sensitive=True)
    for extra in wanted.extras:
        await step.do(f"order {extra}", order, extra)
    await step.sleep("cool-off", 0.3)
    return await step.do("order", order, wanted.item)


class Declined(Exception):
    """The bank says no."""


def reserve(item: str) -> str:
    return f"{item} is put aside"


def charge() -> str:
    raise Declined("The card has no money left.")


async def release(r: RollbackContext) -> None:
    return None


def broken(r: RollbackContext) -> None:
    raise NonRetryableError("The shelf cannot be reached.")


@workflow
async def browser_order(event: WorkflowEvent[dict], step: WorkflowStep) -> str:
    """Fails at the bank, and is undone; with ``stuck`` the first handler fails."""
    stuck = event.payload.get("stuck", False)
    await step.do("reserve", reserve, "a bike", rollback=release)
    await step.do("pack", reserve, "a box", rollback=broken if stuck else release, rollback_retries=AT_ONCE)
    await step.do("charge", charge, retries=Retries(limit=2, delay=0.2, backoff="constant"))
    return "sold"


async def nap(ctx: StepContext, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"attempt {ctx.attempt}"


@workflow
async def browser_slow(event: WorkflowEvent[dict], step: WorkflowStep) -> str:
    """As long as it is told, and then as often."""
    for _ in range(event.payload.get("times", 1)):
        await step.do("nap", nap, event.payload.get("seconds", 1))
    return "awake"


@workflow(rollback=RollbackPolicy(on_error="continue"), concurrency=50, creation_rate=20)
async def browser_parent(event: WorkflowEvent[dict], step: WorkflowStep) -> str:
    """Has a child that waits for an event."""
    await step.do("prepare", quote, "a child")
    return await step.invoke("buy", browser_purchase, {"item": "a pen", "price": 100})


def echo(value: str) -> str:
    return value


@workflow
async def browser_shown(event: WorkflowEvent[dict | None], step: WorkflowStep) -> str:
    """A step with the name that it is told; what ends it becomes its error."""
    name = (event.payload or {}).get("name", "a step")
    await step.do(name, echo, name)
    told = await step.wait_for_event("end", type="end")
    raise NonRetryableError(told.payload)
