"""The news channel: one Redis message per flush that names instances which came to their end.

Owns: the channel. Does not own: what is true: a listener looks into Postgres, with or without news.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

PER_MESSAGE = 500


class News:
    """Publishes and listens. Never raises for want of Redis."""

    def __init__(self, settings: Settings) -> None:
        self.channel = f"{settings.hash_tag}:news"
        self._client = redis.Redis.from_url(
            settings.redis_url,
            socket_timeout=2.0,
            socket_connect_timeout=2.0,
            socket_keepalive=True,
            health_check_interval=25,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),  # a hint is not worth ten tries
        )

    def announce(self, instances: Iterable[UUID]) -> None:
        """Tell that there is news of these instances."""
        ids = [str(instance) for instance in instances]
        try:
            for start in range(0, len(ids), PER_MESSAGE):
                self._client.publish(self.channel, ",".join(ids[start : start + PER_MESSAGE]))
        except redis.RedisError as error:
            logger.debug("News were not delivered: %s", error)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Listen from now on, until the block ends."""
        listener = Listener(self._client, self.channel)
        try:
            yield listener
        finally:
            listener.close()

    def close(self) -> None:
        self._client.close()


class Listener:
    """Waits for news of one instance; without Redis it just waits."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        try:
            self._pubsub.subscribe(channel)
            self._is_well = True
        except redis.RedisError:
            self._is_well = False

    @property
    def is_well(self) -> bool:
        return self._is_well

    def heard(self, instance: UUID, timeout: float) -> bool:
        """Whether news of ``instance`` came within ``timeout`` seconds. Returns early on any other news too."""
        try:
            message = self._pubsub.get_message(timeout=timeout)
        except redis.RedisError:
            self._is_well = False
            return False
        return message is not None and str(instance) in str(message["data"])

    def close(self) -> None:
        try:
            self._pubsub.close()
        except redis.RedisError as error:
            logger.debug("Closing the news channel: %s", error)
