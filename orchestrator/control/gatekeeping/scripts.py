"""Scripts on Redis: how they are put together, and called.

Owns: composing Lua files, the one repetition, and that a Redis that is away costs a process one time-out a second at
most. Does not own: what the scripts do (the ``.lua`` file beside each one's caller).

redis-py repeats by itself what it had no answer to, up to ten times; that is switched off. A script is repeated once,
where the connection broke, with the same arguments: it names holders, and so changes nothing twice, or it has a request
id among its arguments and keeps its answer (``answered`` in ``slots.lua``).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any, NamedTuple

import redis

from orchestrator.control.gatekeeping.connecting import connect
from orchestrator.errors import ServiceUnavailable
from orchestrator.ports import monotonic
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
AWAY_S = 1.0
"""After a failure nobody in this process asks for so long; then one does."""
_HERE = Path(__file__).parent


class Script(NamedTuple):
    """A script that can be called; ``name`` is that of its last file."""

    name: str
    text: str
    sha: str


class Scripts:
    """One client for all scripts of a process; safe for threads. ``server`` is the Lua that tells a script the time and
    which server it runs on."""

    def __init__(self, settings: Settings, server: str = "") -> None:
        self._tag = settings.hash_tag
        self._server = server or _read("server")
        self._client = connect(settings.redis_url, TIMEOUT_S)
        self._lock = threading.Lock()
        self._is_away = False
        self._ask_at = 0.0

    def script(self, *names: str) -> Script:
        """The script made of ``server``, ``slots.lua`` and the files of these ``names``, in their order."""
        text = "\n".join((self._server, *(_read(name) for name in ("slots", *names))))
        return Script(names[-1], text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def call(self, script: Script, *arguments: str | int | float) -> Any:
        """Run ``script``; the account's hash tag is its one key. Returns what it returns.

        Raises ``ServiceUnavailable`` when Redis gives no answer in time or refuses; for ``AWAY_S`` after that, at once.
        What was asked may have been done.
        """
        self._enter()
        try:
            try:
                found = self._run(script, arguments)
            except redis.TimeoutError:
                raise  # repeating it would cost the caller as much again
            except redis.ConnectionError:  # as a rule one that lay idle while Redis was restarted
                self._client.connection_pool.disconnect(inuse_connections=False)
                found = self._run(script, arguments)
        except (redis.RedisError, OSError) as error:
            raise self._failed(script, error) from error
        if self._is_away:
            self._returned()
        return found

    def close(self) -> None:
        self._client.close()

    def _run(self, script: Script, arguments: tuple[str | int | float, ...]) -> Any:
        try:
            return self._client.evalsha(script.sha, 1, self._tag, *arguments)
        except redis.exceptions.NoScriptError:
            return self._client.eval(script.text, 1, self._tag, *arguments)

    def _enter(self) -> None:
        """Pass, or raise while Redis is taken to be away. One caller a second tries whether it still is."""
        with self._lock:
            if not self._is_away:
                return
            if monotonic() >= self._ask_at:
                self._ask_at = monotonic() + TIMEOUT_S + AWAY_S
                return
        raise ServiceUnavailable(
            "Redis did not answer a moment ago, and is not asked again just now.", "redis"
        )

    def _failed(self, script: Script, error: Exception) -> ServiceUnavailable:
        self._client.connection_pool.disconnect(
            inuse_connections=False
        )  # after a failover they lead to the old server
        with self._lock:
            if not self._is_away:
                logger.warning(
                    "Redis does not answer (%s: %s). No slot is granted until it does; what runs goes on.",
                    script.name,
                    error,
                )
            self._is_away, self._ask_at = True, monotonic() + AWAY_S
        return ServiceUnavailable(f"Redis does not answer ({error}).", "redis")

    def _returned(self) -> None:
        with self._lock:
            if self._is_away:
                logger.warning("Redis answers again.")
            self._is_away = False


def _read(name: str) -> str:
    return (_HERE / f"{name}.lua").read_text(encoding="utf-8")
