"""Alarms at which no turn is needed: they are moved on by SQL alone, and only where a turn would have done the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import InvalidTransition, Retries
from orchestrator.engine.running.placement import Ready
from orchestrator.ports import FOREVER, HandOut
from orchestrator.store import alarms
from orchestrator.store.alarms import SHORT, Taken
from orchestrator.workflow.execution import Wake
from tests.integration.harness import START, Bench, Created, Site

pytestmark = pytest.mark.integration

LONG_S = 3000.0


async def body(*args: Any) -> Any:
    return list(args)


async def settling_mixed(event: Any, step: Any) -> Any:
    """A bit of everything, some of it at once."""
    retries = Retries(limit=2, delay=20)
    long = step.do("long", body, timeout=LONG_S, retries=retries, rollback=body)
    first, _ = await asyncio.gather(step.do("short", body, timeout=30), step.sleep("nap", 40))
    event = step.wait_for_event("go", type="go", timeout=200)
    await long
    await asyncio.wait([event, step.do("last", body, timeout=LONG_S)], return_when=asyncio.FIRST_COMPLETED)
    return first


def take(site: Site, bench: Bench, instance: UUID, *, for_good: bool = False) -> tuple[Taken, float]:
    """What is taken when the alarm of ``instance`` rings now, and where it is moved to."""
    now = bench.clock.at
    with bench.engine.connect() as connection:
        ring(connection.exec_driver_sql, instance, now)
        (name,) = connection.exec_driver_sql(
            "SELECT workflow FROM orchestrator_instances WHERE id = %(id)s", {"id": instance}
        ).one()
        taken = alarms.take(connection, site.settings.account, [f"{name}@1"], now, now + 1, 1.0, 100)
        (alarm,) = connection.exec_driver_sql(
            "SELECT extract(epoch FROM alarm_at)::float8 FROM orchestrator_instances WHERE id = %(id)s",
            {"id": instance},
        ).one()
        if for_good:
            connection.commit()
    return taken, float(alarm)


def ring(execute: Callable[..., Any], instance: UUID, now: float) -> None:
    execute(
        "UPDATE orchestrator_instances SET alarm_at = to_timestamp(%(now)s) "
        "WHERE id = %(id)s AND alarm_at < 'infinity'",
        {"id": instance, "now": now},
    )


def is_settled(site: Site, bench: Bench, instance: UUID) -> bool:
    taken, _ = take(site, bench, instance)
    return instance not in dict(taken.due)


def running(site: Site, bench: Bench, flow: Created) -> tuple[UUID, list[Ready | None]]:
    """An instance whose bodies all run."""
    instance = flow.plant(now=bench.clock.at)
    return instance, bench.claim(*bench.wake(instance).handouts)


# -- what is settled, and what is not ----------------------------------------------------------------------


def test_a_body_that_runs_needs_no_turn(site: Site) -> None:
    """protocols §7: nothing is due: the alarm moves on, as a turn would move it, and no history is loaded."""
    bench, flow = site.bench(), site.workflow(settling_mixed)
    instance, _ = running(site, bench, flow)
    taken, alarm = take(site, bench, instance)
    assert (taken.due, taken.settled) == ([], 1)
    assert alarm == START + 40, "the sleep comes first"
    bench.clock.at += 20
    assert take(site, bench, instance) == (Taken([], 1, False), START + 40)
    bench.clock.at += 10
    taken, _ = take(site, bench, instance)
    assert instance in dict(taken.due), "a body is over its time"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE orchestrator_steps SET status = 'handed', worker = NULL WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET status = 'cancelling' WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET worker = gen_random_uuid() WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET worker = NULL WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET claimed_at = claimed_at - interval '1 hour' "
        "WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET claimed_at = NULL WHERE instance_id = :id AND key = 'do:long:1'",
        "UPDATE orchestrator_steps SET status = 'done' WHERE instance_id = :id AND kind = 'do'",
        "UPDATE orchestrator_steps SET due_at = due_at - interval '39.5 seconds' "
        "WHERE instance_id = :id AND kind = 'sleep'",
        "UPDATE orchestrator_steps SET kind = 'invoke' WHERE instance_id = :id AND kind = 'sleep'",
        "UPDATE orchestrator_instances SET ending = 'errored' WHERE id = :id",
        "UPDATE orchestrator_instances SET blocked = '{}' WHERE id = :id",
        "UPDATE orchestrator_instances SET awoken = true WHERE id = :id",
        "UPDATE orchestrator_instances SET started_at = NULL WHERE id = :id",
        "UPDATE orchestrator_instances SET parent_id = gen_random_uuid() WHERE id = :id",
        "UPDATE orchestrator_instances SET status = 'waiting_for_pause' WHERE id = :id",
        f"UPDATE orchestrator_instances SET seq = {SHORT} + 1 WHERE id = :id",
        "INSERT INTO orchestrator_inbox VALUES (:id, 1, 'go', '1', now())",
        "UPDATE orchestrator_steps SET config = replace(config, '{', '{\"task\":\"t\",') "
        "WHERE instance_id = :id AND key = 'do:long:1'",
    ],
)
def test_a_turn_is_left_what_only_a_turn_can_tell(site: Site, change: str) -> None:
    """protocols §7: unclaimed hand-outs, dead workers, deadlines, whatever is due, received or outstanding."""
    bench, flow = site.bench(), site.workflow(settling_mixed)
    instance, _ = running(site, bench, flow)
    assert is_settled(site, bench, instance)
    site.sql(change, id=instance)
    taken, alarm = take(site, bench, instance)
    assert (dict(taken.due), alarm) == ({instance: bench.clock.at}, bench.clock.at + 1)


def test_what_changed_since_it_was_seen_is_left(site: Site) -> None:
    """protocols §1: steps are read as of when the statement began: an instance that moved on meanwhile is not moved."""
    bench, flow = site.bench(), site.workflow(settling_mixed)
    instance, _ = running(site, bench, flow)
    with site.engine.begin() as other:
        other.exec_driver_sql(
            "UPDATE orchestrator_instances SET seq = seq + 1 WHERE id = %(id)s", {"id": instance}
        )
        now = bench.clock.at + 5
        with bench.engine.begin() as connection:
            taken = alarms.take(
                connection, site.settings.account, ["settling_mixed@1"], now, now + 1, 1.0, 100
            )
    assert (taken.due, taken.settled) == ([], 0)
    assert site.row(instance).alarm == START + 5


def test_a_turn_that_has_to_follow_is_on_record(site: Site) -> None:
    """protocols §1, §7: a turn that used up its budget, or whose process died before the next, is made up for, though a
    body runs."""

    async def settling_long(event: Any, step: Any) -> Any:
        step.do("long", body, timeout=LONG_S)
        for _ in range(1200):
            await step.sleep("x", 0)
        await step.sleep("end", 600)

    bench, flow = site.bench(), site.workflow(settling_long)
    instance = flow.plant()
    results = bench.wake(instance)
    bench.claim(*results.handouts)
    assert instance in results.repeat
    (row,) = site.sql("SELECT awoken, status FROM orchestrator_instances WHERE id = :id", id=instance)
    assert row == (True, "running")
    bench.wake(instance)
    (row,) = site.sql("SELECT awoken, status FROM orchestrator_instances WHERE id = :id", id=instance)
    assert row == (False, "running")


# -- the property -------------------------------------------------------------------------------------------

OPERATIONS = (
    "wake", "claim", "claim", "claim elsewhere", "finish", "finish", "fail", "event", "second", "minute", "hour",
    "pause", "resume", "restart", "restart from", "kill",
)  # fmt: skip


class Life:
    """One instance, what happens to it, and two workers."""

    def __init__(self, site: Site, flow: Created, here: Bench, there: Bench) -> None:
        self.site, self.flow, self.here, self.there = site, flow, here, there
        self.clock = here.clock
        self.instance = flow.plant(now=self.clock.at)
        self.created = flow.get(str(self.instance))
        self.handed: list[HandOut] = []
        self.claimed: list[tuple[Bench, Ready]] = []

    def do(self, operation: str) -> None:
        match operation:
            case "wake":
                self._take(self.here.run({self.instance: [Wake()]}))
            case "claim" | "claim elsewhere":
                bench = self.here if operation == "claim" else self.there
                if self.handed:
                    (ready,) = bench.claim(self.handed.pop())
                    if ready is not None:
                        self.claimed.append((bench, ready))
            case "finish" | "fail":
                if self.claimed:
                    bench, ready = self.claimed.pop()
                    error = {} if operation == "finish" else {"error": '{"name":"ValueError","message":"no"}'}
                    self._take(bench.run({self.instance: [bench.outcome(ready, 1, **error)]}))
            case "event":
                self._verb(lambda: self.created.send_event("go", 1))
            case "second" | "minute" | "hour":
                self.clock.at += {"second": 1.0, "minute": 61.0, "hour": 3700.0}[operation]
            case "pause" | "resume" | "restart":
                self._verb(getattr(self.created, operation))
            case "restart from":
                self._verb(lambda: self.created.restart("nap", kind="sleep"))
            case "kill":
                self.site.sql(
                    "UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=self.there.id
                )

    def _verb(self, verb: Callable[[], Any]) -> None:
        with suppress(InvalidTransition):
            verb()

    def _take(self, results: Any) -> None:
        self.handed.extend(h for h in (*results.handouts, *results.local) if h not in self.handed)

    def facts(self) -> list[Any]:
        """All that is stored of it, but for its alarm."""
        tables = ("steps", "attempts", "transitions", "inbox", "payloads")
        found: list[Any] = [
            self.site.sql(
                f"SELECT * FROM orchestrator_{table} t WHERE instance_id = :id ORDER BY t::text",
                id=self.instance,
            )
            for table in tables
        ]
        row = self.site.sql(
            "SELECT to_jsonb(i) - 'alarm_at' FROM orchestrator_instances i WHERE id = :id", id=self.instance
        )
        return [*found, row]

    def check(self) -> bool:
        """If SQL alone settles an alarm that rings now, a turn from cold changes the alarm alone, and alike."""
        row = self.site.row(self.instance)
        if row.alarm == FOREVER:
            return False
        taken, alarm = take(self.site, self.here, self.instance)
        if self.instance in dict(taken.due) or alarm == self.clock.at:
            return False
        before = self.facts()
        with self.site.engine.begin() as connection:
            ring(connection.exec_driver_sql, self.instance, self.clock.at)
        self.here.replays.drop(self.instance)
        results = self.here.wake(self.instance)
        done = (results.handouts, results.local, results.cancels, results.repeat, results.hints, results.mine)
        assert not any(done), done
        assert self.facts() == before
        assert self.site.row(self.instance).alarm == pytest.approx(alarm, abs=1e-5)
        return True


SETTLED = {"times": 0}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=st.lists(st.sampled_from(OPERATIONS), max_size=25))
def _run(site: Site, flow: Created, operations: list[str]) -> None:
    here = site.bench()
    there = site.bench(clock=here.clock)
    life = Life(site, flow, here, there)
    for operation in ["wake", "claim", "claim elsewhere", *operations]:
        life.do(operation)
        SETTLED["times"] += life.check()
    for bench in (here, there):
        bench.close()
        site.benches.remove(bench)


def test_no_turn_is_skipped_that_would_have_done_anything(site: Site) -> None:
    """protocols §7: whatever happened to an instance: what SQL settles is what a turn would have found."""
    SETTLED["times"] = 0
    _run(site, site.workflow(settling_mixed, name=f"settling_{uuid4().hex[:6]}"))
    assert SETTLED["times"] > 80, "hardly anything was settled: this shows nothing"
