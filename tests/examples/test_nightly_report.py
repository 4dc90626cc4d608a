"""The example of a schedule: fired on a clock that the test moves, over a night without workers."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from examples import nightly_report
from orchestrator.control import duties
from orchestrator.control.souschef import SousChef
from orchestrator.ports import OpenGate
from tests.integration.harness import START, Bench, Created, Site

pytestmark = pytest.mark.integration


def nights(count: int) -> list[datetime]:
    """The first moments at 02:30 in Berlin after a bench's clock begins."""
    berlin = ZoneInfo("Europe/Berlin")
    day = datetime.fromtimestamp(START, berlin).replace(hour=2, minute=30, second=0, microsecond=0)
    return [
        day + timedelta(days=n) for n in range(count + 1) if (day + timedelta(days=n)).timestamp() > START
    ][:count]


def night_of(bench: Bench, chef: SousChef, moment: float) -> None:
    """What a worker does in a cycle at ``moment``, and all the work that follows."""
    bench.clock.at = moment
    work = list(bench.wake(*(instance for instance, _ in chef.cycle(moment).wakes)).handouts)
    for handout in work:
        bench.clock.at += 0.01
        work.extend(bench.finish(handout, 700 if "sales" in handout.key else "mail 1").handouts)


def test_every_night_has_its_report(site: Site) -> None:
    """protocols §20: an instance per night, named by expression, zone and moment; of the nights without a worker the
    last is made up for, and its report is that night's."""
    reports = Created(site.registry.register(nightly_report.nightly_report.definition), site)
    bench = site.bench()
    seen_to = duties.standard(bench.engine, site.settings, site.registry)
    chef = SousChef(
        bench.engine,
        site.settings.account,
        site.registry.known,
        bench.clock,
        OpenGate(),
        list,
        bench.shards(),
        duties=seen_to,
    )
    first, second, third = nights(3)
    night_of(bench, chef, START)
    night_of(bench, chef, first.timestamp())
    night_of(bench, chef, third.timestamp() + 4 * 3600)

    names = [f"30 2 * * *@Europe/Berlin-{int(night.timestamp()) * 1000}" for night in (first, second, third)]
    for name, night in ((names[0], first), (names[2], third)):
        report = reports.get(name).result(5)
        assert report.day == (night - timedelta(days=1)).date().isoformat()
        assert (report.total, report.receipt) == (2100, "mail 1")
    made = site.sql(
        "SELECT name_id FROM orchestrator_instances WHERE account = :account", account=site.settings.account
    )
    assert {row[0] for row in made} == {names[0], names[2]}
    (schedule,) = reports.schedules(orchestrator=site.client)
    assert (schedule.last_at, schedule.params["to"]) == (third.astimezone(UTC), "sales@example.com")
