"""Delivery in place: a worker that discovers a step starts it, claimed in the very turn (protocols §19)."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import Retries, RollbackPolicy
from orchestrator.engine.running.placement import FEW
from orchestrator.errors import ErrorInfo, WorkflowFailed, WorkflowTerminated
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


# -- compensations ---------------------------------------------------------------------------------------------------


def undoing(told: list[Any]) -> Any:
    """Three things are done, one at the second attempt; then it fails. ``told``: what handlers were told, in order."""

    async def undo(context: Any) -> None:
        told.append(
            (context.step.name, context.output, context.args, context.error, context.step.attempt, context.attempt,
             context.has_output, context.idempotency_key.rpartition(":")[2])
        )  # fmt: skip

    async def at_last(value: str, ctx: Any) -> list[str]:
        if ctx.attempt == 1:
            raise ConnectionError("not yet")
        return [value]

    async def fails() -> None:
        raise LookupError("no")

    async def placement_undoing(event, step):
        again, once = Retries(limit=1, delay=0), Retries(limit=0)
        await step.do("async", at_last, "x", retries=again, rollback=undo)
        await step.wait_for_event("wait", type="go", rollback=undo)
        with contextlib.suppress(LookupError):
            await step.do("fails", fails, retries=once, rollback=undo)
        raise LookupError("the end")

    return placement_undoing


ERROR = ErrorInfo("LookupError", "the end")


def test_compensations_need_no_message(placing: Site) -> None:
    """protocols §19: a handler is placed like a step, and is told what a claim by message would tell it."""
    told: list[Any] = []
    flow = placing.workflow(undoing(told))
    worker = placing.worker()
    instance = flow.create()
    instance.send_event("go", {"n": 1})
    with pytest.raises(WorkflowFailed):
        instance.result(20)
    assert placing.post.handouts == []
    assert [each[0] for each in told] == ["fails", "wait", "async"]
    failing, waited, doing = told
    assert failing[1:] == (None, (), ERROR, 1, 1, False, "rollback")
    assert waited[1].payload == {"n": 1} and waited[3:] == (ERROR, 1, 1, True, "rollback")
    assert doing[1:] == (["x"], ("x",), ERROR, 2, 1, True, "rollback")
    workers = placing.sql(
        "SELECT DISTINCT worker, claimed_at = handed_at FROM orchestrator_steps WHERE kind = 'rollback' "
        "AND instance_id = :id",
        id=placing.id_of(instance.id),
    )
    assert workers == [(worker.runtime.liveness.id, True)]


def test_by_message_they_are_told_the_same(site: Site, placing: Site) -> None:
    """protocols §19: in place is a delivery, not a second engine."""
    stories: list[list[Any]] = []
    for each in (site, placing):
        told: list[Any] = []
        flow = each.workflow(undoing(told))
        each.worker()
        instance = flow.create()
        instance.send_event("go", 1)
        with pytest.raises(WorkflowFailed):
            instance.result(20)
        stories.append([story if story[0] != "wait" else (story[1].payload, *story[2:]) for story in told])
    assert stories[0] == stories[1]
    assert [handout.key for handout in site.post.handouts if handout.key.endswith(":rollback")] == [
        "do:fails:1:rollback", "wait:wait:1:rollback", "do:async:1:rollback",
    ]  # fmt: skip


def test_what_a_process_does_not_know_comes_by_message(placing: Site) -> None:
    """protocols §19: an instance read from rows lacks the error that handlers are told: the first is published, and
    what its claim brings places the others."""
    told: list[Any] = []
    is_broken = True

    async def undo(context: Any) -> None:
        told.append((context.step.name, context.error))
        if is_broken:
            raise RuntimeError("not yet")

    async def placement_retried(event, step):
        for name in ("a", "b", "c"):
            await step.do(name, body, rollback=undo, rollback_retries=Retries(limit=0))
        raise LookupError("the end")

    flow = placing.workflow(placement_retried)
    placing.worker()
    instance = flow.create()
    with pytest.raises(WorkflowFailed):
        instance.result(20)
    assert placing.post.take() == []
    is_broken = False
    instance.retry_rollback()
    with pytest.raises(WorkflowFailed):
        instance.result(20)
    assert told == [("c", ERROR), ("c", ERROR), ("b", ERROR), ("a", ERROR)]
    assert [handout.key for handout in placing.post.take()] == ["do:c:1:rollback"]


def test_a_terminated_instance_compensates_in_place(placing: Site) -> None:
    """semantics §5.6: handlers are told of the termination, which every process knows."""
    told: list[Any] = []

    async def undo(context: Any) -> None:
        told.append(context.error.name)

    async def placement_terminated(event, step):
        await step.do("a", body, rollback=undo)
        await step.wait_for_event("never", type="never")

    flow = placing.workflow(placement_terminated)
    placing.worker()
    instance = flow.create()
    eventually(lambda: instance.status().status == "waiting")
    instance.terminate(rollback=True)
    with pytest.raises(WorkflowTerminated):
        instance.result(20)
    assert (told, placing.post.handouts) == (["Terminated"], [])


def test_sync_handlers_are_placed_while_there_are_threads(settings: Settings) -> None:
    """protocols §19: at the cap of threads no sync handler is started in place, whatever its step was."""
    with Site(replace(settings, delivery="in_place", threads=2)) as placing:
        go = threading.Event()

        async def placement_threads(event, step):
            await asyncio.gather(*[step.do("s", body, rollback=lambda _: go.wait(20)) for _ in range(5)])
            raise LookupError("the end")

        flow = placing.workflow(placement_threads, rollback=RollbackPolicy(order="parallel"))
        placing.worker()
        instance = flow.create()
        eventually(lambda: len(placing.post.handouts) == 3)
        go.set()
        with pytest.raises(WorkflowFailed) as failed:
            instance.result(20)
        assert failed.value.rollback is not None and failed.value.rollback.outcome == "complete"
