"""A short workflow for tests of the queue: it runs, sleeps, and comes back awoken.

Owns: that workflow. Imported by workers and by the tests.
"""

from typing import Any

from orchestrator import workflow
from tests.chaos.flows import QUICK, add

SLEEP_S = 2.0


@workflow(name="chaos-brief")
async def brief(event: Any, step: Any) -> Any:
    """A step, a sleep, another step."""
    a = await step.do("before", add, event.payload, 1, retries=QUICK)
    await step.sleep("nap", SLEEP_S)
    return await step.do("after", add, a, 1, retries=QUICK)
