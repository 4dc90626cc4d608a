"""Taking failed rollbacks up again, decided on rows in memory."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import InvalidConfig, InvalidTransition
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import redoing
from orchestrator.workflow.execution import Wake
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import child_id
from orchestrator.workflow.language.config import Retries, RollbackPolicy
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.lifecycle import FailedRollback
from orchestrator.workflow.status import Status
from tests.laws.world import INSTANCE, World

ONCE = Retries(limit=0)
THRICE = Retries(limit=2, delay=1, backoff="constant")


def give(value: Any = None) -> Any:
    return value


def undo(ctx: Any) -> None:
    return None


def failed(*breaks: str, retries: Retries = ONCE, **options: Any) -> World:
    """Three steps are undone, last first; the handlers in ``breaks`` fail for good."""

    async def redoing_flow(event, step):
        for name in "abc":
            await step.do(name, give, name, rollback=undo, rollback_retries=retries)
        raise LookupError("no")

    world = World(define(redoing_flow, **options))
    world.turn()
    while not any(key.endswith(":rollback") for key in world.handed()):
        world.end()
    run(world, *breaks)
    return world


def run(world: World, *breaks: str) -> list[str]:
    """Run handlers as they are handed out until the instance has ended; their names, in order."""
    ran: list[str] = []
    while not world.finished:
        if not world.handed():
            world.advance()
        for key in world.handed():
            name = key.split(":")[1]
            ran.append(name)
            world.fail(key) if name in breaks else world.end(key)
    return ran


def outcome(world: World) -> tuple[str, int]:
    rollback = codec.decode(world.rollback or "null")
    return rollback["outcome"], len(rollback["errors"])


def handlers(world: World) -> dict[str, str]:
    return {key.split(":")[1]: row.status for key, row in world.rows.items() if row.kind == "rollback"}


def test_a_retry_takes_the_failed_handler_back() -> None:
    """semantics §5.8: rolling_back, to end as it had; error and end of the code stay; the outcome is open again."""
    world = failed("b")
    assert (world.status, outcome(world), handlers(world)) == (
        Status.ERRORED,
        ("failed", 1),
        {"c": "done", "b": "failed"},
    )
    error, ended_seq, seq = world.error, world.ended_seq, world.seq
    decided = redoing.retry(world.held(), list(world.rows.values()), world.rollback, world.now)
    writes = decided.writes
    assert (writes.status, writes.ending, writes.ended_at) == (Status.ROLLING_BACK, "errored", None)
    assert (writes.alarm_at, writes.again, writes.expected_seq) == (world.now, True, seq)
    assert [each.status for each in writes.transitions] == ["rolling_back"]
    assert [row.key for row in decided.past.handlers] == ["do:b:1:rollback"]
    assert decided.past.seq == writes.transitions[0].seq
    world.retry_rollback()
    assert world.status is Status.ROLLING_BACK and world.rollback is None
    assert (world.error, world.ended_seq) == (error, ended_seq)
    row = world.rows["do:b:1:rollback"]
    assert (row.status, row.attempt, row.losses, row.uncounted) == ("handed", 1, 0, 0)
    assert row.fence > seq and row.run == world.rows["do:b:1"].run
    assert run(world) == ["b", "a"]
    assert (world.status, outcome(world), world.alarm_at) == (Status.ERRORED, ("complete", 0), FOREVER)


def test_attempts_are_fresh() -> None:
    """semantics §5.8, protocols §20: all of the handler's retries again, however many it had used up."""
    world = failed("c", retries=THRICE)
    assert world.rows["do:c:1:rollback"].attempt == 3
    for _ in range(2):
        world.retry_rollback()
        assert run(world, "c") == ["c", "c", "c"]
    assert [(each.key, each.attempt) for each in world.attempts] == [
        ("do:c:1:rollback", attempt) for _ in range(3) for attempt in (1, 2, 3)
    ]


def test_policies_hold() -> None:
    """semantics §5.3, §5.4: one at a time and last started first, also of several that had failed; ``stop`` stops."""
    going = failed("a", "c", rollback=RollbackPolicy(on_error="continue"))
    assert outcome(going) == ("failed", 2)
    going.retry_rollback()
    assert going.handed() == ["do:c:1:rollback"]
    assert run(going, "c") == ["c", "a"]
    assert outcome(going) == ("failed", 1)
    stopping = failed("c")
    stopping.retry_rollback()
    assert run(stopping, "c") == ["c"]
    assert handlers(stopping) == {"c": "failed"}
    at_once = failed("a", "b", rollback=RollbackPolicy(order="parallel"))
    at_once.retry_rollback()
    assert sorted(at_once.handed()) == ["do:a:1:rollback", "do:b:1:rollback"]


def test_a_skipped_handler_is_handled() -> None:
    """semantics §5.8: its row is cancelled and says why, and the chain goes on; nothing left means complete."""
    world = failed("b")
    world.skip_rollback("b")
    row = world.rows["do:b:1:rollback"]
    assert (row.status, codec.error_info(row.error or "").name) == ("cancelled", "Skipped")
    assert row.finished_seq is not None and row.started_seq < row.finished_seq <= world.seq
    assert world.handed() == ["do:a:1:rollback"]
    assert run(world) == ["a"]
    assert outcome(world) == ("complete", 0)
    last = failed("a")
    last.skip_rollback("a")
    assert (last.status, outcome(last)) == (Status.ERRORED, ("complete", 0))


def test_what_has_not_run_may_be_skipped_beforehand() -> None:
    """semantics §5.8: with the failed one still failed the chain stays stopped; a retry then leaves the skipped out."""
    world = failed("b")
    world.skip_rollback("a")
    assert (world.finished, outcome(world), handlers(world)) == (
        True,
        ("failed", 1),
        {"c": "done", "b": "failed", "a": "cancelled"},
    )
    world.retry_rollback()
    assert run(world) == ["b"]
    assert outcome(world) == ("complete", 0)


def test_state_is_what_is_stored() -> None:
    """protocols §20: the errors of handlers that are taken back count no more."""
    world = failed("c")
    first = world.state_bytes
    world.retry_rollback()
    run(world, "c")
    assert world.state_bytes == first
    failed_with = world.rows["do:c:1:rollback"].error or ""
    world.skip_rollback("c")
    run(world)
    now = [world.rows[f"do:{name}:1:rollback"] for name in "abc"]
    more = sum(len(row.output or "") + len(row.error or "") for row in now)
    assert world.state_bytes == first - len(failed_with) + more


@pytest.mark.parametrize(
    ("status", "rollback", "text"),
    [
        (Status.RUNNING, None, "it is running, and has not ended"),
        (Status.PAUSED, None, "it is paused, and has not ended"),
        (Status.ROLLING_BACK, None, "it is rolling_back: wait for the end of that"),
        (Status.COMPLETE, None, "it is complete, and nothing was rolled back"),
        (Status.ERRORED, '{"outcome": "complete"}', "it is errored, and its rollback is complete"),
    ],
)
def test_other_instances_are_refused(status: Status, rollback: str | None, text: str) -> None:
    """semantics §5.8, protocols §15: only ``errored|terminated → rolling_back``, and only where a rollback failed."""
    world = failed("c")
    world.status = status
    for verb in (redoing.retry, lambda *args: redoing.skip(*args[:3], "c", 1, args[3])):
        with pytest.raises(InvalidTransition, match=text):
            verb(world.held(), list(world.rows.values()), rollback, world.now)


def test_steps_that_cannot_be_skipped() -> None:
    """semantics §5.8: an error names those that can."""
    world = failed("b")
    with pytest.raises(
        InvalidTransition, match=r"'do:c:1' has run: it is undone\. .*do:b:1 \(failed\), do:a:1"
    ):
        world.skip_rollback("c")
    for unknown in ("d", "do:d:1", "do:b:1:rollback"):
        with pytest.raises(InvalidTransition, match=r"no step .*do:b:1 \(failed\), do:a:1 \(not run\)"):
            world.skip_rollback(unknown)
    with pytest.raises(InvalidTransition, match="no step 'do:b:2'"):
        world.skip_rollback("b", 2)
    with pytest.raises(InvalidTransition, match="no step"):
        world.skip_rollback("do:b:1", 2)
    for count in (0, True, "1"):
        with pytest.raises(InvalidConfig):
            world.skip_rollback("b", count)  # type: ignore[arg-type]
    world.skip_rollback("a")
    with pytest.raises(InvalidTransition, match="'do:a:1' has been skipped already"):
        world.skip_rollback("a")


def test_links_name_the_children_they_had_failed_for() -> None:
    """semantics §5.8: whoever applies a retry takes up their rollbacks as well."""
    world = failed("b")
    world.rows["invoke:k:1"] = StepRow(
        "invoke:k:1", "invoke", "done", 90, 0.0, 91, 0.0, has_rollback=True, run=1
    )
    error = world.rows["do:b:1:rollback"].error
    world.rows["invoke:k:1:rollback"] = StepRow(
        "invoke:k:1:rollback", "rollback", "failed", 92, 0.0, 93, 0.0, error=error
    )
    decided = redoing.retry(world.held(), list(world.rows.values()), world.rollback, world.now)
    assert decided.children == (("invoke:k:1", child_id(INSTANCE, 1, "invoke:k:1")),)


def test_nothing_else_happens_meanwhile() -> None:
    """semantics §5.7: a second verb while the chain runs is refused; a pause does not hold it up."""
    world = failed("b")
    world.retry_rollback()
    with pytest.raises(InvalidTransition, match="it is rolling_back"):
        world.retry_rollback()
    with pytest.raises(InvalidTransition, match="rolling back"):
        world.terminate(rollback=True)
    world.pause()
    world.turn(Wake())
    assert run(world) == ["b", "a"]


def test_the_text_of_a_failed_rollback() -> None:
    """What is stored of it is what its story needs, to the last digit."""
    world = failed("c")
    decided = redoing.retry(world.held(), list(world.rows.values()), world.rollback, world.now)
    read = FailedRollback.from_json(decided.past.seq, decided.past.to_json())
    (row,), (was,) = read.handlers, decided.past.handlers
    assert read.rollback == world.rollback
    for name in (
        "key",
        "kind",
        "status",
        "started_seq",
        "started_at",
        "finished_seq",
        "finished_at",
        "error",
    ):
        assert getattr(row, name) == getattr(was, name)
