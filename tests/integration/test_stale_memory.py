"""What a process remembers of an instance, and rows that were taken away since: verbs that rewrite history, and those
who hold an older one.

Benches stand for workers here, so that each interleaving is exactly the one that is meant.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from orchestrator import Retries, WorkflowFailed
from orchestrator.ports import HandOut
from orchestrator.store import histories
from orchestrator.workflow import codec
from orchestrator.workflow.language.config import RollbackPolicy
from tests.integration.harness import Bench, Site

pytestmark = pytest.mark.integration

BROKEN = codec.encode_error(RuntimeError("cannot undo"))


async def body() -> str:
    return "done"


def undo(context: Any) -> None: ...


def undone_flow(site: Site, name: str, policy: RollbackPolicy) -> Any:
    """Steps a and b, then a failure."""

    async def flow(event, step):
        for each in "ab":
            await step.do(each, body, rollback=undo, rollback_retries=Retries(limit=0))
        raise LookupError("the original error")

    return site.workflow(flow, name=name, rollback=policy)


def forward(site: Site, bench: Bench, instance: UUID) -> None:
    """Run both steps on ``bench``, to where the handlers begin."""
    bench.clock.at = site.client.now()
    bench.wake(instance)
    for _ in "ab":
        (handout,) = site.post.take()
        bench.finish(handout, "done")
    while site.row(instance).status != "rolling_back":
        bench.wake(instance)


def offered(site: Site, *benches: Bench) -> dict[str, HandOut]:
    for bench in benches:
        bench.clock.at = site.client.now()
    return {handout.key: handout for handout in site.post.take()}


@pytest.fixture
def sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose benches publish what their flushes hand out, and repeat what is to be repeated."""
    original = Bench.run

    def run(self: Bench, batch: Any) -> Any:
        results = original(self, batch)
        site.post.steps([*results.handouts, *results.local])
        if results.repeat:
            run(self, results.repeat)
        return results

    monkeypatch.setattr(Bench, "run", run)
    return site


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_a_retried_rollback_is_new_to_whoever_saw_it_before(sent: Site, order: Any) -> None:
    """semantics §5.8, protocols §3: ``retry_rollback`` takes rows away, so what any process remembers of the instance
    is void: a worker that saw the failed handler in flight, or fail, starts it anew."""
    site, policy = sent, RollbackPolicy(order=order, on_error="continue")
    flow = undone_flow(site, f"stale_{order}", policy)
    created = flow.create()
    one, other = site.bench(), site.bench()
    instance = site.id_of(created.id)
    forward(site, one, instance)
    handlers = offered(site, one, other)
    # The other worker runs one handler, and so comes to know the instance; the one runs the last, and ends it.
    other.finish(handlers.pop("do:b:1:rollback"), error=BROKEN)
    handlers |= offered(site, one, other)
    one.finish(handlers.pop("do:a:1:rollback"), error=BROKEN)
    assert site.row(instance).status == "errored"
    created.retry_rollback()
    other.clock.at = site.client.now()
    other.wake(instance)
    again = offered(site, one, other)
    other.finish(again.pop("do:b:1:rollback"), "done")
    again |= offered(site, one, other)
    other.finish(again.pop("do:a:1:rollback"), "done")
    with pytest.raises(WorkflowFailed) as raised:
        created.result(5)
    assert raised.value.error.name == "LookupError"
    assert raised.value.rollback is not None and raised.value.rollback.outcome == "complete"


def test_a_restart_between_a_claim_and_its_reading(sent: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §3, §5: a restart that commits after a step was claimed, and before its worker has read what it lacks,
    blocks nothing: the claim is void, and the new run goes on."""
    site = sent

    async def flow(event, step):
        await step.sleep("first", 1)
        return await step.do("work", body)

    created = site.workflow(flow, name="stale_claim").create()
    one, other = site.bench(), site.bench()
    instance = site.id_of(created.id)
    for bench in (one, other):
        bench.clock.at = site.client.now()
        bench.wake(instance)  # both know it
    one.clock.at += 2
    one.wake(instance)
    (handout,) = site.post.take()
    load = histories.load

    def restarted_before(connection: Any, known: Any, reads: int = histories.READS) -> Any:
        monkeypatch.setattr(histories, "load", load)
        created.restart()
        return load(connection, known, reads)

    monkeypatch.setattr(histories, "load", restarted_before)
    assert other.claim(handout) == [None]
    assert site.row(instance).blocked is None
    for bench in (one, other):
        bench.clock.at = site.client.now()
    other.wake(instance)
    assert [
        row.key for row in site.sql("SELECT key FROM orchestrator_steps WHERE instance_id = :id", id=instance)
    ] == ["sleep:first:1"]
    other.clock.at += 2
    other.wake(instance)
    (handout,) = site.post.take()
    other.finish(handout, "done")
    assert created.result(5) == "done"


def test_a_failure_of_what_is_past_blocks_nothing(sent: Site) -> None:
    """protocols §1, §12: code that failed on what a process remembered, while a restart was committed, is no reason to
    hold the new run."""
    site, fits = sent, [False]

    async def flow(event, step):
        await step.do("work", body)
        if not fits:
            await asyncio.Event().wait()
        return await step.do("more", body)

    fits.clear()
    created = site.workflow(flow, name="stale_failure").create()
    bench = site.bench()
    instance = site.id_of(created.id)
    bench.clock.at = site.client.now()
    bench.wake(instance)
    (handout,) = site.post.take()
    (ready,) = bench.claim(handout)
    created.restart()
    bench.run({instance: [bench.outcome(ready, "done")]})
    assert site.row(instance).blocked is None
    fits.append(True)
    for key in ("do:work:1", "do:more:1"):
        (handout,) = site.post.take()
        assert handout.key == key
        bench.finish(handout, key)
    assert created.result(5) == "do:more:1"
