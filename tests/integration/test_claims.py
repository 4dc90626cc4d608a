"""Claims, fences, keys, duplicates, and outcomes of transactions that nobody knows."""

import asyncio
import threading
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from orchestrator import Retries, Workflow, WorkflowFailed
from orchestrator.engine.turning.results import Results
from orchestrator.errors import NotDurable
from orchestrator.ports import HandOut
from orchestrator.store import histories, steps, turns
from orchestrator.store.steps import Claim
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


async def body(*args: Any) -> Any:
    return list(args)


class Fails:
    """Makes a verb lose its connection: ``before`` it does anything, or ``after`` it has committed."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str, when: str, times: int = 1) -> None:
        self.calls = 0
        original = getattr(module, name)

        def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > times:
                return original(connection, *args, **kwargs)
            if when == "after":
                original(connection, *args, **kwargs)
                connection.commit()
            raise OperationalError("x", None, psycopg.OperationalError("server closed the connection"))

        patch.setattr(module, name, call)


# -- who may call what -------------------------------------------------------------------------------------

VERBS = {
    "create": lambda wf, i: wf.create(),
    "create_batch": lambda wf, i: wf.create_batch(count=1),
    "get": lambda wf, i: wf.get("x"),
    "status": lambda wf, i: i.status(),
    "result": lambda wf, i: i.result(),
    "steps": lambda wf, i: i.steps(),
    "send_event": lambda wf, i: i.send_event("go"),
    "terminate": lambda wf, i: i.terminate(),
    "acreate": lambda wf, i: wf.acreate(),
    "acreate_batch": lambda wf, i: wf.acreate_batch(count=1),
    "aget": lambda wf, i: wf.aget("x"),
    "astatus": lambda wf, i: i.astatus(),
    "aresult": lambda wf, i: i.aresult(),
    "asteps": lambda wf, i: i.asteps(),
    "asend_event": lambda wf, i: i.asend_event("go"),
    "aterminate": lambda wf, i: i.aterminate(),
}


def test_client_verbs_are_refused_in_workflow_code(site: Site) -> None:
    """protocols §2: every client method called from workflow code says "call it inside step.do"; in a body it works."""
    seen: dict[str, str] = {}
    other: Workflow = site.workflow(idle)
    instance = other.create(id="other")

    async def flow(event, step):
        for name, verb in VERBS.items():
            try:
                awaitable = verb(other, instance)
                if name.startswith("a"):
                    await awaitable
            except NotDurable as error:
                seen[name] = str(error)
        return await step.do("outside", lambda: str(instance.status().status))

    site.worker()
    assert site.workflow(flow).create().result(10) in ("running", "waiting")
    assert seen.keys() == VERBS.keys()
    for name, message in seen.items():
        assert message.startswith(f"{name}()")
        assert "call it inside step.do" in message
    rows = site.sql(
        "SELECT count(*) FROM orchestrator_instances WHERE account = :account", account=site.settings.account
    )
    assert rows == [(2,)]


async def idle(event, step):
    await step.wait_for_event("w", type="never")


# -- keys and fences ---------------------------------------------------------------------------------------


def test_the_idempotency_key(site: Site) -> None:
    """protocols §3: ``{instance uuid}:{run}:{step key}``, the same on every attempt; ``:rollback`` for handlers."""
    keys: list[tuple[str, int, str]] = []

    def fails_twice(ctx):
        keys.append(("do", ctx.attempt, ctx.idempotency_key))
        if ctx.attempt < 3:
            raise ConnectionError

    def undo(r):
        keys.append(("undo", r.attempt, r.idempotency_key))
        keys.append(("forward", r.step.attempt, r.step.idempotency_key))
        if r.attempt < 2:
            raise ConnectionError

    async def flow(event, step):
        again = Retries(limit=3, delay=0)
        await step.do("pay", fails_twice, retries=again)
        await step.do("pay", fails_twice, retries=again, rollback=undo, rollback_retries=again)
        raise RuntimeError("undo it")

    site.worker()
    created = site.workflow(flow).create(id="k")
    eventually(lambda: created.status().status == "errored")
    uuid = site.id_of("k")
    assert keys == [
        *[("do", n, f"{uuid}:0:do:pay:1") for n in (1, 2, 3)],
        *[("do", n, f"{uuid}:0:do:pay:2") for n in (1, 2, 3)],
        ("undo", 1, f"{uuid}:0:do:pay:2:rollback"),
        ("forward", 3, f"{uuid}:0:do:pay:2"),
        ("undo", 2, f"{uuid}:0:do:pay:2:rollback"),
        ("forward", 3, f"{uuid}:0:do:pay:2"),
    ]


def handout_of(site: Site, instance: UUID) -> HandOut:
    """The hand-out of an instance, once its turn has run."""

    def found() -> HandOut | None:
        return next((h for h in site.post.handouts if h.instance == instance), None)

    return eventually(found, "the hand-out")


def test_two_workers_get_one_message(site: Site) -> None:
    """protocols §4: one of them claims it; the body runs once, the other drops its copy."""
    runs: list[int] = []
    go = threading.Event()

    def once():
        runs.append(1)
        go.wait(10)

    async def flow(event, step):
        await step.do("once", once)

    flows = site.workflow(flow)
    workers = [site.worker(deliver=False) for _ in range(2)]
    created = flows.create()
    instance = site.id_of(created.id)
    workers[0].runtime.coordinate([instance])
    handout = handout_of(site, instance)
    copies = [worker.run(handout) for worker in workers for _ in range(3)]
    eventually(lambda: sum(copy.done() for copy in copies) == 5)
    go.set()
    said = Counter(copy.result(10) for copy in copies)
    assert said["done"] == 1
    assert said["dropped"] >= 1
    assert runs == [1]
    assert created.result(10) is None
    assert workers[1].run(handout).result(10) == "dropped", "a late duplicate"


def test_terminated_before_or_after_the_claim(site: Site) -> None:
    """protocols §4: terminating fences off what is handed out: the message is dropped; what was claimed before goes on,
    and what it returns is not recorded."""

    async def flow(event, step):
        await step.do("a", body)

    flows, bench = site.workflow(flow), site.bench()
    early, late = flows.create(), flows.create()
    handouts = [bench.wake(site.id_of(each.id)).handouts[0] for each in (early, late)]
    (ready,) = bench.claim(handouts[1])
    early.terminate()
    late.terminate()
    assert bench.claim(handouts[0]) == [None]
    assert bench.again == []
    bench.run({handouts[1].instance: [bench.outcome(ready, "too late")]})
    assert len(bench.done) == 1
    for each in (early, late):
        (record,) = each.steps()
        assert (record.status, record.output) == ("cancelled", None)


def test_a_lost_body_ends_with_its_lease(site: Site) -> None:
    """protocols §14: compensation waits for each attempt in flight; one whose worker died ends with its worker."""

    async def flow(event, step):
        await asyncio.gather(
            step.do("pay", body, rollback=body), step.do("fail", body, retries=Retries(limit=0))
        )

    flows = site.workflow(flow)
    doomed, bench = site.bench(), site.bench()
    instance = flows.plant()
    pay, fail = bench.wake(instance).handouts
    doomed.claim(pay)
    results = bench.finish(fail, error='{"name":"E","message":"m"}')
    while results.repeat:
        results = bench.run(results.repeat)
    assert site.row(instance).status == "rolling_back"
    assert site.step(instance, "do:pay:1").status == "cancelling"
    assert not bench.wake(instance).handouts
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=doomed.id)
    (handler,) = bench.wake(instance).handouts
    assert handler.key == "do:pay:1:rollback"
    bench.finish(handler)
    assert site.row(instance).status == "errored"


def test_an_old_fence_is_discarded(site: Site) -> None:
    """protocols §3: the result of a hand-out that was superseded is not recorded."""

    async def flow(event, step):
        return await step.do("a", body)

    bench, instance = site.bench(), site.workflow(flow).plant()
    (first,) = bench.wake(instance).handouts
    (ready,) = bench.claim(first)
    (second,) = bench.run({instance: [bench.outcome(ready, loss="lost")]}).handouts
    assert second.fence > first.fence
    (again,) = bench.claim(second)
    bench.run({instance: [bench.outcome(ready, "late")]})
    assert site.step(instance, "do:a:1").status == "running"
    assert len(bench.done) == 2, "whoever reported it waits for ever"
    bench.run({instance: [bench.outcome(again, "right")]})
    assert site.step(instance, "do:a:1").output == '"right"'


def test_a_message_that_makes_no_sense_is_dropped(site: Site) -> None:
    """protocols §4: messages are believed ids and a fence only; one that Postgres refuses does not hold up others."""

    async def flow(event, step):
        return await step.do("a", body, 1)

    flows, worker = site.workflow(flow), site.worker(deliver=False)
    created = flows.create()
    instance = site.id_of(created.id)
    worker.runtime.coordinate([instance])
    good = handout_of(site, instance)
    bad = [
        HandOut(instance, "do:a\0:1", 1, "", "", ""),
        HandOut(instance, "do:a:1", 2**70, "", "", ""),
        HandOut(instance, "\ud800", 1, "", "", ""),
    ]
    said = [worker.run(h) for h in (bad[0], good, *bad[1:])]
    assert [future.result(10) for future in said] == ["dropped", "done", "dropped", "dropped"]
    site.post.targets.append(worker)
    assert created.result(10) == [1]


def test_a_claim_of_what_todays_code_does_not_reach_is_given_back(site: Site) -> None:
    """protocols §12: a process that claimed what its code cannot run puts it back, unrun, and holds the instance."""
    from tests.integration.test_turns import other_code

    async def flow(event, step):
        return await step.do("a", body)

    flows = site.workflow(flow)
    instance = flows.plant()
    fits, differs = site.bench(), site.bench(other_code(site, flows.name))
    (handout,) = fits.wake(instance).handouts
    assert differs.claim(handout) == [None]
    row = site.step(instance, "do:a:1")
    assert (row.status, row.worker, row.fence, row.attempt) == ("handed", None, handout.fence, 1)
    assert "NonDeterminismError" in site.row(instance).blocked
    fits.finish(handout, "done by whom it fits")
    fits.wake(instance)
    assert site.row(instance).status == "complete"


# -- outcomes that nobody knows ----------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["claim", "commit"])
def test_an_unknown_outcome_costs_time_only(
    site: Site, monkeypatch: pytest.MonkeyPatch, verb: str, when: str
) -> None:
    """protocols §5: what the connection took with it is repeated: claims are idempotent, outcomes are kept, hand-outs
    are offered again; no body runs twice, whether the lost transaction had committed or not."""
    runs: Counter[str] = Counter()

    def count(ctx):
        runs[f"{ctx.name}:{ctx.count}"] += 1
        return ctx.count

    async def flow(event, step):
        return [await step.do("count", count) for _ in range(4)]

    flows = site.workflow(flow)
    site.worker()
    created = flows.create()
    eventually(lambda: runs)
    fails = Fails(monkeypatch, steps if verb == "claim" else turns, verb, when, times=2)
    others = [flows.create() for _ in range(3)]
    for each in (created, *others):
        assert each.result(20) == [1, 2, 3, 4]
    assert fails.calls > 2
    assert set(runs.values()) == {4}, runs
    for each in (created, *others):
        assert [(step.status, len(step.attempts)) for step in each.steps()] == [("done", 1)] * 4


def test_hand_outs_of_an_unknown_flush_are_offered_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §5: after a flush of unknown outcome the instance is read anew, and what it handed out is run here."""

    async def flow(event, step):
        await step.do("a", body)
        await step.do("b", body)

    bench, instance = site.bench(), site.workflow(flow).plant()
    (a,) = bench.wake(instance).handouts
    (ready,) = bench.claim(a)
    batch: Any = {instance: [bench.outcome(ready)]}
    with monkeypatch.context() as patch:
        Fails(patch, turns, "commit", "after")
        results = bench.run(batch)
    assert (results.uncertain, results.handouts, results.local, bench.done) == (True, [], [], [])
    results = bench.run(results.repeat)
    assert [h.key for h in results.handouts + results.local] == ["do:b:1"]
    assert [outcome.key for _, outcome in bench.done] == ["do:a:1"], "its own fence completed is a success"
    bench.finish((results.handouts + results.local)[0])
    assert site.row(instance).status == "complete"


def test_what_this_process_holds_runs_here_however_full_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §5: after a flush of unknown outcome a worker starts what is claimed by it and not running here. Nobody
    else could: its message would be dropped. A hand-out that was only lost on its way needs room."""
    worker = site.worker(concurrency=1, deliver=False)
    monkeypatch.setattr(type(worker.runtime.attempts), "active", property(lambda _: 1))
    run: list[Claim] = []

    async def attempt(claim: Claim) -> str:
        run.append(claim)
        return "done"

    monkeypatch.setattr(worker.runtime.attempts, "run", attempt)
    mine, lost = (HandOut(uuid4(), key, 3, "", "w", "l") for key in ("do:mine:1", "do:lost:1"))
    worker.runtime.carry_out(Results(mine=[mine], local=[lost]))
    eventually(lambda: run and site.post.handouts)
    assert run == [Claim(mine.instance, mine.key, 3)]
    assert [h.key for h in site.post.handouts] == [lost.key]


def test_a_cancellation_that_comes_after_the_claim_blocks_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §13: the claim was committed, then a turn elsewhere cancelled the step, then its facts are read."""

    async def flow(event, step):
        slow = step.do("slow", body)
        await step.do("quick", body)
        slow.cancel()
        await step.sleep("nap", 60)

    one, other, created = site.bench(), site.bench(), site.workflow(flow)
    instance = created.plant()
    slow, quick = one.wake(instance).handouts
    (ready,) = one.claim(quick)
    plain = histories.load

    def load(connection: Any, known: Any, *rest: Any) -> Any:
        monkeypatch.setattr(histories, "load", plain)
        one.run({instance: [one.outcome(ready)]})
        return plain(connection, known, *rest)

    monkeypatch.setattr(histories, "load", load)
    (claimed,) = other.claim(slow)
    assert (claimed.call, site.row(instance).blocked) == (None, None)
    assert site.step(instance, "do:slow:1").status == "cancelling"


def test_a_deadline_is_a_net_under_everything(site: Site) -> None:
    """protocols §5: what is still running a lease after its timeout is lost, whoever owns it."""

    async def flow(event, step):
        await step.do("a", body, timeout=30)

    bench, instance = site.bench(), site.workflow(flow).plant()
    (handout,) = bench.wake(instance).handouts
    bench.claim(handout)
    lease = site.settings.lease
    bench.clock.at += 30 + lease - 0.5
    assert not bench.wake(instance).handouts
    bench.clock.at += 1
    (again,) = bench.wake(instance).handouts
    assert again.fence > handout.fence
    row = site.step(instance, "do:a:1")
    assert (row.status, row.attempt, row.losses) == ("handed", 2, 1)
    (error,) = site.sql("SELECT error FROM orchestrator_attempts WHERE instance_id = :id", id=instance)
    assert "WorkerLost" in error[0]


def test_backends_are_killed_while_work_goes_on(own_site: Site) -> None:
    """protocols §5: Postgres ends every connection again and again; nothing is lost, no body runs twice."""
    runs: Counter[str] = Counter()

    def count(ctx):
        runs[ctx.idempotency_key] += 1

    async def flow(event, step):
        for _ in range(10):
            await step.do("count", count)

    flows = own_site.workflow(flow)
    own_site.worker()
    created = flows.create_batch(count=30).created
    ended = 0
    plain = own_site.settings.database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as killer:
        while ended < 30:
            killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            row = eventually(
                lambda: killer.execute(
                    "SELECT count(*) FILTER (WHERE status = 'complete'), sum(seq) FROM orchestrator_instances"
                ).fetchone()
            )
            ended = row[0]
            progressed = row[1]
            eventually(
                lambda at=progressed: (
                    ended == 30
                    or killer.execute("SELECT sum(seq) FROM orchestrator_instances").fetchone()[0] > at + 20  # type: ignore[index]
                    or killer.execute(
                        "SELECT bool_and(status = 'complete') FROM orchestrator_instances"
                    ).fetchone()[0]
                ),  # type: ignore[index]
                "progress",
                30,
            )
    for each in created:
        each.result(30)
    assert len(runs) == 300
    assert set(runs.values()) == {1}


def test_the_limits_of_the_deployment_apply(site: Site) -> None:
    """ORCHESTRATOR_MAX_STEPS and _MAX_PAYLOAD_BYTES bind every instance, whatever its workflow allows."""

    async def three(event, step):
        for _ in range(3):
            await step.do("s", body)

    async def large(event, step):
        return "x" * 2000

    steps, output = site.workflow(three), site.workflow(large)
    site.worker(max_steps=2, max_payload_bytes=1000)
    with pytest.raises(WorkflowFailed, match="may start 2 steps"):
        steps.create().result(20)
    with pytest.raises(WorkflowFailed, match="PayloadTooLarge"):
        output.create().result(20)
