"""The workflows that are measured: steps that do nothing."""

from orchestrator import WorkflowEvent, WorkflowStep, workflow


async def noop() -> dict[str, bool]:
    return {"ok": True}


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
