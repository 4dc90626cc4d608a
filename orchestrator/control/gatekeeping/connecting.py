"""Clients of Redis: one way to make them.

Owns: time-outs, keepalive, and that redis-py repeats nothing by itself: it would ask ten times, five seconds each.
Does not own: what they are used for, nor who may ask again.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PING_S = 25
"""A connection that lay idle for so long is tried before it is used."""


def connect(redis_url: str, timeout_s: float) -> redis.Redis:
    """A client for a ``redis://``, ``rediss://`` or ``unix://`` URL, safe for threads, that waits ``timeout_s`` seconds
    for a connection and as long for an answer. It gives text, and connects when first used."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "health_check_interval": PING_S,
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 0),
    }
    if not redis_url.startswith("unix:"):  # which has neither, and says so with a TypeError
        options.update(socket_connect_timeout=timeout_s, socket_keepalive=True)
    return redis.Redis.from_url(redis_url, **options)
