"""Which hand-outs have lost their message: told by what was claimed, by what waits, or by age."""

from typing import Any

import pytest

from orchestrator.engine.turning.recovery import OVERTAKEN_S, UNKNOWN_S, Recovery
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.config import StepConfig

NOW = 1_000_000.0


def lost(recovery: Recovery, age: float) -> bool:
    config = StepConfig(queue="cpu").to_json()
    row = StepRow("do:a:1", "do", "handed", 1, NOW - age, handed_at=NOW - age, config=config)
    stored: Any = type("Stored", (), {"rows": [row], "dead": ()})
    execution: Any = None
    wake = recovery.wake(stored, execution, NOW, uncertain=False)
    return wake is not None and wake.unclaimed == ("do:a:1",)


@pytest.mark.parametrize("waiting", [7, None])
def test_a_queue_that_others_serve(waiting: int | None) -> None:
    """A busy queue from which this process claims nothing never tells it what was overtaken: there age counts."""
    recovery = Recovery("ours", 15.0, lambda queue: waiting)
    assert not lost(recovery, UNKNOWN_S - 1)
    assert lost(recovery, UNKNOWN_S + 1)


def test_a_busy_queue_of_our_own() -> None:
    """However old: as long as nothing younger is claimed it is a backlog. What children claim counts too."""
    recovery = Recovery("ours", 15.0, lambda queue: 7)
    recovery.note("cpu", NOW - 500)
    assert not lost(recovery, 400)
    recovery.note("cpu", NOW - 400 + OVERTAKEN_S + 1)
    assert lost(recovery, 400)
    recovery.note("cpu", NOW - 500)
    assert lost(recovery, 400), "the youngest counts"


def test_an_empty_queue() -> None:
    recovery = Recovery("ours", 15.0, lambda queue: 0)
    assert lost(recovery, 6)
    assert not lost(recovery, 4)
