"""Operators finish a failed rollback: ``retry_rollback`` and ``skip_rollback``, on real workers and a real Postgres."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import (
    InstanceNotFound,
    InvalidConfig,
    InvalidTransition,
    Retries,
    RollbackPolicy,
    Status,
)
from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.errors import WorkflowFailed
from orchestrator.store.records import retention
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)
TWICE = Retries(limit=1, delay=0)


class Ledger:
    """What was undone, in order, with attempt and idempotency key; and which handlers fail meanwhile."""

    def __init__(self, *breaks: str) -> None:
        self.breaks = set(breaks)
        self.lines: list[tuple[str, int, str]] = []

    def do(self, step: Any, name: str, retries: Retries = ONCE) -> asyncio.Future[Any]:
        async def body() -> str:
            return name

        return step.do(name, body, rollback=self.handler(name), rollback_retries=retries)

    def handler(self, name: str) -> Any:
        async def undo(context: Any) -> None:
            self.lines.append((name, context.attempt, context.idempotency_key))
            if name in self.breaks:
                raise RuntimeError(f"cannot undo {name}")

        return undo

    @property
    def undone(self) -> list[str]:
        return [name for name, _, _ in self.lines]


def three(site: Site, ledger: Ledger, name: str, retries: Retries = ONCE, **options: Any) -> Any:
    """Three steps, then a failure."""

    async def operators_flow(event, step):
        for each in "abc":
            await ledger.do(step, each, retries)
        raise LookupError("the original error")

    return site.workflow(operators_flow, name=name, **options)


def failed(created: Any) -> Any:
    """Wait for the end: errored. The rollback."""
    with pytest.raises(WorkflowFailed) as raised:
        created.result(15)
    assert raised.value.error.name == "LookupError"
    return raised.value.rollback


def types(created: Any) -> list[str]:
    """Its story; ids grow strictly."""
    told = list(created.subscribe())
    ids = [event.event_id for event in told]
    assert ids == sorted(set(ids))
    return [event.type for event in told]


@pytest.fixture(params=["broker", "in_place"])
def delivered(site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site with a worker that starts handlers by message, or in place."""
    site.worker(delivery=request.param)
    yield site


def test_a_retry_runs_what_failed_and_then_what_never_ran(delivered: Site) -> None:
    """semantics §5.8, protocols §20: ``retry_rollback`` runs the failed handler with fresh attempts and the same
    idempotency key, then the others; the original error stays, the outcome is written anew."""
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_retry", TWICE).create()
    rollback = failed(created)
    assert (rollback.outcome, ledger.undone) == ("failed", ["c", "b", "b"])
    before = list(created.subscribe())
    ledger.breaks.clear()
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert [(name, attempt) for name, attempt, _ in ledger.lines] == [
        ("c", 1), ("b", 1), ("b", 2), ("b", 1), ("a", 1),
    ]  # fmt: skip
    keys = {key for name, _, key in ledger.lines if name == "b"}
    assert len(keys) == 1
    assert created.status().status is Status.ERRORED
    after = list(created.subscribe())
    assert after[: len(before)] == before, "what was told stays as it was told"
    assert [event.type for event in after[len(before) :]] == [
        "rollback_started",
        *["rollback_step_started", "rollback_attempt_started", "rollback_attempt_completed"],
        "rollback_step_completed",
        *["rollback_step_started", "rollback_attempt_started", "rollback_attempt_completed"],
        "rollback_step_completed",
        "rollback_completed",
        "workflow_errored",
    ]
    ids = [event.event_id for event in after]
    assert ids == sorted(set(ids))
    assert {step.key: step.status for step in created.steps() if step.kind == "rollback"} == {
        "do:a:1:rollback": "done",
        "do:b:1:rollback": "done",
        "do:c:1:rollback": "done",
    }


def test_a_retry_may_fail_again_and_again(delivered: Site) -> None:
    """semantics §5.8: outcome and errors are those of the last try; every try is told."""
    ledger = Ledger("c")
    created = three(delivered, ledger, "operators_again").create()
    for tries in (1, 2, 3):
        rollback = failed(created)
        assert (rollback.outcome, rollback.error.message) == ("failed", "cannot undo c")
        assert ledger.undone == ["c"] * tries
        created.retry_rollback()
    rollback = failed(created)
    told = list(created.subscribe())
    errors = [event.error.message for event in told if event.type == "rollback_errored"]  # type: ignore[union-attr]
    assert errors == ["cannot undo c"] * 4
    (step,) = [step for step in created.steps() if step.kind == "rollback"]
    assert [attempt.number for attempt in step.attempts] == [1]


@pytest.mark.parametrize("delivery", ["broker", "in_place"])
def test_processes_that_remember_how_it_failed_go_on(site: Site, delivery: str) -> None:
    """semantics §5.8, protocols §3: whichever worker takes it up, one that saw a handler fail included."""
    ledger = Ledger("b")
    for _ in range(3):
        site.worker(delivery=delivery)
    flow = three(site, ledger, "operators_crowd", TWICE)
    rows = [flow.create() for _ in range(6)]
    for tries in range(3):
        for created in rows:
            assert failed(created).outcome == "failed"
        assert len({key for name, _, key in ledger.lines if name == "b"}) == len(rows)
        assert ledger.undone.count("b") == 2 * (tries + 1) * len(rows)
        if tries == 2:
            ledger.breaks.clear()
        for created in rows:
            created.retry_rollback()
    assert [failed(created).outcome for created in rows] == ["complete"] * len(rows)
    assert [ledger.undone.count(name) for name in "abc"] == [6, 7 * 6, 6]


def test_a_skipped_handler_counts_as_handled(delivered: Site) -> None:
    """semantics §5.8: the chain goes on with the others; with nothing left the rollback is complete."""
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_skip").create()
    failed(created)
    created.skip_rollback("b")
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["c", "b", "a"]
    (skipped,) = [step for step in created.steps() if step.key == "do:b:1:rollback"]
    assert (skipped.status, skipped.error.name) == ("cancelled", "Skipped")
    told = [(event.type, event.error and event.error.name) for event in created.subscribe()]
    assert told.count(("rollback_step_errored", "RuntimeError")) == 1
    assert told.count(("rollback_step_errored", "Skipped")) == 1
    assert [each.verb for each in created.audit()] == ["skip_rollback"]


def test_the_last_one_skipped_ends_the_rollback(delivered: Site) -> None:
    """semantics §5.8: what never ran can be skipped, too; it then stays out of the next try."""
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_last").create()
    failed(created)
    created.skip_rollback("a")
    rollback = failed(created)
    assert (rollback.outcome, ledger.undone) == ("failed", ["c", "b"])
    created.skip_rollback("do:b:1")
    rollback = failed(created)
    assert (rollback.outcome, rollback.error, ledger.undone) == ("complete", None, ["c", "b"])


def test_all_that_failed_run_again_in_their_order(delivered: Site) -> None:
    """semantics §5.3, §5.4: the policy holds for a retry as well: one at a time, last started first, and on."""
    ledger = Ledger("a", "c")
    policy = RollbackPolicy(on_error="continue")
    created = three(delivered, ledger, "operators_continue", rollback=policy).create()
    rollback = failed(created)
    assert [error.message for error in rollback.errors] == ["cannot undo c", "cannot undo a"]
    ledger.breaks = {"c"}
    created.retry_rollback()
    assert [error.message for error in failed(created).errors] == ["cannot undo c"]
    assert ledger.undone == ["c", "b", "a", "c", "a"]
    created.skip_rollback("c")
    assert failed(created).outcome == "complete"


def test_parallel_handlers_are_retried_at_once(delivered: Site) -> None:
    """semantics §5.8: with ``order="parallel"`` those that failed run beside each other again."""
    ledger = Ledger("a", "b")
    created = three(
        delivered, ledger, "operators_parallel", rollback=RollbackPolicy(order="parallel")
    ).create()
    failed(created)
    ledger.breaks.clear()
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert sorted(ledger.undone) == ["a", "a", "b", "b", "c"]


def test_a_terminated_instance_ends_terminated_again(delivered: Site) -> None:
    """semantics §5.6, §5.8: from running, with the error that handlers were told before."""
    ledger = Ledger("x")
    told: list[Any] = []

    async def operators_terminated(event, step):
        async def undo(context):
            told.append(context.error)
            await ledger.handler("x")(context)

        await step.do("x", ledger_free, rollback=undo, rollback_retries=ONCE)
        await step.wait_for_event("never", type="never")

    async def ledger_free():
        return 1

    created = delivered.workflow(operators_terminated).create()
    eventually(lambda: created.status().status is Status.WAITING)
    created.terminate(rollback=True)
    eventually(lambda: created.status().status is Status.TERMINATED)
    ledger.breaks.clear()
    created.retry_rollback()
    eventually(lambda: created.status().rollback and created.status().status is Status.TERMINATED)
    assert created.status().rollback.outcome == "complete"
    assert [error.name for error in told] == ["Terminated", "Terminated"]
    assert [(each.verb, each.detail) for each in created.audit()] == [
        ("terminate", {"rollback": True}),
        ("retry_rollback", {"steps": [{"step": "do:x:1", "error": "RuntimeError: cannot undo x"}]}),
    ]
    assert all("@" in each.by for each in created.audit())


def test_what_todays_code_does_not_undo(site: Site) -> None:
    """semantics §5.5: ``RollbackMissing`` fails the rollback; code that knows the step undoes it on a retry, and an
    operator may skip it."""
    ledger = Ledger()
    code = {"gives": True}

    async def operators_missing(event, step):
        async def body():
            return 1

        await step.do("m", body, rollback=ledger.handler("m") if code["gives"] else None)
        await step.wait_for_event("go", type="go")
        raise LookupError("no")

    flow = site.workflow(operators_missing)
    before = site.worker()
    rows = [flow.create(id=f"operators-{name}") for name in ("retried", "skipped")]
    for created in rows:
        eventually(lambda one=created: one.status().status is Status.WAITING)
    before.crash()  # what it holds in memory is gone
    code["gives"] = False
    site.worker()
    for created in rows:
        created.send_event("go")
    assert [[error.name for error in failed(created).errors] for created in rows] == [["RollbackMissing"]] * 2
    code["gives"] = True
    rows[0].retry_rollback()
    rows[1].skip_rollback("m")
    assert [failed(created).outcome for created in rows] == ["complete", "complete"]
    assert ledger.undone == ["m"]
    for created in rows:
        assert types(created).count("rollback_step_started") == 2


def test_waits_can_be_skipped_by_their_key(delivered: Site) -> None:
    """semantics §5.2, §5.8: a step that is no ``do`` is named by its key."""
    ledger = Ledger("approval")

    async def operators_wait(event, step):
        await step.wait_for_event(
            "approval", type="go", rollback=ledger.handler("approval"), rollback_retries=ONCE
        )
        raise LookupError("no")

    created = delivered.workflow(operators_wait).create()
    created.send_event("go")
    failed(created)
    with pytest.raises(InvalidTransition, match=r"wait:approval:1 \(failed\)"):
        created.skip_rollback("approval")
    created.skip_rollback("wait:approval:1")
    assert failed(created).outcome == "complete"


# -- what is refused -----------------------------------------------------------------------------------------


def test_only_failed_rollbacks_are_taken_up_again(delivered: Site) -> None:
    """semantics §5.8, protocols §15: the refusal says what the instance is at, and nothing changes."""
    ledger, gate = Ledger("b"), asyncio.Event()

    async def operators_refused(event, step):
        async def body():
            return 1

        async def undo(context):
            if event.payload == "slow" and not gate.is_set():
                raise RuntimeError("not yet")

        slow = Retries(limit=1, delay="1 hour")
        await step.do("x", body, **({"rollback": undo, "rollback_retries": slow} if event.payload else {}))
        if event.payload != "fine":
            raise LookupError("no")

    flow = delivered.workflow(operators_refused)
    fine, none, slow = flow.create("fine"), flow.create(None), flow.create("slow")
    fine.result(15)
    assert failed(none) is None
    eventually(lambda: [s.status for s in slow.steps() if s.kind == "rollback"] == ["pending"])
    done = three(delivered, Ledger(), "operators_fine").create()
    failed(done)
    for created, text in (
        (fine, "it is complete, and nothing was rolled back"),
        (none, "it is errored, and nothing was rolled back"),
        (slow, "it is rolling_back: wait for the end of that"),
        (done, "it is errored, and its rollback is complete"),
    ):
        with pytest.raises(InvalidTransition, match=text):
            created.retry_rollback()
        with pytest.raises(InvalidTransition, match=text):
            created.skip_rollback("x")
        assert created.audit() == []
    broken = three(delivered, ledger, "operators_broken").create()
    failed(broken)
    with pytest.raises(InvalidTransition, match="'do:c:1' has run: it is undone") as raised:
        broken.skip_rollback("c")
    assert "do:b:1 (failed), do:a:1 (not run)" in str(raised.value)
    with pytest.raises(InvalidTransition, match="no step 'do:b:2' that has run"):
        broken.skip_rollback("b", 2)
    with pytest.raises(InvalidConfig):
        broken.skip_rollback("b", 0)
    with pytest.raises(InstanceNotFound):
        _gone(flow).retry_rollback()


def _gone(flow: Any) -> Any:
    gone = flow.create("fine")
    gone.delete()
    return gone


# -- around it -----------------------------------------------------------------------------------------------


def test_retention_begins_anew_at_the_new_end(delivered: Site) -> None:
    """semantics §4: an instance whose rollback is taken up again does not expire before it has ended again."""
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_kept", error_retention=60).create()
    failed(created)
    uuid = delivered.id_of(created.id)
    query = "SELECT ended_at, expires_at FROM orchestrator_instances WHERE id = :id"
    ((first, expires),) = delivered.sql(query, id=uuid)
    delivered.post.targets.clear()  # nobody goes on with it for now
    created.retry_rollback()
    assert delivered.sql(query, id=uuid) == [(None, None)]
    with delivered.engine.begin() as connection:
        assert (
            retention.sweep(connection, delivered.settings.account, expires.timestamp() + 1, 10).deleted == 0
        )
    ledger.breaks.clear()
    for worker in delivered.workers:
        worker.runtime.coordinate([uuid])
        delivered.post.targets.append(worker)
    assert failed(created).outcome == "complete"
    ((again, expires_again),) = delivered.sql(query, id=uuid)
    assert again > first and (expires_again - again).total_seconds() == 60


def test_state_does_not_grow_with_tries(delivered: Site) -> None:
    """protocols §20: what was taken back counts no more."""
    created = three(delivered, Ledger("c"), "operators_bytes").create()
    failed(created)
    sizes = {delivered.row(delivered.id_of(created.id)).state_bytes}
    for _ in range(2):
        created.retry_rollback()
        failed(created)
        sizes.add(delivered.row(delivered.id_of(created.id)).state_bytes)
    assert len(sizes) == 1


def test_a_restart_after_it_forgets_the_story_and_keeps_the_record(delivered: Site) -> None:
    """semantics §4: all step state goes; what operators did stays until the instance is deleted."""
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_restarted").create()
    failed(created)
    created.retry_rollback()
    failed(created)
    ledger.breaks.clear()
    created.restart(from_step="b")
    assert failed(created).outcome == "complete"
    story = types(created)
    assert (story.count("rollback_started"), story.count("rollback_step_started")) == (1, 3)
    assert [(each.verb, each.detail) for each in created.audit()][1:] == [
        ("restart", {"from_step": "do:b:1"})
    ]
    uuid = delivered.id_of(created.id)
    created.delete()
    assert delivered.sql("SELECT 1 FROM orchestrator_audit WHERE instance_id = :id", id=uuid) == []


def test_verbs_without_effect_leave_no_record(site: Site) -> None:
    """The record tells what changed an instance: pausing twice is told once."""

    async def operators_paused(event, step):
        await step.wait_for_event("never", type="never")

    created = site.workflow(operators_paused).create()
    for verb in (created.pause, created.pause, created.resume, created.resume, created.restart):
        verb()
    assert [each.verb for each in created.audit()] == ["pause", "resume", "restart"]
    assert [each.detail for each in created.audit()] == [{}, {}, {"from_step": None}]


def test_the_async_twins_are_the_same_verbs(delivered: Site) -> None:
    """api §3: ``aretry_rollback``, ``askip_rollback``, ``aaudit``."""
    created = three(delivered, Ledger("b"), "operators_async").create()
    failed(created)

    async def steer() -> list[Any]:
        await created.aretry_rollback()
        with pytest.raises(WorkflowFailed):
            await created.aresult(15)
        await created.askip_rollback("b")
        return await created.aaudit()

    assert [each.verb for each in asyncio.run(steer())] == ["retry_rollback", "skip_rollback"]
    assert failed(created).outcome == "complete"


# -- children ------------------------------------------------------------------------------------------------


def family(site: Site, ledger: Ledger, name: str, **options: Any) -> Any:
    """A parent with two children, each with two steps, in between a step of its own; then it fails."""

    async def inner(event, step):
        for each in "xy":
            await ledger.do(step, event.payload + each)

    child = site.workflow(inner, name=f"{name}_child")

    async def outer(event, step):
        await step.invoke("first", child, "1")
        await ledger.do(step, "own")
        await step.invoke("second", child, "2")
        raise LookupError("no")

    return child, site.workflow(outer, name=name, **options)


def rollbacks(site: Site, flow: Any) -> list[Any]:
    return sorted(
        (created.status().rollback for created in flow.list().items), key=lambda rollback: rollback.outcome
    )


def test_a_child_whose_rollback_failed_is_retried_by_its_parent(delivered: Site) -> None:
    """semantics §5.8: the rollback of a child is part of its parent's chain, also when that is retried: in its place,
    and only what had failed of it, and what it never came to."""
    ledger = Ledger("2y")
    child, flow = family(delivered, ledger, "operators_family")
    created = flow.create()
    rollback = failed(created)
    assert (rollback.outcome, ledger.undone) == ("failed", ["2y"])
    ledger.breaks = {"2x"}
    created.retry_rollback()
    assert failed(created).outcome == "failed"
    assert ledger.undone == ["2y", "2y", "2x"]
    ledger.breaks.clear()
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "2y", "2x", "2x", "own", "1y", "1x"]
    assert [each.outcome for each in rollbacks(delivered, child)] == ["complete", "complete"]
    types(created)


def test_children_are_retried_in_their_place(delivered: Site) -> None:
    """semantics §5.3, §5.8: with several failed handlers a child's waits for its turn, like any other."""
    ledger = Ledger("own", "1x", "2y")
    policy = RollbackPolicy(on_error="continue")
    _, flow = family(delivered, ledger, "operators_place", rollback=policy)
    created = flow.create()
    assert len(failed(created).errors) == 3
    assert ledger.undone == ["2y", "own", "1y", "1x"]
    ledger.breaks.clear()
    ledger.lines.clear()
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "2x", "own", "1x"]


def test_a_child_that_an_operator_has_finished_is_done(delivered: Site) -> None:
    """semantics §5.8: retried by itself the child stands alone; its parent's retry finds it undone, or undoes it."""
    ledger = Ledger("2y")
    child, flow = family(delivered, ledger, "operators_alone")
    created = flow.create()
    failed(created)
    (second,) = [each for each in child.list().items if each.status().rollback]
    second.retry_rollback()
    eventually(lambda: second.status().rollback)
    assert second.status().rollback.outcome == "failed"
    created.retry_rollback()
    failed(created)
    assert ledger.undone == ["2y", "2y", "2y"]
    ledger.breaks.clear()
    second.retry_rollback()
    eventually(lambda: second.status().rollback and second.status().rollback.outcome == "complete")
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "2y", "2y", "2y", "2x", "own", "1y", "1x"]


def test_with_nothing_left_to_run_there_is_an_outcome(delivered: Site) -> None:
    """semantics §5.8: the only link was undone by its own retry; the parent's then says that all is undone."""
    ledger = Ledger("x")

    async def operators_only_child(event, step):
        await ledger.do(step, "x")

    child = delivered.workflow(operators_only_child)

    async def operators_only_parent(event, step):
        await step.invoke("c", child)
        raise LookupError("no")

    created = delivered.workflow(operators_only_parent).create()
    failed(created)
    ledger.breaks.clear()
    (only,) = child.list().items
    only.retry_rollback()
    eventually(lambda: only.status().rollback and only.status().rollback.outcome == "complete")
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert types(created)[-3:] == ["rollback_started", "rollback_completed", "workflow_errored"]
    assert ledger.undone == ["x", "x"]


def test_children_are_kept_while_their_parent_may_be_retried(delivered: Site) -> None:
    """semantics §4, §5.8: expired children of a failed rollback stay, whether the chain has come to them or not."""
    ledger = Ledger("2y")
    child, flow = family(delivered, ledger, "operators_expired")
    created = flow.create()
    failed(created)
    account = delivered.settings.account
    delivered.sql(
        "UPDATE orchestrator_instances SET expires_at = 'epoch' WHERE account = :a AND workflow = :w",
        a=account,
        w=child.name,
    )

    def sweep() -> int:
        with delivered.engine.begin() as connection:
            return retention.sweep(connection, account, 1.0, 10).deleted

    assert sweep() == 0
    ledger.breaks.clear()
    created.retry_rollback()
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "2y", "2x", "own", "1y", "1x"]
    delivered.sql(
        "UPDATE orchestrator_instances SET expires_at = 'epoch' WHERE account = :a AND workflow = :w",
        a=account,
        w=child.name,
    )
    assert sweep() == 2


def test_a_child_that_is_gone_must_be_skipped(delivered: Site) -> None:
    """semantics §5.8: what a deleted child did is not taken for undone because nobody can undo it any more."""
    ledger = Ledger("2y")
    child, flow = family(delivered, ledger, "operators_gone")
    created = flow.create()
    failed(created)
    (second,) = [each for each in child.list().items if each.status().rollback]
    second.delete()
    with pytest.raises(InvalidTransition, match=r"skip_rollback\('invoke:second:1'\)"):
        created.retry_rollback()
    assert (created.status().rollback.outcome, created.audit()) == ("failed", [])
    created.skip_rollback("invoke:second:1")
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "own", "1y", "1x"]


def test_a_child_is_skipped_by_the_key_of_its_step(delivered: Site) -> None:
    """semantics §5.8: the link counts as done; the child stays as it is."""
    ledger = Ledger("2y")
    child, flow = family(delivered, ledger, "operators_link")
    created = flow.create()
    failed(created)
    created.skip_rollback("invoke:second:1")
    assert failed(created).outcome == "complete"
    assert ledger.undone == ["2y", "own", "1y", "1x"]
    assert [each.outcome for each in rollbacks(delivered, child)] == ["complete", "failed"]


# -- the command line ----------------------------------------------------------------------------------------


def test_commands(
    delivered: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """api §4: ``instances retry-rollback`` and ``skip-rollback``; ``describe`` tells who did what."""
    for name in os.environ:
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)  # a table is as wide as it says
    monkeypatch.setattr(client, "_default", delivered.client)
    ledger = Ledger("b")
    created = three(delivered, ledger, "operators_cli").create()
    failed(created)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["instances", *arguments])
        failed(created)
        return status, *capsys.readouterr()

    status, out, err = run("retry-rollback", "operators_cli", "latest", "--json")
    assert (status, err, json.loads(out)["id"]) == (0, "", created.id)
    assert ledger.undone == ["c", "b", "b"]
    status, _, err = run("skip-rollback", "operators_cli", "latest", "b", "--count", "2")
    assert status == 1
    assert err.startswith("invalid_transition: There is no step 'do:b:2'") and "do:b:1 (failed)" in err
    status, _, _ = run("skip-rollback", "operators_cli", created.id, "b")
    assert (status, created.status().rollback.outcome) == (0, "complete")
    status, _, err = run("retry-rollback", "operators_cli", created.id)
    assert status == 1 and "its rollback is complete" in err
    status, out, _ = run("describe", "operators_cli", created.id, "--json")
    audit = json.loads(out)["audit"]
    error = "RuntimeError: cannot undo b"
    assert [(each["verb"], each["detail"]) for each in audit] == [
        ("retry_rollback", {"steps": [{"step": "do:b:1", "error": error}]}),
        ("skip_rollback", {"step": "do:b:1", "error": error}),
    ]
    status, out, _ = run("describe", "operators_cli", created.id)
    (line,) = [line for line in out.splitlines() if line.startswith("skip_rollback")]
    assert audit[1]["by"] in line and error in line
