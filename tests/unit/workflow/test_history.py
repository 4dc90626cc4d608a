"""The facts that rows hold, in order."""

from __future__ import annotations

import pytest

from orchestrator.workflow.history import Cancelled, Ended, Finished, Started, StepRow, StepStatus, facts


def rows() -> list[StepRow]:
    return [
        StepRow("do:b:1", "do", "failed", 2, 1.0, finished_seq=9, finished_at=4.5, error="E"),
        StepRow("do:a:1", "do", "done", 1, 1.0, finished_seq=5, finished_at=3.5, output="1"),
        StepRow("sleep:s:1", "sleep", "waiting", 6, 3.5, due_at=99.0),
        StepRow("do:a:1:rollback", "rollback", "done", 11, 5.0, finished_seq=12, finished_at=6.0),
    ]


def test_starts_and_ends_by_seq() -> None:
    """Protocols §11: a start and its end are two facts of one row; compensations are no facts of the code."""
    assert facts(rows()) == [
        Started(1, "do:a:1"),
        Started(2, "do:b:1"),
        Finished(5, "do:a:1", 3.5, "1", None),
        Started(6, "sleep:s:1"),
        Finished(9, "do:b:1", 4.5, None, "E"),
    ]


def test_only_what_came_after() -> None:
    """Protocols §1 (3): a process that holds a replay asks for the rest, ends of older steps included."""
    assert facts(rows(), after=5) == [Started(6, "sleep:s:1"), Finished(9, "do:b:1", 4.5, None, "E")]
    assert facts(rows(), after=9) == []


@pytest.mark.parametrize("status", ["cancelled", "cancelling", "abandoned"])
def test_a_step_cut_short_was_cancelled(status: StepStatus) -> None:
    """Protocols §13: a cancellation is a fact with its place in the order, also while the body still runs."""
    row = StepRow("do:a:1", "do", status, 1, 1.0, finished_seq=3, finished_at=2.0, output='"for its handler"')
    assert facts([row]) == [Started(1, "do:a:1"), Cancelled(3, "do:a:1")]


def test_the_end_stands_in_its_place() -> None:
    """Protocols §11: what was done to steps after the end of the code comes after it."""
    row = StepRow("do:a:1", "do", "cancelled", 1, 1.0, finished_seq=4, finished_at=2.0)
    assert facts([row], ended_seq=3) == [Started(1, "do:a:1"), Ended(3), Cancelled(4, "do:a:1")]
    assert facts([row], ended_seq=3, after=3) == [Cancelled(4, "do:a:1")]
