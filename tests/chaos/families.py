"""Parents and children that the workers of ``test_family_crashes`` run, beside those of ``flows``.

Owns: the workflows, and what becomes of them. Imported by workers and by the test.
"""

import asyncio
from typing import Any

from orchestrator import workflow
from tests.chaos.flows import QUICK, TWICE, add, refuse, reserve, undo, undo_sync

CHILDREN = 3


@workflow(name="chaos-child")
async def child(event: Any, step: Any) -> int:
    """Two bodies that can be undone; one that is asked to then waits for ever."""
    value = await step.do("reserve", reserve, event.payload["n"], retries=QUICK, rollback=undo_sync)
    value = await step.do("add", add, value, 1, retries=QUICK, rollback=undo)
    if event.payload["waits"]:
        await step.wait_for_event("never", type="never")
    return value


@workflow(name="chaos-parent")
async def parent(event: Any, step: Any) -> list[int]:
    """Children side by side. A parent that fails has some that are complete, and one that is not."""
    n, fails = event.payload["n"], event.payload["fails"]
    await step.do("before", add, n, 1, retries=QUICK, rollback=undo)
    if fails:
        step.invoke("waiting", child, {"n": n, "waits": True})
    found = await asyncio.gather(
        *[step.invoke("child", child, {"n": n + at, "waits": False}) for at in range(CHILDREN)]
    )
    await step.do("after", add, n, 2, retries=QUICK, rollback=undo)
    if fails:
        await step.do("refuse", refuse, retries=TWICE)
    return found


def outputs(n: int) -> list[int]:
    """What ``parent`` must return."""
    return [(n + at) * 10 + 1 for at in range(CHILDREN)]
