"""Numbers, spans and values for people.

Owns: how they are written on a page. Does not own: the pages.
"""

from __future__ import annotations

import json
from datetime import datetime
from html import escape
from typing import Any
from urllib.parse import quote

KINDS = {"do": "step", "sleep": "sleep", "wait": "event", "invoke": "child", "rollback": "undo"}
"""What the kinds of steps are called."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def number(value: int | float | None) -> str:
    """``12,345``; a dash for nothing."""
    return "–" if value is None else f"{value:,}"


def status(value: str) -> str:
    """``waiting_for_pause`` as it is read."""
    return value.replace("_", " ")


def span(seconds: float | None) -> str:
    """A duration in its two largest units: ``350 ms``, ``2.5 s``, ``3 min 20 s``, ``2 d 4 h``; nothing for ``None``."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    left = round(seconds)
    found: list[str] = []
    for length, unit in (*_UNITS, (1, "s")):
        count, left = divmod(left, length)
        if count or found:
            found.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, found[:2]))


def size(count: int) -> str:
    """Bytes: ``812 B``, ``1.4 MiB``."""
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB"):
        count /= 1024  # type: ignore[assignment]
        if count < 1024:
            return f"{count:.3g} {unit}"
    return f"{count / 1024:.3g} GiB"


def shown(value: Any) -> str:
    """A value as indented JSON. Of one that was cut, its beginning, and how long it is."""
    if isinstance(value, dict) and set(value) == {"cut", "bytes"}:
        return f"{value['cut']}…\n({size(value['bytes'])}; the API has all of it)"
    return json.dumps(value, indent=2, ensure_ascii=False)


def line(value: Any, most: int = 120) -> str:
    """A value as one line of JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def example(schema: dict[str, Any] | None) -> str:
    """What params of that JSON Schema may look like: each field that must be there, with an empty value."""
    if schema is None or schema.get("type") != "object":
        return ""
    wanted = {name: _empty(schema["properties"][name]) for name in schema.get("required", ())}
    return json.dumps(wanted, indent=2, ensure_ascii=False) if wanted else ""


def _empty(schema: dict[str, Any]) -> Any:
    if "default" in schema:
        return schema["default"]
    empty = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}
    return empty.get(str(schema.get("type")))


def rate(value: float | None) -> str:
    """A rate without needless decimals."""
    return "–" if value is None else f"{value:,g}"


def moment(at: str | None) -> str:
    """HTML of an instant, which the browser writes in its reader's time zone; without script it is UTC."""
    if at is None:
        return "–"
    return f'<time datetime="{escape(at)}">{escape(at[:19].replace("T", " "))} UTC</time>'


def between(begin: str | None, end: str | None) -> str:
    """How long it took from one instant to another; nothing if one of them is missing."""
    if begin is None or end is None:
        return ""
    return span((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())


def part(name: str) -> str:
    """A name as one part of an address: ids of schedules hold spaces, ``*`` and ``/``."""
    return quote(name, safe="")


def state(step: dict[str, Any]) -> str:
    """What a step is shown as: the words of the trace, for its status in the row."""
    status = str(step["status"])
    if status in ("handed", "running"):
        return "retrying" if step["attempt"] > 1 else "running"
    if step["kind"] == "rollback":
        return {"done": "compensated", "failed": "compensation_failed", "cancelled": "skipped"}.get(
            status, status
        )
    return {"pending": "retrying", "cancelling": "cancelled", "abandoned": "cancelled"}.get(status, status)
