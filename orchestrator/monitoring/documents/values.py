"""Stored texts and instants as documents have them.

Owns: the shape of an instant, a value and an error. Does not own: what is redacted (``client.asking.history``).
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from orchestrator.client.asking.history import instant
from orchestrator.errors import ErrorInfo, RollbackStatus
from orchestrator.workflow import codec

Document = dict[str, Any]

WHOLE = 1 << 62
"""As a limit of bytes: none."""
PREVIEW = 2000
"""Characters of a value that is too long to be shown."""


def at(moment: float | datetime | None) -> str | None:
    """Epoch seconds, or an aware datetime, as ``2026-11-24T16:20:00.123456+00:00``."""
    if moment is None:
        return None
    return (moment if isinstance(moment, datetime) else instant(moment)).isoformat()


def value(text: str | None, most: int = WHOLE) -> Any:
    """What a stored text holds; of one over ``most`` bytes ``{"cut": its beginning, "bytes": its length}``."""
    if text is None:
        return None
    if len(text) > most:
        return {"cut": text[:PREVIEW], "bytes": len(text)}
    return codec.decode(text)


def error(text: str | None) -> Document | None:
    """A stored error as ``{"name", "message"}``."""
    return None if text is None else info(codec.error_info(text))


def info(found: ErrorInfo | None) -> Document | None:
    """An error as ``{"name", "message"}``."""
    return None if found is None else {"name": found.name, "message": found.message}


def rollback(text: str | None) -> Document | None:
    """How a rollback ended: ``{"outcome", "error", "errors"}``."""
    if text is None:
        return None
    found = RollbackStatus.of(codec.decode(text))
    return {
        "outcome": found.outcome,
        "error": info(found.error),
        "errors": [asdict(each) for each in found.errors],
    }
