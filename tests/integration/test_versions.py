"""Code that changes under running instances: versions side by side, marks, and who goes on with what."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Status
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import Workflow
from orchestrator.errors import NonDeterminismError
from orchestrator.settings import Settings
from orchestrator.store import instances, workers
from orchestrator.workflow.language.definition import Definition, Registry, define
from tests.integration.harness import ManualClock, Site, eventually
from tests.integration.test_shutdown import Process

pytestmark = pytest.mark.integration


async def give(value: Any = None) -> Any:
    return value


async def first_version(event, step):
    before = await step.do("work", give, "old")
    go = await step.wait_for_event("go", type="go", timeout=60)
    return [before, await step.do("after", give, go.payload)]


async def second_version(event, step):
    return [await step.do("other work", give, "new")]


async def unmarked(event, step):
    first = await step.do("first", give, 1)
    await step.wait_for_event("go", type="go", timeout=60)
    await step.do("last", give, 2)
    return ["old", first]


async def marked(event, step):
    first = await step.do("first", give, 1)
    await step.wait_for_event("go", type="go", timeout=60)
    if step.patched("check"):
        return ["new", await step.do("check", give, 3)]
    await step.do("last", give, 2)
    return ["old", first]


def is_at(created: Any, *keys: str) -> bool:
    return [step.key for step in created.steps()] == list(keys)


def test_versions_run_side_by_side(site: Site) -> None:
    """API §1, semantics §1.6: several versions of one name may be registered at once; an instance keeps the version it
    was created with, whichever is the newest, and a new one gets that."""
    old = site.workflow(first_version, name="versions_both", version="1")
    created = old.create(id="one")
    site.worker(chef=True)
    eventually(lambda: is_at(created, "do:work:1", "wait:go:1"))

    both = Registry()
    site.workflow(first_version, both, name="versions_both", version="1")
    new = site.workflow(second_version, both, name="versions_both", version="2")
    site.worker(both, chef=True)
    site.post.targets[:] = site.post.targets[1:]
    fresh = new.create(id="two")
    assert fresh.result(15) == ["new"]
    created.send_event("go", "went")
    assert created.result(15) == ["old", "went"]
    versions = site.sql(
        "SELECT name_id, version FROM orchestrator_instances WHERE account = :account ORDER BY 1",
        account=site.settings.account,
    )
    assert [tuple(row) for row in versions] == [("one", "1"), ("two", "2")]


def test_a_worker_leaves_versions_it_does_not_know(site: Site) -> None:
    """Semantics §1.6, protocols §12: whoever is given an instance of another version leaves it, unblocked, for a worker
    that knows it; and there it goes on by itself."""
    old = site.workflow(first_version, name="versions_left", version="1")
    newest = Registry()
    new = site.workflow(second_version, newest, name="versions_left", version="2")
    stranger = site.worker(newest, chef=True)
    created, fresh = old.create(), new.create()  # the post knows of the stranger only
    assert fresh.result(15) == ["new"]
    assert (created.status().status, created.status().blocked) == (Status.RUNNING, None)
    assert created.steps() == []
    site.post.targets.remove(stranger)
    site.worker(chef=True, deliver=False)
    eventually(lambda: is_at(created, "do:work:1", "wait:go:1") or None, patience_s=30)
    created.send_event("go", 1)
    assert created.result(30) == ["old", 1]


def definitions(*known: Definition) -> list[tuple[str, str, str, str]]:
    return [(each.name, each.version, each.source_hash, "{}") for each in known]


def test_only_other_code_lets_what_is_blocked_be_tried_again(site: Site) -> None:
    """Protocols §12: a worker that registers with the same source hash changes nothing; one with another hash does,
    for its own workflow."""
    flow = site.workflow(first_version, name="versions_hash")
    other = site.workflow(first_version, name="versions_hash_other")
    account = site.settings.account
    planted = [flow.plant(), other.plant()]
    for instance in planted:
        site.sql(
            "UPDATE orchestrator_instances SET status = 'waiting', blocked = '{}', alarm_at = to_timestamp(:at) "
            "WHERE id = :id",
            id=instance,
            at=2_000_000_000.0,
        )

    def register(fn: Any) -> list[str]:
        with site.engine.begin() as connection:
            known = definitions(define(fn, name="versions_hash"))
            changed = workers.register_workflows(connection, account, known)
            instances.release_blocked(connection, account, changed, 1_900_000_000.0)
        return changed

    assert register(unmarked) == ["versions_hash"]  # nobody had registered it
    assert site.row(planted[0]).alarm == 1_900_000_000.0
    site.sql(
        "UPDATE orchestrator_instances SET alarm_at = to_timestamp(2000000000) WHERE id = :id", id=planted[0]
    )
    assert register(unmarked) == []
    assert site.row(planted[0]).alarm == 2_000_000_000.0
    assert register(marked) == ["versions_hash"]
    assert [site.row(instance).alarm for instance in planted] == [1_900_000_000.0, 2_000_000_000.0]


def test_what_does_not_fit_waits_for_code_that_does(site: Site) -> None:
    """Semantics §1.6, protocols §12: blocked, not failed, and it names both sides; it goes on by itself when a worker
    with code that fits registers."""
    flow = site.workflow(first_version, name="versions_fit")
    registry = Registry()
    site.workflow(second_version, registry, name="versions_fit")
    created = flow.create()
    fits = site.worker(chef=True)
    eventually(lambda: is_at(created, "do:work:1", "wait:go:1"))
    fits.crash()
    differs = site.worker(registry, chef=True)
    created.send_event("go", "went")
    blocked = eventually(lambda: created.status().blocked)
    assert created.status().status is Status.WAITING
    assert blocked.name == "NonDeterminismError"
    assert "start of 'do:work:1'" in blocked.message
    assert "start of 'do:other work:1'" in blocked.message
    differs.crash()
    site.worker(chef=True)
    assert created.result(15) == ["old", "went"]
    assert created.status().blocked is None


def test_marks_in_a_deployment(site: Site) -> None:
    """Protocols §20: what has passed the change in the old code goes on in it, what has not and what is new takes the
    new way; a mark is a step of kind ``patch``."""
    flow = site.workflow(unmarked, name="versions_marks")
    passed, waits = flow.create(id="passed"), flow.create(id="waits")
    bench = site.bench(clock=ManualClock(time.time()))
    for created in (passed, waits):
        (handout,) = bench.wake(site.id_of(created.id)).handouts
        bench.finish(handout, 1)
    passed.send_event("go")
    bench.wake(site.id_of("passed"))
    assert is_at(passed, "do:first:1", "wait:go:1", "do:last:1")

    registry = Registry()
    changed = site.workflow(marked, registry, name="versions_marks")
    site.post.handouts.clear()
    site.worker(registry, chef=True)
    fresh = changed.create(id="fresh")
    for created in (waits, fresh):
        created.send_event("go")
    assert passed.result(30) == ["old", 1]
    for created in (waits, fresh):
        assert created.result(15) == ["new", 3]
        assert is_at(created, "do:first:1", "wait:go:1", "patch:check:1", "do:check:1")
        mark = created.steps()[2]
        assert (mark.kind, mark.name, mark.count, mark.status) == ("patch", "check", 1, "done")
        assert (mark.output, mark.error, mark.attempts, mark.config) == (None, None, [], {})
        assert mark.started_at == mark.finished_at
        told = [event.type for event in created.subscribe() if event.step_name == "check"]
        assert told == [
            "step_started",
            "attempt_started",
            "attempt_completed",
            "step_completed",
        ]  # of do:check:1


async def beside_unmarked(event, step):
    first = step.do("first", give, 1)
    await first
    return [await step.do("second", give, 2), await step.do("third", give, 3)]


async def beside_marked(event, step):
    first = step.do("first", give, 1)
    if step.patched("beside"):
        await step.do("beside", give, 0)
    await first
    return [await step.do("second", give, 2), await step.do("third", give, 3)]


@pytest.mark.parametrize("by", ["claim", "turn"])
def test_an_answer_that_has_been_overtaken(site: Site, by: str) -> None:
    """Protocols §20: a process with new code has asked ``patched`` for a claim; a turn of a process with the old code
    comes first. Its replay is built anew and fits: nothing is blocked."""
    flow = site.workflow(beside_unmarked, name="versions_beside")
    registry = Registry()
    site.workflow(beside_marked, registry, name="versions_beside")
    created = flow.create()
    instance = site.id_of(created.id)
    clock = ManualClock(time.time())
    old, new = site.bench(clock=clock), site.bench(registry, clock)
    (first,) = old.wake(instance).handouts
    (ready,) = new.claim(first)
    held = new.replays.get(instance)
    assert held is not None
    assert [command.key for command in held.replay.pending] == ["patch:beside:1", "do:beside:1"]  # type: ignore[union-attr]
    (second,) = old.run({instance: [old.outcome(ready, 1)]}).handouts
    if by == "claim":
        (ready,) = new.claim(second)
    else:
        (ready,) = old.claim(second)
        results = new.wake(instance)
        assert list(results.repeat) == [instance]
        new.run(results.repeat)
    (third,) = new.run({instance: [new.outcome(ready, 2)]}).handouts
    assert created.status().blocked is None
    new.finish(third, 3)
    assert created.result(1) == [2, 3]


def test_code_that_lost_its_mark_is_told_so(site: Site) -> None:
    """Protocols §20: removing ``patched`` under an instance that has the mark blocks it by that name."""
    flow = site.workflow(beside_marked, name="versions_lost")
    registry = Registry()
    site.workflow(beside_unmarked, registry, name="versions_lost")
    created = flow.create()
    instance = site.id_of(created.id)
    clock = ManualClock(time.time())
    site.bench(clock=clock).wake(instance)
    site.bench(registry, clock).wake(instance)
    blocked = created.status().blocked
    assert blocked is not None
    assert blocked.name == NonDeterminismError.__name__
    assert "mark of step.patched('beside')" in blocked.message


def says_text() -> str:
    return "seven"


def says_number() -> int:
    return 7


@pytest.mark.parametrize("by", ["turn", "claim"])
def test_a_recorded_value_that_todays_annotation_refuses(site: Site, by: str) -> None:
    """Protocols §17: it blocks the instance on a later replay, by name, whoever meets it first; code that takes it goes
    on from there."""

    def code(body: Any) -> Any:
        async def flow(event, step):
            value = await step.do("say", body)
            return [value, await step.do("after", give, 1)]

        return flow

    flow = site.workflow(code(says_text), name="versions_value")
    registry = Registry()
    site.workflow(code(says_number), registry, name="versions_value")
    created = flow.create()
    instance = site.id_of(created.id)
    clock = ManualClock(time.time())
    fits, differs = site.bench(clock=clock), site.bench(registry, clock)
    (say,) = fits.wake(instance).handouts
    (after,) = fits.finish(say, "seven").handouts
    if by == "turn":
        assert differs.wake(instance).handouts == []
    else:
        assert differs.claim(after) == [None]
    blocked = created.status().blocked
    assert blocked is not None
    assert blocked.name == "SerializationError"
    assert "'do:say:1' no longer fits its annotation <class 'int'>" in blocked.message
    fits.replays.clear()
    fits.wake(instance)
    fits.finish(after, 1)
    assert created.result(1) == ["seven", 1]


# -- deployed, in processes of their own -------------------------------------------------------------------------

BEFORE = """
from orchestrator import workflow

async def give(value):
    return value

@workflow
async def versions_shop(event, step):
    paid = await step.do("pay", give, event.payload)
    await step.wait_for_event("go", type="go", timeout=600)
    sent = await step.do("send", give, "by post")
    await step.wait_for_event("sent", type="sent", timeout=600)
    return [paid, sent]
"""

AFTER = """
from orchestrator import workflow

async def give(value):
    return value

@workflow
async def versions_shop(event, step):
    @step.do
    async def stock() -> int:
        return 3

    @step.do("parcel", concurrent=True)
    def parcel(stock: int, ctx) -> str:
        return f"{stock} by drone, attempt {ctx.attempt}"

    paid = await step.do("pay", give, event.payload)
    await step.wait_for_event("go", type="go", timeout=600)
    if step.patched("drones"):
        sent = await parcel()
    else:
        sent = await step.do("send", give, "by post")
    await step.wait_for_event("sent", type="sent", timeout=600)
    return [paid, sent]
"""


@pytest.fixture
def deploy(settings: Settings, tmp_path: Path) -> Iterator[Callable[[str, str], Process]]:
    """Writes code where workers find it and starts one, with that pool, in place of the one before."""
    started: list[Process] = []

    def start(code: str, pool: str) -> Process:
        for each in started:
            if each.process.poll() is None:
                assert each.stop(40)[0] == 0
        release = tmp_path / f"release{len(started)}"
        release.mkdir()
        (release / "versions_deployed.py").write_text(textwrap.dedent(code))
        path = os.pathsep.join([str(release), os.environ.get("PYTHONPATH", "")])
        more = {"PYTHONPATH": path, "ORCHESTRATOR_WORKFLOWS": "versions_deployed", "ORCHESTRATOR_POOL": pool}
        started.append(Process(settings, tmp_path, **more, ORCHESTRATOR_PROCESSES="1"))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_a_deployment_under_running_instances(
    settings: Settings, deploy: Callable[[str, str], Process], pool: str
) -> None:
    """Protocols §12, §20, semantics §1.6: real workers with the old code end, others with the new code begin; who has
    taken the old way stays in it, who has not takes the new one, with decorated steps, and nobody is blocked."""

    async def stub(event, step):
        """The code is in the workers only."""

    with Orchestrator(settings) as client:
        shop = Workflow(define(stub, name="versions_shop"))
        deploy(BEFORE, pool)
        sent, waits = (shop.create(name, id=name, orchestrator=client) for name in ("sent", "waits"))
        for created in (sent, waits):
            eventually(lambda created=created: is_at(created, "do:pay:1", "wait:go:1"), patience_s=40)
        sent.send_event("go")
        eventually(lambda: is_at(sent, "do:pay:1", "wait:go:1", "do:send:1", "wait:sent:1"), patience_s=20)

        deploy(AFTER, pool)
        fresh = shop.create("fresh", id="fresh", orchestrator=client)
        for created in (waits, fresh):
            created.send_event("go")
        for created in (sent, waits, fresh):
            created.send_event("sent")
        assert sent.result(40) == ["sent", "by post"]
        new_way = ["do:pay:1", "wait:go:1", "patch:drones:1", "do:stock:1", "do:parcel:1", "wait:sent:1"]
        for created in (waits, fresh):
            assert created.result(40) == [created.id, "3 by drone, attempt 1"]
            assert is_at(created, *new_way)
