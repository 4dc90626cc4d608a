"""Turns in batches: compare and set, locks, failures, budgets, and instances that are held."""

import asyncio
import json
import threading
import time
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from orchestrator import Retries, Status
from orchestrator.engine.batch import BYTES_PER_FLUSH, Batcher
from orchestrator.engine.turning import coordinator
from orchestrator.engine.turning.results import Results
from orchestrator.errors import ReplayDiscarded
from orchestrator.store import turns
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import START, ManualClock, Site, eventually

pytestmark = pytest.mark.integration


async def body(*args: Any) -> Any:
    return list(args)


async def two(event, step):
    """Two steps at once."""
    return list(await asyncio.gather(step.do("a", body), step.do("b", body)))


async def chain(event, step):
    """Three steps, one after the other."""
    for _ in range(3):
        await step.do("one", body)
    return "end"


class Spy:
    """Counts the calls of a verb that go through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls: list[list[UUID]] = []
        original = getattr(turns, name)

        def call(connection: Any, items: Any) -> Any:
            self.calls.append([getattr(item, "id", item) for item in items])
            return original(connection, items)

        monkeypatch.setattr(turns, name, call)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch, "lock")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch, "commit")


# -- the two paths -----------------------------------------------------------------------------------------


def test_what_is_in_the_cache_takes_the_fast_path(site: Site, locks: Spy, commits: Spy) -> None:
    """protocols §1: a cached replay is fed in memory and written by one compare-and-set, without a lock; what is read
    just before needs none either."""
    bench, instance = site.bench(), site.workflow(chain).plant()
    handouts = bench.wake(instance).handouts
    for _ in range(3):
        (handout,) = handouts
        handouts = bench.finish(handout).handouts
    assert site.row(instance).status == "complete"
    assert locks.calls == []
    assert commits.calls == [[instance]] * 4


def test_whoever_loses_the_race_takes_the_slow_path(site: Site, locks: Spy) -> None:
    """protocols §1: an instance that did not match is dropped, locked, brought up to date and written; for a second
    it then takes the locking path at once."""
    instance = site.workflow(two).plant()
    mine, other = site.bench(), site.bench()
    a, b = mine.wake(instance).handouts
    (ready,) = other.claim(b)
    mine.finish(a, "A")
    before = len(locks.calls)
    other.run({instance: [other.outcome(ready, "B")]})
    assert len(locks.calls) == before + 1
    assert [outcome.key for _, outcome in other.done] == ["do:b:1"]
    row = site.row(instance)
    assert row.status == "complete"
    assert site.sql("SELECT output FROM orchestrator_payloads WHERE instance_id = :id", id=instance) == [
        ('["A","B"]',)
    ]


def test_a_contended_instance_is_locked_for_a_second(site: Site, locks: Spy, commits: Spy) -> None:
    """protocols §1: contended in the last second means the slow path, afterwards the fast one again."""

    async def four(event, step):
        await asyncio.gather(*[step.do("x", body) for _ in range(4)])

    instance = site.workflow(four).plant()
    mine, other = site.bench(), site.bench()
    h = mine.wake(instance).handouts
    ready = other.claim(*h[1:])
    mine.finish(h[0])
    other.run({instance: [other.outcome(ready[0])]})  # loses
    locks.calls.clear()
    commits.calls.clear()
    other.run({instance: [other.outcome(ready[1])]})
    assert (len(locks.calls), len(commits.calls)) == (1, 1)
    other.clock.at += 1.1
    other.run({instance: [other.outcome(ready[2])]})
    assert (len(locks.calls), len(commits.calls)) == (1, 2)
    assert site.row(instance).status == "complete"


def test_a_row_that_is_locked_goes_into_the_next_flush(site: Site) -> None:
    """protocols §1 (1): SKIP LOCKED; the others of the flush are written, the skipped one keeps its arrivals."""
    flow = site.workflow(chain)
    held, free = flow.plant(), flow.plant()
    bench = site.bench()
    (first,), (second,) = (bench.wake(i).handouts for i in (held, free))
    ready = bench.claim(first, second)
    batch: Any = {i: [bench.outcome(r)] for i, r in zip((held, free), ready, strict=True)}
    with site.locked(held):
        results = bench.run(batch)
        assert results.repeat == {held: batch[held]}
        assert site.step(free, "do:one:1").status == "done"
        assert [instance for instance, _ in bench.done] == [free]
    results = bench.run(results.repeat)
    assert not results.repeat
    assert site.step(held, "do:one:1").status == "done"


def test_a_turn_sees_what_was_committed_while_it_waited_for_nothing(site: Site) -> None:
    """protocols §1 (2, 3): a replay that is behind is fed only the missing facts, read after the lock."""
    instance = site.workflow(chain).plant()
    mine, other = site.bench(), site.bench()
    (h,) = mine.wake(instance).handouts
    (ready,) = other.claim(h)
    replay = other.replays.get(instance)
    (h2,) = mine.run({instance: [mine.outcome(ready, 1)]}).handouts
    other.wake(instance)
    execution = other.replays.get(instance)
    assert execution is replay, "it was rebuilt, not advanced"
    assert execution is not None
    assert list(execution.open) == [h2.key]
    assert execution.seq == site.row(instance).seq


def test_replays_are_driven_outside_of_any_task(site: Site) -> None:
    """protocols §1: workflow code runs in the engine thread, never inside a running task of the worker's loop."""
    seen: list[str] = []

    async def flow(event, step):
        seen.append(threading.current_thread().name)
        await step.do("one", body)
        seen.append(threading.current_thread().name)

    site.worker()
    site.workflow(flow)
    created = site.workflow(flow).create()
    created.result(10)
    assert set(seen) == {"orchestrator-engine"}


def test_an_evicted_replay_cannot_start_steps(site: Site) -> None:
    """protocols §1: an evicted replay is dead before its ``finally:`` blocks run; step calls there unwind."""
    raised: list[type[BaseException]] = []

    async def flow(event, step):
        try:
            await step.do("one", body)
        finally:
            try:
                step.do("undo", body)
            except BaseException as error:
                raised.append(type(error))
                raise

    flows = site.workflow(flow)
    bench = site.bench()
    bench.replays._limit = 1
    first, second = flows.plant(), flows.plant()
    bench.wake(first)
    bench.wake(second)
    bench.replays.trim()  # as the next flush does first
    assert raised == [ReplayDiscarded]
    assert site.step(first, "do:undo:1") is None


# -- failures ----------------------------------------------------------------------------------------------


def away(*_: Any) -> Any:
    raise OperationalError("SELECT 1", None, psycopg.OperationalError("server closed the connection"))


def test_a_failed_flush_drops_every_replay_it_fed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §1 (4): a replay holds committed facts only, on the fast path and on the slow one."""
    flow = site.workflow(chain)
    bench = site.bench()
    one, other = flow.plant(), flow.plant()
    handouts = bench.wake(one).handouts + bench.wake(other).handouts
    ready = bench.claim(*handouts)
    batch: Any = {h.instance: [bench.outcome(r)] for h, r in zip(handouts, ready, strict=True)}
    for fast in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(turns, "commit", away)
            results = bench.run(batch)
        assert results.uncertain, fast
        assert results.repeat == batch
        assert not bench.done
        assert bench.replays.get(one) is None
        assert bench.replays.get(other) is None
    bench.run(batch)
    assert {instance for instance, _ in bench.done} == {one, other}
    assert site.step(one, "do:one:2").status == "handed"


def test_locks_in_the_way_repeat_the_flush(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §1 (9): a lock time-out or a deadlock is nobody's fault: nothing is held, all is repeated."""
    bench, instance = site.bench(), site.workflow(chain).plant()
    (handout,) = bench.wake(instance).handouts
    (ready,) = bench.claim(handout)
    batch: Any = {instance: [bench.outcome(ready)]}
    original, fails = turns.commit, [psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected]

    def commit(*args: Any) -> Any:
        if fails:
            raise OperationalError("x", None, fails.pop()("no"))
        return original(*args)

    monkeypatch.setattr(turns, "commit", commit)
    while fails:
        results = bench.run(batch)
        assert (results.repeat, results.uncertain) == (batch, False)
    bench.run(batch)
    assert site.row(instance).blocked is None
    assert site.step(instance, "do:one:1").status == "done"


def poisoned(own_site: Site) -> None:
    """Have the database refuse one step, whoever writes it."""
    own_site.sql("ALTER TABLE orchestrator_steps ADD CONSTRAINT poison CHECK (key <> 'do:poison:1')")


def test_a_flush_that_fails_on_data_holds_the_offender_only(own_site: Site) -> None:
    """protocols §1 (5): the flush is repeated one by one, the offender is held, the others commit."""
    poisoned(own_site)

    async def flow(event, step):
        await step.do(event.payload, body)

    flows, bench = own_site.workflow(flow), own_site.bench()
    good = [flows.plant("fine") for _ in range(4)]
    bad = flows.plant("poison")
    results = bench.wake(good[0], good[1], bad, good[2], good[3])
    assert {h.instance for h in results.handouts} == set(good)
    row = own_site.row(bad)
    assert (row.status, row.alarm) == ("waiting", START + 60)
    assert "CheckViolation" in row.blocked
    assert all(own_site.row(i).blocked is None for i in good)


def test_a_held_instance_is_tried_again_ever_more_rarely(own_site: Site) -> None:
    """protocols §12: every minute, backing off to ten; when it goes on, the back-off starts anew."""
    poisoned(own_site)

    async def flow(event, step):
        await step.do("poison", body)

    flows, bench = own_site.workflow(flow), own_site.bench()
    instance = flows.plant()
    waits = []
    for _ in range(6):
        bench.wake(instance)
        row = own_site.row(instance)
        waits.append(row.alarm - bench.clock.at)
        bench.clock.at = row.alarm
    assert waits == [60, 120, 240, 480, 600, 600]
    own_site.sql("ALTER TABLE orchestrator_steps DROP CONSTRAINT poison")
    (handout,) = bench.wake(instance).handouts
    row = own_site.row(instance)
    assert (row.status, row.blocked) == ("running", None)
    bench.finish(handout)
    assert own_site.row(instance).status == "complete"


def other_code(site: Site, name: str) -> Registry:
    """A registry where the workflow of that name does something else."""
    registry = Registry()

    async def flow(event, step):
        await step.do("something-else", body)

    site.workflow(flow, registry, name=name)
    return registry


def test_a_blocked_instance_says_why_and_keeps_what_ends(site: Site) -> None:
    """protocols §12: status waiting, ``blocked`` says why, outcomes are recorded while it is held, nothing is handed
    out; code that fits goes on from there."""
    flow = site.workflow(two)
    created = flow.create()
    instance = site.id_of(created.id)
    clock = ManualClock(time.time())
    fits, differs = site.bench(clock=clock), site.bench(other_code(site, flow.name), clock)
    a, b = fits.wake(instance).handouts
    (ready,) = fits.claim(a)
    results = differs.wake(instance)
    status = created.status()
    assert status.status is Status.WAITING
    assert status.blocked is not None
    assert status.blocked.name == "NonDeterminismError"
    assert "do:a:1" in status.blocked.message
    assert (status.error, status.output) == (None, None)
    assert not results.handouts

    differs.run({instance: [differs.outcome(ready, "A")]})
    assert site.step(instance, "do:a:1").output == '"A"'
    assert created.status().blocked is not None

    fits.wake(instance)
    assert created.status().blocked is None
    fits.finish(b, "B")
    assert created.status().output == ["A", "B"]


def test_a_retry_of_a_blocked_instance_is_not_handed_out(site: Site) -> None:
    """protocols §12: an attempt that fails while the instance is held is recorded; its retry waits for the code."""

    async def flow(event, step):
        await step.do("a", body, retries=Retries(limit=3, delay=0))

    flows = site.workflow(flow)
    instance = flows.plant()
    fits, differs = site.bench(), site.bench(other_code(site, flows.name))
    (a,) = fits.wake(instance).handouts
    (ready,) = fits.claim(a)
    lost = differs.outcome(ready, loss="handed_back")
    results = differs.run({instance: [lost]})
    assert not results.handouts
    row = site.step(instance, "do:a:1")
    assert (row.status, row.uncounted) == ("pending", 1)
    fresh = site.bench()
    (h,) = fresh.wake(instance).handouts
    fresh.finish(h)
    assert site.row(instance).status == "complete"


def test_holding_never_touches_a_finished_instance(site: Site) -> None:
    """protocols §12: an instance that ended before it could be held stays as it ended."""
    flow = site.workflow(two)
    created = flow.create()
    instance = site.id_of(created.id)
    bench = site.bench()
    bench.wake(instance)
    created.terminate()
    before = site.row(instance)
    bench.coordinator.block([(instance, RuntimeError("too late"))], Results())
    assert site.row(instance) == before


def test_code_that_fits_and_registers_sets_it_going(site: Site) -> None:
    """protocols §12: a worker with another source hash registers, and what is blocked is tried at once."""
    flow = site.workflow(two)
    created = flow.create()
    site.post.turns.clear()
    differs = site.bench(other_code(site, flow.name), ManualClock(time.time() - 30))
    fits = site.bench(clock=differs.clock)
    fits.wake(site.id_of(created.id))
    differs.wake(site.id_of(created.id))
    assert created.status().blocked is not None
    site.worker(chef=True)
    assert created.result(10) == [[], []]


def test_the_alarm_alone_sets_it_going(site: Site) -> None:
    """protocols §12: without any registration, the alarm tries it again."""
    flow = site.workflow(two)
    site.worker(chef=True, deliver=False)  # registers before there is anything blocked
    created = flow.create()
    instance = site.id_of(created.id)
    site.sql(
        'UPDATE orchestrator_instances SET status = \'waiting\', blocked = \'{"name":"X","message":"y"}\', '
        "alarm_at = now() + interval '1 second', seq = seq + 1 WHERE id = :id",
        id=instance,
    )
    worker = site.workers[0]
    site.post.targets.append(worker)
    assert created.result(10) == [[], []]


def test_an_unknown_version_is_left_alone(site: Site) -> None:
    """protocols §12: who does not know an instance's workflow and version neither turns nor claims nor blocks it."""
    flow = site.workflow(two)
    instance = flow.plant()
    knows, stranger = site.bench(), site.bench(Registry())
    (a, _) = knows.wake(instance).handouts
    before = site.row(instance)
    results = stranger.wake(instance)
    assert (results.handouts, results.repeat) == ([], {})
    assert stranger.claim(a) == [None]
    assert stranger.again == []
    assert site.row(instance) == before
    other_version = Registry()
    site.workflow(two, other_version, version="2")
    assert not site.bench(other_version).wake(instance).handouts
    assert site.row(instance) == before


# -- budgets -----------------------------------------------------------------------------------------------


def test_a_turn_takes_a_thousand_facts_and_goes_on_in_the_next(site: Site) -> None:
    """protocols §1 (6): ``sleep 0`` in a loop cannot hold a transaction: the turn commits and is repeated."""

    async def flow(event, step):
        for _ in range(2300):
            await step.sleep("x", 0)

    instance, bench = site.workflow(flow).plant(), site.bench()
    counted = "SELECT count(*) FROM orchestrator_steps WHERE status = 'done' AND instance_id = :id"
    done: list[int] = []
    results = bench.wake(instance)
    while results.repeat:
        assert list(results.repeat) == [instance]
        done += site.sql(counted, id=instance)[0]
        assert site.row(instance).status == "running"
        results = bench.run(results.repeat)
    assert done == [1000, 2000]
    assert site.row(instance).status == "complete"


def test_code_that_never_becomes_idle_is_held(site: Site) -> None:
    """protocols §1 (6): one feed runs 10,000 callbacks, then the turn commits; code that spins on is held."""

    async def flow(event, step):
        while True:
            await asyncio.sleep(0)

    instance, bench = site.workflow(flow).plant(), site.bench()
    results, turns_taken = bench.wake(instance), 1
    while results.repeat:
        results = bench.run(results.repeat)
        turns_taken += 1
    row = site.row(instance)
    assert row.status == "waiting"
    assert "spins" in json.loads(row.blocked)["message"]
    assert turns_taken > 10


def test_a_slow_instance_runs_alone(site: Site, commits: Spy, caplog: pytest.LogCaptureFixture) -> None:
    """protocols §1 (7), §2: a turn of over 100 ms is logged with the line it stood on; from then on
    the instance has a flush of its own."""

    async def slow(event, step):
        until = time.thread_time() + 0.4
        while time.thread_time() < until:
            pass
        await asyncio.gather(step.do("a", body), step.do("b", body))

    flow, other = site.workflow(slow), site.workflow(two)
    bench = site.bench()
    instance, quick, quick2 = flow.plant(), other.plant(), other.plant()
    h = [bench.wake(i).handouts[0] for i in (quick, instance, quick2)]
    assert "has taken over" in caplog.text and ", in slow" in caplog.text
    ready = bench.claim(*h)
    commits.calls.clear()
    bench.run({x.instance: [bench.outcome(r)] for x, r in zip(h, ready, strict=True)})
    assert commits.calls == [[quick, quick2], [instance]]


def test_a_flush_holds_128_instances_or_8_mebibytes() -> None:
    """protocols §1 (8), at most 500: what is more waits for the next flush; what arrives meanwhile shares it."""
    flushes: list[int] = []
    go, entered = threading.Event(), threading.Event()

    class Coordinator:
        def run(self, batch: dict[UUID, Any]) -> Results:
            entered.set()
            go.wait(10)
            flushes.append(len(batch))
            return Results()

        def settle(self, results: Results) -> None: ...

    class Effects:
        def carry_out(self, results: Results) -> None:
            pass

    batcher = Batcher(Coordinator(), None, Effects())  # type: ignore[arg-type]
    batcher.start()
    batcher.arrive(uuid4(), [Wake()])
    assert entered.wait(10)
    for _ in range(1200):
        batcher.arrive(uuid4(), [Wake()])
    go.set()
    assert batcher.stop(10)
    assert flushes == [1, *[128] * 9, 48]

    flushes.clear()
    go.clear()
    entered.clear()
    batcher = Batcher(Coordinator(), None, Effects())  # type: ignore[arg-type]
    batcher.start()
    batcher.arrive(uuid4(), [Wake()])
    assert entered.wait(10)
    third = "x" * (BYTES_PER_FLUSH // 3 + 1)
    for _ in range(5):
        batcher.arrive(uuid4(), [Outcome("do:a:1", 1, output=third)])
    go.set()
    assert batcher.stop(10)
    assert flushes == [1, 3, 2]


# -- a stuck worker loses its locks ------------------------------------------------------------------------


def test_a_stuck_locker_does_not_stop_the_others(site: Site) -> None:
    """protocols §1 (9): turn connections lose an idle transaction, and give up on a lock, after two seconds."""
    flow = site.workflow(chain)
    stuck, bench = site.bench(), site.bench()
    held, free = flow.plant(), flow.plant()
    with stuck.engine.connect() as connection:
        shown = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("idle_in_transaction_session_timeout", "lock_timeout")
        ]
        assert shown == ["2s", "2s"]
        pgconn = connection.connection.driver_connection.pgconn  # type: ignore[union-attr]
        asked = {option.keyword: option.val for option in pgconn.info if option.val is not None}
        assert (asked[b"keepalives"], asked[b"tcp_user_timeout"]) == (b"1", b"10000")
        turns.lock(connection, [held])  # and is never heard of again
        results = bench.wake(held, free)
        assert list(results.repeat) == [held]
        assert site.step(free, "do:one:1").status == "handed"
        eventually(lambda: not bench.wake(held).repeat, "the lock's end", 5)
        assert site.step(held, "do:one:1").status == "handed"
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        connection.invalidate()
    with site.locked(held), pytest.raises(DBAPIError) as caught, bench.engine.begin() as waiting:
        waiting.execute(text("UPDATE orchestrator_instances SET seq = seq WHERE id = :id"), {"id": held})
    assert isinstance(caught.value.orig, psycopg.errors.LockNotAvailable)


def test_waiting_for_a_locked_row_is_no_work(site: Site, locks: Spy) -> None:
    """protocols §1 (1): a row that stays locked is tried again and again, but not as fast as the machine can."""
    flow = site.workflow(chain)
    worker = site.worker()
    held = flow.plant(now=time.time())
    with site.locked(held):
        began = time.monotonic()
        worker.runtime.coordinate([held])
        eventually(lambda: len(locks.calls) > 5)
        assert flow.create().result(10) == "end"
        eventually(lambda: time.monotonic() - began > 0.7)
        assert len(locks.calls) < 80
    eventually(lambda: site.row(held).status == "complete")


def test_every_fact_has_a_number_of_its_own(site: Site) -> None:
    """protocols §3, §11: starts, ends, failed attempts and transitions share one count that never goes back."""

    def flaky(ctx):
        if ctx.attempt < 2:
            raise ConnectionError

    async def flow(event, step):
        again = Retries(limit=1, delay=0)
        await asyncio.gather(*[step.do("s", flaky, retries=again, rollback=lambda r: None) for _ in range(5)])
        await step.sleep("nap", 0.05)
        step.do("cut", body).cancel()
        await step.wait_for_event("w", type="go")
        raise LookupError

    for _ in range(2):
        site.worker()
    created = site.workflow(flow).create()
    eventually(lambda: created.status().status == "waiting")
    created.send_event("go")
    eventually(lambda: created.status().status == "errored")
    instance = site.id_of(created.id)
    numbers = [
        row[0]
        for table, column in (
            ("steps", "started_seq"),
            ("steps", "finished_seq"),
            ("attempts", "seq"),
            ("transitions", "seq"),
        )
        for row in site.sql(f"SELECT {column} FROM orchestrator_{table} WHERE instance_id = :id", id=instance)
    ]
    assert None not in numbers
    assert len(numbers) == len(set(numbers)) > 5 + 5 + 5
    row = site.row(instance)
    assert max(numbers) <= row.seq
    statuses = site.sql(
        "SELECT status FROM orchestrator_transitions WHERE instance_id = :id ORDER BY seq", id=instance
    )
    assert [s for (s,) in statuses][-2:] == ["rolling_back", "errored"]
    attempts = site.sql(
        "SELECT fence, seq, handed_at <= ended_at FROM orchestrator_attempts WHERE instance_id = :id",
        id=instance,
    )
    assert all(fence < seq and ordered for fence, seq, ordered in attempts)


def test_a_blocked_instance_holds_no_slot(site: Site) -> None:
    """protocols §12: what is held gives its slot back."""

    class Gate:
        released: list[UUID] = []

        def acquire(self, instances: Any) -> set[UUID]:
            return {holder.instance for holder in instances}

        def insist(self, instances: Any) -> None: ...

        def release(self, instances: Any) -> None:
            self.released.extend(holder.instance for holder in instances)

    flow, bench = site.workflow(chain), site.bench(gate=Gate())
    instance = flow.plant()
    bench.wake(instance)
    assert instance not in Gate.released
    results = Results()
    bench.coordinator.block([(instance, RuntimeError("no"))], results)
    bench.coordinator.settle(results)
    assert instance in Gate.released


def test_turns_and_terminations_do_not_deadlock(own_site: Site) -> None:
    """protocols §4: rows are locked in one order, by turns as by verbs: the instance, its steps, its inbox."""

    async def flow(event, step):
        for _ in range(30):
            await asyncio.gather(*[step.do("s", body, rollback=lambda r: None) for _ in range(4)])

    flows = own_site.workflow(flow)
    for _ in range(2):
        own_site.worker()
    created = flows.create_batch(count=16).created
    eventually(lambda: own_site.sql("SELECT 1 FROM orchestrator_steps WHERE status = 'done' LIMIT 1"))

    def end(which: int) -> None:
        for each in created[which::4]:
            each.send_event("noise")
            each.terminate(rollback=which % 2 == 0)

    threads = [threading.Thread(target=end, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in created:
        eventually(lambda each=each: each.status().status == "terminated", patience_s=30)  # type: ignore[misc]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert own_site.sql(deadlocks) == [(0,)]


def test_the_engine_thread_outlives_workflow_code_that_raises_anything(site: Site) -> None:
    """protocols §1: nothing that workflow code raises may end the thread that all instances share."""

    async def flow(event, step):
        await step.do("one", body)
        raise event_errors[event.payload]

    event_errors: dict[str, BaseException] = {
        "exit": SystemExit(3),
        "keyboard": KeyboardInterrupt(),
        "generator": GeneratorExit(),
    }
    flows, worker = site.workflow(flow), site.worker()
    for name in event_errors:
        flows.create(name)
    plain = site.workflow(chain).create()
    assert plain.result(10) == "end"
    assert worker.runtime._batcher._thread.is_alive()


# -- slow code ---------------------------------------------------------------------------------------------


def test_code_that_stands_still_holds_no_lock(site: Site, locks: Spy) -> None:
    """protocols §1 (9): no lock outlives slow workflow code, so a wake of it takes none, and others go on."""

    async def still(event, step):
        time.sleep(2.3)
        await step.do("a", body)

    flow, other = site.workflow(still), site.workflow(chain)
    bench, instance = site.bench(), flow.plant()
    for _ in range(2):
        bench.wake(instance, other.plant())
    assert site.row(instance).blocked is None
    assert site.step(instance, "do:a:1").status == "handed"
    assert locks.calls == []


def test_a_lock_is_not_held_for_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §1 (9): what cannot be decided soon after the lock is left for the next flush."""
    monkeypatch.setattr(coordinator, "LOCKED_S", 0.0)
    flow, bench = site.workflow(chain), site.bench()
    instances = [flow.plant() for _ in range(3)]
    for instance in instances:
        bench.replays.lost_race(instance, bench.clock.at)
    results = bench.wake(*instances)
    assert set(results.repeat) == set(instances)
    bench.clock.at += 2
    assert {h.instance for h in bench.run(results.repeat).handouts} == set(instances)


def test_an_ordinary_turn_leaves_an_alarm_that_was_set_meanwhile(site: Site) -> None:
    """protocols §7: an ordinary turn only moves the alarm earlier, also one that a declared death has just set."""
    bench, instance = site.bench(), site.workflow(chain).plant()
    (handout,) = bench.wake(instance).handouts
    site.sql(
        "UPDATE orchestrator_instances SET alarm_at = to_timestamp(:at) WHERE id = :id", at=START, id=instance
    )
    bench.finish(handout)
    assert site.row(instance).alarm == START
