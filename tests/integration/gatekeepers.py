"""Gatekeepers whose server is the test's: it tells the time, which life of it this is, and when an answer gets lost.

Owns: that server, and moving its time on. Does not own any rule (``test_gatekeeper``, ``test_slot_model``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import redis

from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.gatekeeping.keys import Keys
from orchestrator.control.gatekeeping.scripts import Script, Scripts
from orchestrator.settings import Settings

CLOCK = "test:clock"
LIFE = "test:life"
SERVER = f"""
local function now() return tonumber(redis.call('GET', '{CLOCK}')) end
local function run_id() return redis.call('GET', '{LIFE}') end
"""
START_MS = 1_800_000_000_000


class LossyScripts(Scripts):
    """``loses`` answers get lost: the script has run, and the connection breaks."""

    loses = 0

    def _run(self, script: Script, arguments: Any) -> Any:
        found = super()._run(script, arguments)
        if self.loses:
            self.loses -= 1
            raise redis.ConnectionError("the answer got lost")
        return found


class Server:
    """A database of its own on the session's Valkey."""

    def __init__(self, redis_url: str, database: int = 9, **settings: Any) -> None:
        url = f"{redis_url.rsplit('/', 1)[0]}/{database}"
        self.settings = Settings(
            database_url="postgresql://nowhere/x", redis_url=url, account=f"g{uuid4().hex[:8]}", **settings
        )
        self.keys = Keys.of(self.settings)
        self.client: Any = redis.Redis.from_url(url, decode_responses=True)
        self.bytes: Any = redis.Redis.from_url(url)
        self.limits: dict[str, int] = {}
        self.now, self.lives = START_MS, 0
        self._scripts: list[Scripts] = []
        self.wipe()
        self.restart()

    def gatekeeper(self, asker: str = "one") -> Gatekeeper:
        scripts = LossyScripts(self.settings, SERVER)
        self._scripts.append(scripts)
        return Gatekeeper(self.settings, asker, self.limits.get, scripts)

    def advance(self, milliseconds: int) -> None:
        """Time goes on: for scripts, and for what has a TTL."""
        self.now += milliseconds
        ttls = self.ttls()
        with self.client.pipeline() as pipeline:
            for key, ttl in ttls.items():
                if ttl >= 0:
                    pipeline.pexpire(key, ttl - milliseconds)  # zero or less: it is deleted
            pipeline.execute()
        self._tell()

    def wipe(self) -> None:
        self.client.flushdb()
        self._tell()

    def restart(self) -> None:
        """The same data, another life of the server."""
        self.lives += 1
        self._tell()

    def saved(self) -> dict[bytes, tuple[int, bytes]]:
        """A snapshot: TTL and value of each key."""
        return {key: (self.bytes.pttl(key), self.bytes.dump(key)) for key in map(str.encode, self.left())}

    def load(self, snapshot: dict[bytes, tuple[int, bytes]]) -> None:
        """The server crashed, and was started with a snapshot."""
        self.client.flushdb()
        for key, (ttl, value) in snapshot.items():
            if ttl > 0:
                self.bytes.restore(key, ttl, value)
        self.restart()

    def left(self) -> list[str]:
        """The keys there are, but for those of the test."""
        return sorted(set(self.client.keys("*")) - {CLOCK, LIFE})

    def held(self, workflow: str = "") -> set[str]:
        """Who holds a slot."""
        return self.held_by(workflow)[workflow]

    def held_by(self, *workflows: str) -> dict[str, set[str]]:
        """Who holds a slot, of each of these."""
        with self.client.pipeline() as pipeline:
            for name in workflows:
                pipeline.zrangebyscore(self.keys.slots(name), f"({self.now}", "+inf")
            return dict(zip(workflows, map(set, pipeline.execute()), strict=True))

    def ttls(self) -> dict[str, int]:
        """How long each key is still there, milliseconds; -1: for ever."""
        keys = self.left()
        with self.client.pipeline() as pipeline:
            for key in keys:
                pipeline.pttl(key)
            return {key: ttl for key, ttl in zip(keys, pipeline.execute(), strict=True) if ttl != -2}

    def close(self) -> None:
        for each in (*self._scripts, self.client, self.bytes):
            each.close()

    def _tell(self) -> None:
        self.client.mset({CLOCK: self.now, LIFE: f"life{self.lives}"})


@contextmanager
def serving(redis_url: str, **settings: Any) -> Iterator[Server]:
    server = Server(redis_url, **settings)
    try:
        yield server
    finally:
        server.wipe()
        server.client.delete(CLOCK, LIFE)
        server.close()


def opened(gatekeeper: Gatekeeper, *workflows: str) -> None:
    """Slots are granted from now on; nobody holds one."""
    life = gatekeeper.clear(workflows)
    assert life is not None
    assert gatekeeper.open(life)
