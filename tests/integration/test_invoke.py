"""Children: ``step.invoke`` on real Postgres, with engines of the test's own."""

import asyncio
from typing import Any

import pytest

from orchestrator import NonRetryableError, Status
from orchestrator.errors import (
    InstanceExists,
    InstanceNotFound,
    InvalidParams,
    StepTimeout,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.workflow.kin import child_id
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


async def double(value: int) -> int:
    return value * 2


def children_of(site: Site, parent: Any) -> list[Any]:
    return site.sql(
        "SELECT id, name_id, workflow, version, status, rollback FROM orchestrator_instances WHERE parent_id = :id "
        "ORDER BY created_at, id",
        id=site.id_of(parent.id),
    )


def test_a_child_is_started_and_awaited(site: Site) -> None:
    """protocols §15: a child starts with its parent's turn, under an id that is the same on every replay; its output is
    the step's, typed by its return annotation."""

    async def invoked_child(event, step) -> set[int]:
        return {await step.do("double", double, event.payload)}

    child = site.workflow(invoked_child)

    async def invoking_parent(event, step):
        got = await step.invoke("run it", child, 21)
        return [type(got).__name__, sorted(got)]

    site.worker()
    parent = site.workflow(invoking_parent).create()
    assert parent.result(15) == ["set", [42]]
    (row,) = children_of(site, parent)
    assert row.id == child_id(site.id_of(parent.id), 0, "invoke:run it:1")
    assert row.name_id == str(row.id)
    assert [(s.key, s.status) for s in parent.steps()] == [("invoke:run it:1", "done")]


def test_many_children_at_once_and_two_levels(site: Site) -> None:
    """protocols §15: parallel children, the same name in a loop, and children of children."""

    async def leaf(event, step) -> int:
        return await step.do("double", double, event.payload)

    leaves = site.workflow(leaf, name="invoke_leaf")

    async def middle(event, step) -> int:
        return sum(await asyncio.gather(*[step.invoke("leaf", leaves, n) for n in range(event.payload)]))

    middles = site.workflow(middle, name="invoke_middle")

    async def top(event, step):
        sums = []
        for n in (1, 2, 3):
            sums.append(await step.invoke("middle", middles, n))
        wide = await step.invoke("wide", middles, 50, id="wide-one")
        return [*sums, wide]

    site.worker()
    site.worker()
    parent = site.workflow(top, name="invoke_top").create()
    assert parent.result(40) == [0, 2, 6, 2450]
    assert middles.get("wide-one").status().output == 2450
    steps = parent.steps()
    assert [s.key for s in steps] == [
        "invoke:middle:1",
        "invoke:middle:2",
        "invoke:middle:3",
        "invoke:wide:1",
    ]


def test_how_a_child_may_end(site: Site) -> None:
    """semantics §1.4, protocols §15: failed, terminated, deleted, its id taken, its parameters refused: each is an
    error that the code may catch, and that is the same on every replay."""
    seen: list[list[str]] = []

    async def ending_child(event, step: Any) -> None:
        if event.payload == "builtin":
            raise ValueError("of its own")
        if event.payload == "ours":
            raise NonRetryableError("never")
        await step.wait_for_event("go", type="go")

    child = site.workflow(ending_child, name="invoke_ending")

    async def typed(event, step) -> None:
        return None

    typed.__annotations__["event"] = "WorkflowEvent[int]"
    strict = site.workflow(typed, name="invoke_strict")

    async def catching(event, step):
        names = []
        for name, workflow, params, name_id in [
            ("builtin", child, "builtin", None),
            ("ours", child, "ours", None),
            ("terminated", child, None, "to-terminate"),
            ("deleted", child, None, "to-delete"),
            ("taken", child, None, "there-before"),
            ("refused", strict, "no number", None),
        ]:
            try:
                await step.invoke(name, workflow, params, id=name_id)
            except Exception as error:
                names.append(f"{name}: {type(error).__name__}")
        seen.append(names)
        return names

    child.create(id="there-before")
    worker = site.worker()
    parent = site.workflow(catching, name="invoke_catching").create()
    eventually(lambda: site.sql("SELECT 1 FROM orchestrator_instances WHERE name_id = 'to-terminate'"))
    child.get("to-terminate").terminate()
    eventually(lambda: site.sql("SELECT 1 FROM orchestrator_instances WHERE name_id = 'to-delete'"))
    child.get("to-delete").delete()
    assert parent.result(15) == [
        "builtin: ValueError",
        "ours: NonRetryableError",
        f"terminated: {WorkflowTerminated.__name__}",
        f"deleted: {InstanceNotFound.__name__}",
        f"taken: {InstanceExists.__name__}",
        f"refused: {InvalidParams.__name__}",
    ]
    assert worker.is_open


# -- letting go ----------------------------------------------------------------------------------------------


async def waits(event, step):
    await step.wait_for_event("go", type="go")
    return event.payload


def gone(site: Site, name_id: str) -> bool:
    rows = site.sql(
        "SELECT status FROM orchestrator_instances WHERE account = :account AND name_id = :name",
        account=site.settings.account,
        name=name_id,
    )
    return [row.status for row in rows] == ["terminated"]


def exists(site: Site, name_id: str) -> bool:
    rows = site.sql(
        "SELECT 1 FROM orchestrator_instances WHERE account = :account AND name_id = :name AND status = 'waiting'",
        account=site.settings.account,
        name=name_id,
    )
    return bool(rows)


def test_a_timeout_terminates_the_child(site: Site) -> None:
    """protocols §15: ``timeout`` fails the step with ``StepTimeout``, and the child is terminated."""
    child = site.workflow(waits, name="invoke_slow")

    async def impatient(event, step):
        try:
            await step.invoke("slow", child, id="too-slow", timeout=0.5)
        except StepTimeout as error:
            return str(error)

    site.worker()
    parent = site.workflow(impatient, name="invoke_impatient").create()
    assert parent.result(15) == "child 'too-slow' of workflow 'invoke_slow' took over 0.5 seconds"
    eventually(lambda: gone(site, "too-slow"))


def test_a_cancelled_await_terminates_the_child(site: Site) -> None:
    """protocols §13, §15: cancelling the future cancels the step, and its child ends."""
    child = site.workflow(waits, name="invoke_dropped")

    async def fickle(event, step):
        going = step.invoke("drop", child, id="dropped")
        await step.wait_for_event("enough", type="enough")
        going.cancel()
        await step.do("after", double, 1)
        return "done"

    site.worker()
    parent = site.workflow(fickle, name="invoke_fickle").create()
    eventually(lambda: exists(site, "dropped"))
    parent.send_event("enough")
    assert parent.result(15) == "done"
    eventually(lambda: gone(site, "dropped"))
    assert (parent.steps()[0].key, parent.steps()[0].status) == ("invoke:drop:1", "cancelled")


@pytest.mark.parametrize("how", ["complete", "terminate", "delete", "restart"])
def test_a_parent_that_is_over_leaves_no_running_child(site: Site, how: str) -> None:
    """protocols §15: children end when their parent completes without them, is terminated, deleted or restarted."""
    child = site.workflow(waits, name="invoke_left")

    async def leaving(event, step):
        left = [step.invoke("left", child, id=f"left-{n}-{step.uuid()}") for n in range(3)]
        await step.wait_for_event("enough", type="enough")
        return len(left)

    site.worker()
    parent = site.workflow(leaving, name="invoke_leaving").create()
    first = eventually(lambda: len(rows := children_of(site, parent)) == 3 and rows)
    eventually(lambda: all(exists(site, row.name_id) for row in first))
    if how == "complete":
        parent.send_event("enough")
        assert parent.result(10) == 3
    else:
        getattr(parent, how)()
    eventually(lambda: all(gone(site, row.name_id) for row in first), f"the children end after {how}")
    if how == "restart":
        eventually(lambda: [row.status for row in children_of(site, parent)[3:]] == ["waiting"] * 3)


@pytest.mark.parametrize("state", ["queued", "paused", "waiting", "blocked", "unknown"])
def test_an_orphan_is_found_whatever_it_is_at(site: Site, state: str) -> None:
    """protocols §15: children of ended parents that got no hint are found, also those that stand still."""
    child = site.workflow(waits, name="invoke_orphan")

    async def short(event, step):
        step.invoke("orphan", child, id="orphan")
        await step.sleep("n", 0.2)

    bench = site.bench()
    parents = site.workflow(short, name="invoke_short")
    parent = parents.create()
    bench.clock.at = site.client.now()
    bench.wake(site.id_of(parent.id))
    orphan = site.id_of("orphan")
    if state != "queued":
        bench.wake(orphan)
    if state == "paused":
        child.get("orphan").pause()
    if state == "blocked":
        site.sql("UPDATE orchestrator_steps SET key = 'wait:other:1' WHERE instance_id = :id", id=orphan)
        bench.replays.clear()
        bench.wake(orphan)
        assert site.row(orphan).blocked
    bench.clock.at += 1
    bench.wake(site.id_of(parent.id))
    assert parent.status().status is Status.COMPLETE
    assert site.row(orphan).status == (state if state in ("queued", "paused") else "waiting")
    known = None
    if state == "unknown":
        known = Registry()
        known.register(parents.definition)
    site.worker(known, chef=True, deliver=False)
    eventually(lambda: gone(site, "orphan"), f"an orphan that is {state} ends")


# -- hints that are lost, and what others do meanwhile -------------------------------------------------------


def test_nothing_depends_on_a_hint(site: Site) -> None:
    """protocols §7, §15: killed between its commit and its hints, a worker leaves a child that stands in the queue, and
    a parent that looks at its children at least every 30 seconds."""

    async def quick(event, step):
        return "the end"

    child = site.workflow(quick, name="invoke_quick")

    async def hopeful(event, step):
        return await step.invoke("quick", child, id="quick-child")

    bench = site.bench()
    parent = site.workflow(hopeful, name="invoke_hopeful").plant()
    bench.wake(parent)
    row = site.row(parent)
    assert (row.status, row.alarm) == ("waiting", bench.clock.at + 30)
    made = site.row(site.id_of("quick-child"))
    assert (made.status, made.alarm, made.seq) == ("queued", float("inf"), 0)
    results = bench.wake(made.id)
    assert site.row(made.id).status == "complete"
    assert results.hints == [parent]
    bench.clock.at += 30
    bench.wake(parent)
    assert site.row(parent).status == "complete"


def test_an_instance_without_children_costs_no_statement(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §15: reading relatives is for those who have any."""
    from orchestrator.store import session

    statements: list[str] = []
    original = session.rows

    def rows(connection: Any, statement: str, parameters: Any) -> Any:
        statements.append(statement)
        return original(connection, statement, parameters)

    async def alone(event, step):
        await step.do("double", double, 1, rollback=lambda r: None)
        await step.sleep("n", 5)
        raise ValueError

    bench = site.bench()
    instance = site.workflow(alone, name="invoke_none").plant()
    monkeypatch.setattr(session, "rows", rows)
    (handout,) = bench.wake(instance).handouts
    bench.finish(handout, 2)
    bench.clock.at += 10
    bench.wake(instance)
    assert site.row(instance).status == "rolling_back"
    assert not [s for s in statements if "c.parent_id" in s or "child_made" in s or "taken." in s]


def test_a_paused_parent_takes_the_end_when_it_is_resumed(site: Site) -> None:
    """semantics §4, protocols §15: the child goes on meanwhile."""
    child = site.workflow(waits, name="invoke_going_on")

    async def pausing(event, step):
        return await step.invoke("child", child, "its end", id="going-on")

    site.worker()
    parent = site.workflow(pausing, name="invoke_pausing").create()
    eventually(lambda: exists(site, "going-on"))
    parent.pause()
    assert parent.status().status is Status.PAUSED
    child.get("going-on").send_event("go")
    assert child.get("going-on").result(10) == "its end"
    assert parent.status().status is Status.PAUSED
    parent.resume()
    assert parent.result(10) == "its end"


def test_a_child_is_an_instance_like_any_other(site: Site) -> None:
    """api §2: of the version that was given, addressed by its id, kept as its workflow says."""

    async def first(event, step) -> str:
        return f"one {(await step.wait_for_event('go', type='go')).payload}"

    async def second(event, step) -> str:
        return "two"

    old = site.workflow(first, name="invoke_versions", version="1", success_retention=60, error_retention=90)
    site.workflow(second, name="invoke_versions", version="2")

    async def of_old(event, step):
        return await step.invoke("old", old, id="old-child")

    site.worker()
    parent = site.workflow(of_old, name="invoke_of_old").create()
    eventually(lambda: exists(site, "old-child"))
    old.get("old-child").send_event("go", "event")
    assert parent.result(10) == "one event"
    (row,) = site.sql(
        "SELECT version, success_retention_s, error_retention_s, parent_key FROM orchestrator_instances "
        "WHERE name_id = 'old-child' AND account = :account",
        account=site.settings.account,
    )
    assert tuple(row) == ("1", 60.0, 90.0, "invoke:old:1")


def test_a_child_restarted_while_it_is_awaited_gives_its_last_end(site: Site) -> None:
    """protocols §15: the step waits for the instance, whatever run it is in; once its parent is over, a restarted
    child is an instance of its own."""
    child = site.workflow(waits, name="invoke_again")

    async def patient(event, step):
        return await step.invoke("again", child, "in the end", id="again")

    site.worker()
    parent = site.workflow(patient, name="invoke_patient").create()
    eventually(lambda: exists(site, "again"))
    again = child.get("again")
    again.restart()
    eventually(lambda: site.row(site.id_of("again")).run == 1 and exists(site, "again"))
    again.send_event("go")
    assert parent.result(10) == "in the end"
    again.restart()
    eventually(lambda: exists(site, "again"))
    again.send_event("go")
    assert again.result(10) == "in the end"


def test_retention_spares_children_of_unfinished_parents(site: Site) -> None:
    """protocols §15: a child is kept until its parent has ended."""
    from orchestrator.store.records.children import KEPT_FOR_PARENT

    async def quick(event, step):
        return None

    child = site.workflow(quick, name="invoke_kept")

    async def keeping(event, step):
        await step.invoke("kept", child, id="kept")
        await step.wait_for_event("go", type="go")

    def kept() -> bool:
        (row,) = site.sql(
            f"SELECT {KEPT_FOR_PARENT} FROM orchestrator_instances i WHERE account = :account AND name_id = 'kept'",
            account=site.settings.account,
        )
        return bool(row[0])

    site.worker()
    parent = site.workflow(keeping, name="invoke_keeping").create()
    eventually(lambda: [s.status for s in parent.steps()] == ["done", "waiting"])
    assert kept()
    parent.send_event("go")
    parent.result(10)
    assert not kept()


def test_what_is_no_workflow_is_refused(site: Site) -> None:
    """api §2: a class or function that is not a workflow, and an id that breaks its rule, are refused at the call."""
    errors: list[str] = []

    async def wrong(event, step):
        for workflow, options in ((double, {}), (42, {}), (wrong_child, {"id": "no spaces"})):
            try:
                step.invoke("wrong", workflow, **options)
            except Exception as error:
                errors.append(type(error).__name__)
        return len((await step.do("double", double, 1),))

    wrong_child = site.workflow(waits, name="invoke_wrong_child")
    site.worker()
    assert site.workflow(wrong, name="invoke_wrong").create().result(10) == 1
    assert errors[:3] == ["InvalidConfig", "InvalidConfig", "InvalidInstanceId"]


def test_a_restart_takes_up_children_that_were_cut_short(site: Site) -> None:
    """protocols §10, §15: a step that was started before the target and cut short by the end of its instance goes on,
    and so does its child, from the top; a child that is wiped with its step is terminated."""
    failing = [True]
    begun: list[str] = []

    async def fragile() -> str:
        if failing[0]:
            raise NonRetryableError("not yet")
        return "fixed"

    async def note(name: str) -> None:
        begun.append(name)

    async def noting(event, step) -> Any:
        await step.do("note", note, event.payload)
        return (await step.wait_for_event("go", type="go")).payload

    child = site.workflow(noting, name="invoke_taken_up")

    async def side_by_side(event, step):
        early = step.invoke("early", child, "early", id="early")
        await step.wait_for_event("begin", type="begin")
        late = step.do("fragile", fragile)
        wiped = step.invoke("wiped", child, "wiped")
        return [await late, await early, (await wiped)]

    site.worker()
    parent = site.workflow(side_by_side, name="invoke_side_by_side").create()
    eventually(lambda: exists(site, "early"))
    parent.send_event("begin")
    with pytest.raises(WorkflowFailed):
        parent.result(10)
    eventually(lambda: {row.status for row in children_of(site, parent)} == {"terminated"})
    failing[0] = False
    parent.restart(from_step="fragile")
    fresh = eventually(lambda: len(rows := children_of(site, parent)) == 3 and rows[-1])
    eventually(lambda: exists(site, "early") and exists(site, fresh.name_id))
    assert begun.count("early") == 2
    child.get("early").send_event("go", "early end")
    child.get(fresh.name_id).send_event("go", "fresh end")
    assert parent.result(10) == ["fixed", "early end", "fresh end"]


def test_an_id_that_an_application_holds_keeps_nobody_else_waiting(site: Site) -> None:
    """protocols §1, §15: whoever creates an instance in a transaction that is still open holds up the parent that wants
    a child of that id, and nobody who shares its flush."""
    child = site.workflow(waits, name="invoke_held_id")

    async def wanting(event, step):
        try:
            await step.invoke("wants", child, id="held-id")
        except InstanceExists:
            return "taken"

    async def bystander(event, step):
        await step.wait_for_event("go", type="go")

    bench = site.bench()
    parent = site.workflow(wanting, name="invoke_wanting").plant()
    other = site.workflow(bystander, name="invoke_bystander").plant()
    with site.engine.connect() as connection:
        child.create(id="held-id", connection=connection)
        results = bench.wake(parent, other)
        assert set(results.repeat) == {parent, other}
        results = bench.run(results.repeat)
        assert (site.row(other).status, site.row(parent).seq) == ("waiting", 0)
        connection.commit()
    while results.repeat:
        results = bench.run(results.repeat)
    assert site.row(parent).status == "complete"
