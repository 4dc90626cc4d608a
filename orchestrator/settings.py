"""One frozen object with everything a deployment may set, and how it is read from the environment.

Owns: names, defaults and checks. Does not own: what the values do (each room reads its own).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from orchestrator.errors import InvalidConfig

PREFIX = "ORCHESTRATOR_"
MAX_SHARDS = 1024

_POSITIVE = (
    "lease", "heartbeat", "concurrency", "threads", "max_steps", "cached_replays", "max_concurrency",
    "creation_rate", "workflow_creation_rate", "max_queued", "shards",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Durations are seconds, sizes bytes. ``Settings.from_env()`` reads ``ORCHESTRATOR_<FIELD>``."""

    # These three may hold passwords, and settings come to be logged.
    database_url: str = field(repr=False)
    """Where Postgres is: ``postgresql://user:password@host/database``."""
    redis_url: str = field(repr=False)
    """Where Redis or Valkey is: ``redis://host:6379/0``."""
    broker_url: str = field(default="", repr=False)
    """Where Celery's messages go; ``redis_url`` by default."""
    account: str = "default"
    """Whose instances these are: accounts share servers and see nothing of each other."""
    workflows: tuple[str, ...] = ()
    """The modules that define workflows: workers and the command line import them."""
    queue: str = "orchestrator"
    """The Celery queue of this account's steps."""
    concurrency: int = 1000
    """Step bodies one asyncio worker runs at once."""
    threads: int = 64
    """Sync bodies one asyncio worker runs at once."""
    max_concurrency: int = 50_000
    """Instances of the account that run at once. ``orchestrator control limits`` changes it at run time."""
    creation_rate: float = 300.0
    """Instances of the account that may be created or restarted per second."""
    creation_burst: float = 0.0
    """How many of the account may come at once after a pause; 0 means what one second allows."""
    workflow_creation_rate: float = 100.0
    """Instances per second of one workflow, where it does not say (``creation_rate``)."""
    max_queued: int = 2_000_000
    """Instances of one workflow that may wait for a slot."""
    shards: int = 4
    """Into how many shards the queue of a new workflow is cut; ``orchestrator control reshard`` changes it later."""
    max_steps: int = 25_000
    """No workflow of this deployment may start more steps, whatever its own ``max_steps`` (default 10,000)."""
    max_payload_bytes: int = 1024 * 1024
    """The most that params, a step's result, an event or an output may have, as JSON."""
    max_state_bytes: int = 1024 * 1024 * 1024
    """The most that all recorded values of one instance may have together."""
    lease: float = 15.0
    """How long a worker that shows no sign of life is taken to be alive."""
    heartbeat: float = 0.0
    """0 means a third of the lease."""
    shutdown_grace: float = 25.0
    """How long a worker that is told to stop lets its bodies run on."""
    cached_replays: int = 20_000
    """Live replays one worker keeps; at least ``concurrency``."""
    pool: str = "asyncio"
    """``asyncio``: thousands of bodies in one process. ``prefork``: one body in each of ``processes``, for work that
    keeps a CPU busy; it is killed at its timeout. Name the queues of such a worker with Celery's ``-Q``."""
    processes: int = 0
    """Children of a prefork worker; 0 means one per CPU. Celery's ``-c`` wins."""
    delivery: str = "in_place"
    """``in_place``: a worker that discovers a step starts it, if it has room. ``broker``: every step is a message."""
    transport: str = "batched"
    """How messages are fetched from Redis: ``batched``, many at once, or ``stock``, kombu's own. Others ignore it."""
    success_retention: float = 7 * 86400.0
    """How long a completed instance is kept, where neither it nor its workflow says."""
    error_retention: float = 7 * 86400.0
    """How long an errored or terminated instance is kept, where neither it nor its workflow says."""
    retention_limit: float = 30 * 86400.0
    """The longest that any instance may be kept for after its end."""

    def __post_init__(self) -> None:
        if not self.broker_url:
            object.__setattr__(self, "broker_url", self.redis_url)
        if not self.heartbeat:
            object.__setattr__(self, "heartbeat", self.lease / 3)
        object.__setattr__(self, "database_url", _driver(self.database_url))
        _check_redis(self.redis_url)
        for name in _POSITIVE:
            if not getattr(self, name) > 0:  # nor NaN
                raise InvalidConfig(f"{PREFIX}{name.upper()} must be above 0, not {getattr(self, name)!r}.")
        for name in ("success_retention", "error_retention"):
            if not 0 <= getattr(self, name) <= self.retention_limit:
                raise InvalidConfig(
                    f"{PREFIX}{name.upper()} is {getattr(self, name):g} s; it must be from 0 to "
                    f"{PREFIX}RETENTION_LIMIT ({self.retention_limit:g} s)."
                )
        if self.heartbeat > self.lease / 2:
            raise InvalidConfig(
                f"{PREFIX}HEARTBEAT ({self.heartbeat} s) must be at most half of {PREFIX}LEASE "
                f"({self.lease} s), or a live worker would be taken for dead."
            )
        if self.cached_replays < self.concurrency:
            raise InvalidConfig(
                f"{PREFIX}CACHED_REPLAYS ({self.cached_replays}) must be at least {PREFIX}CONCURRENCY "
                f"({self.concurrency}): every running step needs its replay."
            )
        if not self.creation_burst >= 0:
            raise InvalidConfig(f"{PREFIX}CREATION_BURST must be at least 0, not {self.creation_burst!r}.")
        if self.shards > MAX_SHARDS:
            raise InvalidConfig(f"{PREFIX}SHARDS must be at most {MAX_SHARDS}, not {self.shards!r}.")
        if self.pool not in ("asyncio", "prefork"):
            raise InvalidConfig(f"{PREFIX}POOL must be asyncio or prefork, not {self.pool!r}.")
        if self.processes < 0:
            raise InvalidConfig(f"{PREFIX}PROCESSES must be at least 0, not {self.processes!r}.")
        if self.delivery not in ("in_place", "broker"):
            raise InvalidConfig(f"{PREFIX}DELIVERY must be in_place or broker, not {self.delivery!r}.")
        if self.transport not in ("batched", "stock"):
            raise InvalidConfig(f"{PREFIX}TRANSPORT must be batched or stock, not {self.transport!r}.")
        if not self.account or len(self.account) > 64 or "{" in self.account or "}" in self.account:
            raise InvalidConfig(f"{PREFIX}ACCOUNT must be 1 to 64 characters without braces.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read every field from ``ORCHESTRATOR_<NAME>``; ``overrides`` win.

        Raises ``InvalidConfig`` that names the variable, if one is missing or does not parse.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for spec in fields(cls):
            text = env.get(PREFIX + spec.name.upper())
            if text:
                values[spec.name] = _parse(spec.name, str(spec.type), text)
        values.update(overrides)
        missing = [n for n in ("database_url", "redis_url") if not values.get(n)]
        if missing:
            names = " and ".join(PREFIX + n.upper() for n in missing)
            raise InvalidConfig(
                f"Set {names} (for example postgresql://user:password@localhost/db and "
                "redis://localhost:6379/0), or run `orchestrator dev`, which starts both and prints them."
            )
        return cls(**values)

    @property
    def hash_tag(self) -> str:
        """Prefix of every Redis key of this account, one cluster slot each."""
        return f"{{orchestrator:{self.account}}}"


@dataclass(frozen=True)
class Incarnation:
    """One life of one worker process. A new uuid after every declared death (protocols §6)."""

    id: UUID
    hostname: str = ""
    pid: int = 0
    queues: tuple[str, ...] = field(default=())


def _driver(url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url[len(prefix) :]
    if not url.startswith("postgresql+psycopg://"):
        raise InvalidConfig(
            f"{PREFIX}DATABASE_URL must be a postgresql:// URL (psycopg 3 is the only driver); "
            f"it starts with {url.partition('://')[0]!r}."
        )
    return url


def _check_redis(url: str) -> None:
    """Before anything is done: what redis-py cannot read it refuses at the first news, when a verb is committed."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix" or (parts.scheme in ("redis", "rediss") and parts.port != 0):
            return
    except ValueError:
        pass
    raise InvalidConfig(
        f"{PREFIX}REDIS_URL must be a redis://, rediss:// or unix:// URL, such as redis://localhost:6379/0; what is "
        "special in a password is percent-encoded. (A broker that is no Redis is named in "
        f"{PREFIX}BROKER_URL.)"
    )


def _parse(name: str, kind: str, text: str) -> Any:
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
        if kind.startswith("tuple"):
            return tuple(filter(None, (part.strip() for part in text.split(","))))
    except ValueError:
        raise InvalidConfig(f"{PREFIX}{name.upper()}={text!r} is not a number.") from None
    return text
