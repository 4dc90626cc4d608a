"""The news channels: one Redis message per flush that names instances which came to their end, and one that names
those of which anything was recorded, as long as somebody follows instances.

Owns: the channels, telling and hearing. Does not own: what is true (whoever hears looks into Postgres), nor who waits
for what (``client.waiters``, ``client.followers``).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import redis

from orchestrator.control.gatekeeping.connecting import connect
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

PER_MESSAGE = 500
AT_ONCE = 50
"""Messages that one call of ``heard`` takes at most."""
TIMEOUT_S = 2.0


class News:
    """Publishes, and lets others listen. Never raises for want of Redis."""

    def __init__(self, settings: Settings) -> None:
        self.channel = f"{settings.hash_tag}:news"
        self.changes = f"{settings.hash_tag}:changes"
        self._client = connect(settings.redis_url, TIMEOUT_S)

    def announce(self, instances: Iterable[UUID]) -> None:
        """Tell that there is news of these instances: they ended, or somebody did something to them."""
        self._tell(self.channel, instances)

    def change(self, instances: Iterable[UUID]) -> None:
        """Tell that something was recorded of these instances."""
        self._tell(self.changes, instances)

    def is_followed(self) -> bool | None:
        """Whether anybody hears of changes; ``None`` while Redis is away, and nobody does."""
        try:
            answer: Any = self._client.pubsub_numsub(self.changes)
        except (redis.RedisError, OSError) as error:
            logger.debug("Redis does not say who follows instances: %s", error)
            return None
        return any(count for _, count in answer)

    def subscribe(self, *, follow: bool = False) -> Subscription | None:
        """Everything that is announced from now on, with ``follow`` also every change; ``None`` while Redis is away."""
        own = f"{self.channel}:{secrets.token_hex(8)}"
        channels = (self.channel, own, self.changes) if follow else (self.channel, own)
        pubsub = self._client.pubsub()
        try:
            pubsub.subscribe(*channels)
            missing = len(channels)
            while missing:  # once all are confirmed, nothing is missed
                message = pubsub.get_message(timeout=TIMEOUT_S)
                if message is None:
                    raise redis.TimeoutError("the subscription was not confirmed")
                missing -= message["type"] == "subscribe"
        except (redis.RedisError, OSError) as error:
            logger.debug("News cannot be heard: %s", error)
            _close(pubsub)
            return None
        return Subscription(pubsub, own)

    def wake(self, subscription: Subscription) -> None:
        """Let ``subscription.heard`` return, in whichever thread it is."""
        self._publish(subscription.own, "")

    def close(self) -> None:
        self._client.close()

    def _tell(self, channel: str, instances: Iterable[UUID]) -> None:
        ids = [str(instance) for instance in instances]
        for start in range(0, len(ids), PER_MESSAGE):
            if not self._publish(channel, ",".join(ids[start : start + PER_MESSAGE])):
                return

    def _publish(self, channel: str, text: str) -> bool:
        try:
            self._client.publish(channel, text)
        except (redis.RedisError, OSError) as error:
            logger.debug("News were not delivered: %s", error)
            return False
        return True


class Subscription:
    """News as they come, for one thread.

    ``is_well`` turns false, for good, with the first error in listening: news may have been missed. Then close it, and
    subscribe anew.
    """

    def __init__(self, pubsub: redis.client.PubSub, own: str) -> None:
        self._pubsub = pubsub
        self.own = own
        self.is_well = True

    def heard(self, timeout: float) -> list[str]:
        """The ids of instances with news; none after ``timeout`` seconds without, or at once if Redis is lost.

        A message that has arrived in part is waited for, ``TIMEOUT_S`` seconds for each further part of it.
        """
        ids: list[str] = []
        try:
            self._pubsub.check_health()
            connection: Any = self._pubsub.connection
            for _ in range(AT_ONCE):
                if not connection.can_read(timeout):
                    break
                # Not with ``timeout``: redis-py takes it for the rest of a message too, and breaks off when it is 0.
                message = self._pubsub.get_message(timeout=TIMEOUT_S)
                if message is not None and message["type"] == "message":
                    ids += filter(None, message["data"].split(","))
                timeout = 0.0  # what has piled up comes along
        except (redis.RedisError, OSError) as error:
            logger.debug("News are no longer heard: %s", error)
            self.is_well = False
        return ids

    def close(self) -> None:
        _close(self._pubsub)


def _close(pubsub: redis.client.PubSub) -> None:
    try:
        pubsub.close()
    except (redis.RedisError, OSError) as error:
        logger.debug("Closing the news channel: %s", error)
