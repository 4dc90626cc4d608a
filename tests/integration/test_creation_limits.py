"""Limits on creation as an application meets them: many processes at once, waiting, batches, restarts, transactions,
and services that are away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from orchestrator import (
    InstanceExists,
    Orchestrator,
    RateLimited,
    ServiceUnavailable,
    Settings,
    TooManyQueued,
)
from orchestrator.client.workflow import Workflow
from orchestrator.control.gatekeeping.keys import Keys
from orchestrator.dev import servers as embedded
from orchestrator.store import migrate
from orchestrator.workflow.language.definition import Registry, define
from tests.integration.conftest import settings_of
from tests.integration.harness import eventually

ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("ORCHESTRATOR_SOAK"))
SECONDS, ACCOUNT_RATE, WORKFLOW_RATE = (20, 300, 100) if SOAK else (5, 90, 30)


async def limited_flow(event, step):
    return None


def flow(name: str = "limited_flow", **options: Any) -> Workflow:
    return Workflow(Registry().register(define(limited_flow, name=name, **options)))


class Limited:
    """One account with real limits, and a client of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.keys = settings, Keys.of(settings)
        self.client = Orchestrator(settings)
        self.redis = redis.Redis.from_url(settings.redis_url, decode_responses=True)

    def full(self, *flows: Workflow) -> None:
        """Wait until the buckets of these hold what one second allows: as where workers run."""
        self.client.admission.keep([each.name for each in flows])

        def is_full(name: str) -> bool:
            seconds, micros = self.redis.time()
            touched = float(self.redis.hget(self.keys.bucket(name), "at") or "inf")
            return seconds * 1000 + micros / 1000 > touched + 1100

        eventually(
            lambda: all(is_full(name) for name in ("", *(each.name for each in flows))), "full buckets"
        )

    def open(self) -> None:
        """Let slots be granted, as a worker would that has written the leases."""
        self.redis.set(self.keys.ready, self.redis.info("server")["run_id"], ex=60)

    def rows(
        self, sql: str = "SELECT name_id, status FROM orchestrator_instances WHERE account = %(a)s"
    ) -> Any:
        with self.client.engine.connect() as connection:
            return connection.exec_driver_sql(sql, {"a": self.settings.account}).all()

    def close(self) -> None:
        self.client.close()
        self.redis.close()


@contextmanager
def limited(settings: Settings, **more: Any) -> Iterator[Limited]:
    one = Limited(replace(settings, **more))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def own_pair(tmp_path: Path) -> Iterator[embedded.Servers]:
    with embedded.running(tmp_path / "pair", persistent=False, fsync=False) as pair:
        migrate.upgrade(pair.database_url)
        yield pair


# -- many processes ----------------------------------------------------------------------------------------


def processes(one: Limited, targets: list[Workflow], seconds: float) -> list[dict[str, Any]]:
    """Four of them, which begin together, with full buckets; what each tells."""
    settings, names = one.settings, [each.name for each in targets]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
    own = ("database_url", "redis_url", "account", "creation_rate", "workflow_creation_rate")
    environ |= {f"ORCHESTRATOR_{name.upper()}": str(getattr(settings, name)) for name in own}
    command = [sys.executable, "-m", "tests.integration.creation_client", str(seconds), *names]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environ, stdin=-1, stdout=-1, text=True) for _ in range(4)
    ]
    try:
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        one.full(*targets)
        for each in running:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        return [json.loads(each.communicate(timeout=seconds + 60)[0]) for each in running]
    finally:
        for each in running:
            each.kill()
            each.wait()


def check_windows(admitted: list[tuple[str, float, float]], rate: float, burst: float) -> None:
    """In no window were more than ``rate`` times its length and ``burst`` admitted. Of each only begin and end are
    known: a window has those that fall into it for certain."""
    for length in (0.1, 1.0, 3.0):
        for _, first, _ in admitted:
            inside = sum(first <= began and ended <= first + length for _, began, ended in admitted)
            assert inside <= rate * length + burst + 1e-6, (inside, length)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flows", "rate"), [(1, WORKFLOW_RATE), (4, ACCOUNT_RATE)], ids=["workflow", "account"]
)
def test_four_processes_create_what_the_limits_allow_and_no_more(
    settings: Settings, flows: int, rate: float
) -> None:
    """semantics §6: the creation rates of account and workflow hold over all processes, in every window, and are given
    out to at least 97 %; what a slow machine had no time to take is in the bucket, as long as it does not run over."""
    with limited(settings, creation_rate=ACCOUNT_RATE, workflow_creation_rate=WORKFLOW_RATE) as one:
        targets = [flow(f"hammered{n}") for n in range(flows)]
        told = processes(one, targets, SECONDS)
        admitted = [tuple(each) for one_told in told for each in one_told["admitted"]]
        lasted = min(each["ended"] for each in told) - max(each["began"] for each in told)
        check_windows(admitted, ACCOUNT_RATE, ACCOUNT_RATE)
        for target in targets:
            own = [each for each in admitted if each[0] == target.name]
            check_windows(own, WORKFLOW_RATE, WORKFLOW_RATE)
        scarce = one.keys.bucket(targets[0].name if flows == 1 else "")
        left = float(one.redis.hget(scarce, "tokens") or 0)
        assert len(admitted) + left >= 0.97 * (rate * lasted + rate)
        assert sum(each["refused"] for each in told) > 0
        assert len(one.rows()) == len(admitted) + 4  # and one each to warm up
        left = [
            key for key in one.redis.scan_iter(f"{one.keys.tag}*", count=1000) if one.redis.ttl(key) == -1
        ]
        assert left == [], "every key has an end"


# -- waiting -----------------------------------------------------------------------------------------------


def test_create_says_when_to_come_again_or_waits(settings: Settings) -> None:
    """api §3: ``RateLimited`` with ``retry_after``, or ``wait=`` seconds, after which it is ``RateLimited`` all the
    same."""
    with limited(settings, workflow_creation_rate=4) as one:
        target = flow()
        one.full(target)
        for _ in range(4):
            target.create(orchestrator=one.client)
        with pytest.raises(RateLimited, match="4 instances of workflow 'limited_flow'") as caught:
            target.create(id="no", orchestrator=one.client)
        assert 0 < caught.value.retry_after <= 0.251
        assert target.create(id="late", wait=10, orchestrator=one.client).id == "late"
        with pytest.raises(RateLimited):
            target.create(id="no", wait=0.01, orchestrator=one.client)
        assert sorted(each.name_id for each in one.rows())[-1] == "late"
        assert "no" not in {each.name_id for each in one.rows()}


def test_many_wait_at_once_and_the_loop_goes_on(settings: Settings) -> None:
    """api §3: waiting blocks neither the caller's loop nor the threads that other verbs need."""

    async def play(one: Limited, target: Workflow) -> int:
        waiting = [asyncio.create_task(target.acreate(wait=60, orchestrator=one.client)) for _ in range(60)]
        turns = 0
        while not all(each.done() for each in waiting):
            await asyncio.sleep(0.01)
            turns += 1
            if turns == 5:
                assert await target.acount(orchestrator=one.client)
                assert not all(each.done() for each in waiting)
        await asyncio.gather(*waiting)
        return turns

    with limited(settings, workflow_creation_rate=20) as one:
        target = flow()
        one.full(target)
        assert asyncio.run(play(one, target)) > 5
        assert len(one.rows()) == 60


def test_who_gives_up_waiting_creates_nothing(settings: Settings) -> None:
    """api §3: a cancelled ``acreate(wait=)`` is over."""

    async def play(one: Limited, target: Workflow) -> None:
        waiting = asyncio.create_task(target.acreate(id="no", wait=60, orchestrator=one.client))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with limited(settings, workflow_creation_rate=0.01) as one:
        target = flow()
        target.create(id="yes", orchestrator=one.client)
        asyncio.run(play(one, target))
        assert [each.name_id for each in one.rows()] == ["yes"]


def test_a_new_deployment_creates_twenty_in_a_row(settings: Settings) -> None:
    """semantics §6, protocols §8: no worker ever ran, so each bucket is born with one token: for its first second who
    creates waits a little; what one second allows is there after it, and no more."""
    with limited(settings, creation_rate=300, workflow_creation_rate=100) as one:
        target = flow()
        for n in range(20):
            target.create(id=f"n{n}", orchestrator=one.client)
        assert len(one.rows()) == 20
    with limited(settings, creation_rate=300, workflow_creation_rate=2) as one:
        seldom = flow("seldom")
        with pytest.raises(RateLimited):
            for _ in range(5):
                seldom.create(orchestrator=one.client)


# -- batches -----------------------------------------------------------------------------------------------


def test_a_batch_spends_the_tokens_there_are_in_order(settings: Settings) -> None:
    """api §3: the rest are ``RateLimited`` errors per index; with ``wait=`` they come in time. Existing ids and
    duplicates are told as ever."""
    with limited(settings, workflow_creation_rate=5) as one:
        target = flow()
        one.full(target)
        entries = [{"id": name} for name in ("a", "b", "a", "c", "d", "e", "f", "g")]
        result = target.create_batch(entries, orchestrator=one.client)
        assert [each.id for each in result.created] == ["a", "b", "c", "d", "e"]
        assert [(e.index, e.id, e.code) for e in result.errors] == [
            (2, "a", "instance_exists"),
            (6, "f", "rate_limited"),
            (7, "g", "rate_limited"),
        ]
        assert [e.retry_after is not None for e in result.errors] == [False, True, True]
        result = target.create_batch(entries, wait=60, orchestrator=one.client)
        assert [each.id for each in result.created] == ["f", "g"]
        assert [e.index for e in result.errors] == [0, 1, 2, 3, 4, 5]
        result = asyncio.run(target.acreate_batch(count=12, wait=60, orchestrator=one.client))
        assert (len(result.created), result.errors) == (12, [])
        assert len(one.rows()) == 19


def test_a_batch_that_cannot_go_on_tells_what_it_created(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §6: Postgres goes away while a batch waits for tokens: what is there is told, and so is the rest."""
    with limited(settings, workflow_creation_rate=3) as one:
        target = flow()
        one.full(target)
        statement, calls = one.client.lanes.statement, []

        def away(*args: Any) -> Any:
            calls.append(args)
            if len(calls) > 1:
                raise ServiceUnavailable("Postgres does not answer. No instance was created.", "postgres")
            return statement(*args)

        one.client.now()
        monkeypatch.setattr(one.client.lanes, "statement", away)
        result = target.create_batch(count=7, wait=60, orchestrator=one.client)
        assert len(result.created) == 3
        assert {error.code for error in result.errors} == {"service_unavailable"}
        assert [error.index for error in result.errors] == [3, 4, 5, 6]


# -- slots and the queue -----------------------------------------------------------------------------------


def test_what_gets_a_slot_runs_and_the_others_queue(settings: Settings) -> None:
    """semantics §6: a slot is taken at creation where one is free; an id that exists gives it back."""
    with limited(settings) as one:
        target = flow(concurrency=3)
        one.full(target)
        one.open()
        result = target.create_batch([{"id": name} for name in "abcde"], orchestrator=one.client)
        assert len(result.created) == 5
        assert dict(one.rows()) == {
            "a": "running",
            "b": "running",
            "c": "running",
            "d": "queued",
            "e": "queued",
        }
        assert one.redis.zcard(one.keys.slots()) == one.redis.zcard(one.keys.slots(target.name)) == 3
        assert one.redis.hget(one.keys.backlog, target.name) == "2"
        free = flow("other_limited")
        one.full(free)
        free.create(id="x", orchestrator=one.client)
        for _ in range(2):
            with pytest.raises(InstanceExists):
                free.create(id="x", orchestrator=one.client)
            with pytest.raises(InstanceExists):
                target.create(id="a", orchestrator=one.client)
        assert one.redis.zcard(one.keys.slots(free.name)) == 1
        assert one.redis.hget(one.keys.backlog, target.name) == "2"


def test_the_queue_of_a_workflow_has_an_end(settings: Settings) -> None:
    """semantics §6: ``TooManyQueued``, for which ``wait=`` does not wait; in a batch per index."""
    with limited(settings, max_queued=4) as one:
        target = flow()
        one.full(target)
        result = target.create_batch(count=6, wait=60, orchestrator=one.client)
        assert len(result.created) == 4
        assert {(each.index, each.code, each.retry_after) for each in result.errors} == {
            (4, "too_many_queued", None),
            (5, "too_many_queued", None),
        }
        with pytest.raises(TooManyQueued, match="'limited_flow' are queued"):
            target.create(wait=60, orchestrator=one.client)
        assert len(one.rows()) == 4


def test_a_transaction_costs_a_token_and_gets_no_slot(settings: Settings) -> None:
    """protocols §20: ``create(connection=)`` is stored as queued; who rolls back has spent the token."""
    with limited(settings, workflow_creation_rate=3) as one:
        target = flow()
        one.full(target)
        one.open()
        with one.client.engine.connect() as connection:
            target.create(id="gone", connection=connection, orchestrator=one.client)
            connection.rollback()
            target.create(id="kept", connection=connection, orchestrator=one.client)
            with pytest.raises(InstanceExists):
                target.create(id="kept", connection=connection, orchestrator=one.client)
            connection.commit()
        with pytest.raises(RateLimited), one.client.engine.connect() as connection:
            target.create(id="more", connection=connection, orchestrator=one.client)
        assert one.rows() == [("kept", "queued")]
        assert one.redis.zcard(one.keys.slots()) == 0


# -- restarts ----------------------------------------------------------------------------------------------


def test_a_restart_counts_and_is_refused_before_anything_is_changed(settings: Settings) -> None:
    """semantics §4: restart counts against the creation rate."""
    with limited(settings, workflow_creation_rate=2) as one:
        target = flow()
        one.full(target)
        instance = target.create(id="a", orchestrator=one.client)
        instance.restart()
        before = one.rows("SELECT run, seq FROM orchestrator_instances WHERE account = %(a)s")
        assert before[0].run == 1
        with pytest.raises(RateLimited) as caught:
            instance.restart()
        assert caught.value.retry_after > 0
        assert one.rows("SELECT run, seq FROM orchestrator_instances WHERE account = %(a)s") == before
        with pytest.raises(RateLimited):
            asyncio.run(instance.arestart())
        instance.pause()
        instance.resume()
        instance.terminate()  # none of these costs anything


# -- away --------------------------------------------------------------------------------------------------


def test_redis_away_costs_speed_and_it_comes_back_by_itself(own_pair: embedded.Servers) -> None:
    """semantics §6: without Redis instances are stored as queued, a tenth of the rate per process; then
    ``ServiceUnavailable`` says that nothing was created, or ``wait=`` waits. When Redis is back, so are the limits."""
    settings = settings_of(own_pair.database_url, own_pair.redis_url, workflow_creation_rate=50)
    with limited(settings) as one:
        target = flow()
        one.full(target)
        one.open()
        target.create(id="first", orchestrator=one.client)
        own_pair.valkey.stop()
        created = 0
        with pytest.raises(ServiceUnavailable, match="it was not created") as caught:
            while created < 1000:
                target.create(id=f"away{created}", orchestrator=one.client)
                created += 1
        assert caught.value.service == "redis"
        assert created >= 5
        waited = target.create(id="waited", wait=30, orchestrator=one.client)
        assert waited.id == "waited"
        result = target.create_batch(count=40, orchestrator=one.client)
        assert len(result.created) < 40
        assert {error.code for error in result.errors} == {"service_unavailable"}
        statuses = dict(one.rows())
        assert statuses.pop("first") == "running"
        assert set(statuses.values()) == {"queued"}
        own_pair.valkey.start()

        def is_back() -> bool:
            with suppress(RateLimited, ServiceUnavailable):
                target.create(orchestrator=one.client)
            return bool(one.redis.exists(one.keys.bucket(target.name)))

        eventually(is_back, "Redis is asked again")


def test_redis_that_is_silent_costs_one_timeout_a_second(
    own_pair: embedded.Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """semantics §6: a Redis that takes connections and never answers does not hold every caller up for a timeout."""
    settings = settings_of(own_pair.database_url, own_pair.redis_url)
    with limited(settings) as one:
        target = flow()
        target.create(orchestrator=one.client)
        pid = own_pair.valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            done = [0]

            def create() -> None:
                for _ in range(10):
                    target.create(orchestrator=one.client)
                    done[0] += 1

            threads = [threading.Thread(target=create) for _ in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join(30)
            assert done[0] == 40, "forty timeouts would be told from one or two"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "Redis does not answer (admit: Timeout" in caplog.text


def test_postgres_away_gives_the_slot_back(settings: Settings) -> None:
    """semantics §6: what could not be stored holds nothing; the error says that nothing was created."""
    with limited(settings) as one:
        target = flow(concurrency=1)
        one.full(target)
        one.open()
        target.create(id="a", orchestrator=one.client)
        one.redis.delete(*one.redis.keys(f"{one.keys.tag}:slots*"))
        one.open()
        one.client.now()
        url = one.settings.database_url.replace("127.0.0.1", "127.0.0.2").rsplit(":", 1)[0] + ":1/none"
        lost = Orchestrator(replace(one.settings, database_url=url))
        lost._clock_read_at = float("inf")  # it has the time already: the statement is what fails
        with pytest.raises(ServiceUnavailable, match="No instance was created") as caught:
            target.create(id="b", orchestrator=lost)
        assert caught.value.service == "postgres"
        lost.close()
        assert one.redis.zcard(one.keys.slots()) == 0
        assert target.create(id="c", orchestrator=one.client)
        assert dict(one.rows())["c"] == "running"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_asks_on_a_connection_of_its_own(settings: Settings) -> None:
    """api §4: an ``Orchestrator`` survives a fork on both sides."""
    with limited(settings) as one:
        target = flow()
        one.full(target)
        target.create(orchestrator=one.client)
        parents = one.client.admission
        child = os.fork()
        if not child:
            target.create(id=f"c{uuid4().hex[:8]}", orchestrator=one.client)
            os._exit(0 if one.client.admission is not parents else 1)
        assert os.waitpid(child, 0)[1] == 0
        target.create(orchestrator=one.client)
        assert len(one.rows()) == 3
