"""Fairness from queue to slots: several SousChefs, the Gatekeeper on a real Valkey, and a flood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.control import souschef
from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.shards import Shards
from orchestrator.control.souschef import SousChef
from orchestrator.ports import Holder, new_id
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from tests.integration.harness import START, Created, ManualClock, Site
from tests.integration.test_queue import fill, queue_flow, queue_other, queue_third, statuses

pytestmark = pytest.mark.integration

LIMIT = 50
NAMES = ("queue_flow", "queue_other", "queue_third")


class Kitchen:
    """SousChefs of several processes, whose instances end when the test says so."""

    def __init__(self, site: Site, count: int) -> None:
        self.site = site
        self.clock = ManualClock()
        self.settings = replace(site.settings, max_concurrency=LIMIT)
        self.gates = [Gatekeeper(self.settings, f"chef{n}", lambda name: None) for n in range(count)]
        self.chefs = [self._chef(n, gate) for n, gate in enumerate(self.gates)]
        self.grant()
        for _ in range(3):
            self.cycle()

    def _chef(self, number: int, gate: Gatekeeper) -> SousChef:
        me, known = new_id(START + number), [(name, "1") for name in NAMES]
        account = self.settings.account
        with self.site.engine.begin() as connection:
            workers.register(connection, account, Incarnation(me), [f"{name}@1" for name in NAMES])
        shards = Shards(self.site.engine, self.settings, lambda: me, lambda: known)
        return SousChef(self.site.engine, account, lambda: known, self.clock, gate, list, shards)

    def grant(self) -> None:
        server = self.gates[0].clear(NAMES)
        assert server is not None
        assert self.gates[0].open(server)

    def cycle(self) -> None:
        """A second goes by: each has its cycle, and looks at the queue again if it got too little."""
        self.clock.at += 1
        first = int(self.clock.at) % len(self.chefs)
        order = self.chefs[first:] + self.chefs[:first]
        short = [chef for chef in order if chef.cycle(self.clock.at).is_short]
        for chef in short:
            chef.serve(self.clock.at)

    def end(self, count: int) -> int:
        """Let so many running instances complete, those that began first; how many there were."""
        rows = self.site.sql(
            "UPDATE orchestrator_instances SET status = 'complete', alarm_at = 'infinity' WHERE id IN ("
            "SELECT id FROM orchestrator_instances WHERE account = :account AND status = 'running' "
            "ORDER BY alarm_at, queued_at LIMIT :count) RETURNING id, workflow",
            account=self.settings.account,
            count=count,
        )
        self.gates[0].release([Holder(*row) for row in rows])
        return len(rows)

    def close(self) -> None:
        for gate in self.gates:
            gate.close()


@pytest.fixture
def kitchen(site: Site) -> Iterator[Kitchen]:
    made = Kitchen(site, 3)
    yield made
    made.close()


def of_each(site: Site) -> list[Created]:
    return [site.workflow(each) for each in (queue_flow, queue_other, queue_third)]


def test_a_flood_delays_nobody_by_more_than_a_cycle(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: five thousand of one workflow have all fifty slots and want more; the twenty of another that come
    then run within two cycles, as soon as so many slots have become free."""
    flood, few, _ = of_each(site)
    for shard in range(4):
        fill(site, flood, 1250, shard)
    kitchen.cycle()
    kitchen.cycle()
    assert statuses(site, flood)["running"] == LIMIT, "a lone workflow uses every slot"
    for shard in range(4):
        fill(site, few, 5, shard, START + 1000)
    for _ in range(2):
        assert kitchen.end(15) == 15
        kitchen.cycle()
    assert statuses(site, few)["running"] + statuses(site, few)["complete"] == 20
    assert statuses(site, flood)["running"] + statuses(site, few)["running"] == LIMIT


def test_workflows_share_evenly(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: max-min between workflows: who all want more come to have the same, however unequal their floods
    and however their instances are spread over shards."""
    flows = of_each(site)
    for flow, counts in zip(flows, ((4000, 0, 0, 0), (100, 100, 100, 100), (0, 0, 200, 0)), strict=True):
        for shard, count in enumerate(counts):
            fill(site, flow, count, shard)
    kitchen.cycle()
    for _ in range(12):
        kitchen.end(10)
        kitchen.cycle()
    running = [statuses(site, flow)["running"] for flow in flows]
    assert sum(running) == LIMIT
    assert max(running) - min(running) <= 2, running


def test_workers_share_a_workflow_by_their_shards(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: max-min between shards: within a workflow each worker gets its part, though one asks first each
    time; nobody's shard starves."""
    flow, _, _ = of_each(site)
    for shard in range(4):
        fill(site, flow, 1000, shard)
    for _ in range(20):
        kitchen.cycle()
        kitchen.end(LIMIT)
    rows = site.sql(
        "SELECT shard, count(*) FROM orchestrator_instances WHERE account = :a AND status = 'complete' GROUP BY 1",
        a=site.settings.account,
    )
    done = {row[0]: row[1] for row in rows}
    assert done.keys() == {0, 1, 2, 3}
    assert min(done.values()) >= 0.6 * max(done.values()), done


def test_a_slot_that_becomes_free_is_used(
    site: Site, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §6: a free slot is taken at once: whoever gives one back tells its SousChef, which does not wait for
    the next cycle while something it asked for is queued."""
    flow, _, _ = of_each(site)
    for shard in range(4):
        fill(site, flow, 30, shard)
    woken: list[int] = []
    chef, gate = kitchen.chefs[0], kitchen.gates[0]
    monkeypatch.setattr(chef, "_wake", lambda wakes: woken.append(len(wakes)))
    gate.on_freed = chef.freed
    kitchen.cycle()
    assert chef._step(kitchen.clock.at) <= souschef.SHORT_S
    assert not chef._bell.is_set()
    before = sum(woken)
    kitchen.end(30)
    assert chef._bell.is_set()
    chef._step(kitchen.clock.at)
    assert sum(woken) > before


def test_nothing_to_ask_for_is_no_call(site: Site, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """design §5: an idle worker does not ask Redis for slots, and does not cycle faster than once a second."""
    asked: list[object] = []
    for gate in kitchen.gates:
        monkeypatch.setattr(gate, "_call", lambda *arguments: asked.append(arguments))
    for chef in kitchen.chefs:
        kitchen.clock.at += 2
        chef._step(kitchen.clock.at)
        assert chef._full_at > kitchen.clock.at
        assert not chef._heeds_bell
    assert asked == []


def test_many_that_wait_ask_less_often() -> None:
    """design §5: workers that wait for the same slots do not ask Redis more often than it can answer, however many."""
    pauses = {workers: souschef.patience(workers) for workers in (1, 40, 100, 150, 10_000)}
    assert pauses == {1: 0.2, 40: 0.2, 100: 0.5, 150: 0.75, 10_000: 1.0}
