"""Shards: who owns them, how they are handed on, how queues are cut anew, and that none is ever left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest

from orchestrator.control.shards import LEASE_S, RETIRE_S, Shards
from orchestrator.errors import InvalidConfig
from orchestrator.ports import new_id
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from orchestrator.store.control import layouts, shards
from orchestrator.store.control.layouts import HIGHEST, Generation
from orchestrator.store.records import listing
from tests.integration.harness import START, Created, Site

pytestmark = pytest.mark.integration

NAMES = ("shard_a", "shard_b", "shard_c")


async def shard_flow(event, step):
    """Only its queue is of interest."""


class Kitchen:
    """As many owners of shards as a test wants, on one clock, with cycles when it says so."""

    def __init__(self, site: Site, shards: int | None = None) -> None:
        self.site = site
        self.settings = site.settings if shards is None else replace(site.settings, shards=shards)
        self.now = START
        self.chefs: dict[UUID, Shards] = {}

    def come(self, *names: str, version: str = "1") -> Shards:
        known = [(name, version) for name in names or NAMES]
        me = new_id(START + len(self.chefs))
        account = self.site.settings.account
        with self.site.engine.begin() as connection:
            workers.register(connection, account, Incarnation(me), [f"{n}@{v}" for n, v in known])
        chef = Shards(self.site.engine, self.settings, lambda: me, lambda: known)
        self.chefs[me] = chef
        return chef

    def kill(self, chef: Shards) -> None:
        self.chefs = {me: each for me, each in self.chefs.items() if each is not chef}

    def turn(self, cycles: int = 1) -> None:
        for _ in range(cycles):
            self.now += 1
            for chef in self.chefs.values():
                chef.cycle(self.now)

    @property
    def shares(self) -> list[set[tuple[str, int]]]:
        return [set(chef.share.shards) for chef in self.chefs.values()]

    @property
    def loads(self) -> list[int]:
        return sorted(len(share) for share in self.shares)

    def covered(self) -> bool:
        """Whether every shard there is has one owner, and only one."""
        owned = Counter(shard for share in self.shares for shard in share)
        with self.site.engine.connect() as connection:
            found = layouts.generations(connection, self.site.settings.account)
        every = {(each.workflow, number) for each in found for number in range(each.first, each.last + 1)}
        return owned == Counter(every)


@pytest.fixture
def kitchen(site: Site) -> Kitchen:
    return Kitchen(site)


def test_a_lone_worker_owns_everything_at_once(kitchen: Kitchen) -> None:
    """semantics §6: every worker takes its share of the shards; the only one has all of them, from its first cycle."""
    kitchen.come()
    kitchen.turn()
    assert kitchen.loads == [12]
    assert kitchen.covered()


@pytest.mark.parametrize("count", range(2, 9))
def test_shares_are_even(kitchen: Kitchen, count: int) -> None:
    """semantics §6: however many workers, each has its share: they differ by one shard at most, of each workflow and
    of all."""
    kitchen.come()
    kitchen.turn()
    for _ in range(count - 1):
        kitchen.come()
    kitchen.turn(3)
    assert kitchen.covered()
    assert kitchen.loads[-1] - kitchen.loads[0] <= 1
    for name in NAMES:
        each = [sum(workflow == name for workflow, _ in share) for share in kitchen.shares]
        assert max(each) - min(each) <= 1


def test_nothing_moves_while_nobody_comes_or_goes(kitchen: Kitchen) -> None:
    """semantics §6: ownership is by lease; whoever renews keeps what he has."""
    for _ in range(3):
        kitchen.come()
    kitchen.turn(3)
    before = kitchen.shares
    kitchen.turn(20)
    assert kitchen.shares == before


def test_the_shards_of_a_dead_worker_are_taken_over(kitchen: Kitchen) -> None:
    """semantics §6: a dead worker's shards are taken over: less than ten seconds after a kill."""
    chefs = [kitchen.come() for _ in range(4)]
    kitchen.turn(3)
    kitchen.kill(chefs[1])
    died_at = kitchen.now
    while not kitchen.covered():
        kitchen.turn()
        assert kitchen.now - died_at < 10
    assert kitchen.now - died_at >= LEASE_S - 2, "they were taken from a worker that might live"
    assert kitchen.loads == [4, 4, 4]


def test_a_worker_that_goes_leaves_its_shards_at_once(kitchen: Kitchen) -> None:
    """protocols §18: at SIGTERM a worker first gives up its shards: others have them in their next cycle."""
    chefs = [kitchen.come() for _ in range(3)]
    kitchen.turn(3)
    chefs[0].release()
    assert chefs[0].share.shards == frozenset()
    kitchen.kill(chefs[0])
    kitchen.turn()
    assert kitchen.covered()
    assert kitchen.loads == [6, 6]


def test_a_declared_dead_worker_owns_nothing(kitchen: Kitchen) -> None:
    """protocols §6: an incarnation that was declared dead renews nothing any more; its process comes back under a new
    one, which takes its share."""
    one, other = kitchen.come(), kitchen.come()
    kitchen.turn(3)
    me = next(me for me, chef in kitchen.chefs.items() if chef is one)
    kitchen.site.sql("UPDATE orchestrator_workers SET dead_at = clock_timestamp() WHERE id = :id", id=me)
    kitchen.turn(4)
    assert one.share.shards == frozenset()
    assert len(other.share.shards) == 12


def test_whoever_does_not_know_a_workflow_has_none_of_its_shards(kitchen: Kitchen) -> None:
    """protocols §12: the SousChef of a workflow runs only in workers that have it registered, in any version."""
    kitchen.come("shard_a", "shard_b")
    kitchen.come("shard_b", "shard_c", version="2")
    kitchen.come("shard_c")
    kitchen.turn(3)
    assert kitchen.covered()
    of = [{workflow for workflow, _ in share} for share in kitchen.shares]
    assert of == [{"shard_a", "shard_b"}, {"shard_b", "shard_c"}, {"shard_c"}]
    first = next(iter(kitchen.chefs.values()))
    assert first.share.versions == {"shard_a": {"1"}, "shard_b": {"1", "2"}}


def test_workers_that_know_different_workflows_leave_no_shard_to_each_other(site: Site) -> None:
    """semantics §6: every shard has an owner, also where an elder worker has much that the others do not know."""
    kitchen = Kitchen(site, shards=1)
    kitchen.come("shard_a", "shard_b")
    kitchen.come("shard_b")
    kitchen.turn(4)
    assert kitchen.covered()
    assert kitchen.shares == [{("shard_a", 0)}, {("shard_b", 0)}]


@pytest.mark.parametrize("seed", range(5))
def test_every_shard_has_an_owner_whoever_knows_what(kitchen: Kitchen, seed: int) -> None:
    """semantics §6: workers that know different workflows reckon the same quotas: every shard is somebody's."""
    chance = Random(seed)
    kitchen.come()
    kitchen.turn()
    for name in NAMES:
        reshard(kitchen.site, name, chance.randint(1, 9))
    for _ in range(6):
        kitchen.come(*chance.sample(NAMES, chance.randint(1, 3)))
    kitchen.turn(4)
    assert kitchen.covered()


def test_a_look_that_fails_is_made_up_for_in_the_next_cycle(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §6: a worker whose look failed has not renewed; it does so in its next cycle, and keeps its shards."""

    def fails(*_: object) -> list[Generation]:
        raise RuntimeError("no luck")

    chef = kitchen.come()
    kitchen.turn(2)  # renewed in the first of these
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(layouts, "generations", fails)
        kitchen.turn()
    kitchen.turn()
    (me,) = kitchen.chefs
    found = kitchen.site.sql(
        "SELECT extract(epoch FROM shards_until)::float8 FROM orchestrator_workers WHERE id = :me", me=me
    )
    ((until,),) = found
    assert until == kitchen.now + LEASE_S
    assert len(chef.share.shards) == 12


def test_one_worker_leads_a_workflow(kitchen: Kitchen) -> None:
    """semantics §6: what one worker has to do for a workflow is done by the owner of its first shard."""
    for _ in range(3):
        kitchen.come()
    kitchen.turn(3)
    leads = Counter(name for chef in kitchen.chefs.values() for name in chef.share.leads)
    assert leads == Counter(NAMES)
    for chef in kitchen.chefs.values():
        assert set(chef.share.gaps) == chef.share.leads
        assert all(gaps == [(4, HIGHEST)] for gaps in chef.share.gaps.values())


# -- cut anew ----------------------------------------------------------------------------------------------


def reshard(site: Site, name: str, count: int) -> Generation:
    with site.engine.begin() as connection:
        return layouts.add(connection, site.settings.account, name, count)


def shards_of(site: Site, flow: str = "shard_flow") -> Counter[int]:
    rows = site.sql(
        "SELECT shard FROM orchestrator_instances WHERE account = :account AND workflow = :workflow",
        account=site.settings.account,
        workflow=flow,
    )
    return Counter(row[0] for row in rows)


def test_new_instances_use_the_last_generation(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: created instances get a random shard; after a change new ones use the new layout at once, and no
    row is copied."""
    flow = site.workflow(shard_flow)
    for _ in range(100):
        flow.plant(queued=True)
    assert shards_of(site).keys() == {0}, "without any layout, one shard"
    kitchen.come("shard_flow")
    kitchen.turn()
    site.sql("DELETE FROM orchestrator_instances WHERE account = :account", account=site.settings.account)
    for _ in range(100):
        flow.plant(queued=True)
    before = shards_of(site)
    assert before.keys() == {0, 1, 2, 3}
    assert reshard(site, "shard_flow", 64) == ("shard_flow", 2, 4, 64)
    for _ in range(200):
        flow.plant(queued=True)
    after = shards_of(site)
    assert {number: after[number] for number in before} == before
    assert all(4 <= number < 68 for number in after.keys() - before.keys())
    assert len(after) > 40


def test_a_batch_is_spread(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: each instance of a batch gets a random shard of its own."""
    flow = site.workflow(shard_flow)
    kitchen.come("shard_flow")
    kitchen.turn()
    flow.create_batch(count=200)
    found = shards_of(site)
    assert found.keys() == {0, 1, 2, 3}
    assert min(found.values()) > 20


def test_a_generation_that_drained_is_removed(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: old shards drain: they are looked after until nothing is queued in them, then they are gone."""
    flow = site.workflow(shard_flow)
    chef = kitchen.come("shard_flow")
    kitchen.turn()
    old = flow.plant(queued=True)
    reshard(site, "shard_flow", 2)
    kitchen.turn(2)
    assert chef.share.shards == {("shard_flow", number) for number in range(6)}
    site.sql("UPDATE orchestrator_layouts SET created_at = created_at - interval '1 minute'")
    kitchen.turn(int(RETIRE_S) + 2)
    assert len(chef.share.shards) == 6
    site.sql("UPDATE orchestrator_instances SET status = 'running', queued_at = NULL WHERE id = :id", id=old)
    kitchen.turn(int(RETIRE_S) + 2)
    assert chef.share.shards == {("shard_flow", 4), ("shard_flow", 5)}
    assert chef.share.gaps == {"shard_flow": [(0, 3), (6, HIGHEST)]}
    assert kitchen.covered()


def test_what_comes_to_stand_outside_of_every_layout_is_found(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: nothing queued is ever left alone: not what an old transaction commits, nor a sleeper that wakes,
    once its generation is gone. One worker looks after it, within a cycle."""
    flow = site.workflow(shard_flow)
    chefs = [kitchen.come("shard_flow") for _ in range(2)]
    kitchen.turn(3)
    for number in (9, 9, 700, HIGHEST):
        site.sql(
            "UPDATE orchestrator_instances SET shard = :shard WHERE id = :id",
            shard=number,
            id=flow.plant(queued=True),
        )
    kitchen.turn()
    strays = {("shard_flow", 9), ("shard_flow", 700), ("shard_flow", HIGHEST)}
    (leader,) = [chef for chef in chefs if chef.share.leads]
    assert strays < leader.share.shards
    assert sum(len(chef.share.shards & strays) for chef in chefs) == 3


def test_numbers_come_again(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: a queue may be cut anew as often as one likes; only what drains stands in the way of numbers."""
    kitchen.come("shard_flow")
    kitchen.turn()
    account = site.settings.account
    numbers = [reshard(site, "shard_flow", 1000 + n % 2).first for n in range(31)]
    assert numbers[:3] == [4, 1004, 2005]
    with pytest.raises(InvalidConfig, match="33 generations of it still drain"):
        for n in range(5):
            reshard(site, "shard_flow", 1001 + n % 2)
    site.sql("DELETE FROM orchestrator_layouts WHERE account = :account AND generation < 30", account=account)
    assert reshard(site, "shard_flow", 1000).first == 0
    assert reshard(site, "shard_flow", 1000).generation == reshard(site, "shard_flow", 1000).generation


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_a_number_of_shards_that_cannot_be(site: Site, count: int) -> None:
    """semantics §6: bad input is refused in words."""
    with pytest.raises(InvalidConfig, match=f"1 to 1,024 shards, not {count:,}"):
        reshard(site, "shard_flow", count)


def test_from_one_coordinator_to_many_and_back(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: an account moves from one coordinator (V1) to many (V2), and back, live: queues are cut anew, and
    the shares follow."""
    account = site.settings.account
    with site.engine.begin() as connection:
        assert layouts.coordinate(connection, account, layouts.ONE, 8) == []
    for _ in range(3):
        kitchen.come()
    kitchen.turn(3)
    assert kitchen.covered()
    assert kitchen.loads == [0, 0, 3], "all of an account is owned by one worker, one shard per workflow"
    with site.engine.begin() as connection:
        made = layouts.coordinate(connection, account, layouts.MANY, 8)
    assert made == [Generation(name, 2, 1, 8) for name in NAMES]
    kitchen.turn(3)
    assert kitchen.covered()
    assert kitchen.loads == [9, 9, 9]
    with site.engine.begin() as connection:
        assert layouts.coordinate(connection, account, layouts.MANY, 64) == made, "nothing to change"
        assert layouts.coordinators(connection, account) == layouts.MANY
        back = layouts.coordinate(connection, account, layouts.ONE, 8)
    assert [each.shards for each in back] == [1, 1, 1]
    kitchen.turn(3)
    assert kitchen.covered()
    assert kitchen.loads == [0, 0, 30]
    with site.engine.begin() as connection, pytest.raises(InvalidConfig, match="'one' or 'many', not 'few'"):
        layouts.coordinate(connection, account, "few", 8)


def test_two_workers_do_not_take_the_same_shard(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: of two that reach for what is free at once each gets something else, and none waits."""
    kitchen.come("shard_flow")
    with site.engine.begin() as connection:
        layouts.enter(connection, site.settings.account, ["shard_flow"], 6)
    first, second = kitchen.come("shard_flow"), kitchen.come("shard_flow")
    (one, other) = (me for me, chef in kitchen.chefs.items() if chef in (first, second))
    account = site.settings.account
    with site.engine.begin() as a, site.engine.begin() as b:
        mine = shards.take(a, account, one, {"shard_flow": 4}, START)
        theirs = shards.take(b, account, other, {"shard_flow": 4}, START)
    assert (len(mine), len(theirs)) == (4, 2)
    assert not set(mine) & set(theirs)


def test_forgetting_a_workflow_forgets_its_layout(site: Site, kitchen: Kitchen) -> None:
    """semantics §6: what is entered again begins anew, and what of it is still queued is found."""
    flow: Created = site.workflow(shard_flow)
    chef = kitchen.come("shard_flow")
    kitchen.turn()
    reshard(site, "shard_flow", 64)
    flow.plant(queued=True)
    (stray,) = shards_of(site)
    with site.engine.begin() as connection:
        listing.forget(connection, site.settings.account, "shard_flow")
    kitchen.turn()
    assert chef.share.shards == {("shard_flow", number) for number in (0, 1, 2, 3, stray)}
