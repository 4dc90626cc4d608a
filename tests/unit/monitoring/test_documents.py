"""The pure parts of the documents: what may be done in which status, how values and events are written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.errors import ErrorInfo
from orchestrator.monitoring.api.operations import OPERATIONS
from orchestrator.monitoring.documents import actions, events, values
from orchestrator.workflow.lifecycle import LifecycleEvent
from orchestrator.workflow.status import FINISHED, Status


def verbs_in(status: Status, outcome: str | None = None, ending: str | None = None) -> set[str]:
    return {verb for verb, why in actions.allowed(status, outcome, ending=ending).items() if why is None}


ALWAYS = {"restart", "delete"}


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (Status.QUEUED, {"pause", "terminate", "send-event"}),
        (Status.RUNNING, {"pause", "terminate", "send-event"}),
        (Status.WAITING, {"pause", "terminate", "send-event"}),
        (Status.WAITING_FOR_PAUSE, {"resume", "terminate", "send-event"}),
        (Status.PAUSED, {"resume", "terminate", "send-event"}),
        (Status.ROLLING_BACK, {"send-event"}),
        (Status.COMPLETE, set()),
        (Status.ERRORED, set()),
        (Status.TERMINATED, set()),
    ],
)
def test_what_may_be_done_in_each_status(status: Status, more: set[str]) -> None:
    """semantics §4: pause from queued, running or waiting; nothing but a restart or a deletion after the end."""
    assert verbs_in(status) == ALWAYS | more


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_only_a_failed_rollback_can_be_finished(status: Status) -> None:
    """semantics §5.8."""
    assert verbs_in(status, "failed") == ALWAYS | {"retry-rollback", "skip-rollback"}
    assert verbs_in(status, "complete") == ALWAYS


def test_what_is_about_to_end_is_neither_paused_nor_terminated() -> None:
    """semantics §5.7: a pause does not hold a rollback up, a second terminate raises."""
    assert verbs_in(Status.RUNNING, ending="errored") == ALWAYS | {"send-event"}


def test_every_verb_is_an_operation_of_the_api() -> None:
    paths = {operation.path.rpartition("/")[2] for operation in OPERATIONS if operation.method == "post"}
    assert set(actions.VERBS) - {"delete"} == paths - {"instances"}
    assert set(actions.VERBS) == actions.allowed(Status.RUNNING).keys()


def test_a_long_value_is_cut() -> None:
    assert values.value('{"a": 1}') == {"a": 1}
    assert values.value('"' + "x" * 5000 + '"', 100) == {"cut": '"' + "x" * 1999, "bytes": 5002}
    assert values.value(None) is None and values.value("null") is None


def test_instants_are_iso_8601_in_utc() -> None:
    assert values.at(0.5) == "1970-01-01T00:00:00.500000+00:00"
    assert values.at(datetime(2026, 11, 24, tzinfo=UTC)) == "2026-11-24T00:00:00+00:00"
    assert values.at(None) is None


def test_an_event_has_what_applies_to_its_type() -> None:
    """semantics §7: fields that do not apply are left out; a zero is no such field."""
    told = LifecycleEvent(
        "a", 11, datetime(2026, 11, 24, tzinfo=UTC), "attempt_errored", step_name="pay", count=1, attempt=2,
        error=ErrorInfo("ValueError", "no"), retry_delay=0.0,
    )  # fmt: skip
    assert events.event(told) == {
        "instance_id": "a", "event_id": 11, "timestamp": "2026-11-24T00:00:00+00:00", "type": "attempt_errored",
        "step_name": "pay", "count": 1, "attempt": 2, "error": {"name": "ValueError", "message": "no"},
        "retry_delay": 0.0,
    }  # fmt: skip
