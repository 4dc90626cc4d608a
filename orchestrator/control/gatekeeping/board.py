"""What stands in Redis for scripts to read: what operators set, and how much is queued.

Owns: the hashes ``:limits`` and ``:backlog``, written from what Postgres knows. Does not own: reading them (scripts
do), what is true (rows), when it is written (duties, an operator's command).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.ports import monotonic
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
KEPT_S = 86_400
"""So long it stands when no worker writes it again."""
AWAY_S = 5.0
"""Redis that did not answer is not asked again for so long: duties run between alarms."""


class Board:
    """Writes and reads these hashes. Never raises for want of Redis: ``False`` or nothing is the answer then."""

    def __init__(self, settings: Settings) -> None:
        self._limits = f"{settings.hash_tag}:limits"
        self._backlog = f"{settings.hash_tag}:backlog"
        self._away_until = float("-inf")
        self._client = redis.Redis.from_url(
            settings.redis_url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=25,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )

    def put_limits(self, fields: Mapping[str, str]) -> bool:
        """Have exactly these there, if they are not; whether they are now."""
        there = self._ask(self._client.hgetall, self._limits)
        if there is None:
            return False
        wanted: dict[Any, Any] = dict(fields)
        if there == wanted:
            return not wanted or self._ask(self._client.expire, self._limits, KEPT_S) is not None
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.delete(self._limits)
            if wanted:
                pipeline.hset(self._limits, mapping=wanted)
                pipeline.expire(self._limits, KEPT_S)
            return self._ask(pipeline.execute) is not None

    def put_backlog(self, workflow: str, queued: int) -> bool:
        """Say how many instances of a workflow were queued when they were counted."""
        with self._client.pipeline(transaction=True) as pipeline:
            pipeline.hset(self._backlog, workflow, str(queued))
            pipeline.expire(self._backlog, KEPT_S)
            return self._ask(pipeline.execute) is not None

    def backlog(self) -> dict[str, int]:
        """Queued instances by workflow: as counted last, plus what came and went since."""
        found = self._ask(self._client.hgetall, self._backlog) or {}
        return {workflow: int(float(count)) for workflow, count in found.items()}

    def close(self) -> None:
        self._client.close()

    def _ask(self, command: Any, *arguments: Any) -> Any:
        """The answer; ``None`` while Redis is away."""
        if monotonic() < self._away_until:
            return None
        try:
            return command(*arguments)
        except (redis.RedisError, OSError) as error:
            logger.debug("Redis does not take what is put up for scripts: %s", error)
            self._away_until = monotonic() + AWAY_S
            return None
