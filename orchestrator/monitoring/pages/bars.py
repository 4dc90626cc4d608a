"""How steps lie on a time axis.

Owns: the bars of a step: its attempts, the gaps between them, what it waits for. Does not own: the steps, or where the
bars are drawn (the style sheet, from ``--a`` and ``--b``: seconds since the axis began; without an end a bar grows).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from orchestrator.monitoring.documents.values import Document
from orchestrator.monitoring.words import span

_WAITING_KINDS = {"sleep": "asleep", "wait": "waits for an event", "invoke": "waits for its child"}


_BODIES = frozenset({"do", "rollback"})


class Axis(NamedTuple):
    """``origin`` in epoch seconds; ``end`` and ``now`` in seconds since then. A live one ends now."""

    origin: float
    end: float
    now: float
    is_live: bool


class Bar(NamedTuple):
    """``state`` is its look, ``title`` its words; ``to`` is ``None`` while it grows."""

    state: str
    begin: float
    to: float | None
    title: str

    @property
    def style(self) -> str:
        """Its place, for the style sheet."""
        return f"--a:{self.begin:.3f};--b:{'var(--now)' if self.to is None else format(self.to, '.3f')}"


def axis(instance: Document, steps: Sequence[Document], now: float) -> Axis:
    """The axis of an instance, from its first start to its end or now."""
    begins = [seconds(each["started_at"]) for each in steps[:1]]
    origin = min([*begins, seconds(instance["started_at"] or instance["created_at"])])
    is_live = not instance["is_finished"]
    end = now if is_live else max(seconds(instance["ended_at"]), *begins, origin)
    return Axis(origin, max(end - origin, 0.001), now - origin, is_live)


def of(steps: Sequence[Document], origin: float) -> dict[str, list[Bar]]:
    """The bars of each step, by its key."""
    return {
        step["key"]: _tries(step, origin) if step["kind"] in ("do", "rollback") else _wait(step, origin)
        for step in steps
    }


def _wait(step: Document, origin: float) -> list[Bar]:
    begin = seconds(step["started_at"]) - origin
    end = None if step["finished_at"] is None else seconds(step["finished_at"]) - origin
    look = step["kind"] if step["status"] in ("waiting", "done") else step["status"]
    words = _WAITING_KINDS.get(step["kind"], str(step["kind"]))
    return [Bar(look, begin, end, words if end is None else f"{words} for {span(end - begin)}")]


def _tries(step: Document, origin: float) -> list[Bar]:
    found: list[Bar] = []
    last = seconds(step["started_at"]) - origin
    done = "compensated" if step["kind"] == "rollback" else "done"
    for attempt in step["attempts"]:
        if attempt["started_at"] is None:
            continue
        begin = max(seconds(attempt["started_at"]) - origin, last)
        end = None if attempt["finished_at"] is None else max(seconds(attempt["finished_at"]) - origin, begin)
        if begin - last > 0.001:
            found.append(Bar("retry" if found else "handed", last, begin, f"waited {span(begin - last)}"))
        state = "failed" if attempt["error"] else "running" if end is None else done
        if step["status"] in ("cancelled", "cancelling", "abandoned") and not attempt["error"]:
            state = "cancelled"
        words = f"attempt {attempt['number']}: {state}" + (
            "" if end is None else f" after {span(end - begin)}"
        )
        found.append(Bar(state, begin, end, words))
        last = begin if end is None else end
    if not step["is_final"] and (not found or found[-1].to is not None):
        due = seconds(step["due_at"]) - origin if step["due_at"] else None
        look, words = ("retry", "waits for its next attempt") if found else ("handed", "handed out")
        found.append(Bar(look, last, due, words))
    return found or [Bar(step["status"], last, last, step["status"])]


def seconds(at: str) -> float:
    """Epoch seconds of an instant in a document."""
    return datetime.fromisoformat(at).timestamp()
