"""Children in the chain of their parent's compensations (semantics §5.8), on real Postgres."""

import asyncio
from typing import Any

import pytest

from orchestrator import Retries, RollbackPolicy, Status
from orchestrator.client.workflow import Workflow
from orchestrator.errors import StepTimeout, WorkflowFailed
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)


class Ledger:
    """What was done and undone, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def do(self, step: Any, name: str, fails: bool = False, breaks: bool = False) -> asyncio.Future[Any]:
        async def body() -> None:
            self.lines.append(f"do {name}")
            if fails:
                raise RuntimeError(name)

        async def undo(context: Any) -> None:
            self.lines.append(f"undo {name}")
            if breaks:
                raise RuntimeError(f"cannot undo {name}")

        retries = {"retries": ONCE, "rollback_retries": ONCE}
        return step.do(name, body, rollback=undo, **retries)

    @property
    def undone(self) -> list[str]:
        return [line.removeprefix("undo ") for line in self.lines if line.startswith("undo")]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def child(site: Site, ledger: Ledger, name: str, **options: Any) -> Workflow:
    """A child that does one thing, then waits if its payload says so."""

    async def inner(event, step):
        await ledger.do(step, event.payload.get("does", "x"), **options)
        if event.payload.get("waits"):
            await step.wait_for_event("go", type="go")
        return "fine"

    return site.workflow(inner, name=name)


def ended(parent: Any) -> Any:
    with pytest.raises(WorkflowFailed):
        parent.result(20)
    return parent.status()


def test_a_complete_child_is_undone_in_its_place(site: Site, ledger: Ledger) -> None:
    """semantics §5.8: ``complete → rolling_back → terminated``, by its parent only, in reverse start order."""
    inner = child(site, ledger, "rollback_complete")

    async def outer(event, step):
        await ledger.do(step, "a")
        await step.invoke("inner", inner, {}, id="complete-child")
        await ledger.do(step, "b")
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    status = ended(parent)
    assert (status.error.name, status.rollback.outcome) == ("ValueError", "complete")
    assert ledger.undone == ["b", "x", "a"]
    undone = inner.get("complete-child").status()
    assert (undone.status, undone.rollback.outcome) == (Status.TERMINATED, "complete")
    assert [(s.key, s.status) for s in parent.steps()][3:] == [
        ("do:b:1:rollback", "done"),
        ("invoke:inner:1:rollback", "done"),
        ("do:a:1:rollback", "done"),
    ]


@pytest.mark.parametrize("verb", ["fails", "terminate"])
def test_an_unfinished_child_stops_at_once_and_is_undone_in_its_place(
    site: Site, ledger: Ledger, verb: str
) -> None:
    """semantics §5.8, §5.6: it is terminated with rollback; its own handlers wait for its place in the chain."""
    inner = child(site, ledger, "rollback_unfinished")

    async def outer(event, step):
        await ledger.do(step, "a")
        going = step.invoke("inner", inner, {"waits": True}, id="unfinished-child")
        await step.wait_for_event("now", type="now")
        await ledger.do(step, "b")
        await step.wait_for_event("now", type="now")
        going.done()
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    eventually(lambda: "do x" in ledger.lines)
    parent.send_event("now")
    eventually(lambda: [s.status for s in parent.steps() if s.key == "do:b:1"] == ["done"])
    if verb == "fails":
        parent.send_event("now")
        status = ended(parent)
    else:
        parent.terminate(rollback=True)
        status = eventually(lambda: (s := parent.status()).status is Status.TERMINATED and s)
    assert status.rollback.outcome == "complete"
    assert ledger.undone == ["b", "x", "a"]
    undone = inner.get("unfinished-child").status()
    assert (undone.status, undone.rollback.outcome) == (Status.TERMINATED, "complete")


def test_children_with_nothing_to_undo_make_no_rollback(site: Site) -> None:
    """semantics §5.4, §5.8: no eligible step, also not in a child at any depth: ``rollback`` is ``None``."""

    async def plain(event, step):
        if event.payload:
            await step.wait_for_event("go", type="go")
        return "kept"

    inner = site.workflow(plain, name="rollback_plain")

    async def between(event, step):
        return await step.invoke("inner", inner)

    middle = site.workflow(between, name="rollback_between")

    async def outer(event, step):
        await step.invoke("done", middle, id="kept-child")
        step.invoke("going", inner, True, id="going-child")
        await step.sleep("n", 0.5)
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    assert ended(parent).rollback is None
    assert middle.get("kept-child").status().status is Status.COMPLETE
    going = eventually(lambda: (s := inner.get("going-child").status()).status is Status.TERMINATED and s)
    assert going.rollback is None
    rows = site.sql(
        "SELECT status FROM orchestrator_transitions WHERE instance_id = :id", id=site.id_of(parent.id)
    )
    assert "rolling_back" not in [row.status for row in rows]


def test_a_failed_child_has_undone_itself(site: Site, ledger: Ledger) -> None:
    """semantics §5.8: an errored child is no link of the chain."""

    async def failing(event, step):
        await ledger.do(step, "x")
        raise RuntimeError("child")

    inner = site.workflow(failing, name="rollback_errored")

    async def outer(event, step):
        await ledger.do(step, "a")
        await step.invoke("inner", inner, id="errored-child")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    status = ended(parent)
    assert (status.error.name, status.error.message, status.rollback.outcome) == (
        "RuntimeError",
        "child",
        "complete",
    )
    assert ledger.undone == ["x", "a"]
    assert "invoke:inner:1:rollback" not in [s.key for s in parent.steps()]
    assert inner.get("errored-child").status().status is Status.ERRORED


def test_a_child_that_cannot_be_undone_fails_the_chain(site: Site, ledger: Ledger) -> None:
    """semantics §5.4, §5.8: its link fails, and the chain stops there."""
    inner = child(site, ledger, "rollback_broken", breaks=True)

    async def outer(event, step):
        await ledger.do(step, "a")
        await step.invoke("inner", inner, {}, id="broken-child")
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    status = ended(parent)
    assert (status.error.name, status.rollback.outcome) == ("ValueError", "failed")
    assert (status.rollback.error.name, ledger.undone) == ("RuntimeError", ["x"])
    assert "cannot undo x" in status.rollback.error.message
    assert "broken-child" in status.rollback.error.message
    assert inner.get("broken-child").status().rollback.outcome == "failed"


def test_a_chain_that_stops_leaves_children_as_they_are(site: Site, ledger: Ledger) -> None:
    """semantics §5.4: after the first handler that fails for good no other starts, also not in a child that had been
    stopped for its place."""
    inner = child(site, ledger, "rollback_stopped")

    async def outer(event, step):
        going = step.invoke("inner", inner, {"waits": True}, id="stopped-child")
        await step.wait_for_event("now", type="now")
        await ledger.do(step, "b", breaks=True)
        going.done()
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    eventually(lambda: "do x" in ledger.lines)
    parent.send_event("now")
    assert ended(parent).rollback.outcome == "failed"
    stopped = eventually(lambda: (s := inner.get("stopped-child").status()).status is Status.TERMINATED and s)
    assert (stopped.rollback, ledger.undone) == (None, ["b"])


def test_grandchildren_and_what_was_let_go_are_undone_too(site: Site, ledger: Ledger) -> None:
    """semantics §5.8: a child is undone with its own children; one that a time-out terminated is undone in its place;
    one that somebody else terminated stays as it is."""
    leaf = child(site, ledger, "rollback_leaf")

    async def between(event, step):
        await ledger.do(step, "m1")
        await step.invoke("leaf", leaf, {"does": "leaf"})
        await ledger.do(step, "m2")

    middle = site.workflow(between, name="rollback_middle")

    async def outer(event, step):
        await ledger.do(step, "a")
        await step.invoke("middle", middle)
        for name, timeout in (("late", 0.7), ("stopped", None)):
            try:
                await step.invoke(
                    name, leaf, {"does": name, "waits": True}, id=f"{name}-leaf", timeout=timeout
                )
            except StepTimeout:
                await step.sleep("n", 0.1)
            except Exception:
                await step.sleep("n", 0.1)
        raise ValueError("in the end")

    site.worker()
    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    eventually(lambda: "do stopped" in ledger.lines)
    eventually(
        lambda: site.sql(
            "SELECT 1 FROM orchestrator_instances WHERE name_id = 'stopped-leaf' AND status = 'waiting'"
        )
    )
    leaf.get("stopped-leaf").terminate()
    assert ended(parent).rollback.outcome == "complete"
    assert ledger.undone == ["late", "m2", "leaf", "m1", "a"]
    assert leaf.get("stopped-leaf").status().rollback is None


def test_children_are_undone_side_by_side_if_the_policy_says_so(site: Site, ledger: Ledger) -> None:
    """semantics §5.8: ``parallel`` runs links together; ``continue`` undoes the others when one fails."""
    broken = child(site, ledger, "rollback_broken_one", breaks=True)
    inner = child(site, ledger, "rollback_other")

    async def outer(event, step):
        await ledger.do(step, "a")
        await asyncio.gather(
            step.invoke("broken", broken, {"does": "broken"}),
            step.invoke("inner", inner, {"does": "inner"}),
            return_exceptions=True,
        )
        raise ValueError("in the end")

    site.worker()
    policy = RollbackPolicy(order="parallel", on_error="continue")
    parent = site.workflow(outer, name="rollback_parallel", rollback=policy).create()
    status = ended(parent)
    assert status.rollback.outcome == "failed" and len(status.rollback.errors) == 1
    assert sorted(ledger.undone) == ["a", "broken", "inner"]


@pytest.mark.parametrize("verb", ["delete", "restart"])
def test_what_was_done_to_a_child_before_it_is_undone(site: Site, ledger: Ledger, verb: str) -> None:
    """semantics §5.8, protocols §15: one that was deleted is no link; one that was restarted since still is a child of
    this parent."""
    inner = child(site, ledger, "rollback_gone")

    async def outer(event, step):
        await ledger.do(step, "a")
        await step.invoke("inner", inner, {}, id="gone-child")
        await step.wait_for_event("now", type="now")
        raise ValueError("in the end")

    site.worker()
    parent = site.workflow(outer, name="rollback_outer").create()
    eventually(lambda: [s.status for s in parent.steps()] == ["done", "done", "waiting"])
    getattr(inner.get("gone-child"), verb)()
    if verb == "restart":
        eventually(lambda: inner.get("gone-child").status().status is Status.COMPLETE)
    parent.send_event("now")
    assert ended(parent).rollback.outcome == "complete"
    assert ledger.undone == (["a"] if verb == "delete" else ["x", "a"])
