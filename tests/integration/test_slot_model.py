"""The Gatekeeper on a real Valkey against a model of plain dictionaries, whatever happens in whatever order."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.control import fairness
from orchestrator.control.fairness import Claim
from orchestrator.control.gatekeeping.gatekeeper import LEASE_MS, Gatekeeper
from orchestrator.ports import Holder
from tests.integration.gatekeepers import Server, opened

WORKFLOWS = ("ready", "walker", "of")  # names of keys, all of them
DEMAND_MS = 2500
MOST = 6
FEW, MANY = 60, 400
HOLDERS = {
    name: [Holder(UUID(int=at << 8 | n), name) for n in range(1, 9)] for at, name in enumerate(WORKFLOWS)
}
ALL = [holder for holders in HOLDERS.values() for holder in holders]
some = st.lists(st.sampled_from(ALL), min_size=1, max_size=12, unique=True)
names = st.sampled_from(WORKFLOWS)


@dataclass
class Demand:
    left: int
    weight: int
    until: int
    served: int
    got: int = 0
    """Slots since it has been waiting."""


@dataclass
class Model:
    """What the Gatekeeper is meant to do."""

    now: int
    limits: dict[str, int]
    leases: dict[Holder, float] = field(default_factory=dict)
    demands: dict[tuple[str, str], Demand] = field(default_factory=dict)
    forced: set[Holder] = field(default_factory=set)
    """Those that got their slot whatever the limits were."""

    def held(self, workflow: str = "") -> list[Holder]:
        return [h for h, till in self.leases.items() if till > self.now and workflow in ("", h.workflow)]

    def limit(self, workflow: str) -> int:
        return self.limits.get(workflow, MOST if workflow == "" else 1000)

    def lease(self, holders: list[Holder], till: float) -> None:
        self.leases.update(dict.fromkeys(holders, till))

    def end(self, holders: list[Holder]) -> None:
        for holder in holders:
            self.leases.pop(holder, None)
            self.forced.discard(holder)

    def ask(
        self, asker: str, wanted: list[Holder], weights: dict[str, int], withdrawn: set[str]
    ) -> set[Holder]:
        for name in withdrawn:
            self.demands.pop((asker, name), None)
        has = {holder for holder in wanted if self.leases.get(holder, 0) > self.now}
        open_ = {name: [h for h in wanted if h.workflow == name and h not in has] for _, name in wanted}
        mine = {name: Demand(len(those), weights.get(name, 1), 0, self.now) for name, those in open_.items()}
        others: dict[str, dict[str, Demand]] = {}
        stays = set()
        for (who, name), demand in self.demands.items():
            if demand.until > self.now and who == asker and name in mine:
                mine[name].served = demand.served
                mine[name].got = demand.got * mine[name].weight // demand.weight
                stays.add(name)
            elif demand.until > self.now:
                others.setdefault(name, {})[who] = demand
        shares = self.shares(mine, others)
        granted = set(has)
        for name, those in open_.items():
            if name not in stays and name in others:
                level = min(each.got / each.weight for each in others[name].values())
                mine[name].got = int(level * mine[name].weight)
            everybody = {asker: mine[name], **others.get(name, {})}
            parts = filled(
                shares[name],
                {
                    who: (each.served, Claim(each.left, each.weight, each.got))
                    for who, each in everybody.items()
                },
            )
            granted.update(those[: parts[asker]])
            self.note(asker, name, mine[name], parts[asker])
        self.lease([h for h in wanted if h in granted], self.now + LEASE_MS)
        return granted

    def shares(self, mine: dict[str, Demand], others: dict[str, dict[str, Demand]]) -> dict[str, int]:
        claims = {}
        for name in {*mine, *others}:
            demands = [*others.get(name, {}).values(), *([mine[name]] if name in mine else [])]
            held = len(self.held(name))
            wanted = max(0, min(sum(each.left for each in demands), self.limit(name) - held))
            claims[name] = (min(each.served for each in demands), Claim(wanted, 1, held))
        return filled(max(0, self.limit("") - len(self.held())), claims)

    def note(self, asker: str, name: str, mine: Demand, part: int) -> None:
        left = mine.left - part
        self.demands.pop((asker, name), None)
        if left and asker:
            served = self.now if part else mine.served
            self.demands[asker, name] = Demand(
                left, mine.weight, self.now + DEMAND_MS, served, mine.got + part
            )


def filled(free: int, claims: dict[str, tuple[int, Claim]]) -> dict[str, int]:
    """``fairness.fill`` by name; among equals whoever was served longest ago is first."""
    order = sorted(claims, key=lambda name: (claims[name][0], name))
    return dict(zip(order, fairness.fill(free, [claims[name][1] for name in order]), strict=True))


class Slots(RuleBasedStateMachine):
    redis_url = ""

    @initialize()
    def begin(self) -> None:
        self.server = Server(self.redis_url, max_concurrency=MOST)
        self.limits: dict[str, int] = {}
        self.gates = {asker: self.server.gatekeeper(asker) for asker in ("a", "b", "c")}
        self.model = Model(self.server.now, self.limits)
        self.demanded: dict[str, set[str]] = {asker: set() for asker in self.gates}
        self.snapshot: tuple[dict[bytes, tuple[int, bytes]], Model] | None = None
        opened(self.gates["a"])

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.close()

    @property
    def is_ready(self) -> bool:
        return bool(self.server.client.get(self.server.keys.ready) == f"life{self.server.lives}")

    # -- asking ------------------------------------------------------------------------------------------------

    @rule(wanted=some, lost=st.booleans())
    def acquire(self, wanted: list[Holder], lost: bool) -> None:
        self.asked(self.gates["a"], "", wanted, {}, (), lost)

    @rule(
        asker=st.sampled_from("abc"),
        wanted=st.one_of(some, st.just([])),
        weights=st.dictionaries(names, st.integers(1, 4)),
        more=st.sets(names),
        lost=st.booleans(),
    )
    def ask(
        self, asker: str, wanted: list[Holder], weights: dict[str, int], more: set[str], lost: bool
    ) -> None:
        self.asked(self.gates[asker], asker, wanted, weights, more, lost)

    def asked(
        self,
        gate: Gatekeeper,
        asker: str,
        wanted: list[Holder],
        weights: dict[str, int],
        more: Any,
        lost: bool,
    ) -> None:
        left = self.demanded.get(asker, set()).difference(h.workflow for h in wanted)
        was_ready, is_asked = self.is_ready, bool(wanted or more or left)
        gate._scripts.loses = lost and is_asked
        granted = gate.ask(wanted, weights, more) if asker else gate.acquire(wanted)
        if not was_ready:
            assert not granted, "protocols §8: while it is not ready nothing is granted"
            expected: set[Holder] = set()
            for name in left:
                self.model.demands.pop((asker, name), None)
        elif is_asked:
            for _ in range(1 + lost):  # the repetition finds what the first call did
                expected = self.model.ask(asker, wanted, weights, left)
        else:
            expected = set()
        assert granted == {holder.instance for holder in expected}
        if asker:
            self.demanded[asker] = {h.workflow for h in wanted if h not in expected}
        for name in {h.workflow for h in wanted if h not in expected}:
            assert self.server.client.exists(self.server.keys.queued(name)), "who gets none, queues"

    @rule(holders=some, lost=st.booleans())
    def insist(self, holders: list[Holder], lost: bool) -> None:
        self.gates["a"]._scripts.loses = lost
        self.gates["a"].insist(holders)
        self.model.forced.update(h for h in holders if h not in self.model.held())
        self.model.lease(holders, self.model.now + LEASE_MS)

    @rule(holders=some, lost=st.booleans())
    def release(self, holders: list[Holder], lost: bool) -> None:
        self.gates["b"]._scripts.loses = lost
        self.gates["b"].release(holders)
        self.model.end(holders)

    @rule(kept=st.integers(0, MOST))
    def release_most(self, kept: int) -> None:
        """Slots become free for which several contend."""
        self.release(self.model.held()[kept:] or ALL[:1], False)

    @rule(milliseconds=st.sampled_from([0, 1, 200, 1000, 2400]))
    def advance(self, milliseconds: int) -> None:
        self.server.advance(milliseconds)
        self.model.now = self.server.now
        self.model.forced &= set(self.model.held())
        self.gates["c"].walked(20_000)
        self.gates["c"].uphold()

    # -- what is always so -------------------------------------------------------------------------------------

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "server"):
            return
        found = self.server.held_by("", *WORKFLOWS)
        for name in found:
            held = self.model.held(name)
            assert found[name] == {str(holder.instance) for holder in held}
            bought = [holder for holder in held if holder not in self.model.forced]
            assert len(bought) <= self.model.limit(name), "nobody is granted a slot above a limit"

    @invariant()
    def every_key_has_an_end(self) -> None:
        if hasattr(self, "server"):
            assert [key for key, ttl in self.server.ttls().items() if ttl < 0] == []


class Disasters(Slots):
    """The same, with all that may happen to a server and to leases."""

    # -- leases ------------------------------------------------------------------------------------------------

    @rule(holders=some, lost=st.booleans())
    def renew(self, holders: list[Holder], lost: bool) -> None:
        self.gates["b"]._scripts.loses = lost
        missing = self.gates["b"].renew(holders)
        has = [holder for holder in holders if holder in self.model.held()]
        assert missing is not None
        assert set(missing) == set(holders) - set(has)
        self.model.lease(has, self.model.now + LEASE_MS)

    @rule(holders=some, lost=st.booleans(), ended=st.integers(0, 12), asks=st.booleans())
    def restore(self, holders: list[Holder], lost: bool, ended: int, asks: bool) -> None:
        """Some of those that were put back had ended meanwhile; one of them may have asked anew."""
        self.gates["c"]._scripts.loses = lost
        mark = self.gates["c"].restore(holders)
        assert mark is not None
        put_back = [holder for holder in holders if holder not in self.model.held()]
        self.model.lease(put_back, self.model.now + LEASE_MS + 0.5)
        self.model.forced.update(put_back)
        gone = holders[:ended]
        if asks and gone and self.is_ready:
            self.asked(self.gates["a"], "", gone[:1], {}, (), False)
        self.gates["c"].withdraw(gone, mark)
        self.model.end([h for h in gone if self.model.leases.get(h) == self.model.now + LEASE_MS + 0.5])

    @rule(asker=st.sampled_from("abc"), may_walk=st.booleans())
    def uphold(self, asker: str, may_walk: bool) -> None:
        was = self.server.client.get(self.server.keys.ready)
        walker = self.server.client.get(self.server.keys.walker)
        upheld = self.gates[asker].uphold(may_walk)
        assert upheld is not None
        assert upheld.is_ready == (was == f"life{self.server.lives}") == self.is_ready
        assert upheld.is_other == (was not in (None, f"life{self.server.lives}"))
        assert upheld.is_walker == (may_walk and walker in (None, asker)), "one walks at a time"

    @rule(running=st.sets(st.sampled_from(ALL)))
    def rebuild(self, running: set[Holder]) -> None:
        gate = self.gates["a"]
        life = gate.clear(WORKFLOWS)
        assert life is not None
        assert not self.is_ready
        self.model.leases, self.model.demands, self.model.forced = {}, {}, set()
        if running:
            assert gate.restore(list(running)) is not None
        self.model.lease(list(running), self.model.now + LEASE_MS + 0.5)
        self.model.forced |= running
        assert gate.open(life)
        assert self.is_ready

    @rule()
    def walked(self) -> None:
        self.gates["b"].walked(20_000)

    # -- what happens to a server ------------------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from([2400, 5000, 11_000, 29_900]))
    def nothing_is_renewed(self, milliseconds: int) -> None:
        self.server.advance(milliseconds)
        self.model.now = self.server.now
        self.model.forced &= set(self.model.held())

    @rule()
    def wipe(self) -> None:
        self.server.wipe()
        self.model.leases, self.model.demands, self.model.forced = {}, {}, set()
        self.limits.clear()

    @rule()
    def save(self) -> None:
        model = Model(self.model.now, dict(self.limits), dict(self.model.leases), dict(self.model.demands))
        model.forced = set(self.model.forced)
        self.snapshot = self.server.saved(), model

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def come_back(self) -> None:
        """A crash, and a start with an old snapshot: nothing is granted by what it says."""
        assert self.snapshot is not None
        keys, model = self.snapshot
        self.server.load(keys)
        assert not self.is_ready
        self.limits.clear()
        self.limits.update(model.limits)
        self.model.leases, self.model.demands = dict(model.leases), dict(model.demands)
        self.model.forced = set(model.forced) & set(self.model.held())

    @rule(name=st.sampled_from(["", *WORKFLOWS]), limit=st.one_of(st.none(), st.integers(0, 8)))
    def override(self, name: str, limit: int | None) -> None:
        """An operator changes a limit; what runs goes on."""
        field_ = f"concurrency:{name}" if name else "concurrency"
        self.limits.pop(name, None)
        self.server.client.hdel(self.server.keys.limits, field_)
        if limit is not None:
            self.limits[name] = limit
            self.server.client.hset(self.server.keys.limits, field_, limit)
            self.server.client.expire(self.server.keys.limits, 86_400)
        self.model.forced |= set(self.model.held())  # may be more than there are now


def run(machine: type[Slots], redis_url: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        type("Machine", (machine,), {"redis_url": redis_url}),
        settings=settings(
            max_examples=MANY if os.environ.get("ORCHESTRATOR_SOAK") else FEW,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_who_asks_gets_his_part(redis_url: str) -> None:
    """semantics §6: max-min between workflows, and between shards within one; whoever has a slot keeps it, nobody is
    granted one above a limit, and what is asked again because the answer got lost changes nothing twice."""
    run(Slots, redis_url)


def test_slots_survive_what_happens_to_redis(redis_url: str) -> None:
    """protocols §8: nothing is granted while it is not ready, leases end by themselves, and every key has a TTL; over
    wipes, old snapshots, lost answers, changed limits and leases that are put back."""
    run(Disasters, redis_url)


pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
