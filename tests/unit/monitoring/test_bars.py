"""How steps lie on the time axis of an instance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.monitoring import words
from orchestrator.monitoring.pages import bars

START = datetime(2026, 11, 24, 16, tzinfo=UTC)
ORIGIN = START.timestamp()


def at(seconds: float | None) -> str | None:
    return None if seconds is None else (START + timedelta(seconds=seconds)).isoformat()


def step(kind: str = "do", status: str = "done", **more: Any) -> dict[str, Any]:
    tries = [
        {"number": n, "error": error, "started_at": at(begin), "finished_at": at(end)}
        for n, (begin, end, error) in enumerate(more.pop("tries", []), 1)
    ]
    final = status in ("done", "failed", "cancelled", "abandoned")
    due, end = more.pop("due", None), more.pop("end", None)
    return {
        "key": f"{kind}:a:1", "kind": kind, "status": status, "is_final": final, "started_at": at(0),
        "finished_at": at(end), "due_at": at(due), "attempts": tries, "attempt": len(tries),
    }  # fmt: skip


def drawn(one: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    return [(bar.state, bar.begin, bar.to) for bar in bars.of([one], ORIGIN)[one["key"]]]


def test_attempts_and_the_gaps_between_them() -> None:
    """semantics §2.2: a waiting retry is a gap, until its next attempt or the moment that is due."""
    failed = {"name": "Broken", "message": ""}
    assert drawn(step(tries=[(0, 1, failed), (3, 4, None)], end=4)) == [
        ("failed", 0, 1), ("retry", 1, 3), ("done", 3, 4),
    ]  # fmt: skip
    assert drawn(step(status="pending", tries=[(0, 1, failed)], due=11)) == [
        ("failed", 0, 1),
        ("retry", 1, 11),
    ]
    assert drawn(step(status="running", tries=[(2, None, None)])) == [("handed", 0, 2), ("running", 2, None)]
    assert drawn(step(status="handed")) == [("handed", 0, None)]
    assert drawn(step(status="cancelled", tries=[(0, 5, None)], end=5)) == [("cancelled", 0, 5)]
    assert drawn(step("rollback", tries=[(0, 1, None)], end=1)) == [("compensated", 0, 1)]


def test_what_waits_is_one_bar_that_grows() -> None:
    assert drawn(step("wait", "waiting")) == [("wait", 0, None)]
    assert drawn(step("sleep", end=60)) == [("sleep", 0, 60)]
    assert drawn(step("wait", "failed", end=60)) == [("failed", 0, 60)]
    assert bars.Bar("wait", 1.5, None, "").style == "--a:1.500;--b:var(--now)"


def test_the_axis_of_a_live_instance_ends_now() -> None:
    instance = {"started_at": at(2), "created_at": at(0), "ended_at": None, "is_finished": False}
    axis = bars.axis(instance, [step()], ORIGIN + 10)
    assert (axis.origin, axis.end, axis.is_live) == (ORIGIN, 10, True)
    over = bars.axis({**instance, "ended_at": at(7), "is_finished": True}, [], ORIGIN + 100)
    assert (over.origin, over.end, over.is_live) == (ORIGIN + 2, 5, False)


def test_words() -> None:
    spans = {0.0004: "0 ms", 0.35: "350 ms", 2.5: "2.5 s", 200: "3 min 20 s", 3600: "1 h", 187_200: "2 d 4 h"}
    assert {seconds: words.span(seconds) for seconds in spans} == spans
    assert words.span(None) == "" and words.number(None) == "–" and words.number(12345) == "12,345"
    assert words.part("*/5 * * * *-17") == "%2A%2F5%20%2A%20%2A%20%2A%20%2A-17"
    assert (
        words.moment('"><script>')
        == '<time datetime="&quot;&gt;&lt;script&gt;">&quot;&gt;&lt;script&gt; UTC</time>'
    )
    assert words.size(812) == "812 B" and words.size(1 << 20) == "1 MiB"
    schema = {
        "type": "object",
        "required": ["item", "tags"],
        "properties": {"item": {"type": "string"}, "tags": {"type": "array"}},
    }
    assert words.example(schema) == '{\n  "item": "",\n  "tags": []\n}'
    assert words.example({"type": "string"}) == words.example(None) == ""
