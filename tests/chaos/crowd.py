"""A workflow of one short step, of which many want to run at once.

Owns: that workflow. Imported by workers and by the tests.
"""

import asyncio
from typing import Any

from orchestrator import StepContext, workflow
from tests.chaos.flows import QUICK, witness

WORK_S = 0.1


async def work(ctx: StepContext, n: int) -> int:
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        await asyncio.sleep(WORK_S)
        return n


@workflow(name="chaos-crowd")
async def crowd(event: Any, step: Any) -> Any:
    """One step, as long as which it holds a slot."""
    return await step.do("work", work, event.payload, retries=QUICK)
