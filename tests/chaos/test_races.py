"""Races as races: verbs, events and time-outs against turns, claims and each other, on two workers and a real Postgres.

Every run has a seed, which draws small delays at the places where a turn, a claim or a verb may be overtaken, and when
each contender begins. What is judged afterwards: only allowed ends, no event lost or delivered twice, no attempt run or
recorded twice, no slot held and no row left. Ten seeds each, two hundred in a soak; ``ORCHESTRATOR_SEED=<n>`` repeats
one (timing is not seeded, so a rare failure may need several tries).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from orchestrator import EventTimeout, InstanceNotFound, InvalidTransition
from orchestrator.ports import Holder
from orchestrator.store import migrate
from orchestrator.workflow.history import FINAL
from orchestrator.workflow.status import FINISHED, TRANSITIONS, Status
from tests.chaos.dawdling import dawdling
from tests.chaos.harness import seeds
from tests.integration.conftest import settings_of
from tests.integration.harness import Created, Site, Worker, eventually

PATIENCE_S = 60.0
CLOCK_S = 0.05
"""How far a worker's idea of the database's time may be off on a busy machine."""
TABLES = ("payloads", "steps", "attempts", "transitions", "inbox", "reports")


every_seed = pytest.mark.parametrize("seed", seeds(10, 200))


class Slots:
    """A gate that grants all and knows who holds what."""

    def __init__(self) -> None:
        self.held: set[UUID] = set()
        self._lock = threading.Lock()

    def acquire(self, wanted: Iterable[Holder]) -> set[UUID]:
        with self._lock:
            granted = {holder.instance for holder in wanted}
            self.held |= granted
            return granted

    def insist(self, holders: Iterable[Holder]) -> None:
        self.acquire(holders)

    def release(self, holders: Iterable[Holder]) -> None:
        with self._lock:
            self.held -= {holder.instance for holder in holders}

    def drop(self, instances: Iterable[UUID]) -> None:
        with self._lock:
            self.held.difference_update(instances)


class Arena:
    """Two workers that share slots; bodies that note each attempt; contenders that begin at nearly the same moment."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.dice = random.Random(seed)
        self.slots = Slots()
        site.client.revoked = self.slots.drop
        self.began: Counter[tuple[str, int]] = Counter()
        self.undone: Counter[str] = Counter()
        self.workers = [self._worker(place) for place in ("in_place", ("in_place", "broker")[seed % 2])]

    def _worker(self, delivery: str) -> Worker:
        worker = self.site.worker(delivery=delivery)
        worker.runtime._coordinator._slots._gate = self.slots
        return worker

    async def body(self, ctx: Any, value: Any = None) -> Any:
        self.began[ctx.idempotency_key, ctx.attempt] += 1
        await asyncio.sleep(self.dice.random() * 0.004)
        return value

    def undo(self, r: Any) -> None:
        self.undone[r.idempotency_key] += 1

    def race(self, *contenders: Callable[[], Any], within: float = 0.02) -> list[Any]:
        """Run these at the same time, each after a delay of its own; what each returned, or was refused with."""
        start = threading.Barrier(len(contenders))
        delays = [self.dice.random() * within for _ in contenders]

        def run(contender: Callable[[], Any], delay: float) -> Any:
            start.wait(PATIENCE_S)
            time.sleep(delay)
            try:
                return contender()
            except (InvalidTransition, InstanceNotFound) as refusal:
                return refusal

        with ThreadPoolExecutor(len(contenders)) as pool:
            return list(pool.map(run, contenders, delays))

    # -- judging -------------------------------------------------------------------------------------------

    def settle(self, created: Any) -> Status:
        """Resume what is paused and wait for the end."""

        def over() -> bool:
            status = created.status().status
            if status in (Status.PAUSED, Status.WAITING_FOR_PAUSE):
                with suppress(InvalidTransition):  # it may have ended since
                    created.resume()
            return status in FINISHED

        eventually(over, "the end", PATIENCE_S)
        return Status(created.status().status)

    def judge(self, instance: UUID) -> None:
        """Nothing was done twice, nothing is open, nothing is held, and each step from status to status was allowed."""
        eventually(lambda: all(w.runtime.attempts.active == 0 for w in self.workers), "all bodies ended")
        assert {key: count for key, count in self.began.items() if count > 1} == {}, "an attempt ran twice"
        assert {key: count for key, count in self.undone.items() if count > 1} == {}, "undone twice"
        rows = self.site.sql("SELECT key, status FROM orchestrator_steps WHERE instance_id = :i", i=instance)
        assert {row.key: row.status for row in rows if row.status not in FINAL} == {}
        if rows:
            row = self.site.row(instance)
            assert (row.status in FINISHED, row.alarm) == (True, float("inf"))
        eventually(lambda: not self.slots.held, f"slots are given back: {self.slots.held}")
        numbers = self.site.sql(
            "SELECT started_seq FROM orchestrator_steps WHERE instance_id = :i UNION ALL "
            "SELECT finished_seq FROM orchestrator_steps WHERE instance_id = :i AND finished_seq > 0 UNION ALL "
            "SELECT seq FROM orchestrator_attempts WHERE instance_id = :i UNION ALL "
            "SELECT seq FROM orchestrator_transitions WHERE instance_id = :i",
            i=instance,
        )
        assert len(set(numbers)) == len(numbers), "protocols §3: each fact has a seq of its own"
        self._judge_transitions(instance)

    def _judge_transitions(self, instance: UUID) -> None:
        query = "SELECT status FROM orchestrator_transitions WHERE instance_id = :i ORDER BY seq"
        path = [Status(row.status) for row in self.site.sql(query, i=instance)]
        for old, new in pairwise(path):
            granted = old is Status.QUEUED  # the queue is left without a record of its own
            assert (
                new is old or new in TRANSITIONS[old] or (granted and new in TRANSITIONS[Status.RUNNING])
            ), path

    def inbox(self, instance: UUID) -> list[Any]:
        return self.site.sql("SELECT payload FROM orchestrator_inbox WHERE instance_id = :i", i=instance)


@pytest.fixture
def arena(postgres_url: str, redis_url: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    settings = settings_of(postgres_url, redis_url)
    migrate.upgrade(settings.database_url)
    dawdling(monkeypatch, seed)
    with Site(settings) as site:
        yield Arena(site, seed)


def uuid_of(arena: Arena, created: Any) -> UUID:
    return arena.site.id_of(created.id)


# -- events ----------------------------------------------------------------------------------------------------------


@every_seed
def test_events_arrive_while_their_waiter_times_out(arena: Arena) -> None:
    """protocols §9: a waiter gets an event exactly if that was received before its due time, and whoever sends three
    has three received, each once, in the order they came."""

    async def races_timeout(event, step):
        got: list[Any] = []
        try:
            got.append(await step.wait_for_event("first", type="go", timeout=1))
        except EventTimeout:
            got.append(None)
        got += [await step.wait_for_event("then", type="go", timeout=600) for _ in range(3 - bool(got[0]))]
        await step.do("a", arena.body)
        return [each and [each.payload, each.timestamp.timestamp()] for each in got]

    flow, site = arena.site.workflow(races_timeout), arena.site
    many = [flow.create() for _ in range(4)]
    due: dict[str, float] = {}

    def sender(created: Any) -> None:
        # Not `due_at`: on a busy machine it may be over, and the row without it, before anybody looks.
        query = "SELECT extract(epoch FROM started_at)::float8 FROM orchestrator_steps "
        query += "WHERE instance_id = :i AND key = 'wait:first:1'"
        (found,) = eventually(lambda: site.sql(query, i=uuid_of(arena, created)))
        due[created.id] = found[0] + 1
        ahead = arena.dice.random() * 0.05
        time.sleep(max(0.0, due[created.id] - site.client.now() - ahead))
        for number in range(3):
            created.send_event("go", number)

    arena.race(*[lambda created=created: sender(created) for created in many])
    for created in many:
        output = created.result(PATIENCE_S)
        in_time, *rest = output
        received = [each for each in output if each is not None]
        assert [payload for payload, _ in received] == [0, 1, 2]
        assert in_time is None or in_time[1] < due[created.id]
        assert in_time is not None or rest[0][1] >= due[created.id] - CLOCK_S
        assert arena.inbox(uuid_of(arena, created)) == []
        arena.judge(uuid_of(arena, created))


@every_seed
def test_events_arrive_while_it_is_paused_and_resumed(arena: Arena) -> None:
    """semantics §3.2, §4: whoever pauses and resumes as fast as they can, each event is received once, in order, and
    each body runs once; also those that come while a turn commits."""
    count = 6

    async def races_storm(event, step):
        got = []
        for _ in range(count):
            received = await step.wait_for_event("w", type="go", timeout=600)
            got.append(await step.do("handle", arena.body, received.payload))
        return got

    created = arena.site.workflow(races_storm).create()

    def send() -> None:
        for number in range(count):
            time.sleep(arena.dice.random() * 0.01)
            created.send_event("go", number)

    def steer() -> None:
        for _ in range(5):
            created.pause()
            time.sleep(arena.dice.random() * 0.01)
            created.resume()

    arena.race(send, steer, steer)
    assert arena.settle(created) is Status.COMPLETE
    assert created.result(PATIENCE_S) == list(range(count))
    assert arena.inbox(uuid_of(arena, created)) == []
    assert {attempt for _, attempt in arena.began} == {1}
    arena.judge(uuid_of(arena, created))


# -- against completion ----------------------------------------------------------------------------------------------


def short(arena: Arena, name: str) -> Created:
    async def code(event, step):
        chance = str(step.uuid())
        a = await step.do("a", arena.body, 1, rollback=arena.undo)
        b, c = await asyncio.gather(step.do("b", arena.body, 2), step.do("c", arena.body, 3))
        await step.sleep("s", 0.005)
        return [chance, a, b, c, await step.do("d", arena.body, 4)]

    return arena.site.workflow(code, name=name)


@every_seed
def test_a_pause_meets_the_end(arena: Arena) -> None:
    """semantics §4: it is paused, or it was too late; either way it ends with its result, everything done once."""
    flow = short(arena, "races_pause")
    created = flow.create()
    (refused,) = arena.race(created.pause, within=0.15)
    status = arena.settle(created)
    assert (status, created.result(1)[1:]) == (Status.COMPLETE, [1, 2, 3, 4])
    assert refused is None or isinstance(refused, InvalidTransition)
    assert len(arena.began) == 4
    arena.judge(uuid_of(arena, created))


@every_seed
def test_a_termination_meets_the_end(arena: Arena, seed: int) -> None:
    """semantics §4, §5.6: terminated, or complete and the verb refused; undone exactly if it was terminated with a
    rollback and had something to undo."""
    rollback = seed % 3 > 0
    created = short(arena, "races_terminate").create()
    (refused,) = arena.race(lambda: created.terminate(rollback), within=0.15)
    status = arena.settle(created)
    assert status is (Status.TERMINATED if refused is None else Status.COMPLETE)
    assert (created.status().output is None) is (refused is None)
    statuses = {step.key: step.status for step in created.steps()}
    arena.judge(uuid_of(arena, created))
    began = any(key.endswith("do:a:1") for key, _ in arena.began)
    assert ("do:a:1:rollback" in statuses) is (refused is None and rollback and began)
    assert sum(arena.undone.values()) == ("do:a:1:rollback" in statuses)


@every_seed
def test_restarts_meet_each_other_and_the_end(arena: Arena, seed: int) -> None:
    """semantics §4, protocols §3: each restart is a run of its own, the last one's chance and keys are what counts."""
    created = short(arena, "races_restart").create()
    count = 1 + seed % 3
    arena.race(*[created.restart] * count, within=0.1)
    assert arena.settle(created) is Status.COMPLETE
    instance = uuid_of(arena, created)
    row = arena.site.row(instance)
    dice = random.Random(f"{instance}:{count}")
    assert created.result(1) == [str(UUID(int=dice.getrandbits(128), version=4)), 1, 2, 3, 4]
    assert row.run == count
    runs = arena.site.sql("SELECT DISTINCT run FROM orchestrator_steps WHERE instance_id = :i", i=instance)
    assert [each.run for each in runs] == [count]
    arena.judge(instance)


@every_seed
def test_a_restart_from_a_step_meets_the_end(arena: Arena) -> None:
    """protocols §10: what was kept is not done again; what started later is, in the new run. A second one that comes
    before the step has started again finds no such step."""
    created = short(arena, "races_restart_from").create()
    eventually(lambda: any(step.name == "b" for step in created.steps()))
    refused = arena.race(lambda: created.restart("b"), lambda: created.restart("b"), within=0.2)
    run = refused.count(None)
    assert run
    assert arena.settle(created) is Status.COMPLETE
    instance = uuid_of(arena, created)
    dice = random.Random(f"{instance}:0")
    assert created.result(1) == [str(UUID(int=dice.getrandbits(128), version=4)), 1, 2, 3, 4]
    runs = dict(
        map(
            tuple,
            arena.site.sql("SELECT key, run FROM orchestrator_steps WHERE instance_id = :i", i=instance),
        )
    )
    assert runs == {"do:a:1": 0, "do:b:1": run, "do:c:1": run, "sleep:s:1": run, "do:d:1": run}
    assert sum(key.endswith("do:a:1") for key, _ in arena.began) == 1
    arena.judge(instance)


@every_seed
def test_a_deletion_meets_everything(arena: Arena, seed: int) -> None:
    """semantics §4: whatever comes at the same moment, no row of it is left, its bodies end, and its id is free."""
    flow = short(arena, "races_delete")
    created = flow.create(id=f"it-{seed}")
    old = uuid_of(arena, created)

    def send() -> None:
        for _ in range(3):
            created.send_event("go")

    others = [send, created.pause, created.resume, created.terminate, created.restart, lambda: None]
    arena.race(created.delete, others[seed % len(others)], others[(seed // 2) % len(others)], within=0.08)
    again = flow.create(id=f"it-{seed}")
    assert again.result(PATIENCE_S)[1:] == [1, 2, 3, 4]
    arena.judge(uuid_of(arena, again))
    arena.judge(old)
    for table in TABLES:
        query = f"SELECT count(*) FROM orchestrator_{table} WHERE instance_id = :i"
        assert arena.site.sql(query, i=old) == [(0,)], table


# -- storms ----------------------------------------------------------------------------------------------------------


@every_seed
def test_whatever_is_done_to_it_it_comes_to_an_end(arena: Arena) -> None:
    """semantics §4: pauses, resumes, restarts of both kinds, events and a termination from three sides at once."""

    async def races_anything(event, step):
        a = step.do("a", arena.body, 1, rollback=arena.undo)
        got = await step.wait_for_event("w", type="go", timeout=600)
        b = await step.do("b", arena.body, got.payload)
        return [await a, b, await step.do("c", arena.body, 3)]

    created = arena.site.workflow(races_anything).create()
    verbs: list[Callable[[], Any]] = [
        created.pause,
        created.pause,
        created.resume,
        created.resume,
        created.restart,
        lambda: created.restart("b"),
        lambda: created.restart("w", kind="wait"),
        lambda: created.send_event("go", 2),
        lambda: created.send_event("go", 2),
    ]
    storms = [[arena.dice.choice(verbs) for _ in range(6)] for _ in range(3)]
    if arena.dice.random() < 0.3:
        storms[0].append(lambda: created.terminate(rollback=True))

    def storm(chosen: list[Callable[[], Any]]) -> None:
        for verb in chosen:
            try:
                verb()
            except InvalidTransition:
                continue

    arena.race(*[lambda chosen=chosen: storm(chosen) for chosen in storms])
    if created.status().status not in FINISHED:
        created.send_event("go", 2)
    status = arena.settle(created)
    if status is Status.COMPLETE:
        assert created.result(1) == [1, 2, 3]
    else:
        assert status is Status.TERMINATED
    arena.judge(uuid_of(arena, created))
