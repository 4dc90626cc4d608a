"""What a worker tells of its work, and the numbers that are made of it.

Owns: the two events, who may listen, and the totals that heartbeats carry. Does not own: when anything happens
(``engine``), where totals are kept (``store.workers``), what is shown of them (``monitoring``).

Whoever tells holds a ``Listener | None`` and asks for nothing else: without one, an event costs a comparison.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from typing import Protocol

FLUSH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the buckets in which flushes are counted, seconds; one more is for all that take longer."""
STEP, FAILED_ATTEMPTS, ENDED, FLUSH, TURNS, FLUSH_SUM = (
    "step",
    "failed-attempts",
    "ended",
    "flush",
    "turns",
    "flush-s",
)
"""What a series begins with."""


class Row(Protocol):
    """A step that a turn has written."""

    @property
    def kind(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def finished_seq(self) -> int | None: ...


class Listener(Protocol):
    """Told in the engine thread, between two flushes: it must neither block nor raise."""

    def turned(self, workflow: str, since: int, steps: Iterable[Row], failed: int, ended: str | None) -> None:
        """A turn is committed: the steps it wrote (those count that were finished after the seq ``since``), how many
        attempts failed, and the status the instance ended with, if it did."""

    def flushed(self, turns: int, took_s: float) -> None:
        """A flush of so many turns is over."""


class Totals:
    """Counts what it is told since the process began. A series is a few words; the first says what it counts:

    ``step <workflow> <kind> <status>`` · ``failed-attempts <workflow>`` · ``ended <workflow> <status>`` · ``turns`` ·
    ``flush-s`` seconds of all flushes · ``flush <n>`` flushes in bucket ``n`` of ``FLUSH_S``.
    """

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, ...], float] = defaultdict(int)
        self._done: defaultdict[str, int] = defaultdict(int)
        self._flushes = [0] * (len(FLUSH_S) + 1)
        self._turns = 0
        self._flush_s = 0.0
        self._told: dict[str, float] = {}
        self._before: dict[str, float] = {}

    def turned(self, workflow: str, since: int, steps: Iterable[Row], failed: int, ended: str | None) -> None:
        done = 0
        for row in steps:
            at = row.finished_seq
            if at is not None and at > since:
                if row.status == "done" and row.kind == "do":  # the rule; nothing is hashed for each of them
                    done += 1
                else:
                    self._counts[STEP, workflow, row.kind, row.status] += 1
        if done:
            self._done[workflow] += done
        if failed:
            self._counts[FAILED_ATTEMPTS, workflow] += failed
        if ended is not None:
            self._counts[ENDED, workflow, ended] += 1

    def flushed(self, turns: int, took_s: float) -> None:
        self._turns += turns
        self._flush_s += took_s
        self._flushes[bisect_left(FLUSH_S, took_s)] += 1

    def series(self) -> dict[str, float]:
        """What was counted for this incarnation. Called from any thread."""
        found = {" ".join(words): value for words, value in self._counts.copy().items()}
        found |= {f"{STEP} {workflow} do done": count for workflow, count in self._done.copy().items()}
        found |= {f"{FLUSH} {n}": count for n, count in enumerate(self._flushes) if count}
        if self._turns:
            found |= {TURNS: self._turns, FLUSH_SUM: round(self._flush_s, 6)}
        if not self._before:
            return found
        return {name: value - self._before.get(name, 0) for name, value in found.items()}

    def told(self, series: dict[str, float]) -> None:
        """These are stored with the incarnation."""
        self._told = series

    def reborn(self) -> None:
        """The process goes on as another incarnation: what is stored with the one before counts there."""
        for name, value in self._told.items():
            self._before[name] = self._before.get(name, 0) + value
        self._told = {}


def written(series: dict[str, float]) -> str:
    """Series as JSON text, as they are stored."""
    return json.dumps(series, separators=(",", ":"))


def buckets(series: dict[str, float]) -> list[tuple[str, float]]:
    """The histogram of flushes: each upper bound with how many took at most so long."""
    counts = [series.get(f"{FLUSH} {n}", 0) for n in range(len(FLUSH_S) + 1)]
    return list(zip([*map(str, FLUSH_S), "+Inf"], accumulate(counts), strict=True))
