"""A report on yesterday's sales, every night at half past two in Berlin, however many workers run.

    ORCHESTRATOR_WORKFLOWS=examples.nightly_report orchestrator dev    # in one terminal; it prints what to export
    python examples/nightly_report.py                                  # in another

The program does not wait for the night: it shows the schedule, and makes one report by hand.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

from orchestrator import Retries, Schedule, StepContext, WorkflowEvent, WorkflowStep, workflow

BERLIN = "Europe/Berlin"
NIGHTLY = "30 2 * * *"


@dataclass
class Wanted:
    shops: list[str]
    to: str


@dataclass
class Report:
    day: str
    total: int
    """In cents."""
    receipt: str


EVERY_SHOP = Wanted(shops=["north", "south", "harbour"], to="sales@example.com")


@workflow(schedules=Schedule(NIGHTLY, tz=BERLIN, params=EVERY_SHOP), success_retention="30 days")
async def nightly_report(event: WorkflowEvent[Wanted], step: WorkflowStep) -> Report:
    # The moment it was scheduled for, not the time it is: after a downtime it is still that night's report.
    moment = event.schedule.scheduled_time if event.schedule else event.timestamp
    day = (moment.astimezone(ZoneInfo(BERLIN)) - timedelta(days=1)).date().isoformat()
    patient = Retries(limit=20, delay="1 minute", max_delay="30 minutes")
    sums = await asyncio.gather(
        *(step.do(f"sales of {shop}", sales, shop, day, retries=patient) for shop in event.payload.shops)
    )
    lines = [f"{shop:10}{cents / 100:10.2f}" for shop, cents in zip(event.payload.shops, sums, strict=True)]
    receipt = await step.do("send", send, event.payload.to, f"Sales of {day}", lines, retries=patient)
    return Report(day, sum(sums), receipt)


# -- what the steps do; yours ask a warehouse and a mail server ---------------------------------------------------


def sales(shop: str, day: str) -> int:
    """The same for the same shop and day, whenever it is asked."""
    return sum(map(ord, shop + day)) * 13


def send(to: str, subject: str, lines: list[str], ctx: StepContext) -> str:
    """The mail server takes the key with the mail, so an attempt that is repeated does not send twice."""
    print(f"To {to}: {subject}", *lines, sep="\n")
    return f"mail {ctx.idempotency_key[:8]}"


if __name__ == "__main__":
    for schedule in nightly_report.schedules():
        print(f"{schedule.cron} in {schedule.tz} fires next at {schedule.next_at:%Y-%m-%d %H:%M} UTC")
    report = nightly_report.create(EVERY_SHOP).result(timeout=60)
    print(f"By hand: {report.total / 100:.2f} on {report.day}, {report.receipt}")
