"""Retention: how long finished instances are kept, who deletes them, and who is spared."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.control.retention import AT_ONCE, EVERY_S, Retention
from orchestrator.errors import InvalidConfig
from orchestrator.store import session
from orchestrator.store.records import retention
from orchestrator.store.records.retention import LATEST_S, SOONEST_S
from tests.integration.harness import START, Created, Site, eventually

pytestmark = pytest.mark.integration

DAY = 86_400.0


async def ends(event, step):
    if await step.do("say", lambda: event.payload) == "fail":
        raise ValueError("as told")


@pytest.fixture
def flow(site: Site) -> Created:
    return site.workflow(ends, name="retention_ends")


def expired(site: Site, flow: Created, many: int, *, at: float = START) -> list[Any]:
    """Finished instances with some rows, that expired a second each after another, up to ``at``."""
    made = [flow.plant(now=at) for _ in range(many)]
    for place, instance in enumerate(made):
        site.sql(
            "UPDATE orchestrator_instances SET status = 'complete', ended_at = to_timestamp(:ended), alarm_at = "
            "'infinity', expires_at = to_timestamp(:expires) WHERE id = :id",
            ended=at - 100, expires=at - many + place + 1, id=instance,
        )  # fmt: skip
        site.sql(
            "INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at) "
            "VALUES (:id, 'do:a:1', 'do', 'done', 1, now())", id=instance,
        )  # fmt: skip
        site.sql("INSERT INTO orchestrator_transitions VALUES (:id, 2, 'complete', now())", id=instance)
    return made


def left(site: Site) -> set[Any]:
    rows = site.sql(
        "SELECT id FROM orchestrator_instances WHERE account = :account", account=site.settings.account
    )
    return {row[0] for row in rows}


def swept(site: Site, now: float, limit: int = 100) -> int:
    with site.engine.begin() as connection:
        return retention.sweep(connection, site.settings.account, now, limit).deleted


# -- how long ------------------------------------------------------------------------------------------------


def kept_for(site: Site, name_id: str) -> float:
    (row,) = site.sql(
        "SELECT extract(epoch FROM expires_at - ended_at)::float8 FROM orchestrator_instances "
        "WHERE account = :account AND name_id = :name",
        account=site.settings.account, name=name_id,
    )  # fmt: skip
    return row[0]


def test_the_instance_says_else_the_workflow_else_the_account(site: Site) -> None:
    """Semantics §4: instance option > workflow option > account default; an error is kept for its own time."""
    site.worker()
    plain = site.workflow(ends, name="retention_plain")
    told = site.workflow(ends, name="retention_told", success_retention="1 day", error_retention="2 days")
    for flow, name_id, params, options in (
        (plain, "account", None, {}),
        (told, "workflow", None, {}),
        (told, "instance", None, {"success_retention": "3 days"}),
        (told, "failed", "fail", {"success_retention": "3 days"}),
    ):
        instance = flow.create(params, id=name_id, **options)
        eventually(lambda i=instance: i.status().status in ("complete", "errored"))
    assert [kept_for(site, n) for n in ("account", "workflow", "instance", "failed")] == [
        7 * DAY, DAY, 3 * DAY, 2 * DAY,
    ]  # fmt: skip


def test_nothing_is_kept_longer_than_the_deployment_allows(site: Site) -> None:
    """Semantics §4: at most 30 days by default settings; a setting changes that; what is too long is refused."""
    flow = site.workflow(ends, name="retention_long", error_retention="31 days")
    with pytest.raises(InvalidConfig, match=r"error_retention is 31 days.*30 days at most.*RETENTION_LIMIT"):
        flow.create()
    assert flow.create(error_retention="30 days").exists()
    with pytest.raises(InvalidConfig, match="Entry 1: success_retention is 40 days"):
        flow.create_batch([{"error_retention": 1}, {"error_retention": 1, "success_retention": "40 days"}])
    site.client.settings = replace(site.settings, retention_limit=400 * DAY)
    assert flow.create(success_retention="1 year").exists()
    with pytest.raises(InvalidConfig, match=r"SUCCESS_RETENTION is .* s; it must be from 0 to"):
        replace(site.settings, success_retention=31 * DAY)


def test_a_child_is_kept_no_longer_than_the_deployment_allows(site: Site) -> None:
    """Semantics §4: nobody is there to be refused when a workflow starts a child: its retention is cut."""
    child = site.workflow(ends, name="retention_child", success_retention="40 days")

    async def parent(event, step):
        return await step.invoke("child", child, None, id="kept")

    site.worker(chef=True)
    site.workflow(parent, name="retention_parent").create().result(30)
    assert kept_for(site, "kept") == 30 * DAY


# -- who is deleted ------------------------------------------------------------------------------------------


def test_those_that_expired_first_go_first_and_nothing_of_them_stays(site: Site, flow: Created) -> None:
    """Semantics §4: deletion is batched, by end time; everything of an instance goes with it."""
    made = expired(site, flow, 5)
    assert swept(site, START - 3, limit=10) == 2, "what has not expired yet stays"
    assert left(site) == set(made[2:])
    assert swept(site, START, limit=2) == 2
    assert left(site) == {made[4]}
    for table in ("steps", "transitions", "payloads"):
        rows = site.sql(
            f"SELECT count(*) FROM orchestrator_{table} WHERE instance_id = ANY(:ids)", ids=made[:4]
        )
        assert rows == [(0,)]
    assert flow.create(id=str(made[0])).exists(), "its id is free"


def test_only_finished_instances_expire(site: Site, flow: Created) -> None:
    """Semantics §4: an instance that goes on, or was restarted, is kept."""
    site.worker()
    instance = flow.create(id="again", success_retention=0)
    instance.result(30)
    uuid = site.id_of("again")
    site.post.targets.clear()  # nobody runs it now
    instance.restart()
    assert swept(site, START) == 0 and left(site) == {uuid}


def test_a_child_is_kept_until_its_parent_has_ended(site: Site, flow: Created) -> None:
    """Protocols §15: its parent may yet have to undo it."""
    parent = flow.plant()
    (child,) = expired(site, flow, 1)
    site.sql("UPDATE orchestrator_instances SET parent_id = :parent WHERE id = :id", parent=parent, id=child)
    assert swept(site, START) == 0
    site.sql("UPDATE orchestrator_instances SET status = 'errored' WHERE id = :id", id=parent)
    assert swept(site, START + SOONEST_S) == 1 and left(site) == {parent}


def test_a_grandchild_is_kept_for_the_chain_of_its_grandparent(site: Site, flow: Created) -> None:
    """Protocols §15, semantics §5.8: a child that has ended may yet have to undo its own children, at its parent's
    word."""
    parent = flow.plant()
    made = expired(site, flow, 3)
    for above, below in pairwise((parent, *made)):
        site.sql("UPDATE orchestrator_instances SET parent_id = :above WHERE id = :id", above=above, id=below)
    assert swept(site, START) == 0 and left(site) == {parent, *made}
    site.sql("UPDATE orchestrator_instances SET status = 'errored' WHERE id = :id", id=parent)
    assert swept(site, START + SOONEST_S) == 3 and left(site) == {parent}


def test_those_that_are_kept_are_not_read_in_every_sweep(site: Site, flow: Created) -> None:
    """Semantics §4: a parent may run for years, and have any number of children that have expired: they hold up nobody
    behind them, and each is looked at again after a tenth of its age."""
    parent = flow.plant()
    made = expired(site, flow, 2 * AT_ONCE + 2)
    children = made[: 2 * AT_ONCE]
    site.sql(
        "UPDATE orchestrator_instances SET parent_id = :parent WHERE id = ANY(:ids)",
        parent=parent,
        ids=children,
    )
    Retention(site.engine, site.settings.account).cycle(START, ["x@1"])
    assert left(site) == {parent, *children}

    def seen(now: float) -> int:
        with site.engine.begin() as connection:
            return retention.sweep(connection, site.settings.account, now, 1000).seen

    assert seen(START + SOONEST_S - 1) == 0
    assert seen(START + SOONEST_S) == len(children)
    assert seen(START + 100_000) == len(children)
    assert seen(START + 100_000 + LATEST_S - 1) == 0
    assert seen(START + 100_000 + LATEST_S) == len(children)
    assert left(site) == {parent, *children}


def test_an_account_deletes_its_own_alone(site: Site, flow: Created) -> None:
    """Accounts share a database; each deletes what is its own, by its own clock and settings."""
    made = expired(site, flow, 2)
    with site.engine.begin() as connection:
        assert retention.sweep(connection, "somebody else", START, 10) == (0, 0)
    assert left(site) == set(made)


def test_workers_sweep_at_once_and_none_waits(site: Site, flow: Created) -> None:
    """Semantics §4: safe to run on every worker at once: what one holds is skipped by the others."""
    made = expired(site, flow, 40)
    with site.locked(made[0]):
        assert swept(site, START, limit=5) == 5
    assert left(site) == {made[0], *made[6:]}
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.extend(swept(site, START, 3) for _ in range(12)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(done) == 35 and left(site) == set()


def test_a_duty_goes_on_in_the_next_cycle_until_nothing_is_left(site: Site, flow: Created) -> None:
    """Semantics §4: batches; where nothing is due the next look comes some seconds later."""
    expired(site, flow, 2 * AT_ONCE + 10)
    duty, now, cycles = Retention(site.engine, site.settings.account), START, 0
    while left(site):
        duty.cycle(now, ["x@1"])
        now, cycles = now + 1, cycles + 1
        assert cycles <= 5
    duty.cycle(now, ["x@1"])
    expired(site, flow, 1)
    duty.cycle(now + EVERY_S / 2, ["x@1"])
    assert len(left(site)) == 1, "it has looked just before"
    duty.cycle(now + EVERY_S, ["x@1"])
    assert left(site) == set()


def test_every_worker_has_the_duty(site: Site, flow: Created) -> None:
    """Semantics §4: a worker deletes what has expired, by itself."""
    site.worker(chef=True)
    instance = flow.create(id="brief", success_retention=0)
    eventually(lambda: not instance.exists())


def test_looking_for_what_has_expired_reads_the_end_of_an_index(own_site: Site) -> None:
    """Cheap when nothing is due: neither what will expire later, nor what others have expired, is read."""
    flow = own_site.workflow(ends, name="retention_plan")
    expired(own_site, flow, 3)
    own_site.sql(
        "INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, created_at, "
        "expires_at, success_retention_s, error_retention_s) SELECT gen_random_uuid(), a, 'w', 'i' || n, '1', "
        "'complete', 'infinity', now(), to_timestamp(:at) + make_interval(secs => CASE WHEN a = 'other' THEN -n "
        "ELSE n END), 1, 1 FROM unnest(ARRAY['other', :account]) AS a, generate_series(1, 5000) AS n",
        at=START, account=own_site.settings.account,
    )  # fmt: skip
    own_site.sql("ANALYZE orchestrator_instances")
    workers = session.connect(own_site.settings.database_url, turns=True)
    with workers.begin() as connection:
        rows = session.rows(
            connection,
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + retention._DUE,
            {"account": own_site.settings.account, "now": START, "limit": 50},
        )
    workers.dispose()
    plan = "\n".join(row[0] for row in rows)
    assert "using orchestrator_instances_expiry on orchestrator_instances i (actual rows=3.00" in plan, plan
    assert "Seq Scan" not in plan and "Sort" not in plan, plan
