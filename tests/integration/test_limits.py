"""Limits at run time: who says what holds, and that it holds without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator import RateLimited, Status, TooManyQueued
from orchestrator.client.control.limits import clear, set_limits
from orchestrator.client.control.status import status
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.control.gatekeeping.board import Board
from orchestrator.control.gatekeeping.limits import Limits, fields
from orchestrator.control.overrides import EVERY_S, Overriding
from orchestrator.settings import Settings
from orchestrator.store.control import limits as rows
from tests.integration.harness import START, Site, eventually
from tests.integration.limit_flows import limits_passing, limits_steady
from tests.integration.test_shutdown import Process

pytestmark = pytest.mark.integration


async def limits_flow(event, step):
    """Nothing."""


@pytest.fixture
def board(settings: Settings) -> Board:
    return Board(settings)


def there(settings: Settings) -> dict[str, str]:
    """The hash that scripts read."""
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        return client.hgetall(f"{settings.hash_tag}:limits")


def test_an_operator_wins_over_the_definition_and_that_over_the_settings(site: Site, board: Board) -> None:
    """semantics §6: limits are settings, a workflow may have its own, and an operator changes both at run time."""
    site.workflow(limits_flow, concurrency=7, creation_rate=12.0)
    limits = Limits.of_registry(site.settings, site.registry)
    duty = Overriding(site.engine, site.settings.account, limits, board)
    duty.cycle(START, ["limits_flow@1"])
    assert limits.account() == (50_000, 1e6, 0, 2_000_000)
    assert limits.of("limits_flow") == (7, 12.0, 0, 2_000_000)
    assert limits.of("limits_of_nobody") == (None, 1e6, 0, 2_000_000)
    assert there(site.settings) == {}

    with site.engine.begin() as connection:
        rows.put(
            connection, site.settings.account, rows.ACCOUNT, {"concurrency": 90, "max_queued": 5}, "ann@desk"
        )
        rows.put(
            connection,
            site.settings.account,
            "limits_flow",
            {"concurrency": 3, "creation_rate": 0.5},
            "ann@desk",
        )
    duty.cycle(START + EVERY_S / 2, ["limits_flow@1"])
    assert limits.account().concurrency == 50_000, "it looked before its time"
    duty.cycle(START + EVERY_S, ["limits_flow@1"])
    assert limits.account() == (90, 1e6, 0, 5)
    assert limits.of("limits_flow") == (3, 0.5, 0, 5)
    assert there(site.settings) == {
        "concurrency": "90", "max_queued": "5", "concurrency:limits_flow": "3", "rate:limits_flow": "0.5",
    }  # fmt: skip


def test_one_limit_is_cleared_and_the_others_stay(site: Site) -> None:
    """semantics §6: what is no longer set is as the definition says; who cleared it is on record."""
    account = site.settings.account
    with site.engine.begin() as connection:
        rows.put(connection, account, "limits_flow", {"concurrency": 3, "creation_burst": 9}, "ann@desk")
        rows.put(connection, account, "limits_flow", {"concurrency": None}, "bob@desk")
        (row,) = rows.read(connection, account).values()
        assert (row.values, row.changed_by) == ({"creation_burst": 9.0}, "bob@desk")
        rows.put(connection, account, "limits_flow", dict.fromkeys(rows.NAMES), "eve@desk")
        (row,) = rows.read(connection, account).values()
        assert (row.values, row.changed_by, row.changed_at > 0) == ({}, "eve@desk", True)
    assert fields([row]) == {}


def test_what_redis_lost_comes_back(site: Site, board: Board) -> None:
    """protocols §8: Redis may be wiped at any time; what operators set is put there again, with a TTL."""
    limits = Limits.of_registry(site.settings, site.registry)
    duty = Overriding(site.engine, site.settings.account, limits, board)
    with site.engine.begin() as connection:
        rows.put(connection, site.settings.account, rows.ACCOUNT, {"creation_rate": 42.5}, "ann@desk")
    duty.cycle(START, ["limits_flow@1"])
    with redis.Redis.from_url(site.settings.redis_url) as client:
        client.delete(f"{site.settings.hash_tag}:limits")
        duty.cycle(START + 60, ["limits_flow@1"])
        assert there(site.settings) == {"rate": "42.5"}
        assert client.ttl(f"{site.settings.hash_tag}:limits") > 0
    with site.engine.begin() as connection:
        rows.put(connection, site.settings.account, rows.ACCOUNT, {"creation_rate": None}, "ann@desk")
    duty.cycle(START + 120, ["limits_flow@1"])
    assert there(site.settings) == {}


def test_without_redis_a_worker_knows_the_limits_all_the_same(site: Site) -> None:
    """protocols §8: nothing here fails for want of Redis."""
    nowhere = Board(Settings(database_url="postgresql://nowhere", redis_url="redis://127.0.0.1:1/0"))
    limits = Limits.of_registry(site.settings, site.registry)
    with site.engine.begin() as connection:
        rows.put(connection, site.settings.account, rows.ACCOUNT, {"concurrency": 0}, "ann@desk")
    Overriding(site.engine, site.settings.account, limits, nowhere).cycle(START, ["limits_flow@1"])
    assert limits.account().concurrency == 0
    assert not nowhere.put_backlog("limits_flow", 1)


@pytest.fixture
def client(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings) as one:
        yield one


@pytest.fixture
def worker(settings: Settings, client: Orchestrator, tmp_path: Path) -> Iterator[Process]:
    """A Celery worker that grants slots."""
    process = Process(settings, tmp_path, ORCHESTRATOR_WORKFLOWS="tests.integration.limit_flows")
    try:
        eventually(lambda: status(client).granting, "a worker that grants slots", patience_s=60)
        yield process
    finally:
        process.stop(60)


@pytest.mark.usefixtures("worker")
def test_slots_follow_what_an_operator_sets(settings: Settings, client: Orchestrator) -> None:
    """semantics §6: limits of slots change while workers run: more start at once, and with 0 nothing starts; what is
    queued waits, and who would queue beyond the limit is refused."""

    def stand() -> tuple[int, int]:
        found = limits_steady.count(orchestrator=client)
        return found[Status.RUNNING], found[Status.QUEUED]

    set_limits(client, "limits_steady", concurrency=2)
    assert len(limits_steady.create_batch(count=6, orchestrator=client).created) == 6
    eventually(lambda: stand() == (2, 4), "two that run")
    set_limits(client, "limits_steady", concurrency=4)
    eventually(lambda: stand() == (4, 2), "two more")
    (seen,) = status(client, "limits_steady").workflows
    assert (seen.slots, seen.limits.limits["concurrency"].value) == (4, 4)

    set_limits(client, "limits_steady", concurrency=0, max_queued=1)
    with redis.Redis.from_url(settings.redis_url) as server:
        server.set(f"{settings.account}:go", 1, ex=600)
        eventually(lambda: stand() == (0, 2), "the end of those that ran")
    with pytest.raises(TooManyQueued):
        limits_steady.create(orchestrator=client)
    for _ in range(2):  # the queue is looked after meanwhile
        limits_passing.create(orchestrator=client).result(30)
    assert stand() == (0, 2)
    clear(client, "limits_steady")
    eventually(lambda: limits_steady.count(orchestrator=client)[Status.COMPLETE] == 6, "the end of all")


def test_creation_follows_what_an_operator_sets(settings: Settings, client: Orchestrator) -> None:
    """semantics §6: creation limits change at once, for clients that run: ``RateLimited`` says when there is room."""
    limits_passing.create(orchestrator=client)
    set_limits(client, "limits_passing", creation_rate=0.01)
    with pytest.raises(RateLimited) as refused:
        for _ in range(2):  # a bucket that was full holds one
            limits_passing.create(orchestrator=client)
    assert 1 < refused.value.retry_after <= 100
    assert "0.01 instances of workflow 'limits_passing'" in str(refused.value)
    clear(client, "limits_passing")
    limits_passing.create(orchestrator=client)
    set_limits(client, creation_rate=0.01)
    with pytest.raises(RateLimited, match=f"account '{settings.account}'"):
        for _ in range(2):
            limits_passing.create(orchestrator=client)
