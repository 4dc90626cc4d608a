"""Waiting for many instances at once, and making sure that every one of them ended well.

Owns: the one cheap question to Postgres, and the error that says what is missing. A client that waits for each of
thousands by ``result()`` would spend more CPU than what it measures.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from bench.cluster import Cluster
from orchestrator import Status, Workflow
from orchestrator.workflow.status import FINISHED

POLL_S = 0.02
LONGEST_POLL_S = 0.2
POLL_SHARE = 0.1
"""Of the time at most this much goes into asking: behind many dead rows even this question becomes dear."""
PATIENCE_S = 300.0
SHOWN = 5

# The limit keeps the question cheap however many there are: whether more than so many are left is all we ask. That
# every instance was created at some time is said for the sake of the index of the list.
_UNFINISHED = """
SELECT count(*) FROM (
  SELECT 1 FROM orchestrator_instances WHERE account = %s AND workflow = %s AND status = ANY(%s)
    AND created_at > '-infinity' LIMIT %s) AS u
"""
_LATEST = "SELECT id FROM orchestrator_instances ORDER BY id DESC LIMIT 1"
_COUNTS = """
SELECT status, count(*) FROM orchestrator_instances
WHERE account = %s AND workflow = %s AND id > %s GROUP BY status
"""
_OTHERS = """
SELECT i.name_id, i.status, coalesce(i.blocked, p.error, '') FROM orchestrator_instances i
JOIN orchestrator_payloads p ON p.instance_id = i.id
WHERE i.account = %s AND i.workflow = %s AND i.id > %s AND i.status <> %s LIMIT %s
"""


class Incomplete(Exception):
    """Instances did not end, or not as they should have."""


class Crowd:
    """The instances of one workflow that are created from now on."""

    def __init__(self, cluster: Cluster, workflow: Workflow) -> None:
        self._cluster = cluster
        self._of: tuple[Any, ...] = (cluster.orchestrator.settings.account, workflow.name)
        latest = cluster.sql(_LATEST)
        self.mark: UUID = latest[0][0] if latest else UUID(int=0)
        """Ids of this crowd are greater: they begin with the time."""

    def wait(self, most: int = 0, patience_s: float = PATIENCE_S, status: tuple[Status, ...] = ()) -> None:
        """Until at most ``most`` are unfinished (or in ``status``).

        Raises ``Incomplete`` after ``patience_s``, and when a worker ends by itself.
        """
        names = [str(s) for s in (status or (s for s in Status if s not in FINISHED))]
        asked = time.monotonic()
        deadline = asked + patience_s
        while self._cluster.sql(_UNFINISHED, (*self._of, names, most + 1))[0][0] > most:
            now = time.monotonic()
            if self._cluster.lost_workers():
                raise Incomplete(self._complaint("are left: a worker has ended", Status.COMPLETE))
            if now > deadline:
                raise Incomplete(
                    self._complaint(f"did not get there within {patience_s:g} s", Status.COMPLETE)
                )
            time.sleep(min(LONGEST_POLL_S, max(POLL_S, (now - asked) / POLL_SHARE)))
            asked = time.monotonic()

    def check(self, expected: int, status: Status = Status.COMPLETE) -> None:
        """Raise ``Incomplete`` unless there are ``expected`` of them, all in ``status``."""
        if self._counts() != {str(status): expected}:
            raise Incomplete(self._complaint(f"should be {expected}, all {status}", status))

    def _counts(self) -> dict[str, int]:
        return dict(self._cluster.sql(_COUNTS, (*self._of, self.mark)))

    def _complaint(self, what: str, status: Status) -> str:
        others = self._cluster.sql(_OTHERS, (*self._of, self.mark, str(status), SHOWN))
        lines = [f"The instances of {self._of[1]!r} {what}; they are {self._counts()}."]
        lines += [f"  {name} is {standing}: {why[:300]}" for name, standing, why in others]
        return "\n".join([*lines, self._cluster.worker_log()])
