"""The three protocols through which lower floors reach up: a clock, a dispatcher, a gate.

Owns: the shapes of what crosses them, and the one clock that reads the machine.
Does not own: who implements them (``dispatch`` publishes, ``control`` gates), nor any policy.
Every instant in this project is a float: seconds since the epoch, UTC, by the database's clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

FOREVER = float("inf")
"""An alarm that never rings (``infinity`` in Postgres)."""


class Clock(Protocol):
    """Tells the time of the database, in epoch seconds rounded to microseconds."""

    def now(self) -> float: ...


class MonotonicClock:
    """Database time kept by this process: an offset, refreshed at heartbeats, plus its monotonic clock.

    No wall clock is compared between machines (protocols §6). Before the first ``adjust`` the machine's own
    wall clock stands in, so that a client that only creates instances needs no extra round trip.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def adjust(self, database_now: float, read_at: float) -> None:
        """Take ``database_now`` (epoch seconds) as the time at monotonic instant ``read_at``."""
        self._offset = database_now - read_at

    def now(self) -> float:
        return round(self._offset + time.monotonic(), 6)


def monotonic() -> float:
    """Monotonic seconds of this process, for durations only."""
    return time.monotonic()


def busy() -> float:
    """Seconds of CPU this thread has used: what its own code costs, whoever else wants the interpreter."""
    return time.thread_time()


def pause(seconds: float) -> None:
    """Block the calling thread; only for polling loops of clients, never in a worker's event loop."""
    time.sleep(seconds)


def dice() -> float:
    """A number in [0, 1), for jitter."""
    return random.random()


def new_id(now: float) -> UUID:
    """A fresh UUID of version 7: ordered by ``now`` (epoch seconds), to the microsecond."""
    return new_ids(now, 1)[0]


def new_ids(now: float, count: int) -> list[UUID]:
    """``count`` fresh UUIDs of version 7, in their order; the system is asked for chance once for all of them.

    The twelve bits beside the version are the time within the millisecond (RFC 9562, method 3): lists are in the order
    of the ids, and what is created one after the other should stand in it so.
    """
    milliseconds, within = divmod(round(now * 1_000_000), 1000)
    began = milliseconds << 80 | 0x7 << 76 | within * 4096 // 1000 << 64 | 0x2 << 62
    chance = random.SystemRandom().randbytes(8 * count)
    bits = sorted(int.from_bytes(chance[at : at + 8], "big") >> 2 for at in range(0, 8 * count, 8))
    return [UUID(int=began | each) for each in bits]


class HandOut(NamedTuple):
    """One attempt of one step, to be run by whoever claims it under this fence."""

    instance: UUID
    key: str
    fence: int
    queue: str
    workflow: str
    label: str
    """The name monitoring shows, ``<workflow>.<static step name>``: bounded, never holds ids."""
    signature: Any = None
    """The Celery signature to be sent for it, where a step is a task of the application; ``queue`` then only overrides
    where Celery would route it."""


class Dispatcher(Protocol):
    """Carries hints. Every call may lose or repeat what it is given; nothing depends on it but speed."""

    def steps(self, handouts: Sequence[HandOut]) -> None:
        """Offer these attempts to the workers of their queues."""

    def coordinate(self, instances: Iterable[UUID]) -> None:
        """Ask some worker to run a turn of each of these instances."""

    def announce(self, instances: Iterable[UUID]) -> None:
        """Tell whoever waits for these instances that there is news."""

    def changed(self, instances: Iterable[UUID]) -> None:
        """Tell whoever follows these instances that something was recorded; does nothing while nobody does."""

    def backlog(self, queue: str) -> int | None:
        """Messages that wait in ``queue``; ``None`` where the broker cannot say."""

    def destination(self, signature: Any) -> str:
        """The queue that Celery sends this signature to."""


class Holder(NamedTuple):
    """Who holds a concurrency slot, or wants one: an instance, counted for its workflow and its account."""

    instance: UUID
    workflow: str


class Gate(Protocol):
    """Concurrency slots. No call raises for want of the service behind it: nothing is granted then."""

    def acquire(self, wanted: Sequence[Holder]) -> set[UUID]:
        """Those of ``wanted`` that may run now; of a workflow the first come first. Who holds a slot keeps it."""

    def insist(self, holders: Sequence[Holder]) -> None:
        """Let these hold a slot whatever the limits are: rollbacks, which nothing may hold up."""

    def release(self, holders: Sequence[Holder]) -> None:
        """Give back the slots of these, after the commit of what made them need none."""


class OpenGate:
    """Grants every slot: a gate where no limits are (tests, the kit)."""

    def acquire(self, wanted: Sequence[Holder]) -> set[UUID]:
        return {holder.instance for holder in wanted}

    def ask(
        self, wanted: Sequence[Holder], weights: Mapping[str, int] | None = None, more: Collection[str] = ()
    ) -> set[UUID]:
        """What a queue asks with."""
        return self.acquire(wanted)

    def insist(self, holders: Sequence[Holder]) -> None:
        return None

    def release(self, holders: Sequence[Holder]) -> None:
        return None
