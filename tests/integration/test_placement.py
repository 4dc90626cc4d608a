"""Delivery in place: a worker that discovers a step starts it, claimed in the very turn (protocols §19)."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import Retries
from orchestrator.engine.running.placement import FEW
from orchestrator.settings import Settings
from orchestrator.store import turns
from tests.integration.harness import Site, eventually


@pytest.fixture
def placing(settings: Settings) -> Iterator[Site]:
    """A site whose workers start in place what they discover."""
    with Site(replace(settings, delivery="in_place")) as one:
        yield one


async def body(*args: Any) -> Any:
    return list(args)


async def chain(event, step):
    for number in range(5):
        await step.do("s", body, number)
    return "done"


async def fan_out(event, step):
    return len(await asyncio.gather(*[step.do("s", body, n) for n in range(event.payload)]))


def test_a_chain_needs_no_message(placing: Site) -> None:
    """protocols §19: in place a step is claimed by the turn that discovered it, and none goes through the broker."""
    flow = placing.workflow(chain)
    worker = placing.worker()
    instance = flow.create()
    assert instance.result(20) == "done"
    assert placing.post.handouts == []
    for record in instance.steps():
        assert (record.status, len(record.attempts)) == ("done", 1)
    rows = placing.sql("SELECT DISTINCT worker, claimed_at = handed_at FROM orchestrator_steps s JOIN "
                       "orchestrator_instances i ON i.id = s.instance_id WHERE account = :a",
                       a=placing.settings.account)  # fmt: skip
    assert rows == [(worker.runtime.liveness.id, True)]


def test_of_a_fan_out_a_share_stays(placing: Site) -> None:
    """protocols §19: parallel work spreads over the workers: what is more than one worker's share is published."""
    flow = placing.workflow(fan_out)
    workers = [placing.worker(), placing.worker()]
    for worker in workers:
        eventually(lambda worker=worker: worker.runtime.liveness.sharing == 2)
    assert flow.create(params=2 * FEW + 6).result(20) == 2 * FEW + 6
    assert len(placing.post.handouts) == FEW + 3


def test_of_a_small_fan_out_a_few_stay(placing: Site) -> None:
    """protocols §19: spreading three steps over two workers gains nothing."""
    flow = placing.workflow(fan_out)
    workers = [placing.worker(), placing.worker()]
    for worker in workers:
        eventually(lambda worker=worker: worker.runtime.liveness.sharing == 2)
    assert flow.create(params=FEW).result(20) == FEW
    assert placing.post.handouts == []


def test_a_worker_alone_keeps_a_fan_out(placing: Site) -> None:
    """protocols §19: what nobody else could take is not sent round through the broker."""
    flow = placing.workflow(fan_out)
    placing.worker()
    assert flow.create(params=10 * FEW).result(20) == 10 * FEW
    assert placing.post.handouts == []


def test_with_the_broker_every_step_is_a_message(site: Site) -> None:
    """protocols §19: ``delivery=broker`` places nothing."""
    flow = site.workflow(chain)
    site.worker()
    assert flow.create().result(20) == "done"
    assert len(site.post.handouts) == 5


def test_a_queue_of_its_own_is_left_alone(placing: Site) -> None:
    """protocols §19: a step for another queue is published, however much room there is here."""

    async def elsewhere(event, step):
        await step.do("gpu", body, queue="gpu")

    flow = placing.workflow(elsewhere)
    placing.worker()
    flow.create()
    (handout,) = eventually(lambda: list(placing.post.handouts))
    assert handout.queue == "gpu"


def test_sync_bodies_are_placed_while_there_are_threads(settings: Settings) -> None:
    """protocols §19: at the cap of threads nothing sync is started in place."""
    with Site(replace(settings, delivery="in_place", threads=2)) as placing:
        go = threading.Event()

        async def wide(event, step):
            await asyncio.gather(*[step.do("s", go.wait, 20) for _ in range(5)])

        flow = placing.workflow(wide)
        placing.worker()
        instance = flow.create()
        eventually(lambda: len(placing.post.handouts) == 3)
        go.set()
        assert instance.result(20) is None


def test_retries_are_placed_too(placing: Site) -> None:
    """protocols §19: a retry is handed out by a turn, and so starts in place as well."""

    async def flaky(ctx):
        if ctx.attempt < 3:
            raise ConnectionError("away")
        return ctx.attempt

    async def retrying(event, step):
        return await step.do("f", flaky, retries=Retries(limit=3, delay=0.05, backoff="constant"))

    flow = placing.workflow(retrying)
    placing.worker()
    instance = flow.create()
    assert instance.result(20) == 3
    assert placing.post.handouts == []
    assert [a.number for a in instance.steps()[0].attempts] == [1, 2, 3]


def test_what_was_claimed_by_a_turn_of_unknown_outcome_is_started(
    placing: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §5: after a flush of unknown outcome a worker starts what is claimed by it and not running here."""
    from tests.integration.test_turns import away

    ran: list[int] = []

    async def once(number: int) -> int:
        ran.append(number)
        return number

    async def flow(event, step):
        for number in range(3):
            await step.do("s", once, number)

    commit, broken = turns.commit, [1]

    def torn(connection: Any, writes: Any) -> Any:
        written = commit(connection, writes)
        if any(w.handouts or w.steps for w in writes) and broken:
            broken.pop()
            away()
        return written

    created = placing.workflow(flow)
    placing.worker()
    monkeypatch.setattr(turns, "commit", torn)
    created.create().result(20)
    assert ran == [0, 1, 2]
