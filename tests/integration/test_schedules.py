"""Schedules on a real Postgres: one instance per firing, downtime, pausing, changed definitions, crashes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import InvalidConfig, Schedule, ScheduleRecord, WorkflowFailed
from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.control import duties, souschef
from orchestrator.control.schedules import LOOK_AGAIN_S, Schedules
from orchestrator.control.shards import Shards
from orchestrator.control.souschef import SousChef
from orchestrator.ports import OpenGate, new_id
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from orchestrator.store.records import schedules
from orchestrator.store.session import connect
from orchestrator.workflow.language.definition import Registry, WorkflowEvent
from tests.integration.harness import START, ManualClock, Site, eventually

pytestmark = pytest.mark.integration

EVERY_MINUTE = "* * * * *"
HOURLY = "0 * * * *"
NIGHTLY = "30 2 * * *"


async def sched_plain(event, step):
    return "done"


async def sched_told(event: WorkflowEvent[str], step):
    """Tells what it was created for, before and after a step."""
    before = event.schedule
    await step.do("work", str, event.payload)
    return [before.cron, before.scheduled_time, event.schedule == before, event.payload, event.instance_id]


class Chef:
    """The SousChef of one worker process, with the duties that every worker has, on a clock that a test moves."""

    def __init__(
        self, site: Site, registry: Registry | None = None, clock: ManualClock | None = None
    ) -> None:
        registry = registry or site.registry
        self.clock = clock or ManualClock()
        self.engine = connect(site.settings.database_url, turns=True)
        self.statements = 0
        me = new_id(START)
        with self.engine.begin() as connection:
            known = [f"{name}@{version}" for name, version in registry.known()]
            workers.register(connection, site.settings.account, Incarnation(me), known)
        seen_to = duties.standard(self.engine, site.settings, registry)
        (self.duty,) = [each for each in seen_to if isinstance(each, Schedules)]
        self.chef = SousChef(
            self.engine,
            site.settings.account,
            registry.known,
            self.clock,
            OpenGate(),
            list,
            Shards(self.engine, site.settings, lambda: me, registry.known),
            duties=seen_to,
        )

    def cycle(self, now: float | None = None) -> souschef.Cycle:
        if now is not None:
            self.clock.at = now
        return self.chef.cycle(self.clock.at)

    def __enter__(self) -> Chef:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()


def fired(site: Site, workflow: str = "sched_plain") -> list[str]:
    """The ids of the instances of a workflow, by the moment they were created for."""
    rows = site.sql(
        "SELECT name_id FROM orchestrator_instances WHERE account = :account AND workflow = :workflow "
        "ORDER BY scheduled_at, name_id",
        account=site.settings.account,
        workflow=workflow,
    )
    return [row[0] for row in rows]


def ids(cron: str, moments: Iterable[float]) -> list[str]:
    return [f"{cron}-{int(moment) * 1000}" for moment in moments]


MINUTE_0 = START - START % 60 + 60
"""The first full minute after a bench's clock begins."""
HOUR_0 = START - START % 3600 + 3600


# -- firing -------------------------------------------------------------------------------------------------


def test_a_moment_fires_once_it_has_come(site: Site) -> None:
    """protocols §20: the id tells expression and moment; nothing fires for a moment before it was registered."""
    site.workflow(sched_plain, schedules=EVERY_MINUTE)
    with Chef(site) as chef:
        assert chef.cycle(START).wakes == []
        assert fired(site) == []
        assert chef.cycle(MINUTE_0 - 0.001).wakes == []
        cycle = chef.cycle(MINUTE_0)
        (name,) = fired(site)
        assert name == f"{EVERY_MINUTE}-{int(MINUTE_0) * 1000}"
        assert cycle.wakes == [(site.id_of(name), MINUTE_0)]
        assert site.row(site.id_of(name)).status == "running"
        assert chef.cycle(MINUTE_0 + 1).wakes == []
        chef.cycle(MINUTE_0 + 60.5)
        assert fired(site) == ids(EVERY_MINUTE, [MINUTE_0, MINUTE_0 + 60])


def test_a_cycle_comes_at_the_moment(site: Site) -> None:
    """protocols §20: the SousChef is there when the moment comes, not up to a cycle later."""
    site.workflow(sched_plain, schedules=EVERY_MINUTE)
    with Chef(site) as chef:
        cycle = chef.cycle(MINUTE_0 - 0.25)
        assert cycle.again_at == MINUTE_0
        assert MINUTE_0 - 0.25 < chef.chef._next_full(cycle, MINUTE_0 - 0.25) <= MINUTE_0 + 0.001
        late = MINUTE_0 - 0.0001
        assert chef.chef._next_full(cycle, late) == pytest.approx(MINUTE_0, abs=0.001), "not a phase later"
        late = MINUTE_0 + 0.2
        assert chef.chef._next_full(cycle, late) <= late, "what is overdue is not put off"
        assert late < chef.chef._next_full(chef.cycle(late), late) <= late + souschef.CYCLE_S


def test_two_souschefs_race_for_every_moment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §20: exactly one instance per firing, however many workers look at the same time: who comes second
    finds the row locked, or moved on."""
    site.workflow(sched_plain, schedules=[EVERY_MINUTE, Schedule("*/2 * * * *", "Asia/Tokyo")])
    rounds = 200
    start = threading.Barrier(2, timeout=60)
    tried: list[str] = []
    fire = schedules.fire

    def counted(connection, account, firings, now):
        tried.extend(firing.name_id for firing in firings)
        return fire(connection, account, firings, now)

    monkeypatch.setattr(schedules, "fire", counted)

    def look(chef: Chef) -> None:
        for n in range(rounds):
            start.wait()
            chef.cycle(MINUTE_0 + 60 * n)

    with Chef(site) as one, Chef(site) as other:
        one.cycle(START)
        other.cycle(START)
        threads = [threading.Thread(target=look, args=(chef,)) for chef in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.cycle(MINUTE_0 + 60 * rounds - 1)
    moments = [MINUTE_0 + 60 * n for n in range(rounds)]
    even = [f"*/2 * * * *@Asia/Tokyo-{int(m) * 1000}" for m in moments if m % 120 == 0]
    assert sorted(fired(site)) == sorted(ids(EVERY_MINUTE, moments) + even)
    assert sorted(tried) == sorted(fired(site))


def test_after_a_downtime_the_last_missed_moment_fires(site: Site) -> None:
    """protocols §20: what was missed before it is not made up for."""
    site.workflow(sched_plain, schedules=HOURLY)
    with Chef(site) as chef:
        chef.cycle(START)
        chef.cycle(HOUR_0)
    with Chef(site) as later:
        later.cycle(HOUR_0 + 10 * 3600 + 1234)
        later.cycle(HOUR_0 + 10 * 3600 + 1235)
        assert fired(site) == ids(HOURLY, [HOUR_0, HOUR_0 + 10 * 3600])
        later.cycle(HOUR_0 + 11 * 3600)
        assert fired(site)[2:] == ids(HOURLY, [HOUR_0 + 11 * 3600])


def test_an_id_that_exists_has_fired(site: Site) -> None:
    """protocols §20: a schedule that is set back, as by a restored row, creates nothing twice and goes on."""
    site.workflow(sched_plain, schedules=EVERY_MINUTE)
    with Chef(site) as chef:
        chef.cycle(START)
        chef.cycle(MINUTE_0)
        site.sql(
            "UPDATE orchestrator_schedules SET next_at = to_timestamp(:at) WHERE account = :account",
            at=MINUTE_0,
            account=site.settings.account,
        )
        chef.cycle(MINUTE_0 + LOOK_AGAIN_S)
        assert chef.duty._look_at > MINUTE_0 + LOOK_AGAIN_S, "it has moved on"
        chef.cycle(MINUTE_0 + 60)
        assert fired(site) == ids(EVERY_MINUTE, [MINUTE_0, MINUTE_0 + 60])


def test_a_process_that_dies_after_firing_leaves_its_instance_to_others(site: Site) -> None:
    """protocols §20: killed between the insert and the start: the queue index brings the instance back, once."""
    site.workflow(sched_plain, schedules=EVERY_MINUTE)
    with Chef(site) as chef:
        chef.cycle(START)
    done = subprocess.run(
        [sys.executable, "-c", DYING, site.settings.database_url, site.settings.account, str(MINUTE_0)],
        env={**os.environ, "ORCHESTRATOR_FAILPOINT": "schedules.after_fire"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr
    (name,) = fired(site)
    assert site.row(site.id_of(name)).status == "queued"
    with Chef(site) as other:
        assert other.cycle(MINUTE_0 + 0.5).wakes == [(site.id_of(name), MINUTE_0 + 0.5)]
        assert fired(site) == [name]


DYING = """
import sys
from orchestrator.settings import Settings
from tests.integration.harness import Site
from tests.integration.test_schedules import EVERY_MINUTE, Chef, sched_plain
url, account, now = sys.argv[1:]
site = Site(Settings(database_url=url, redis_url="redis://nowhere", account=account, queue=account))
site.workflow(sched_plain, schedules=EVERY_MINUTE)
Chef(site).cycle(float(now))
"""


def test_cycles_cost_nothing_where_nothing_is_due(site: Site) -> None:
    """pitfalls: a worker without schedules never asks for them; one that has some asks when the next comes, and now and
    then."""
    asked: list[float] = []

    def spied(chef: Chef) -> Chef:
        from sqlalchemy import event

        @event.listens_for(chef.engine, "before_cursor_execute")
        def note(connection, cursor, statement, *rest):
            if "orchestrator_schedules" in statement:
                asked.append(chef.clock.at)

        return chef

    site.workflow(sched_plain)
    with spied(Chef(site)) as without:
        for second in range(120):
            without.cycle(START + second)
    assert set(asked) == {START}, "only whether there is something to remove, when it starts"
    asked.clear()
    registry = Registry()
    site.workflow(sched_plain, registry, schedules=HOURLY)
    with spied(Chef(site, registry)) as chef:
        for second in range(20):
            chef.cycle(START + second)
    assert set(asked) == {START + n for n in range(0, 20, int(LOOK_AGAIN_S))}


# -- definitions that change --------------------------------------------------------------------------------


def plan(site: Site) -> dict[str, tuple[str, str, bool]]:
    rows = site.sql(
        "SELECT cron, tz, version, params, is_paused FROM orchestrator_schedules WHERE account = :account",
        account=site.settings.account,
    )
    return {str(Schedule(row.cron, row.tz)): (row.version, row.params, row.is_paused) for row in rows}


def test_the_definition_of_who_started_last_wins(site: Site) -> None:
    """protocols §20: in a rolling deploy. Removed schedules go, those that stay keep their next moment and their pause,
    and the old worker changes nothing any more, but does not fire what it does not know either."""
    old, new = Registry(), Registry()
    flow = site.workflow(sched_plain, old, schedules=[HOURLY, NIGHTLY])
    site.workflow(sched_plain, new, version="2", schedules=[Schedule(HOURLY, params={"a": 1}), "5 5 * * *"])
    with Chef(site, old) as before, Chef(site, new) as after:
        before.cycle(START)
        assert plan(site) == {HOURLY: ("1", "null", False), NIGHTLY: ("1", "null", False)}
        flow.pause_schedule(HOURLY, orchestrator=site.client)
        after.cycle(START + 1)
        expected = {HOURLY: ("2", '{"a":1}', True), "5 5 * * *": ("2", "null", False)}
        assert plan(site) == expected
        flow.resume_schedule(HOURLY, orchestrator=site.client)
        site.sql(
            "UPDATE orchestrator_schedules SET next_at = to_timestamp(:at) WHERE account = :account",
            at=HOUR_0,
            account=site.settings.account,
        )
        assert before.cycle(HOUR_0).wakes == []
        assert fired(site) == []
        wakes = list(after.cycle(HOUR_0).wakes)
        for n in range(1, 4):  # it may stand in a shard of the old worker, which starts it for the new one
            assert before.cycle(HOUR_0 + n).wakes == []
            wakes += after.cycle(HOUR_0 + n).wakes
        (instance,) = {instance for instance, _ in wakes if "0 *" in site.row(instance).name_id}
        (version,) = site.sql("SELECT version FROM orchestrator_instances WHERE id = :id", id=instance)
        assert version == ("2",)


def test_a_workflow_without_schedules_removes_those_it_had(site: Site) -> None:
    """protocols §20: and leaves the schedules of workflows that it does not know alone."""
    before, after, third = Registry(), Registry(), Registry()
    site.workflow(sched_plain, before, schedules=[HOURLY, EVERY_MINUTE])
    site.workflow(sched_told, third, schedules=Schedule(NIGHTLY, params="x"))
    site.workflow(sched_plain, after)
    for registry in (before, third, after):
        with Chef(site, registry) as chef:
            chef.cycle(START)
    assert list(plan(site)) == [NIGHTLY]


def test_of_several_versions_the_latest_has_the_schedules(site: Site) -> None:
    """api §1: several versions of one name may be registered at once: the one that was registered last counts."""
    site.workflow(sched_plain, version="1", schedules=[HOURLY, NIGHTLY])
    site.workflow(sched_plain, version="2", schedules=HOURLY)
    with Chef(site) as chef:
        chef.cycle(START)
    assert plan(site) == {HOURLY: ("2", "null", False)}


def test_many_workers_that_start_at_once_do_not_fight(site: Site) -> None:
    """protocols §4: registering waits its turn; no two lock each other out, whatever each wants."""
    wanted = [[f"{m} {h} * * *" for m in range(n, 60, 7) for h in range(3)] for n in range(1, 7)]
    failures: list[BaseException] = []

    def start(crons: list[str]) -> None:
        registry = Registry()
        for other in range(3):
            site.workflow(sched_plain, registry, name=f"sched_{other}", schedules=crons)
        try:
            with Chef(site, registry) as chef:
                for n in range(5):
                    chef.duty._is_entered = False
                    chef.duty.cycle(HOUR_0 + 7200 * n, [f"sched_{o}@1" for o in range(3)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(crons,)) for crons in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(plan(site)) in [sorted(crons) for crons in wanted]


# -- what the code sees, and what people do -----------------------------------------------------------------


def test_the_code_knows_its_schedule_live_and_on_replay(site: Site) -> None:
    """api §1: ``event.schedule`` has the expression and the moment; a replay elsewhere sees the same."""
    flow = site.workflow(sched_told, schedules=Schedule(EVERY_MINUTE, "Europe/Berlin", "hello"))
    with Chef(site) as chef:
        chef.cycle(START)
        chef.cycle(MINUTE_0 + 0.5)
    name = f"{EVERY_MINUTE}@Europe/Berlin-{int(MINUTE_0) * 1000}"
    one, other = site.bench(), site.bench()
    one.clock.at = other.clock.at = MINUTE_0 + 1
    (handout,) = one.wake(site.id_of(name)).handouts
    other.finish(handout, "worked")  # rebuilds the replay from the rows
    moment = datetime.fromtimestamp(MINUTE_0, UTC).isoformat().replace("+00:00", "Z")
    assert flow.get(name).result(5) == [EVERY_MINUTE, moment, True, "hello", name]


def test_a_paused_schedule_does_not_fire(site: Site) -> None:
    """api §4: pausing one leaves the others; what passed meanwhile never fires; both verbs may be repeated."""
    flow = site.workflow(sched_plain, schedules=[EVERY_MINUTE, "*/2 * * * *"])
    where = site.client
    with Chef(site) as chef:
        chef.cycle(START)
        for _ in range(2):
            assert flow.pause_schedule(EVERY_MINUTE, orchestrator=where).paused
        chef.cycle(MINUTE_0)
        chef.cycle(MINUTE_0 + 60)
        assert [each for each in fired(site) if each.startswith(EVERY_MINUTE)] == []
        assert len(fired(site)) == 1
        where._clock.now = lambda: MINUTE_0 + 100.0  # type: ignore[method-assign]
        for _ in range(2):
            resumed = flow.resume_schedule(EVERY_MINUTE, orchestrator=where)
            assert (resumed.paused, resumed.next_at) == (False, datetime.fromtimestamp(MINUTE_0 + 120, UTC))
        chef.cycle(MINUTE_0 + 101)
        chef.cycle(MINUTE_0 + 120)
        assert [each for each in fired(site) if each.startswith(EVERY_MINUTE)] == ids(
            EVERY_MINUTE, [MINUTE_0 + 120]
        )


def test_what_can_be_seen_of_a_schedule(site: Site) -> None:
    """api §1: expression, zone, parameters, pause, the next moment and the last; also for asyncio."""
    flow = site.workflow(
        sched_plain, schedules=[Schedule(HOURLY, "Asia/Tokyo", {"shop": 1}), EVERY_MINUTE], version="7"
    )
    assert flow.schedules(orchestrator=site.client) == []

    async def paused() -> ScheduleRecord:
        record = await flow.apause_schedule(HOURLY, orchestrator=site.client)
        assert await flow.aschedules(orchestrator=site.client) == flow.schedules(orchestrator=site.client)
        return record

    with Chef(site) as chef:
        chef.cycle(START)
        chef.cycle(MINUTE_0)
    hourly = asyncio.run(paused())
    assert hourly == ScheduleRecord("sched_plain", "7", HOURLY, "Asia/Tokyo", {"shop": 1}, True, None, None)
    (minutely,) = [each for each in flow.schedules(orchestrator=site.client) if each != hourly]
    moment = datetime.fromtimestamp(MINUTE_0, UTC)
    assert (minutely.last_at, minutely.next_at) == (moment, moment + timedelta(minutes=1))
    assert not asyncio.run(flow.aresume_schedule(HOURLY, "Asia/Tokyo", orchestrator=site.client)).paused


def test_a_schedule_that_is_not_there(site: Site) -> None:
    """api §5: an error that lists what there is; one expression in several zones needs its zone."""
    flow = site.workflow(sched_plain, schedules=[HOURLY, Schedule(HOURLY, "Asia/Tokyo"), NIGHTLY])
    with pytest.raises(InvalidConfig, match="it has none in this database"):
        flow.pause_schedule(HOURLY, orchestrator=site.client)
    with Chef(site) as chef:
        chef.cycle(START)
    with pytest.raises(
        InvalidConfig, match=r"no schedule '1 1 \* \* \*'; it has '0 .*@Asia/Tokyo', '0 [* ]*', '30 2"
    ):
        flow.resume_schedule("1 1 * * *", orchestrator=site.client)
    with pytest.raises(InvalidConfig, match="in several time zones: name one of Asia/Tokyo, UTC"):
        flow.pause_schedule(HOURLY, orchestrator=site.client)
    assert flow.pause_schedule(HOURLY, "UTC", orchestrator=site.client).tz == "UTC"
    with pytest.raises(InvalidConfig, match=r"'30 2 .*' in Asia/Tokyo"):
        flow.pause_schedule(NIGHTLY, "Asia/Tokyo", orchestrator=site.client)


def test_workflow_code_may_not_steer_schedules(site: Site) -> None:
    """protocols §2: verbs are refused in workflow code, which runs again on every replay."""

    async def sched_meddler(event, step):
        return flow.pause_schedule(HOURLY)

    flow = site.workflow(sched_meddler)
    site.worker()
    with pytest.raises(WorkflowFailed, match=r"pause_schedule\(\) was called from workflow code"):
        flow.create().result(15)


def test_the_command_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """api §4: ``orchestrator schedules``: for people and as one JSON document; refusals end with 1."""
    long = ["north", "south"] * 20
    site.workflow(sched_plain, schedules=[HOURLY, Schedule(NIGHTLY, "Asia/Tokyo", long)])
    monkeypatch.setattr(client, "_default", site.client)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["schedules", *arguments])
        return (status, *capsys.readouterr())

    assert run("list") == (0, "There are none. A worker enters those of its workflows when it starts.\n", "")
    with Chef(site) as chef:
        chef.cycle(START)
    listed = json.loads(run("list", "--json")[1])["schedules"]
    assert [(each["cron"], each["tz"], each["params"]) for each in listed] == [
        (HOURLY, "UTC", None),
        (NIGHTLY, "Asia/Tokyo", long),
    ]
    assert len(run("list")[1].splitlines()) == 3  # in a pipe nothing is folded
    paused = json.loads(run("pause", "sched_plain", NIGHTLY, "--tz", "Asia/Tokyo", "--json")[1])["schedule"]
    assert (paused["paused"], paused["next_at"]) == (True, None)
    out = run("list", "sched_plain")[1]
    assert "paused" in out
    assert "2027-01-15 09:00 UTC" in out
    assert run("list", "other")[1].startswith("There are none.")
    assert run("resume", "sched_plain", NIGHTLY)[1].startswith(
        f"sched_plain: {NIGHTLY} (Asia/Tokyo) fires next at"
    )
    status, out, err = run("pause", "sched_plain", "5 5 5 5 5")
    assert (status, out) == (1, "")
    assert err.startswith(
        "invalid_config: workflow 'sched_plain' has no schedule '5 5 5 5 5'; it has '0 * * * *', "
    )
    assert run("pause", "sched_plain")[0] == 2


def test_params_that_cannot_be_read_until_later_are_refused_in_the_open(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """api §1: an annotation that names a class further down: its schedules are checked when the worker starts."""

    async def sched_early(event: WorkflowEvent[SchedLate], step):  # noqa: F821
        return event.payload

    site.workflow(sched_early, schedules=[Schedule(HOURLY, params=5), Schedule(NIGHTLY, params="x")])
    globals()["SchedLate"] = int
    try:
        with Chef(site) as chef:
            chef.cycle(START)
    finally:
        del globals()["SchedLate"]
    assert list(plan(site)) == [HOURLY]
    assert "workflow 'sched_early' has the schedule '30 2 * * *', whose params do not fit" in caplog.text


def test_retention_is_the_workflows(site: Site) -> None:
    """semantics §4: retention: workflow option before account default."""
    site.workflow(sched_plain, schedules=EVERY_MINUTE, success_retention="2 days")
    with Chef(site) as chef:
        chef.cycle(START)
        chef.cycle(MINUTE_0)
    (row,) = site.sql(
        "SELECT success_retention_s, error_retention_s FROM orchestrator_instances WHERE account = :account",
        account=site.settings.account,
    )
    assert tuple(row) == (2 * 86400.0, site.settings.error_retention)


def test_a_real_worker_fires(site: Site) -> None:
    """protocols §20: from a definition to a result, with nothing but a worker that runs."""
    flow = site.workflow(sched_told, schedules=Schedule(EVERY_MINUTE, params="go"))
    site.worker(chef=True)
    eventually(lambda: flow.schedules(orchestrator=site.client), "the schedule to be entered")
    site.sql(
        "UPDATE orchestrator_schedules SET next_at = next_at - interval '1 minute' WHERE account = :account",
        account=site.settings.account,
    )
    (name,) = eventually(lambda: fired(site, "sched_told"), "a firing")[:1]
    assert flow.get(name).result(15)[3:] == ["go", name]
