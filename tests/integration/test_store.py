"""The verbs over Postgres: what each writes, who wins, what is skipped, and that nothing scans a table."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from sqlalchemy import Connection, create_engine
from sqlalchemy.orm import Session

from orchestrator.errors import InstanceNotFound, InvalidTransition, ServiceUnavailable
from orchestrator.ports import FOREVER, new_id
from orchestrator.settings import Incarnation
from orchestrator.store import alarms, events, histories, instances, migrate, session, steps, turns, workers
from orchestrator.store.histories import Known
from orchestrator.store.instances import NewInstance
from orchestrator.store.steps import Claim
from orchestrator.workflow.execution import AttemptRow, Transition, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.config import StepConfig, WaitConfig
from orchestrator.workflow.status import Status
from tests.integration.harness import START, Created, Site

pytestmark = pytest.mark.integration

CONFIG = StepConfig.build().to_json()
KEY = "do:a:1"


async def flow(event, step):
    """Never run here."""


@pytest.fixture
def planted(site: Site) -> Created:
    return site.workflow(flow)


def handed(key: str = KEY, seq: int = 2, **more: Any) -> StepRow:
    more = {"status": "handed", "attempt": 1, "fence": seq, "handed_at": START, "config": CONFIG, **more}
    return StepRow(key, "do", started_seq=seq, started_at=START, **more)


def turn(instance: UUID, expected: int, seq: int, *rows: StepRow, **more: Any) -> Writes:
    more = {"alarm_at": START + 5, **more}
    return Writes(instance, expected, seq, steps={row.key: row for row in rows}, **more)


def begun(site: Site, instance: UUID, *rows: StepRow) -> None:
    """Write the first turn of an instance: it started these steps."""
    rows = rows or (handed(),)
    with site.engine.begin() as connection:
        last = max(row.started_seq for row in rows)
        assert turns.commit(connection, [turn(instance, 0, last, *rows, started_at=START)]) == {instance: []}


def registered(site: Site, *known: str) -> UUID:
    with site.engine.begin() as connection:
        worker = Incarnation(new_id(START), "here", 1)
        workers.register(connection, site.settings.account, worker, known)
    return worker.id


def claimed(
    site: Site, worker: UUID, instance: UUID, fence: int = 2, key: str = KEY, known: str = "flow@1"
) -> bool:
    with site.engine.begin() as connection:
        got, again = steps.claim(connection, [Claim(instance, key, fence)], worker, [known], START)
    assert not again
    return bool(got)


# -- creating ----------------------------------------------------------------------------------------------


def test_create_inserts_what_is_free_and_never_aborts(site: Site) -> None:
    """protocols §20: ``ON CONFLICT DO NOTHING``: the caller's transaction goes on, whatever existed."""
    new = [NewInstance(new_id(START), name, "null", 1.0, 2.0) for name in ("a", "b", "a2")]
    account = site.settings.account
    with Session(site.engine) as orm, orm.begin():
        connection = orm.connection()
        assert instances.create(connection, account, "w", "1", new[:2], START) == {new[0].id, new[1].id}
        twin = NewInstance(new_id(START), "b", "1", 1.0, 1.0)
        assert instances.create(connection, account, "w", "1", [twin, new[2]], START, alarm_at=START + 5) == {
            new[2].id
        }
        other = instances.create(connection, account, "other", "1", [twin], START)
        assert other == {twin.id}
    kept = instances_of(site)
    assert [(name, status) for name, status, _ in kept] == [
        ("a", "queued"),
        ("a2", "running"),
        ("b", "queued"),
        ("b", "queued"),
    ]
    assert [alarm == FOREVER for _, status, alarm in kept] == [True, False, True, True]
    assert site.row(new[2].id).alarm == START + 5


def instances_of(site: Site) -> list[tuple[str, str, float]]:
    rows = site.sql(
        "SELECT name_id, status, extract(epoch FROM alarm_at)::float8 FROM orchestrator_instances "
        "WHERE account = :account ORDER BY 1, 2",
        account=site.settings.account,
    )
    return [tuple(row) for row in rows]


# -- turns -------------------------------------------------------------------------------------------------


def test_a_turn_is_written_only_where_seq_is_as_expected(site: Site, planted: Created) -> None:
    """protocols §1: compare and set: what does not match writes nothing at all, the others everything."""
    good, late = planted.plant(), planted.plant()
    begun(site, good)
    begun(site, late)
    site.sql("INSERT INTO orchestrator_inbox VALUES (:id, 1, 't', '1', now())", id=late)
    every = {
        "attempts": [AttemptRow(KEY, 1, 2, 3, "{}", "tb", START, START, START + 1, 10.0)],
        "transitions": [Transition(4, "complete", START)],
        "consumed": [1],
        "output": '"o"',
        "error": '"e"',
        "status": Status.COMPLETE,
        "ended_at": START + 9,
        "ended_seq": 3,
    }
    done = handed(status="done", finished_seq=3, finished_at=START, output="1")
    fresh = handed("do:b:1", 4)
    with site.engine.begin() as connection:
        written = turns.commit(
            connection,
            [turn(good, 2, 5, done, fresh, **every), turn(late, 1, 5, done, fresh, **every)],
        )
    assert written == {good: []}
    for instance, expected in (
        (good, (5, "complete", "done", 2, 1, 1, '"o"')),
        (late, (2, "running", "handed", 1, 0, 0, None)),
    ):
        row = site.row(instance)
        counted = [
            site.sql(f"SELECT count(*) FROM orchestrator_{table} WHERE instance_id = :id", id=instance)[0][0]
            for table in ("steps", "attempts", "transitions")
        ]
        output = site.sql("SELECT output FROM orchestrator_payloads WHERE instance_id = :id", id=instance)[0][
            0
        ]
        assert (row.seq, row.status, site.step(instance, KEY).status, *counted, output) == expected
    assert site.sql("SELECT count(*) FROM orchestrator_inbox WHERE instance_id = :id", id=late) == [(1,)]


def test_what_a_turn_consumed_leaves_the_inbox(site: Site, planted: Created) -> None:
    """protocols §9: an event is consumed in the transaction that resolves its waiter."""
    instance = planted.plant()
    begun(site, instance)
    for number in (1, 2, 3):
        site.sql("INSERT INTO orchestrator_inbox VALUES (:id, :n, 't', '1', now())", id=instance, n=number)
    with site.engine.begin() as connection:
        turns.commit(connection, [turn(instance, 2, 3, consumed=[1, 3])])
    assert site.sql("SELECT number FROM orchestrator_inbox WHERE instance_id = :id", id=instance) == [(2,)]


def test_a_locked_row_counts_as_lost(site: Site, planted: Created) -> None:
    """protocols §1: nobody waits for a row in a flush."""
    held, free = planted.plant(), planted.plant()
    with site.locked(held), site.engine.begin() as connection:
        assert turns.lock(connection, [held, free]) == {free}
        assert turns.commit(connection, [turn(held, 0, 1), turn(free, 0, 1)]) == {free: []}
    assert site.row(held).seq == 0


def test_five_hundred_turns_are_one_statement(site: Site, planted: Created) -> None:
    """protocols §1 (8): 500 instances a flush; each writes its own rows, above number 255 as below."""
    ids = [planted.plant() for _ in range(500)]
    with site.engine.begin() as connection:
        written = turns.commit(
            connection, [turn(i, 0 if n % 7 else 1, 2, handed()) for n, i in enumerate(ids)]
        )
    expected = {i for n, i in enumerate(ids) if n % 7}
    assert written.keys() == expected
    found = site.sql("SELECT instance_id FROM orchestrator_steps WHERE instance_id = ANY(:ids)", ids=ids)
    assert {row[0] for row in found} == expected


def test_values_come_back_as_the_text_that_went_in(site: Site, planted: Created) -> None:
    """protocols §11: values are the codec's text, never ``jsonb``: ``1e22`` stays a float, ``\\u0000`` round-trips."""
    instance = planted.plant()
    text = '{"b":1e22,"a":"\\u0000\\ud800","a":1}'
    begun(site, instance)
    with site.engine.begin() as connection:
        turns.commit(connection, [turn(instance, 2, 3, handed(status="done", finished_seq=3, output=text))])
        stored = histories.load(connection, [Known(instance)])[instance]
    assert stored.rows[0].output == text


# -- the referee -------------------------------------------------------------------------------------------


def cut(instance: UUID, expected: int) -> Writes:
    row = handed(status="cancelling", finished_seq=expected + 1, finished_at=START)
    return turn(instance, expected, expected + 1, row, cut={KEY})


def test_claimed_first_then_cut(site: Site, planted: Created) -> None:
    """protocols §4: the step row is the referee: a body that runs is told, and keeps its fence."""
    instance, worker = planted.plant(), registered(site)
    begun(site, instance)
    assert claimed(site, worker, instance)
    with site.engine.begin() as connection:
        (told,) = turns.commit(connection, [cut(instance, 2)])[instance]
    assert (told.key, told.status, told.fence, told.worker) == (KEY, "cancelling", 2, worker)
    assert site.step(instance, KEY).status == "cancelling"


def test_cut_first_then_claimed(site: Site, planted: Created) -> None:
    """protocols §4: a step that was cut before anybody claimed it has a new fence: the claim matches no row."""
    instance, worker = planted.plant(), registered(site)
    begun(site, instance)
    with site.engine.begin() as connection:
        (told,) = turns.commit(connection, [cut(instance, 2)])[instance]
    assert (told.status, told.fence, told.worker) == ("cancelled", 3, None)
    assert not claimed(site, worker, instance, 2)
    assert not claimed(site, worker, instance, 3)


# -- claims ------------------------------------------------------------------------------------------------


def test_a_claim_needs_the_fence(site: Site, planted: Created) -> None:
    """protocols §3: only the hand-out of that fence is claimed; the message of another is dropped."""
    instance, worker = planted.plant(), registered(site)
    begun(site, instance)
    assert not claimed(site, worker, instance, 1)
    assert not claimed(site, worker, instance, 3)
    assert not claimed(site, worker, instance, 2, key="do:b:1")
    assert site.step(instance, KEY).status == "handed"
    assert claimed(site, worker, instance, 2)
    row = site.step(instance, KEY)
    assert (row.status, row.worker) == ("running", worker)


def test_a_claim_is_idempotent_for_the_same_worker_only(site: Site, planted: Created) -> None:
    """protocols §5: the same incarnation and fence get the same answer again, everybody else nothing."""
    instance = planted.plant()
    mine, other = registered(site), registered(site)
    begun(site, instance)
    assert claimed(site, mine, instance)
    assert claimed(site, mine, instance)
    assert not claimed(site, other, instance)


def test_a_dead_worker_claims_nothing(site: Site, planted: Created) -> None:
    """protocols §6: neither a declared-dead incarnation, nor one that never registered."""
    instance, worker = planted.plant(), registered(site)
    begun(site, instance)
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=worker)
    with site.engine.begin() as connection:
        for who in (worker, uuid4()):
            got, _ = steps.claim(connection, [Claim(instance, KEY, 2)], who, ["flow@1"], START)
            assert not got
    assert site.step(instance, KEY).status == "handed"


def test_a_locked_step_is_tried_again(site: Site, planted: Created) -> None:
    """protocols §4: claims take rows with SKIP LOCKED; what was skipped is told apart from what is gone."""
    held, free, gone, worker = planted.plant(), planted.plant(), planted.plant(), registered(site)
    for instance in (held, free, gone):
        begun(site, instance)
    wanted = [Claim(held, KEY, 2), Claim(free, KEY, 2), Claim(gone, KEY, 1)]
    with site.engine.begin() as holder, site.engine.begin() as connection:
        holder.exec_driver_sql(
            "SELECT 1 FROM orchestrator_steps WHERE instance_id = %(id)s FOR UPDATE", {"id": held}
        )
        got, again = steps.claim(connection, wanted, worker, ["flow@1"], START)
    assert set(got) == {wanted[1]}
    assert again == {wanted[0]}


def test_a_claim_of_an_unknown_workflow_is_neither_got_nor_repeated(site: Site, planted: Created) -> None:
    """protocols §12: a message for a workflow that this worker does not know is dropped; the row stays as it is."""
    instance, worker = planted.plant(), registered(site)
    begun(site, instance)
    assert not claimed(site, worker, instance, known="flow@2")
    assert site.step(instance, KEY).status == "handed"


def test_a_claim_tells_seq_and_run_and_for_compensations_the_forward_step(
    site: Site, planted: Created
) -> None:
    """protocols §4: the claim takes what the replay needs to know in the same statement."""
    instance, worker = planted.plant(), registered(site)
    forward = handed(status="done", finished_seq=3, output="7")
    handler = StepRow(f"{KEY}:rollback", "rollback", "handed", 4, START, attempt=1, fence=4, config=CONFIG)
    begun(site, instance)
    with site.engine.begin() as connection:
        writes = turn(instance, 2, 5, forward, handler, ending="errored", error='{"name":"E","message":"m"}')
        turns.commit(connection, [writes])
        got, _ = steps.claim(connection, [Claim(instance, handler.key, 4)], worker, ["flow@1"], START)
    (one,) = got.values()
    assert (one.seq, one.run, one.ending, one.forward_output, one.forward_attempt) == (
        5,
        0,
        "errored",
        "7",
        1,
    )
    assert one.error == '{"name":"E","message":"m"}'


def test_unclaim_puts_back_only_ones_own(site: Site, planted: Created) -> None:
    """protocols §12: a process that cannot run what it claimed leaves it as if it had never been claimed."""
    instance = planted.plant()
    mine, other = registered(site), registered(site)
    begun(site, instance)
    assert claimed(site, mine, instance)
    with site.engine.begin() as connection:
        steps.unclaim(connection, [Claim(instance, KEY, 2)], other)
    assert site.step(instance, KEY).status == "running"
    with site.engine.begin() as connection:
        steps.unclaim(connection, [Claim(instance, KEY, 2)], mine)
    row = site.step(instance, KEY)
    assert (row.status, row.worker, row.claimed_at) == ("handed", None, None)
    assert claimed(site, other, instance)


def test_revoked_names_what_is_no_longer_ones_own(site: Site, planted: Created) -> None:
    """protocols §13: a worker learns that a body of its was cancelled, handed to another, or its instance deleted."""
    mine, other = registered(site), registered(site)
    kept, cancelled, moved, gone = (planted.plant() for _ in range(4))
    for instance in (kept, cancelled, moved, gone):
        begun(site, instance)
        assert claimed(site, mine, instance)
    with site.engine.begin() as connection:
        turns.commit(connection, [cut(cancelled, 2)])
    site.sql("UPDATE orchestrator_steps SET worker = :w WHERE instance_id = :id", w=other, id=moved)
    site.sql("DELETE FROM orchestrator_steps WHERE instance_id = :id", id=gone)
    with site.engine.begin() as connection:
        running = [Claim(i, KEY, 2) for i in (kept, cancelled, moved, gone)]
        assert steps.revoked(connection, running, mine) == set(running[1:])


# -- histories ---------------------------------------------------------------------------------------------


def test_load_reads_only_what_came_after(site: Site, planted: Created) -> None:
    """protocols §1 (3): who holds everything up to ``seq`` is given what started since, and what it knew as open."""
    instance = planted.plant({"x": 1})
    rows = [handed(f"do:a:{n}", n + 1) for n in range(1, 6)]
    begun(site, instance, *rows)
    with site.engine.begin() as connection:
        rows[0].status, rows[0].finished_seq = "done", 7
        turns.commit(connection, [turn(instance, 6, 7, rows[0])])
        whole = histories.load(connection, [Known(instance)])[instance]
        assert sorted(row.key for row in whole.rows) == [row.key for row in rows]
        assert whole.params == '{"x":1}'
        part = histories.load(connection, [Known(instance, 4, ["do:a:1", "do:a:3"])])[instance]
        assert sorted(row.key for row in part.rows) == ["do:a:1", "do:a:3", "do:a:4", "do:a:5"]
        assert part.params == ""
        assert histories.load(connection, [Known(uuid4())]) == {}


def test_load_tells_whose_worker_is_dead(site: Site, planted: Created) -> None:
    """protocols §6: a running step whose worker was declared dead, or is gone, is told apart."""
    alive, dead, left = registered(site), registered(site), registered(site)
    ids = [planted.plant() for _ in range(3)]
    for instance, worker in zip(ids, (alive, dead, left), strict=True):
        begun(site, instance)
        assert claimed(site, worker, instance)
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=dead)
    with site.engine.begin() as connection:
        workers.leave(connection, left)
        stored = histories.load(connection, [Known(i) for i in ids])
    assert [stored[i].dead for i in ids] == [set(), {KEY}, {KEY}]


# -- alarms ------------------------------------------------------------------------------------------------


def taken(
    connection: Connection, site: Site, until: float = START + 6, limit: int = 100
) -> dict[UUID, float]:
    known = ["flow@1"]
    return dict(alarms.take(connection, site.settings.account, known, START, until, 1.0, limit).due)


def test_alarms_are_taken_once_and_moved(site: Site, planted: Created) -> None:
    """protocols §7: an alarm is read before its moment, once, and moved past it, should its taker die."""
    soon, later = planted.plant(now=START), planted.plant(now=START + 2)
    queued = planted.plant(queued=True)
    with site.engine.begin() as first, site.engine.begin() as second:
        assert taken(first, site) == {soon: START + 5}
        assert taken(second, site) == {}, "two takers got the same alarm"
        assert taken(second, site, START + 8) == {later: START + 7}
    assert (site.row(soon).alarm, site.row(later).alarm) == (START + 6, START + 8)
    assert site.row(queued).alarm == FOREVER
    with site.engine.begin() as connection:
        assert taken(connection, site, START + 1e9, 1) == {soon: START + 6}


def test_an_overdue_alarm_is_moved_past_now(site: Site, planted: Created) -> None:
    """protocols §7: what is long overdue rings now and, should its taker die, in a second, not in the past."""
    old = planted.plant(now=START - 1000)
    with site.engine.begin() as connection:
        assert taken(connection, site) == {old: START - 995}
    assert site.row(old).alarm == START + 1


def test_alarms_of_unknown_workflows_are_left(site: Site, planted: Created) -> None:
    """protocols §12: an alarm is taken only by who has the workflow and the version registered."""
    planted.plant()
    with site.engine.begin() as connection:
        for known in (["flow@2"], ["other@1"]):
            assert not alarms.take(connection, site.settings.account, known, START, START + 60, 1.0, 10).due


def test_a_flood_of_alarms_delays_no_other_workflow(site: Site, planted: Created) -> None:
    """semantics §6, protocols §7: more is due than one takes: the oldest of each workflow in turn, of any version,
    and what few there are of another workflow at once."""

    async def other(event: Any, step: Any) -> None: ...

    flood = [planted.plant(now=START - 100 + n) for n in range(12)]
    few = [site.workflow(other).plant(now=START - 20 + n) for n in range(3)]
    known, account = ["flow@1", "other@1", "other@2", "none@1"], site.settings.account
    with site.engine.begin() as connection:
        got = alarms.take(connection, account, known, START, START + 3, 1.0, 8).due
    assert {instance for instance, _ in got} == {*flood[:5], *few}
    with site.engine.begin() as connection:
        got = alarms.take(connection, account, known, START, START + 0.5, 1.0, 8).due
    assert {instance for instance, _ in got} == set(flood[5:])


# -- workers -----------------------------------------------------------------------------------------------


def test_a_worker_is_dead_only_after_its_lease(site: Site, planted: Created) -> None:
    """protocols §6: a death is declared after a lease without heartbeat; the dead can never beat again."""
    account, worker = site.settings.account, registered(site)
    with site.engine.begin() as connection:
        assert workers.declare_dead(connection, account, 15.0, START) == []
        assert workers.heartbeat(connection, worker) is not None
    site.sql(
        "UPDATE orchestrator_workers SET heartbeat_at = now() - interval '14 s' WHERE id = :id", id=worker
    )
    with site.engine.begin() as connection:
        assert workers.declare_dead(connection, account, 15.0, START) == []
    site.sql(
        "UPDATE orchestrator_workers SET heartbeat_at = now() - interval '16 s' WHERE id = :id", id=worker
    )
    with site.engine.begin() as connection:
        assert workers.declare_dead(connection, "another-account", 15.0, START) == []
        assert workers.declare_dead(connection, account, 15.0, START) == [worker]
        assert workers.declare_dead(connection, account, 15.0, START) == []
        assert workers.heartbeat(connection, worker) is None
        workers.forget_dead(connection, account, 3600)
    assert site.sql("SELECT count(*) FROM orchestrator_workers WHERE id = :id", id=worker) == [(1,)]


def test_a_death_wakes_what_it_ran_and_nothing_else(site: Site, planted: Created) -> None:
    """protocols §7: one statement sets the alarms of the instances that have a step running on the dead."""
    dead, alive = registered(site), registered(site)
    its, others, finished = planted.plant(), planted.plant(), planted.plant()
    for instance, worker in ((its, dead), (others, alive), (finished, dead)):
        begun(site, instance)
        assert claimed(site, worker, instance)
    site.sql("UPDATE orchestrator_instances SET alarm_at = 'infinity' WHERE id = :id", id=finished)
    site.sql("UPDATE orchestrator_workers SET heartbeat_at = now() - interval '1 h' WHERE id = :id", id=dead)
    with site.engine.begin() as connection:
        assert workers.declare_dead(connection, site.settings.account, 15.0, START - 7) == [dead]
    assert [site.row(i).alarm for i in (its, others, finished)] == [START - 7, START + 5, FOREVER]


def test_a_locked_instance_stops_no_declaration_and_is_woken_later(site: Site, planted: Created) -> None:
    """protocols §6, §7: declaring a death waits for nobody's lock; who was locked is woken at a later heartbeat."""
    account, dead = site.settings.account, registered(site)
    held, free = planted.plant(), planted.plant()
    for instance in (held, free):
        begun(site, instance)
        assert claimed(site, dead, instance)
    site.sql("UPDATE orchestrator_workers SET heartbeat_at = now() - interval '1 h' WHERE id = :id", id=dead)
    engine = session.connect(site.settings.database_url, pool_size=1, turns=True)
    with site.locked(held), engine.begin() as connection:
        assert workers.declare_dead(connection, account, 15.0, START - 7) == [dead]
    assert (site.row(held).alarm, site.row(free).alarm) == (START + 5, START - 7)
    with engine.begin() as connection:
        assert workers.declare_dead(connection, account, 15.0, START - 6) == []
    assert (site.row(held).alarm, site.row(free).alarm) == (START - 6, START - 7)
    site.sql("UPDATE orchestrator_workers SET dead_at = now() - interval '1 h' WHERE id = :id", id=dead)
    with engine.begin() as connection:
        assert workers.declare_dead(connection, account, 15.0, START - 9) == []
    assert site.row(held).alarm == START - 6
    engine.dispose()


def test_whoever_renews_at_this_moment_is_not_judged(site: Site) -> None:
    """protocols §6: a worker whose row is held by its own heartbeat is left for the next time."""
    account, worker = site.settings.account, registered(site)
    site.sql(
        "UPDATE orchestrator_workers SET heartbeat_at = now() - interval '1 h' WHERE id = :id", id=worker
    )
    engine = session.connect(site.settings.database_url, pool_size=1, turns=True)
    with site.engine.begin() as beating, engine.begin() as connection:
        assert workers.heartbeat(beating, worker) is not None
        assert workers.declare_dead(connection, account, 15.0, START) == []
        workers.forget_dead(connection, account, 0.0)
    engine.dispose()


def test_workflows_tell_whether_their_code_changed(site: Site) -> None:
    """protocols §12: registering names the workflows whose source hash is not what was known."""
    account = site.settings.account
    with site.engine.begin() as connection:
        one, two = ("a", "1", "h1", "{}"), ("b", "1", "h1", "{}")
        assert set(workers.register_workflows(connection, account, [one, two])) == {"a", "b"}
        assert workers.register_workflows(connection, account, [one, two]) == []
        assert workers.register_workflows(connection, account, [one, ("b", "1", "h2", "{}")]) == ["b"]
        assert workers.register_workflows(connection, account, [("a", "2", "h1", "{}")]) == ["a"]


def test_release_blocked_sets_the_alarms_of_the_blocked_only(site: Site, planted: Created) -> None:
    """protocols §12: with other code, what is blocked is tried again at once."""
    blocked, other = planted.plant(), planted.plant()
    site.sql(
        "UPDATE orchestrator_instances SET blocked = '{}', status = 'waiting' WHERE id = :id", id=blocked
    )
    with site.engine.begin() as connection:
        assert instances.release_blocked(connection, site.settings.account, ["x"], START - 1) == 0
        assert instances.release_blocked(connection, site.settings.account, ["flow"], START - 1) == 1
    assert (site.row(blocked).alarm, site.row(other).alarm) == (START - 1, START + 5)


def test_a_locked_instance_does_not_keep_a_worker_from_registering(site: Site, planted: Created) -> None:
    """protocols §12: of the blocked instances those that somebody holds are left to their own alarm."""
    held, free = planted.plant(), planted.plant()
    for instance in (held, free):
        site.sql("UPDATE orchestrator_instances SET blocked = '{}' WHERE id = :id", id=instance)
    engine = session.connect(site.settings.database_url, pool_size=1, turns=True)
    with site.locked(held), engine.begin() as connection:
        assert instances.release_blocked(connection, site.settings.account, ["flow"], START - 1) == 1
    assert (site.row(held).alarm, site.row(free).alarm) == (START + 5, START - 1)
    engine.dispose()


# -- events ------------------------------------------------------------------------------------------------


def test_an_event_is_numbered_and_wakes_a_waiter_of_its_type_only(site: Site, planted: Created) -> None:
    """protocols §9: the inbox gets the instance's next number; with a waiter for the type the alarm is now."""
    instance = planted.plant()
    wait = StepRow(
        "wait:w:1", "wait", "waiting", 2, START, config=WaitConfig.build("go").to_json(), due_at=START + 9
    )
    begun(site, instance, wait)
    target = (site.settings.account, "flow", str(instance))
    with site.engine.begin() as connection:
        assert events.append(connection, *target, "stop", "1", START - 3) == (instance, False)
        assert events.append(connection, *target, "go", "2", START - 2) == (instance, True)
    row = site.row(instance)
    assert (row.seq, row.alarm) == (4, START - 2)
    inbox = site.sql(
        "SELECT number, type, payload FROM orchestrator_inbox WHERE instance_id = :id", id=instance
    )
    assert inbox == [(3, "stop", "1"), (4, "go", "2")]


def test_an_event_for_nobody_is_refused(site: Site, planted: Created) -> None:
    """protocols §9: an unknown instance and a finished one take no events, and nothing is stored."""
    instance = planted.plant()
    site.sql("UPDATE orchestrator_instances SET status = 'complete' WHERE id = :id", id=instance)
    with site.engine.begin() as connection:
        with pytest.raises(InstanceNotFound):
            events.append(connection, site.settings.account, "flow", "nobody", "go", "1", START)
        with pytest.raises(InvalidTransition, match="complete"):
            events.append(connection, site.settings.account, "flow", str(instance), "go", "1", START)
    assert site.sql("SELECT count(*) FROM orchestrator_inbox WHERE instance_id = :id", id=instance) == [(0,)]


# -- the schema --------------------------------------------------------------------------------------------


def test_the_migration_makes_exactly_the_schema(migrated: str, site: Site) -> None:
    """design §3: ``alembic check`` finds no difference between the tables in code and in the database."""
    command.check(migrate.configuration(site.settings.database_url))


def test_migrating_again_changes_nothing(migrated: str, site: Site) -> None:
    """design §3: a second migration finds nothing to do."""
    assert migrate.upgrade(site.settings.database_url) == (migrate.head(), migrate.head())


def test_three_may_migrate_at_once(empty_database: str) -> None:
    """design §3: migrations take turns behind an advisory lock."""
    code = "import sys; from orchestrator.store import migrate; print(migrate.upgrade(sys.argv[1])[1])"
    url = empty_database.replace("postgresql://", "postgresql+psycopg://")
    argv = [sys.executable, "-c", code, url]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(process.communicate(timeout=60)[0].strip(), process.returncode) for process in started]
    assert ends == [(migrate.head(), 0)] * 3


# -- query plans -------------------------------------------------------------------------------------------

PEOPLE, EACH, LARGE = 10_000, 10, 100_000
FILL = f"""
INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, created_at,
  success_retention_s, error_retention_s, seq)
SELECT md5(n::text)::uuid, 'many', 'flow', n::text, '1', 'running', to_timestamp({START} + n), now(), 1, 1, {EACH}
FROM generate_series(0, {PEOPLE}) n;
INSERT INTO orchestrator_payloads (instance_id, params) SELECT id, '1' FROM orchestrator_instances;
INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at, fence, config)
SELECT md5(n::text)::uuid, 'do:a:' || k, 'do', CASE k WHEN 3 THEN 'handed' ELSE 'done' END, k, now(), k, '{{}}'
FROM generate_series(1, {PEOPLE}) n, generate_series(1, {EACH}) k;
INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at, fence, config)
SELECT md5('0')::uuid, 'do:a:' || k, 'do', CASE k WHEN 3 THEN 'handed' ELSE 'done' END, k, now(), k, '{{}}'
FROM generate_series(1, {LARGE}) k;
"""


def test_a_lane_that_died_while_idle_is_opened_anew(own_site: Site) -> None:
    """protocols §1 (5), §5: nothing had been sent, so nothing is uncertain, and no data are to blame."""
    engine = session.connect(own_site.settings.database_url, pool_size=1, turns=True)
    lane = session.Lane(engine)

    def backend() -> int:
        with lane.connection() as connection:
            return int(session.rows(connection, "SELECT pg_backend_pid()", {})[0][0])

    first = backend()
    assert backend() == first
    assert own_site.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=first) == [(True,)]
    lane._planned_at = float("-inf")
    assert backend() != first
    lane.close()
    engine.dispose()


def test_a_full_pool_is_an_unavailable_service(own_site: Site) -> None:
    """api §5: who gets no connection in time is told so by our own error, and that nothing was written."""
    engine = create_engine(own_site.settings.database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    free = pytest.raises(ServiceUnavailable, match="No connection to Postgres became free")
    with engine.connect(), free, session.transaction(engine):
        pass
    engine.dispose()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def touched(connection: Connection, statement: str, parameters: dict[str, Any]) -> dict[str, float]:
    """Run a statement by its generic plan, as a worker does, and return how many rows that read of each table. A table
    that is scanned fails."""
    numbered, names = session._numbered(statement)
    driver = connection.connection.driver_connection
    cursor = psycopg.ClientCursor(driver)  # type: ignore[arg-type]
    cursor.execute("DEALLOCATE ALL")
    cursor.execute(b"PREPARE probe AS " + numbered)
    holes = ", ".join(["%s"] * len(names))
    cursor.execute(
        f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE probe({holes})", [parameters[name] for name in names]
    )
    (((report,),),) = cursor.fetchall()
    read: dict[str, float] = {}
    for node in nodes(report["Plan"]):
        table = node.get("Relation Name")
        if table is None or node["Node Type"] == "ModifyTable":
            continue
        assert node["Node Type"] != "Seq Scan" or table == "orchestrator_workers", f"{table} is scanned"
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        read[table] = read.get(table, 0) + rows * node["Actual Loops"]
    return read


@pytest.mark.slow
@pytest.mark.parametrize("analyzed", [False, True], ids=["stale-statistics", "analyzed"])
def test_nothing_reads_more_than_it_needs(own_site: Site, analyzed: bool) -> None:
    """design §5: with 200,000 steps, and an instance of 100,000, claims, turns and loads read single rows by index,
    with statistics or without."""
    own_site.sql("ALTER TABLE orchestrator_steps SET (autovacuum_enabled = false)")
    own_site.sql("ALTER TABLE orchestrator_instances SET (autovacuum_enabled = false)")
    for statement in FILL.split(";\n"):
        if statement.strip():
            own_site.sql(statement)
    if analyzed:
        own_site.sql("ANALYZE")
    assert own_site.sql("SELECT count(*) FROM orchestrator_steps") == [(PEOPLE * EACH + LARGE,)]
    worker = registered(own_site)
    ids = [UUID(str(own_site.sql("SELECT md5(:n)::uuid", n=str(n))[0][0])) for n in (0, 1, 2, 3, 4)]
    engine = session.connect(own_site.settings.database_url, pool_size=1, turns=True)
    with engine.connect() as connection:
        claims = {
            "ids": ids,
            "keys": ["do:a:3"] * 5,
            "fences": [3] * 5,
            "worker": worker,
            "known": ["flow@1"],
            "now": START,
        }
        read = touched(connection, steps._CLAIM, claims)
        assert read["orchestrator_steps"] <= 50, read
        assert touched(connection, steps._STILL, claims)["orchestrator_steps"] <= 50

        known = {"ids": ids, "seqs": [LARGE, 10, 10, 10, 10]}
        opened = {"open_ids": ids, "open_keys": ["do:a:3"] * 5, "open_seqs": known["seqs"]}
        read = touched(connection, histories._STEPS, {**known, **opened})
        assert read["orchestrator_steps"] <= 50, read
        assert touched(connection, histories._HEAD, known)["orchestrator_instances"] <= 10
        assert touched(connection, histories._INBOX, {"ids": ids}).get("orchestrator_inbox", 0) == 0

        done = [handed("do:a:3", 3, status="done", finished_seq=LARGE + 1, output="1") for _ in ids]
        fresh = [handed("do:new:1", LARGE + 2) for _ in ids]
        every: dict[str, Any] = {
            "attempts": [AttemptRow(KEY, 1, 2, 3, "{}", "", START, START, START, 1.0)],
            "transitions": [Transition(4, "running", START)],
            "consumed": [1],
            "output": "1",
        }
        writes = [turn(i, EACH, LARGE + 2, a, b, **every) for i, a, b in zip(ids, done, fresh, strict=True)]
        for w in writes:
            w.steps["do:a:3"].started_seq = 3
        for some in (writes, writes[:1]):
            made, parts, alone = turns._parameters(some)
            assert bool(alone) is (len(some) == 1)
            read = touched(connection, turns._statement(parts, alone), made)
            assert read["orchestrator_steps"] <= 50, read
            assert read["orchestrator_instances"] <= 50, read
            connection.rollback()
        due = {
            "account": "many",
            "now": START,
            "until": START + 50,
            "workflows": ["flow"],
            "versions": ["1"],
            "limit": 20,
            "again": 1.0,
        }
        assert touched(connection, alarms._TAKE, due)["orchestrator_instances"] <= 150
        connection.rollback()
    engine.dispose()
