"""A token bucket, and what one process may create by itself while Redis is away.

Owns: the arithmetic of a bucket (``buckets.lua`` has the same), the local rates. Does not own: the buckets that count,
which are in Redis (``admission``), nor any clock: times are an argument, monotonic seconds.
"""

from __future__ import annotations

import math
import threading

SHARE = 0.1
"""What one process creates without Redis, as a part of what all may together."""
_FORGIVEN = 1e-6
"""What a sum of fractions has lost."""


class Bucket:
    """Fills by ``rate`` tokens a second up to ``burst``, and holds ``tokens`` at first: one, as a rule. So over any
    time no more than ``rate`` times its length and ``burst`` are taken."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, at: float, tokens: float = 1.0) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._at = at
        self._tokens = min(tokens, self.burst)

    def fill(self, at: float) -> int:
        """What there is at ``at``, in whole tokens. A clock that went back fills nothing."""
        self._tokens = min(self.burst, self._tokens + max(0.0, at - self._at) * self.rate)
        self._at = at
        return max(0, math.floor(self._tokens + _FORGIVEN))

    def take(self, count: int) -> None:
        """Take ``count``, no more than ``fill`` has found."""
        self._tokens -= count

    def dry(self) -> float:
        """Seconds until it holds a token, from when it was filled last."""
        return max(0.0, 1.0 - self._tokens) / self.rate


class Alone:
    """The local rates of one process: a tenth of the account's for all, of a workflow's for its own. Safe for
    threads."""

    def __init__(self, rate: float, at: float) -> None:
        self._lock = threading.Lock()
        self._account = _share(rate, at)
        self._workflows: dict[str, Bucket] = {}

    def take(self, workflow: str, rate: float, count: int, at: float) -> tuple[int, Bucket]:
        """How many of ``count`` may be created, ``rate`` being that of the workflow; and the bucket that has the fewest
        tokens left."""
        with self._lock:
            own = self._workflows.get(workflow)
            if own is None or own.rate != rate * SHARE:
                own = self._workflows[workflow] = _share(rate, at)
            taken = min(count, self._account.fill(at), own.fill(at))
            for bucket in (self._account, own):
                bucket.take(taken)
            return taken, max(self._account, own, key=Bucket.dry)


def _share(rate: float, at: float) -> Bucket:
    return Bucket(rate * SHARE, rate * SHARE, at, tokens=math.inf)
