"""The workflows that are measured: steps that do nothing, or wait.

Owns: the code that the workers run. Does not own: how many of them run, and what is read off (``workloads`` and
its siblings).
"""

from __future__ import annotations

import asyncio

from orchestrator import NonRetryableError, RollbackContext, WorkflowEvent, WorkflowStep, workflow


async def noop() -> dict[str, bool]:
    return {"ok": True}


async def undo(context: RollbackContext) -> None:
    """A rollback handler that has nothing to do."""


async def awaits(seconds: float) -> dict[str, bool]:
    await asyncio.sleep(seconds)
    return {"ok": True}


async def echo(text: str) -> str:
    return text


@workflow
async def five_steps(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """W1: five sequential steps."""
    for _ in range(5):
        await step.do("noop", noop)
    return 5


@workflow(max_steps=25_000)
async def many_steps(event: WorkflowEvent[int], step: WorkflowStep) -> int:
    """W2: ``payload`` sequential steps."""
    for _ in range(event.payload):
        await step.do("noop", noop)
    return event.payload


@workflow(max_steps=25_000)
async def parallel_steps(event: WorkflowEvent[int], step: WorkflowStep) -> int:
    """W3: ``payload`` steps at once."""
    return len(await asyncio.gather(*(step.do("noop", noop) for _ in range(event.payload))))


@workflow
async def one_await(event: WorkflowEvent[float], step: WorkflowStep) -> dict[str, bool]:
    """W4: one step that awaits ``payload`` seconds."""
    answer: dict[str, bool] = await step.do("awaits", awaits, event.payload)
    return answer


@workflow
async def no_step(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """Ends in its first turn."""
    return 0


@workflow
async def one_event(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """Waits for an event, and gives back what came with it."""
    received = await step.wait_for_event("go", type="go", timeout="1 hour")
    return int(received.payload)


@workflow
async def naps(event: WorkflowEvent[list[float]], step: WorkflowStep) -> int:
    """Sleeps for each of ``payload`` seconds, one after the other."""
    for seconds in event.payload:
        await step.sleep("nap", seconds)
    return len(event.payload)


@workflow
async def three_steps(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """What ``undone`` does before it fails."""
    for _ in range(3):
        await step.do("noop", noop, rollback=undo)
    return 3


@workflow
async def undone(event: WorkflowEvent[None], step: WorkflowStep) -> int:
    """Fails after three steps; three handlers run."""
    for _ in range(3):
        await step.do("noop", noop, rollback=undo)
    raise NonRetryableError("on purpose: this workflow measures its rollback")


@workflow
async def five_undone(event: WorkflowEvent[float], step: WorkflowStep) -> None:
    """Five steps; fails at ``payload`` (epoch seconds); five handlers run."""
    for _ in range(5):
        await step.do("noop", noop, rollback=undo)
    await step.sleep_until("all at once", event.payload)
    raise NonRetryableError("on purpose: this workflow measures its rollback")


@workflow
async def five_echoes(event: WorkflowEvent[str], step: WorkflowStep) -> int:
    """W1 with a payload; each step takes and returns it."""
    for _ in range(5):
        await step.do("echo", echo, event.payload)
    return len(event.payload)
