"""What stands in Redis for scripts to read: what operators set, and how much is queued.

Owns: the hashes ``limits`` and ``backlog``, written from what Postgres knows. Does not own: reading them (scripts do),
what is true (rows), when it is written (duties, an operator's command).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from orchestrator.control.gatekeeping.scripts import Script, Scripts
from orchestrator.errors import ServiceUnavailable
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

KEPT_MS = 86_400_000
"""So long it stands when no worker writes it again."""


class Board:
    """Writes these hashes; safe for threads. Never raises for want of Redis: whether it was written is the answer."""

    def __init__(self, settings: Settings, scripts: Scripts | None = None) -> None:
        self._scripts = scripts or Scripts(settings)
        self._put_limits = self._scripts.script("put_limits")
        self._put_backlog = self._scripts.script("put_backlog")

    def put_limits(self, fields: Mapping[str, str]) -> bool:
        """Have exactly these there (``limits.fields``)."""
        return self._call(self._put_limits, *(each for pair in fields.items() for each in pair))

    def put_backlog(self, workflow: str, queued: int) -> bool:
        """Say how many instances of a workflow were queued when they were counted."""
        return self._call(self._put_backlog, workflow, queued)

    def close(self) -> None:
        self._scripts.close()

    def _call(self, script: Script, *arguments: str | int) -> bool:
        try:
            self._scripts.call(script, KEPT_MS, *arguments)
        except ServiceUnavailable as error:
            logger.debug("Redis does not take what is put up for scripts: %s", error)
            return False
        return True
