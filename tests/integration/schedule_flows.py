"""A workflow on a schedule, for tests with a real Celery worker: its moment is New Year, and a test brings it near."""

from orchestrator import Schedule, WorkflowEvent, WorkflowStep, workflow

NEW_YEAR = "0 0 1 1 *"


def wish(name: str) -> str:
    return f"happy new year, {name}"


@workflow(schedules=Schedule(NEW_YEAR, params="ann"))
async def sched_new_year(event: WorkflowEvent[str], step: WorkflowStep) -> list[str]:
    assert event.schedule is not None
    wished = await step.do("wish", wish, event.payload)
    return [wished, event.schedule.cron, event.schedule.scheduled_time.isoformat(), event.instance_id]
