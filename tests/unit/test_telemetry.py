"""What a worker counts, in which buckets, and that it counts once over several incarnations."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.telemetry import FLUSH_S, Totals, buckets, written
from orchestrator.workflow.history import StepRow


def row(status: Any, at: int | None, kind: str = "do") -> StepRow:
    return StepRow("do:a:1", kind, status, 1, 0.0, at)


def test_only_what_the_turn_has_finished_counts() -> None:
    totals = Totals()
    rows = [row("done", 9), row("done", 5), row("handed", None), row("failed", 8), row("done", 7, "sleep")]
    totals.turned("pay", 5, rows, 2, None)
    totals.turned("pay", 9, [row("cancelling", 10)], 0, "terminated")
    assert totals.series() == {
        "step pay do done": 1, "step pay do failed": 1, "step pay sleep done": 1, "step pay do cancelling": 1,
        "failed-attempts pay": 2, "ended pay terminated": 1,
    }  # fmt: skip


@given(st.lists(st.floats(0, 10), max_size=50))
def test_every_flush_is_in_one_bucket(took: list[float]) -> None:
    totals = Totals()
    for each in took:
        totals.flushed(3, each)
    found = dict(buckets(totals.series()))
    assert found["+Inf"] == len(took)
    for bound in FLUSH_S:
        assert found[str(bound)] == sum(each <= bound for each in took)
    assert totals.series().get("turns", 0) == 3 * len(took)


@given(st.lists(st.sampled_from(["turn", "beat", "reborn"]), max_size=60))
def test_a_process_counts_once_whatever_becomes_of_its_incarnations(doings: list[str]) -> None:
    """protocols §6: what the row of an earlier incarnation holds is not in that of a later one."""
    totals, stored, turned = Totals(), [Counter[str]()], 0
    for doing in doings:
        if doing == "turn":
            totals.turned("pay", 0, [row("done", 1)], 1, "complete")
            turned += 1
        elif doing == "beat":
            series = totals.series()
            totals.told(series)
            stored[-1] = Counter(json.loads(written(series)))
        else:
            totals.reborn()
            stored.append(Counter())
    stored[-1] = Counter(totals.series())
    summed = sum(stored, Counter[str]())
    assert (
        summed["step pay do done"] == summed["failed-attempts pay"] == summed["ended pay complete"] == turned
    )
