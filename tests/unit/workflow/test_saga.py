"""What is compensated, in which order, and when a chain is over."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from orchestrator.workflow.history import StepRow, StepStatus
from orchestrator.workflow.language.config import RollbackPolicy
from orchestrator.workflow.saga import Chain, advance, eligible, forward_key, handler_key

STOP, CONTINUE = RollbackPolicy(), RollbackPolicy(on_error="continue")
PARALLEL = RollbackPolicy(order="parallel")


def row(key: str, seq: int, status: StepStatus = "done", **fields: object) -> StepRow:
    return StepRow(key, "do", status, seq, 0.0, has_rollback=True, attempt=1, **fields)  # type: ignore[arg-type]


def handlers(**statuses: StepStatus) -> dict[str, StepRow]:
    rows = {}
    for seq, (key, status) in enumerate(statuses.items()):
        rows[handler_key(key)] = StepRow(
            handler_key(key), "rollback", status, 10 + seq, 0.0, finished_seq=20 + seq
        )
    return rows


def keys(rows: Iterable[StepRow]) -> list[str]:
    return [each.key for each in rows]


ABC = [row("a", 1), row("b", 2), row("c", 3)]


def test_keys_of_handlers() -> None:
    """Semantics §5.3: a handler is a step row with a key of its own; a name may end like one."""
    assert handler_key("do:charge:1") == "do:charge:1:rollback"
    assert forward_key(handler_key("do:x:rollback:1")) == "do:x:rollback:1"


@pytest.mark.parametrize(
    ("step", "begun"),
    [
        (row("done", 1), True),
        (row("failed", 1, "failed"), True),
        (row("cut while running", 1, "cancelled", claimed_at=5.0), True),
        (row("cut while offered", 1, "cancelled"), False),
        (row("abandoned while offered", 1, "abandoned"), False),
        (StepRow("cut in its second attempt", "do", "cancelled", 1, 0.0, attempt=2, has_rollback=True), True),
        (StepRow("wait:w:1", "wait", "cancelled", 1, 0.0, has_rollback=True), True),
        (StepRow("wait:w:1", "wait", "failed", 1, 0.0, has_rollback=True), True),
        (StepRow("no handler", "do", "done", 1, 0.0), False),
    ],
    ids=lambda value: value.key if isinstance(value, StepRow) else "",
)
def test_eligible_is_what_has_a_handler_and_has_started(step: StepRow, begun: bool) -> None:
    """Semantics §5.2: completed, failed or cut short; an offer nobody took is no start."""
    assert eligible([step]) == ([step] if begun else [])


def test_last_started_first() -> None:
    """Semantics §5.3: reverse *start* order, whoever ended first."""
    rows = [row("a", 1, finished_seq=9), row("c", 3, finished_seq=4), row("b", 2, finished_seq=8)]
    assert keys(eligible(rows)) == ["c", "b", "a"]


def test_one_after_the_other() -> None:
    """Semantics §5.3: the next starts when the one before has ended."""
    assert keys(advance(ABC, {}, STOP).start) == ["c"]
    assert advance(ABC, handlers(c="handed"), STOP) == Chain()
    assert advance(ABC, handlers(c="pending"), STOP) == Chain()
    assert keys(advance(ABC, handlers(c="done"), STOP).start) == ["b"]
    assert advance(ABC, handlers(c="done", b="done", a="done"), STOP) == Chain(over=True)


def test_nothing_to_undo() -> None:
    """Semantics §5.4: over before it began."""
    assert advance([], {}, STOP) == Chain(over=True)
    assert advance([row("a", 1, "cancelled")], {}, STOP) == Chain(over=True)


def test_a_failure_stops_the_chain() -> None:
    """Semantics §5.4: with ``stop`` none starts after the first that failed for good."""
    chain = advance(ABC, handlers(c="done", b="failed"), STOP)
    assert (chain.start, chain.over, keys(chain.failed)) == ((), True, ["b:rollback"])


def test_a_failure_may_be_passed_over() -> None:
    """Semantics §5.4: with ``continue`` the others still run, and all failures are reported in order."""
    assert keys(advance(ABC, handlers(c="failed"), CONTINUE).start) == ["b"]
    chain = advance(ABC, handlers(c="failed", b="done", a="failed"), CONTINUE)
    assert (chain.over, keys(chain.failed)) == (True, ["c:rollback", "a:rollback"])


def test_all_at_once() -> None:
    """Semantics §5.8: ``parallel`` starts every handler at once."""
    assert keys(advance(ABC, {}, PARALLEL).start) == ["c", "b", "a"]
    assert advance(ABC, handlers(c="handed", b="running", a="pending"), PARALLEL) == Chain()


def test_a_failure_among_parallel_handlers() -> None:
    """Protocols §20: those already running finish, no new ones start."""
    assert advance(ABC, handlers(c="failed", b="running"), PARALLEL) == Chain()
    chain = advance(ABC, handlers(c="failed", b="done"), PARALLEL)
    assert (chain.over, keys(chain.failed)) == (True, ["c:rollback"])
