"""Reports of an application's tasks, between the worker that writes them and the turn that takes them."""

import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery

from orchestrator import Retries
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from orchestrator.store.records import deletion, reports
from orchestrator.store.records.reports import Report
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Bench, ManualClock, Site

pytestmark = pytest.mark.integration

app = Celery("reports", broker="memory://", set_as_current=False)
KEY = "do:charge:1"


@app.task
def charge(order: str) -> str:
    raise AssertionError("no test here runs it")


def flow_of(timeout: float = 60, **options: Any) -> Any:
    async def reports_flow(event: Any, step: Any) -> Any:
        paid = await step.do("charge", charge.s("o-1"), timeout=timeout, **options)
        return [paid, await step.do("after", lambda: 1)]

    return reports_flow


class Counter:
    """One instance with a task handed out, and a worker that could claim it."""

    def __init__(self, site: Site, fn: Any) -> None:
        self.site = site
        self.clock = ManualClock(time.time())
        self.bench: Bench = site.bench(clock=self.clock)
        self.id: UUID = site.workflow(fn).plant(now=self.clock.at)
        self.results = self.bench.wake(self.id)
        self.worker = self.enter()
        (self.handout,) = self.results.handouts
        self.claim = Claim(self.id, KEY, self.handout.fence)

    def enter(self) -> UUID:
        worker = uuid4()
        with self.site.engine.begin() as connection:
            workers.register(connection, self.site.settings.account, Incarnation(worker), [])
        return worker

    def take(self, worker: UUID | None = None, *, again: bool = False) -> Any:
        with self.site.engine.begin() as connection:
            return reports.claim(connection, self.claim, worker or self.worker, again=again)

    def report(self, **fields: Any) -> bool:
        with self.site.engine.begin() as connection:
            return reports.store(connection, Report(self.claim, **fields))

    @property
    def row(self) -> Any:
        return self.site.step(self.id, KEY)

    def left(self) -> int:
        return len(self.site.sql("SELECT 1 FROM orchestrator_reports WHERE instance_id = :id", id=self.id))


@pytest.fixture
def counter(site: Site) -> Counter:
    return Counter(site, flow_of())


def test_a_signature_is_handed_out_with_its_step(counter: Counter) -> None:
    """protocols §16: whoever discovers the step has its signature, and it is never placed, nor run by our step task."""
    assert counter.handout.signature["args"] == ("o-1",)
    assert counter.handout.queue == ""
    assert counter.results.placed == counter.results.local == []


def test_the_next_turn_takes_a_report(counter: Counter) -> None:
    """protocols §16: an outcome that was written beside the history is taken by whatever turn comes next."""
    assert counter.take() is not None
    assert counter.report(output=codec.encode("paid", what="it"))
    assert counter.site.row(counter.id).alarm <= time.time() + 1
    (after,) = counter.bench.wake(counter.id).handouts
    assert after.key == "do:after:1"
    assert (counter.row.status, counter.row.output) == ("done", '"paid"')
    assert counter.left() == 0


def test_a_report_is_stored_once_and_only_for_the_attempt_in_flight(counter: Counter) -> None:
    """protocols §3: an old fence writes nothing, and neither does a second word on the same attempt."""
    stale = Report(counter.claim._replace(fence=counter.claim.fence + 1), output="1")
    with counter.site.engine.begin() as connection:
        assert not reports.store(connection, stale)
    assert counter.report(output="1")
    assert not counter.report(output="2")
    counter.bench.wake(counter.id)
    assert counter.row.output == "1"
    assert not counter.report(output="3")


def test_a_turn_that_has_not_seen_a_report_cannot_move_its_alarm(counter: Counter) -> None:
    """protocols §7: a report raises the seq, so a turn that was under way loses, reads again and takes it."""
    counter.take()
    seq = counter.site.row(counter.id).seq
    counter.report(output="1")
    assert counter.site.row(counter.id).seq == seq + 1
    # What this process has in memory is older than the report; the outcome of another step would go the fast path.
    counter.bench.wake(counter.id)
    assert counter.row.status == "done"


def test_an_attempt_is_claimed_once(counter: Counter) -> None:
    """protocols §4: the row is the referee; a copy of the message gets nothing, a repeated try gets its own again."""
    first = counter.take()
    assert counter.take() is None
    assert counter.take(again=True)[1] == first[1]
    assert counter.take(counter.enter(), again=True) is None


def test_a_worker_that_was_declared_dead_claims_nothing(counter: Counter) -> None:
    """protocols §6: its attempts would be taken for lost at once."""
    counter.site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=counter.worker)
    assert counter.take() is None
    with counter.site.engine.begin() as connection:
        assert reports.standing(connection, counter.claim) == "handed"


def test_a_claim_that_was_put_aside_goes_on_elsewhere(counter: Counter) -> None:
    """protocols §16: Celery's retry keeps the claim, and the time of the attempt runs on."""
    first = counter.take()
    with counter.site.engine.begin() as connection:
        reports.put_aside(connection, counter.claim)
    second = counter.take(counter.enter())
    assert second[1] == first[1]
    assert counter.row.attempt == 1


def test_the_alarm_keeps_the_time_of_a_task(site: Site) -> None:
    """protocols §7: nobody of ours runs the body, so the instance's alarm is at its deadline, however short."""
    counter = Counter(site, flow_of(timeout=2))
    assert site.row(counter.id).alarm == pytest.approx(counter.clock.at + 2)


def test_a_task_nobody_took_up_times_out_by_name(site: Site) -> None:
    """protocols §16: handed out for longer than its timeout: the error names the queue and the reason."""
    counter = Counter(site, flow_of(timeout=2, retries=Retries(limit=0)))
    counter.clock.at += 2.1
    counter.bench.wake(counter.id)
    error = codec.error_info(counter.row.error)
    assert error.name == "StepTimeout"
    assert "queue 'celery'" in error.message
    assert "Orchestrator(celery=app)" in error.message
    assert not counter.report(output="1")
    assert counter.take() is None


def test_a_report_comes_before_the_timeout(site: Site) -> None:
    """semantics §2: an attempt that ended in time has ended, however late the turn runs."""
    counter = Counter(site, flow_of(timeout=2))
    counter.take()
    counter.report(output="1")
    counter.clock.at += 10
    counter.bench.wake(counter.id)
    assert counter.row.status == "done"


def test_a_task_whose_message_was_lost_is_sent_again(counter: Counter) -> None:
    """protocols §7: unclaimed while its queue is empty; never run in the process that notices."""
    counter.clock.at += 5.5
    assert counter.bench.wake(counter.id).handouts == []
    counter.clock.at += 5
    results = counter.bench.wake(counter.id)
    (again,) = results.handouts
    assert (again.fence, again.signature["task"]) == (counter.handout.fence, charge.name)
    assert results.local == []
    counter.site.post.waiting = 7
    counter.clock.at += 20
    assert counter.bench.wake(counter.id).handouts == []


def test_a_dead_worker_loses_its_task(counter: Counter) -> None:
    """protocols §6: the row of a worker for tasks is a lease like any other."""
    counter.take()
    counter.site.sql("DELETE FROM orchestrator_workers WHERE id = :id", id=counter.worker)
    (again,) = counter.bench.wake(counter.id).handouts
    assert again.fence > counter.handout.fence
    assert again.signature is not None


def test_what_a_cancelled_task_returns_is_for_its_handler(site: Site) -> None:
    """protocols §14: a workflow that fails waits for the task; what it reports is the output its handler gets."""

    async def reports_saga(event: Any, step: Any) -> None:
        paid = step.do("charge", charge.s("o-1"), timeout=60, rollback=lambda r: None)
        await step.do("boom", lambda: 1)
        await paid

    clock = ManualClock(time.time())
    bench = site.bench(clock=clock)
    instance = site.workflow(reports_saga).plant(now=clock.at)
    handouts = {h.key: h for h in bench.wake(instance).handouts}
    worker = uuid4()
    claim = Claim(instance, KEY, handouts[KEY].fence)
    with site.engine.begin() as connection:
        workers.register(connection, site.settings.account, Incarnation(worker), [])
        assert reports.claim(connection, claim, worker, again=False) is not None
    bench.finish(handouts["do:boom:1"], error=codec.encode_error(ValueError("no")), final=True)
    bench.wake(instance)
    assert site.step(instance, KEY).status == "cancelling"
    with site.engine.begin() as connection:
        assert reports.store(connection, Report(claim, output='"paid"'))
    (handler,) = bench.wake(instance).handouts
    assert handler.key == f"{KEY}:rollback"
    assert (site.step(instance, KEY).status, site.step(instance, KEY).output) == ("cancelled", '"paid"')


def test_a_blocked_instance_keeps_its_report(site: Site) -> None:
    """protocols §12: code that does not fit takes nothing; what was reported is there for code that does."""
    good = flow_of()
    counter = Counter(site, good)
    counter.take()
    counter.report(output="1")

    async def reports_flow(event: Any, step: Any) -> None:
        await step.do("another", lambda: 1)

    other = Registry()
    site.workflow(reports_flow, other)
    site.bench(other, counter.clock).wake(counter.id)
    assert site.row(counter.id).blocked is not None
    assert counter.left() == 1
    counter.bench.replays.clear()
    counter.bench.wake(counter.id)
    assert (counter.row.status, counter.left()) == ("done", 0)


def test_deleting_an_instance_deletes_its_reports(counter: Counter) -> None:
    """semantics §4: delete leaves nothing."""
    counter.report(output="1")
    with counter.site.engine.begin() as connection:
        deletion.delete(connection, [counter.id])
    assert counter.left() == 0
