"""The policy of queue and slots, without machines: from one SousChef to a thousand, floods, skew, limits.

Owns: a simulated clock, workflows with instances that come and stay, SousChefs that ask, and the figures of that. Does
not own: the policy, nor the pictures (``simulated``). Shares and quotas are those of workers (``control.fairness``,
``control.shards``); how an ask divides is as in ``gatekeeping/ask.lua``. Run it with ``python -m bench.simulate``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from orchestrator.control.fairness import Claim, fill
from orchestrator.control.shards import quotas
from orchestrator.control.souschef import CYCLE_S, FREED_S, patience

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DEMAND_S = 2.5
SHARDS_PER_CHEF = 2
CHEFS = (1, 3, 10, 30, 100, 300, 1000)
CONTENDED = 100
"""More take long where every SousChef waits for ten workflows."""


@dataclass(frozen=True)
class Load:
    """A workflow: instances per second, how long each keeps its slot (on average), and floods (when, how many)."""

    name: str
    rate: float
    stay_s: float
    floods: tuple[tuple[float, int], ...] = ()
    limit: int | None = None


@dataclass
class Demand:
    """What a SousChef still wants of a workflow, as it stands for others."""

    wanted: int
    weight: int
    until: float
    served: float
    got: int


@dataclass
class Kitchen:
    """All of it. ``is_fair``: by the policy; else slots go to who asks first, as much as he asks for, oldest first."""

    loads: Sequence[Load]
    chefs: int
    slots: int
    dice: random.Random
    is_fair: bool = True
    shards: int = 0
    held: dict[str, int] = field(default_factory=dict)
    queues: list[dict[str, deque[float]]] = field(default_factory=list)
    weights: list[dict[str, int]] = field(default_factory=list)
    demands: dict[str, dict[int, Demand]] = field(default_factory=dict)
    waits: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    granted: list[dict[str, int]] = field(default_factory=list)
    short: set[int] = field(default_factory=set)
    """The SousChefs that got too little."""
    rung: set[int] = field(default_factory=set)
    now: float = 0.0
    asks: int = 0

    def __post_init__(self) -> None:
        names = [load.name for load in self.loads]
        self.shards = self.shards or max(4, SHARDS_PER_CHEF * self.chefs)
        alive = {UUID(int=n): frozenset(names) for n in range(self.chefs)}
        shares = quotas(dict.fromkeys(names, self.shards), alive, "many")
        self.weights = [shares[worker] for worker in alive]
        self.held = dict.fromkeys(names, 0)
        self.queues = [{name: deque() for name in names} for _ in range(self.chefs)]
        self.demands = {name: {} for name in names}
        self.waits = {name: [] for name in names}
        self.granted = [dict.fromkeys(names, 0) for _ in range(self.chefs)]

    @property
    def free(self) -> int:
        return self.slots - sum(self.held.values())

    def chef_of(self, name: str) -> int:
        """Whose shard a new instance gets: a random one of all, so each chef by how many he has."""
        return self.dice.choices(range(self.chefs), [weights.get(name, 0) for weights in self.weights])[0]

    def ask(self, chef: int) -> dict[str, int]:
        """What a SousChef is granted for its queues."""
        self.asks += 1
        mine = {name: queue for name, queue in self.queues[chef].items() if queue}
        got = self._fair(chef, mine) if self.is_fair else self._first_come(mine)
        for name, count in got.items():
            for _ in range(count):
                self.waits[name].append((self.now, self.now - mine[name].popleft()))
            self.held[name] += count
            self.granted[chef][name] += count
        if any(mine.values()):
            self.short.add(chef)
        else:
            self.short.discard(chef)
        return got

    def pause(self, chef: int) -> float:
        return patience(self.chefs) if chef in self.short else CYCLE_S

    def _first_come(self, mine: dict[str, deque[float]]) -> dict[str, int]:
        got = dict.fromkeys(mine, 0)
        for _, name in sorted((since, name) for name, queue in mine.items() for since in queue)[: self.free]:
            got[name] += 1
        return got

    def _fair(self, chef: int, mine: dict[str, deque[float]]) -> dict[str, int]:
        others = {
            name: [d for who, d in of.items() if who != chef and d.until > self.now]
            for name, of in self.demands.items()
        }
        shares = self._by_workflow(mine, others)
        got = {}
        for name, queue in mine.items():
            before = self.demands[name].get(chef)
            claims = [Claim(len(queue), self.weights[chef][name], before.got if before else 0)]
            claims += [Claim(d.wanted, d.weight, d.got) for d in others[name]]
            got[name] = fill(shares[name], claims)[0]
            self._note(chef, name, len(queue), got[name])
        for name, of in self.demands.items():
            if name not in mine:
                of.pop(chef, None)
        return got

    def _by_workflow(self, mine: dict[str, deque[float]], others: dict[str, list[Demand]]) -> dict[str, int]:
        limits = {load.name: load.limit for load in self.loads}
        claims, names, served = [], [], []
        for name, of in others.items():
            wanted = len(mine.get(name, ())) + sum(d.wanted for d in of)
            limit = limits[name]
            if limit is not None:
                wanted = max(0, min(wanted, limit - self.held[name]))
            names.append(name)
            claims.append(Claim(wanted, 1.0, self.held[name]))
            served.append(min((d.served for d in of), default=self.now))
        order = sorted(range(len(names)), key=lambda at: served[at])
        found = fill(max(0, self.free), [claims[at] for at in order])
        return {names[at]: share for at, share in zip(order, found, strict=True)}

    def _note(self, chef: int, name: str, asked: int, got: int) -> None:
        of, left = self.demands[name], asked - got
        before = of.get(chef)
        if left == 0:
            of.pop(chef, None)
            return
        served = self.now if got or before is None else before.served
        total = got + (before.got if before else 0)
        of[chef] = Demand(left, self.weights[chef][name], self.now + DEMAND_S, served, total)


def run(kitchen: Kitchen, seconds: float) -> list[tuple[float, dict[str, int]]]:
    """Let it work for so long; returns who held how many slots, every tenth of a second."""
    events: list[tuple[float, int, str, Any]] = []
    numbers = iter(range(1 << 60))

    def at(when: float, what: str, who: Any) -> None:
        heapq.heappush(events, (when, next(numbers), what, who))

    for load in kitchen.loads:
        if load.rate:
            at(kitchen.dice.expovariate(load.rate), "come", load)
        for when, count in load.floods:
            at(when, "flood", (load, count))
    for chef in range(kitchen.chefs):
        at(kitchen.dice.random() * CYCLE_S, "ask", chef)
    at(0.0, "look", None)
    stays = {load.name: load.stay_s for load in kitchen.loads}
    seen: list[tuple[float, dict[str, int]]] = []
    while events and events[0][0] < seconds:
        kitchen.now, _, what, who = heapq.heappop(events)
        if what == "come":
            kitchen.queues[kitchen.chef_of(who.name)][who.name].append(kitchen.now)
            at(kitchen.now + kitchen.dice.expovariate(who.rate), "come", who)
        elif what == "flood":
            load, count = who
            for _ in range(count):
                kitchen.queues[kitchen.chef_of(load.name)][load.name].append(kitchen.now)
        elif what == "end":  # whoever gives a slot back, and waits for one, asks
            chef, name = who
            kitchen.held[name] -= 1
            if chef in kitchen.short and chef not in kitchen.rung:
                kitchen.rung.add(chef)
                at(kitchen.now + FREED_S, "bell", chef)
        elif what in ("ask", "bell"):
            for name, count in kitchen.ask(who).items():
                for _ in range(count):
                    at(kitchen.now + kitchen.dice.expovariate(1 / stays[name]), "end", (who, name))
            if what == "ask":
                at(kitchen.now + kitchen.pause(who), "ask", who)
            else:
                kitchen.rung.discard(who)
        else:
            seen.append((kitchen.now, dict(kitchen.held)))
            at(kitchen.now + 0.1, "look", None)
    return seen


def jain(values: Sequence[float]) -> float:
    """1 if all have the same, 1/n if one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


# -- what is asked of it -----------------------------------------------------------------------------------

FLOOD_AT = 5.0
SMALL = tuple(Load(f"small-{n}", 4.0, 1.0) for n in range(9))
FLOOD = Load("flood", 0.0, 1.0, ((FLOOD_AT, 20_000),))


def flooded(chefs: int, is_fair: bool, seconds: float, seed: int) -> dict[str, Any]:
    """Nine workflows of four instances a second, and 20,000 of another at once; 200 slots, each kept for a second."""
    kitchen = Kitchen((*SMALL, FLOOD), chefs, 200, random.Random(seed), is_fair)
    seen = run(kitchen, seconds)
    waits = [wait for load in SMALL for when, wait in kitchen.waits[load.name] if when > FLOOD_AT]
    never = [
        kitchen.now - since
        for queues in kitchen.queues
        for load in SMALL
        for since in queues[load.name]
        if kitchen.now - since > 2 * CYCLE_S
    ]
    during = [held for when, held in seen if when > FLOOD_AT + 2]
    return {
        "chefs": chefs,
        "p50": percentile(waits + never, 0.5),
        "p99": percentile(waits + never, 0.99),
        "used": sum(sum(held.values()) for held in during) / len(during) / kitchen.slots,
        "asks_per_s": kitchen.asks / seconds,
        "seen": seen,
    }


def contended(chefs: int, seconds: float, seed: int) -> dict[str, Any]:
    """Ten workflows whose instances come as 1:2:3 … 10, together three times as fast as slots become free; one of them
    limited to five slots."""
    loads = [Load(f"w{n}", 20.0 * n, 1.0, limit=5 if n == 10 else None) for n in range(1, 11)]
    kitchen = Kitchen(loads, chefs, 370, random.Random(seed))
    seen = run(kitchen, seconds)
    late = [held for when, held in seen if when > seconds / 2]
    mean = {load.name: sum(held[load.name] for held in late) / len(late) for load in loads}
    due = dict(
        zip(
            mean,
            fill(370, [Claim(min(round(load.rate), load.limit or 10**6)) for load in loads]),
            strict=True,
        )
    )
    each = [
        sum(got[load.name] for load in loads[:-1]) / sum(weights[load.name] for load in loads[:-1])
        for got, weights in zip(kitchen.granted, kitchen.weights, strict=True)
    ]
    return {
        "chefs": chefs,
        "between_workflows": jain([mean[name] / due[name] for name in mean]),
        "between_shards": jain(each),
        "used": sum(mean.values()) / min(370, sum(due.values())),
        "most_of_the_limited": max(held["w10"] for held in late),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 30 SousChefs, for seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=Path, help="a folder that the pictures are written to")
    options = parser.parse_args(argv)
    chefs = [count for count in CHEFS if count <= 30 or not options.quick]
    seconds = 12.0
    table: list[dict[str, Any]] = []
    seen = {}
    for count in chefs:
        for is_fair in (True, False):
            found = flooded(count, is_fair, seconds, options.seed)
            seen[count, is_fair] = found.pop("seen")
            table.append({"policy": "max-min" if is_fair else "first come", **found})
            print(json.dumps({key: _short(value) for key, value in table[-1].items()}), flush=True)
    shares = []
    for count in (count for count in chefs if count <= CONTENDED):
        shares.append(contended(count, seconds, options.seed))
        print(json.dumps({key: _short(value) for key, value in shares[-1].items()}), flush=True)
    if options.pictures:
        from bench.simulated import draw

        draw(options.pictures, table, shares, seen[10, True], seen[10, False])
    return 0


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
