"""What a parent and its children mean to each other, decided on rows in memory."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from orchestrator.errors import InvalidConfig, InvalidInstanceId, RollbackStatus, WorkflowTerminated
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import children
from orchestrator.workflow.deciding.children import LOOK_S, Word, word
from orchestrator.workflow.deciding.lineage import obey
from orchestrator.workflow.execution import ChildEnded, Wake, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import ChildState, ParentState, child_id
from orchestrator.workflow.language.definition import WorkflowEvent, define
from orchestrator.workflow.language.invocation import Invocation, InvokeConfig
from orchestrator.workflow.status import Status
from tests.laws.world import INSTANCE, START, World, seen

PARENT = UUID(int=7)


async def add_one(event: WorkflowEvent[int], step: Any) -> set[int]:
    return {event.payload + 1}


CHILD = SimpleNamespace(
    definition=define(add_one, name="children_add_one", version="3", success_retention=60)
)


def show(value: Any) -> None:
    """What the code of a replay was given."""
    seen.get().append(value)


def world_of(fn: Any, **fields: Any) -> tuple[World, Writes]:
    world = World(define(fn), **fields)
    return world, world.one_turn()


def state(key: str, status: str | None, **fields: Any) -> ChildState:
    return ChildState(child_id(INSTANCE, 1, key), status, **fields)


def ended(key: str, status: str | None, **fields: Any) -> ChildEnded:
    return ChildEnded(key, state(key, status, **fields))


# -- starting and taking ends --------------------------------------------------------------------------------


async def one(event, step):
    show(await step.invoke("c", CHILD, 41))


async def shown_error(event, step, **options):
    try:
        await step.invoke("c", CHILD, 41, **options)
    except Exception as error:
        show(repr(error))


def test_the_parents_turn_creates_the_child() -> None:
    """protocols §15, semantics §1.2: kind ``invoke``, a default id that follows from parent, run and key, queued; the
    parent waits, and looks at it every 30 seconds."""
    world, writes = world_of(one)
    (new,) = writes.children
    assert new.id == child_id(INSTANCE, 1, "invoke:c:1") and new.name_id == str(new.id)
    assert (new.key, new.workflow, new.version, new.params) == ("invoke:c:1", "children_add_one", "3", "41")
    assert (new.success_s, new.error_s) == (60.0, 7 * 86_400.0)
    assert (world.status, world.alarm_at) == (Status.WAITING, START + 5)
    row = world.rows["invoke:c:1"]
    assert (row.kind, row.status, row.due_at, row.has_rollback) == ("invoke", "waiting", None, True)
    assert InvokeConfig.from_json(row.config or "").instance == str(new.id)
    world.now += 6
    world.turn(Wake())
    assert world.alarm_at == world.now + LOOK_S


def test_the_output_is_typed_and_the_same_on_every_replay() -> None:
    """semantics §1.5: what the child's record says, validated into its return annotation."""
    world, _ = world_of(one)
    world.turn(ended("invoke:c:1", "complete", output="[42]"))
    assert world.status is Status.COMPLETE
    assert world.cold().seen == [{42}]


@pytest.mark.parametrize(
    ("child", "text"),
    [
        (
            {"status": "errored", "error": codec.encode_error(KeyError("k"))},
            "KeyError('k')",
        ),
        (
            {"status": "errored", "error": '{"name":"Own","message":"m","kind":"somewhere:Own"}'},
            "StepFailed('Own', 'm')",
        ),
        (
            {"status": "terminated"},
            repr(WorkflowTerminated(str(child_id(INSTANCE, 1, "invoke:c:1")))),
        ),
        ({"status": None}, "was deleted while it was awaited"),
        ({"status": None, "is_taken": True}, "already"),
    ],
)
def test_other_ends_are_errors(child: dict[str, Any], text: str) -> None:
    """semantics §2.7, protocols §15: the child's error by its class; terminated, deleted and a taken id by ours."""
    world, _ = world_of(shown_error)
    world.turn(ended("invoke:c:1", **child))
    assert world.rows["invoke:c:1"].status == "failed"
    (said,) = world.cold().seen
    assert text in said


def test_only_the_first_end_counts() -> None:
    """protocols §15: what is seen first; an end of another run's child is none."""
    world, _ = world_of(one)
    stranger = ChildEnded("invoke:c:1", ChildState(UUID(int=1), "complete", output="[0]"))
    world.turn(stranger, ended("invoke:c:1", "complete", output="[1]"), ended("invoke:c:1", "terminated"))
    assert world.cold().seen == [{1}]


def test_ends_are_told_in_the_order_they_came() -> None:
    """semantics §1.5: completions are fed one at a time; children that ended between two looks, by their own order."""

    async def both(event, step):
        a, b = step.invoke("a", CHILD, 1), step.invoke("b", CHILD, 2)
        done, _ = await asyncio.wait((a, b), return_when=asyncio.FIRST_COMPLETED)
        show([future is b for future in done])
        await asyncio.wait((a, b))

    world, _ = world_of(both)
    execution = world.current().execution
    states = [state("invoke:b:1", "complete", output="[2]"), state("invoke:a:1", "complete", output="[1]")]
    told = list(children.ends(execution, [*states, ChildState(UUID(int=9), "complete")]))
    assert told == [("invoke:b:1", states[0]), ("invoke:a:1", states[1])]
    world.turn(*[ChildEnded(key, child) for key, child in told])
    assert world.cold().seen == [[True]]


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "name"),
    [("no number", "InvalidParams"), (object(), "SerializationError"), ("x" * 600, "PayloadTooLarge")],
    ids=["type", "json", "size"],
)
def test_refused_parameters_fail_the_step_once(params: Any, name: str) -> None:
    """semantics §1.3: no child is created; the error is on record, and no replay judges again."""

    async def refused(event, step):
        try:
            await step.invoke("c", CHILD, params)
        except Exception as error:
            show(type(error).__name__)

    world, writes = world_of(refused, max_payload_bytes=500)
    assert writes.children == []
    assert world.rows["invoke:c:1"].status == "failed"
    assert not world.rows["invoke:c:1"].has_rollback
    assert world.cold().seen == [name]


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ((add_one,), InvalidConfig),
        ((object,), InvalidConfig),
        ((None,), InvalidConfig),
        ((CHILD, 1, "a b"), InvalidInstanceId),
        ((CHILD, 1, None, 0), InvalidConfig),
        ((CHILD, 1, None, "2 years"), InvalidConfig),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_call(arguments: Any, refused: type[Exception]) -> None:
    """api §2: what is no workflow, an id that breaks its rule, a timeout that is none."""
    workflow, params, name_id, timeout = [*arguments, None, None, None][:4]
    with pytest.raises(refused):
        Invocation.build("n", workflow, params, name_id, timeout)


# -- letting go ----------------------------------------------------------------------------------------------


def test_a_timeout_fails_the_step_and_tells_the_child() -> None:
    """protocols §15: ``StepTimeout``; the child reads that nobody awaits it."""

    async def impatient(event, step):
        await shown_error(event, step, id="late", timeout=10)

    world, writes = world_of(impatient)
    assert (world.rows["invoke:c:1"].due_at, writes.children[0].name_id) == (START + 10, "late")
    writes = world.advance()
    assert writes.hints == [child_id(INSTANCE, 1, "invoke:c:1")]
    (said,) = world.cold().seen
    assert "StepTimeout" in said and "took over 10 seconds" in said
    row = world.rows["invoke:c:1"]
    parent = ParentState(INSTANCE, "running", None, row.status, row.error)
    assert word("waiting", None, parent) is Word.TERMINATE


def test_a_child_that_is_given_up_before_the_commit_is_never_created() -> None:
    """protocols §13: the step is recorded as cancelled."""

    async def fickle(event, step):
        step.invoke("c", CHILD, 1).cancel()
        await step.sleep("n", 1)

    world, writes = world_of(fickle)
    assert (writes.children, writes.hints) == ([], [])
    assert world.rows["invoke:c:1"].status == "cancelled"
    world.cold()


def test_an_end_lets_go_of_every_child() -> None:
    """protocols §15: completed, or terminated: the rows say it, and hints make it quick."""

    async def leaving(event, step):
        step.invoke("a", CHILD, 1)
        step.invoke("b", CHILD, 2)
        await step.sleep("n", 1)

    both = [child_id(INSTANCE, 1, f"invoke:{name}:1") for name in "ab"]
    world, _ = world_of(leaving)
    assert world.advance().hints == both
    assert {row.status for row in world.rows.values() if row.kind == "invoke"} == {"abandoned"}
    world, _ = world_of(leaving)
    assert world.terminate(rollback=False).hints == both


def waiting_for(**fields: Any) -> ParentState:
    return ParentState(**{"id": PARENT, "status": "waiting", "step": "waiting"} | fields)


TIMED_OUT = '{"name":"StepTimeout","message":"late"}'


@pytest.mark.parametrize(
    ("status", "parent", "said"),
    [
        ("running", waiting_for(), None),
        ("running", waiting_for(status=None, step=None), Word.TERMINATE),
        ("paused", waiting_for(status="complete"), Word.TERMINATE),
        ("queued", waiting_for(step=None), Word.TERMINATE),
        ("waiting", waiting_for(step="cancelled"), Word.TERMINATE),
        ("waiting", waiting_for(step="abandoned"), Word.TERMINATE),
        ("waiting", waiting_for(step="failed", step_error=TIMED_OUT), Word.TERMINATE),
        ("waiting", waiting_for(step="failed", step_error='{"name":"E","message":""}'), None),
        ("waiting", waiting_for(step="done"), None),
        ("waiting", waiting_for(status="rolling_back", ending="errored", step="cancelled"), Word.ROLL_BACK),
        ("rolling_back", waiting_for(step="cancelled"), None),
        ("complete", waiting_for(step="done"), None),
        ("complete", waiting_for(ending="errored", step="done", handler="waiting"), Word.UNDO),
        ("terminated", waiting_for(ending="errored", step="cancelled", handler="waiting"), Word.UNDO),
        ("terminated", waiting_for(ending="errored", handler="waiting", has_undone=True), None),
        ("errored", waiting_for(ending="errored", handler="waiting"), None),
        ("complete", waiting_for(ending="errored", step="done", handler="done"), None),
    ],
)
def test_what_a_parents_state_asks_of_a_child(status: str, parent: ParentState, said: Word | None) -> None:
    """protocols §15, semantics §5.8: a child reads whether it is awaited, let go of, or to be undone."""
    assert word(status, "terminated" if status == "rolling_back" else None, parent) is said


# -- undoing -------------------------------------------------------------------------------------------------


async def fails_later(event, step):
    await step.do("a", lambda: 1, rollback=lambda r: None)
    await step.invoke("c", CHILD, 1)
    raise ValueError("later")


def compensating(child: ChildState) -> World:
    """A parent that has failed, and knows how its child stands."""
    world = World(define(fails_later))
    world.turn()
    world.end("do:a:1")
    writes = world.one_turn(ended("invoke:c:1", "complete", output="[2]"))
    assert writes.reads_relatives and world.handed() == []
    world.current().execution.children = {child.id: child}
    world.turn(Wake())
    return world


def look(world: World, child: ChildState) -> Writes:
    world.current().execution.children = {child.id: child}
    return world.turn(Wake())


def test_a_complete_child_is_a_link_if_it_has_anything_to_undo() -> None:
    """semantics §5.8: its row waits without a task, and ends with the child's own rollback."""
    world = compensating(state("invoke:c:1", "complete", undoable=True))
    assert world.status is Status.ROLLING_BACK
    row = world.rows["invoke:c:1:rollback"]
    assert (row.kind, row.status, world.handed()) == ("rollback", "waiting", [])
    assert world.alarm_at <= world.now + LOOK_S
    going = state("invoke:c:1", "rolling_back", undoable=True, ending="terminated")
    assert look(world, going).hints == []
    world.now += LOOK_S
    assert look(world, going).hints == [going.id]
    done = codec.encode({"outcome": "complete", "error": None, "errors": []}, what="it")
    look(world, state("invoke:c:1", "terminated", undoable=True, rollback=done))
    assert world.rows["invoke:c:1:rollback"].status == "done"
    assert world.handed() == ["do:a:1:rollback"]
    world.end()
    assert world.status is Status.ERRORED


def test_a_link_fails_with_the_rollback_of_its_child() -> None:
    """semantics §5.4, §5.8: the chain stops there."""
    world = compensating(state("invoke:c:1", "complete", undoable=True))
    error = {"name": "Broken", "message": "no"}
    failed = codec.encode({"outcome": "failed", "error": error, "errors": [error]}, what="it")
    look(world, state("invoke:c:1", "terminated", undoable=True, rollback=failed))
    assert world.status is Status.ERRORED
    rollback = RollbackStatus.of(codec.decode(world.rollback or ""))
    assert rollback.outcome == "failed" and rollback.error is not None
    assert rollback.error.name == "Broken" and "no" in rollback.error.message
    assert "do:a:1:rollback" not in world.rows


@pytest.mark.parametrize("child", [{"status": "complete"}, {"status": "errored", "undoable": True}])
def test_what_has_nothing_to_undo_is_no_link(child: dict[str, Any]) -> None:
    """semantics §5.4, §5.8."""
    world = compensating(state("invoke:c:1", **child))
    assert world.handed() == ["do:a:1:rollback"]
    assert "invoke:c:1:rollback" not in world.rows


def test_the_chain_waits_until_every_child_has_stopped() -> None:
    """semantics §5.0, §5.8: as for bodies in flight; the parent holds no slot meanwhile, and tells them again."""

    async def in_flight(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: None)
        step.invoke("c", CHILD, 1)
        await step.sleep("n", 1)
        raise ValueError("later")

    world, _ = world_of(in_flight)
    world.end("do:a:1")
    world.now += 1
    writes = world.one_turn(Wake())
    assert child_id(INSTANCE, 1, "invoke:c:1") in writes.hints
    look(world, state("invoke:c:1", "running"))
    assert look(world, state("invoke:c:1", "running")).hints == []
    world.now += LOOK_S
    assert look(world, state("invoke:c:1", "running")).hints == [child_id(INSTANCE, 1, "invoke:c:1")]
    assert world.handed() == []
    look(world, state("invoke:c:1", "rolling_back", ending="terminated", undoable=True))
    assert world.rows["invoke:c:1:rollback"].status == "waiting"


@pytest.mark.parametrize(
    ("row", "child", "is_link"),
    [
        ({"status": "cancelled"}, {"status": "terminated"}, True),
        ({"status": "failed", "error": TIMED_OUT}, {"status": "terminated"}, True),
        ({"status": "cancelled"}, {"status": "terminated", "rollback": "{}"}, False),
        (
            {"status": "failed", "error": '{"name":"WorkflowTerminated","message":""}'},
            {"status": "terminated"},
            False,
        ),
        ({"status": "cancelled"}, {"status": "rolling_back", "ending": "terminated"}, True),
        ({"status": "done"}, {"status": "complete"}, True),
        ({"status": "done"}, {"status": None}, False),
    ],
)
def test_which_children_the_chain_sees_to(row: dict[str, Any], child: dict[str, Any], is_link: bool) -> None:
    """semantics §5.8: what its parent had terminated has yet to be undone; what somebody else did was meant so."""
    world = World(define(one))
    world.turn()
    execution = world.current().execution
    execution.keep(
        StepRow("invoke:c:1", "invoke", started_seq=2, started_at=START, run=1, has_rollback=True, **row)
    )
    found = state("invoke:c:1", **{"undoable": child["status"] is not None} | child)
    execution.children = {found.id: found}
    assert [each.key for each in children.links(execution)] == (["invoke:c:1"] if is_link else [])


# -- the child -----------------------------------------------------------------------------------------------


async def undoable(event, step):
    await step.do("x", lambda: 1, rollback=lambda r: None)
    if event.payload:
        await step.wait_for_event("w", type="w")
    return "fine"


def with_parent(world: World, parent: ParentState, **changes: Any) -> Any:
    execution = world.held()
    execution.parent, execution.parent_id = parent._replace(**changes), parent.id
    return execution


def test_a_complete_child_undoes_what_it_did_at_its_parents_word() -> None:
    """semantics §5.8: ``complete → rolling_back → terminated``; its output and its history stay."""
    world, _ = world_of(undoable)
    world.end("do:x:1")
    assert world.status is Status.COMPLETE
    parent = waiting_for(status="rolling_back", ending="errored", step="done", handler="waiting")
    writes = obey(with_parent(world, parent), world.now)
    assert writes is not None and writes.again and writes.status is Status.ROLLING_BACK
    world.seq, world.status, world.ending, world.alarm_at = (
        writes.seq,
        writes.status,
        writes.ending,
        writes.alarm_at,
    )
    world.evict()
    current = world.current().execution
    current.parent, current.parent_id = parent, PARENT
    world.turn(Wake())
    assert world.handed() == ["do:x:1:rollback"]
    writes = world.end("do:x:1:rollback")
    assert (world.status, world.alarm_at, writes.hints) == (Status.TERMINATED, FOREVER, [PARENT])
    assert RollbackStatus.of(codec.decode(world.rollback or "")).outcome == "complete"
    assert obey(with_parent(world, parent, has_undone=True), world.now) is None


def test_a_child_that_has_stopped_waits_for_its_place_in_the_chain() -> None:
    """semantics §5.8: it asks how its parent stands, is held until the chain comes to it, and left as it is when that
    will never be."""
    parent = waiting_for(status="rolling_back", ending="errored", step="cancelled")

    def stopped() -> World:
        world, _ = world_of(undoable, params=True)
        world.end("do:x:1")
        writes = obey(with_parent(world, parent), world.now)
        assert writes is not None and writes.ending == "terminated"
        assert world.commit(writes)
        world.evict()
        world.current().execution.parent_id = PARENT
        return world

    world = stopped()
    assert world.one_turn(Wake()).reads_relatives
    world.current().execution.parent = parent
    world.turn(Wake())
    assert (world.status, world.handed()) == (Status.ROLLING_BACK, [])
    world.current().execution.parent = parent._replace(handler="waiting")
    world.turn(Wake())
    assert world.handed() == ["do:x:1:rollback"]
    world = stopped()
    world.current().execution.parent = parent._replace(status="errored")
    assert world.turn(Wake()).hints == [PARENT]
    assert (world.status, world.rollback, world.handed()) == (Status.TERMINATED, None, [])
