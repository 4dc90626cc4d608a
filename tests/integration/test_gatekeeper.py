"""Slots, rule by rule, on a real Valkey whose time is the test's. (All rules at once: ``test_slot_model``.)"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control import fairness
from orchestrator.control.fairness import Claim
from orchestrator.control.gatekeeping import scripts
from orchestrator.control.gatekeeping.gatekeeper import LEASE_MS, Gatekeeper, Held
from orchestrator.control.gatekeeping.scripts import Scripts
from orchestrator.errors import ServiceUnavailable
from orchestrator.ports import Holder
from orchestrator.settings import Settings
from tests.integration.gatekeepers import SERVER, LossyScripts, Server, opened, serving

pytestmark = pytest.mark.integration


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    with serving(redis_url, max_concurrency=10) as one:
        yield one


def holders(count: int, workflow: str = "w") -> list[Holder]:
    return [Holder(uuid4(), workflow) for _ in range(count)]


def ids(some: list[Holder]) -> set[Any]:
    return {holder.instance for holder in some}


# -- who gets one ----------------------------------------------------------------------------------------------


def test_the_first_come_first_and_no_more_than_there_are(server: Server) -> None:
    """semantics §6: of one workflow slots go to those that came first, of the account as many as the limit says."""
    gate, wanted = server.gatekeeper(), holders(25)
    opened(gate)
    assert gate.acquire(wanted) == ids(wanted[:10])
    assert gate.acquire(wanted[5:15]) == ids(wanted[5:10]), "who holds one keeps it"
    gate.release(wanted[:3])
    assert gate.acquire(wanted[10:]) == ids(wanted[10:13])


def test_a_workflow_has_a_limit_of_its_own(server: Server) -> None:
    """semantics §6: concurrency is limited per account, and optionally per workflow."""
    gate = server.gatekeeper()
    server.limits["few"] = 2
    opened(gate)
    few, many = holders(5, "few"), holders(20, "many")
    assert gate.acquire([*few, *many]) == ids(few[:2]) | ids(many[:8])
    usage = gate.usage(["few", "many"])
    assert usage is not None
    assert (usage.account, usage.workflows["few"], usage.workflows["many"]) == (
        Held(10, 10),
        Held(2, 2),
        Held(8, None),
    )


def test_what_an_operator_set_wins_at_once(server: Server) -> None:
    """semantics §6: limits change at run time; who holds a slot above a lowered limit keeps it."""
    gate, wanted = server.gatekeeper(), holders(20)
    opened(gate)
    server.client.hset(server.keys.limits, mapping={"concurrency": 12, "concurrency:w": 11})
    assert gate.acquire(wanted) == ids(wanted[:11])
    server.client.hset(server.keys.limits, "concurrency", 4)
    assert gate.acquire(wanted) == ids(wanted[:11])
    gate.release(wanted[:5])
    assert gate.acquire(wanted[11:]) == set()


def test_a_flood_leaves_others_their_part(server: Server) -> None:
    """semantics §6: max-min between workflows: what becomes free goes to the one that has less."""
    gate, other = server.gatekeeper("flood"), server.gatekeeper("small")
    opened(gate)
    flood, small = holders(100, "flood"), holders(4, "small")
    assert gate.ask(flood) == ids(flood[:10])
    assert other.ask(small) == set()
    gate.release(flood[:6])
    assert gate.ask(flood[10:]) == ids(flood[10:12]), "the flood gets what the small one does not want"
    assert other.ask(small) == ids(small)


def test_within_a_workflow_slots_go_by_the_shards_that_ask(server: Server) -> None:
    """semantics §6: max-min between shards: an asker with three of four gets three quarters."""
    big, lone = server.gatekeeper("big"), server.gatekeeper("lone")
    opened(big)
    server.limits["w"] = 0
    theirs, its = holders(50), holders(50)
    big.ask(theirs, {"w": 3})
    lone.ask(its, {"w": 1})
    server.limits["w"] = 8
    assert big.ask(theirs, {"w": 3}) == ids(theirs[:6])
    assert lone.ask(its, {"w": 1}) == ids(its[:2])


def test_the_odd_slot_goes_round(server: Server) -> None:
    """semantics §6: with one slot and three that ask for it again and again, each gets it in his turn."""
    gates = {asker: server.gatekeeper(asker) for asker in "abc"}
    opened(gates["a"])
    server.limits["w"] = 1
    first = holders(1)
    assert gates["a"].acquire(first)
    wanted = {asker: holders(9) for asker in gates}
    for asker, gate in gates.items():
        server.advance(1)
        gate.ask(wanted[asker])
    got, held = [], first
    for _ in range(6):
        gates["a"].release(held)
        for asker in "bcacba":  # all come, some more often than others
            server.advance(1)
            if granted := gates[asker].ask(wanted[asker]):
                got.append(asker)
                held = [holder for holder in wanted[asker] if holder.instance in granted]
                wanted[asker] = [holder for holder in wanted[asker] if holder.instance not in granted]
        gates["a"].walked(20_000)
        gates["a"].uphold()
    assert got == list("abcabc")


def test_the_odd_slot_goes_round_between_workflows(server: Server) -> None:
    """semantics §6: the same between workflows, where the account's slots are short."""
    gate, names = server.gatekeeper("a"), ("x", "y", "z")
    server.limits[""] = 1
    opened(gate)
    held, got = holders(1, "x"), []
    assert gate.acquire(held)
    wanted = {name: holders(9, name) for name in names}
    others = {name: server.gatekeeper(name) for name in names}
    for name in names:
        server.advance(1)
        others[name].ask(wanted[name])
    for _ in range(6):
        gate.release(held)
        for name in "zxyzxy":
            server.advance(1)
            if granted := others[name].ask(wanted[name]):
                got.append(name)
                held = [holder for holder in wanted[name] if holder.instance in granted]
                wanted[name] = [holder for holder in wanted[name] if holder.instance not in granted]
        gate.walked(20_000)
        gate.uphold()
    assert got == list("xyzxyz")


def test_who_no_longer_asks_keeps_nothing_from_others(server: Server) -> None:
    """semantics §6: what an asker did not get is kept for it while it comes again, and for 2.5 s at most."""
    dead, gate = server.gatekeeper("dead"), server.gatekeeper("alive")
    opened(gate)
    held, theirs, its = holders(10), holders(20), holders(20)
    gate.acquire(held)
    dead.ask(theirs)
    gate.ask(its)
    gate.release(held)
    assert len(gate.ask(its)) == 5
    server.advance(2500)
    gate.walked(20_000)
    assert len(gate.ask(its)) == 10, "its demand has ended"
    gate.release(its)
    dead.ask(theirs[:1])
    dead.ask(theirs)
    dead.ask([])
    gate.release(theirs)
    assert len(gate.ask(its)) == 10, "it wants none any more"


def test_new_ones_queue_behind_what_waits(server: Server) -> None:
    """protocols §8: a flag says that something is queued, of the workflow or for the account's slots; it goes when
    nobody waits any more, or after 3 s."""
    gate, keys = server.gatekeeper(), server.keys
    server.limits["few"] = 2
    opened(gate)
    few = holders(3, "few")

    def flags() -> list[str]:
        return [name for name in ("", "few", "w") if server.client.exists(keys.queued(name))]

    gate.ask(few)
    assert flags() == ["few"], "the account has slots, for others"
    wanted = holders(20)
    gate.ask([*few, *wanted])
    assert flags() == ["", "few", "w"]
    gate.release([*few, *wanted])
    gate.ask(wanted[:3], more=["w"])
    assert flags() == ["w"], "more is queued than was asked for"
    gate.ask(wanted[:3])
    assert flags() == []
    gate.acquire(holders(9))
    assert flags() == ["", "w"], "a turn that gets none queues its instance"
    server.advance(3000)
    assert flags() == []


def test_who_gives_back_hears_that_somebody_waits(server: Server) -> None:
    """semantics §6: a slot that is given back while something is queued is used without waiting for the next cycle."""
    gate, heard = server.gatekeeper(), []
    gate.on_freed = lambda: heard.append(True)
    opened(gate)
    wanted = holders(11)
    gate.acquire(wanted[:10])
    gate.release(wanted[:1])
    assert heard == [], "nobody waits"
    gate.ask(wanted)
    gate.release(wanted[1:2])
    assert heard == [True]
    gate.release(wanted[1:2])
    assert heard == [True], "it had none to give back"


# -- leases ------------------------------------------------------------------------------------------------------


def test_a_lease_ends_by_itself_and_renewing_tells_who_has_none(server: Server) -> None:
    """protocols §8: a lease of 30 s, never a count: what nobody renews is free again."""
    gate, wanted = server.gatekeeper(), holders(10)
    opened(gate)
    gate.acquire(wanted)
    server.advance(LEASE_MS - 1)
    assert gate.renew(wanted[:4]) == []
    server.advance(1)
    assert gate.renew(wanted) == wanted[4:]
    gate.open(str(gate.clear([])))
    assert len(gate.acquire(holders(20))) == 10


def test_a_rollback_gets_a_slot_above_the_limit(server: Server) -> None:
    """protocols §8: it counts like any other, and while more are held than there are nobody else gets one."""
    gate, wanted, rollbacks = server.gatekeeper(), holders(10), holders(3)
    opened(gate)
    gate.acquire(wanted)
    gate.insist(rollbacks)
    assert server.held() == {str(holder.instance) for holder in (*wanted, *rollbacks)}
    gate.release(wanted[:3])
    assert gate.acquire(holders(5)) == set()
    gate.release(wanted[3:4])
    assert len(gate.acquire(holders(5))) == 1


def test_a_slot_given_back_in_between_does_not_come_back_as_a_ghost(server: Server) -> None:
    """protocols §8: a lease that is put back is taken away again if its instance had ended, unless it asked anew."""
    gate, (ended, awoken, running) = server.gatekeeper(), holders(3)
    opened(gate)
    mark = gate.restore([ended, awoken, running])
    assert mark is not None
    assert gate.acquire([awoken]) == {awoken.instance}
    gate.withdraw([ended, awoken], mark)
    assert server.held() == {str(awoken.instance), str(running.instance)}


def test_nothing_is_granted_after_a_wipe_an_old_snapshot_or_a_failover(server: Server) -> None:
    """protocols §8: until the leases were written anew to this life of this server."""
    gate, wanted = server.gatekeeper(), holders(4)
    assert gate.acquire(wanted) == set(), "not before the first time either"
    opened(gate)
    snapshot = server.saved()
    assert gate.acquire(wanted) == ids(wanted)
    server.load(snapshot)
    assert gate.acquire(wanted) == set(), "an old snapshot says that it is ready"
    upheld = gate.uphold()
    assert upheld is not None
    assert (upheld.is_ready, upheld.is_other) == (False, True)
    opened(gate)
    assert gate.acquire(wanted) == ids(wanted)
    server.wipe()
    assert gate.acquire(wanted) == set()
    life = str(gate.clear([]))
    server.restart()
    assert not gate.open(life), "the leases were written to another"
    assert gate.acquire(wanted) == set()


def test_slots_are_granted_only_while_leases_are_renewed(server: Server) -> None:
    """protocols §8: when Postgres is away for longer than a lease, leases end while instances run: nothing is granted
    then, though workers are alive."""
    gate = server.gatekeeper()
    opened(gate)
    for _ in range(9):
        server.advance(4000)
        upheld = gate.uphold()
    assert upheld is not None
    assert not upheld.is_ready
    opened(gate)
    for _ in range(9):
        server.advance(4000)
        gate.walked(LEASE_MS)
        upheld = gate.uphold()
    assert upheld is not None
    assert upheld.is_ready


def test_one_process_renews_and_another_takes_over(server: Server) -> None:
    """protocols §8: the walker is one of those that are able to, and who is silent for 3 s is none any more."""
    one, two = server.gatekeeper("one"), server.gatekeeper("two")

    def walks(gate: Gatekeeper, may_walk: bool = True) -> bool:
        upheld = gate.uphold(may_walk)
        assert upheld is not None
        return upheld.is_walker

    assert walks(one)
    assert not walks(two)
    server.advance(2000)
    assert walks(one)
    server.advance(3000)
    assert walks(two)
    assert not walks(one)
    assert not walks(two, may_walk=False)
    assert walks(one)


def test_clocks_of_processes_do_not_matter(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §8: leases end by Redis' time; two processes a day apart hold and renew the same."""
    gate, wanted = server.gatekeeper(), holders(10)
    opened(gate)
    gate.acquire(wanted)
    monkeypatch.setattr(scripts, "monotonic", lambda: 1e9)
    monkeypatch.setattr("time.time", lambda: 0.0)
    other = server.gatekeeper("other")
    assert other.acquire(holders(1)) == set()
    assert other.renew(wanted) == []
    server.advance(LEASE_MS)
    assert other.renew(wanted) == wanted


def test_five_thousand_at_once_and_more(server: Server) -> None:
    """protocols §8: one call names thousands of holders; more than that are several calls."""
    gate, wanted = server.gatekeeper(), holders(12_000)
    server.limits[""] = 11_000
    opened(gate)
    gate.insist(wanted[:7000])
    assert gate.renew(wanted) == wanted[7000:]
    assert gate.acquire(wanted[4000:]) == ids(wanted[4000:11_000])
    gate.release(wanted)
    assert server.held() == server.held("w") == set()


# -- how they are shared -----------------------------------------------------------------------------------------

FILL = "local given = cjson.decode(ARGV[1]) fill(given[1], given[2]) return cjson.encode(given[2])"
CLAIMS = st.lists(
    st.builds(Claim, st.integers(0, 3000), st.sampled_from([1, 1, 2, 3, 7, 64]), st.integers(0, 500)),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="module")
def fill(redis_url: str) -> Iterator[Any]:
    with serving(redis_url) as server:
        script = server.client.register_script(scripts._read("shares") + FILL)

        def shares(free: int, claims: list[Claim]) -> list[int]:
            given = [
                {"name": f"{at:04}", "served": 0, "wanted": c.wanted, "weight": c.weight, "held": c.held}
                for at, c in enumerate(claims)
            ]
            found = json.loads(script(args=[json.dumps([free, given])]))
            return [each["share"] for each in sorted(found, key=lambda each: each["name"])]

        yield shares


@given(st.integers(0, 5000), CLAIMS)
@settings(max_examples=300, deadline=None)
def test_the_script_shares_as_the_policy_does(fill: Any, free: int, claims: list[Claim]) -> None:
    """semantics §6: max-min by one rule, in Redis as in the policy that is simulated."""
    assert fill(free, claims) == fairness.fill(free, claims)


# -- without Redis -----------------------------------------------------------------------------------------------


class Silent:
    """A server that takes connections and never answers; it counts them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()
        for each in self.taken:
            each.close()


@pytest.fixture
def silent(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Silent, Settings]]:
    monkeypatch.setattr(scripts, "TIMEOUT_S", 0.05)
    one = Silent()
    yield one, replace(server.settings, redis_url=one.url, broker_url="memory://")
    one.close()


def test_a_silent_redis_costs_one_time_out_a_second(
    silent: tuple[Silent, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §8: nothing is granted, nothing raises, and of many calls one a second tries."""
    post, settings_ = silent
    clock = [100.0]
    monkeypatch.setattr(scripts, "monotonic", lambda: clock[0])
    gate = Gatekeeper(settings_, "one", {}.get)
    wanted = holders(3)
    assert gate.acquire(wanted) == set()
    tries = len(post.taken)
    assert tries >= 1
    for _ in range(50):
        assert gate.acquire(wanted) == set()
        assert gate.renew(wanted) is None
        assert gate.uphold() is None
        assert gate.usage() is None
        gate.insist(wanted)
        gate.release(wanted)
    assert len(post.taken) == tries
    clock[0] += scripts.AWAY_S + 0.01
    gate.release(wanted)
    gate.release(wanted)
    assert len(post.taken) == tries + 1
    gate.close()


def test_many_threads_wait_for_one_try(
    silent: tuple[Silent, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §8: while one finds out whether Redis is back, the others go on."""
    post, settings_ = silent
    clock = [100.0]
    monkeypatch.setattr(scripts, "monotonic", lambda: clock[0])
    gate = Gatekeeper(settings_, "one", {}.get)
    gate.release(holders(1))
    tries = len(post.taken)
    clock[0] += scripts.AWAY_S + 0.01
    threads = [threading.Thread(target=gate.release, args=(holders(1),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(post.taken) == tries + 1
    gate.close()


def test_a_connection_that_lay_idle_over_a_restart_is_no_failure(server: Server) -> None:
    """protocols §8: the call is repeated once on a new connection, by the same names, and changes nothing twice."""
    gate, wanted = server.gatekeeper(), holders(20)
    opened(gate)
    server.client.client_kill_filter(_type="normal", skipme=True)
    assert gate.acquire(wanted[:4]) == ids(wanted[:4])
    assert isinstance(gate._scripts, LossyScripts)
    gate._scripts.loses = 1
    assert gate.acquire(wanted) == ids(wanted[:10])


def test_it_comes_back_by_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §8: after an outage the first call that tries finds out."""
    clock = [100.0]
    monkeypatch.setattr(scripts, "monotonic", lambda: clock[0])
    gate, wanted = server.gatekeeper(), holders(1)
    opened(gate)
    assert isinstance(gate._scripts, LossyScripts)
    gate._scripts.loses = 2  # the repetition as well
    assert gate.acquire(wanted) == set()
    assert gate.acquire(wanted) == set()
    clock[0] += scripts.AWAY_S + 0.01
    assert gate.acquire(wanted) == ids(wanted)
    assert gate.acquire(wanted) == ids(wanted)


def test_what_redis_refuses_is_told_as_an_outage(server: Server) -> None:
    """protocols §8: a replica that takes no writes, a full memory: nothing is granted, and nothing raises."""
    gate = server.gatekeeper()
    server.client.set(server.keys.slots(), "no sorted set", px=10_000)
    opened_by_hand = Scripts(server.settings, SERVER)
    with pytest.raises(ServiceUnavailable) as caught:
        opened_by_hand.call(opened_by_hand.script("insist"), LEASE_MS, "w", str(uuid4()))
    assert caught.value.service == "redis"
    assert gate.renew(holders(1)) is None
    opened_by_hand.close()


@pytest.mark.parametrize("scheme", ["unix", "rediss"])
def test_other_urls_are_taken(server: Server, scheme: str) -> None:
    """protocols §8: sockets and TLS take the same time-outs; a server that is not there is an outage."""
    url = {"unix": "unix:///nowhere/redis.sock?db=1", "rediss": "rediss://127.0.0.1:1/0"}[scheme]
    gate = Gatekeeper(replace(server.settings, redis_url=url, broker_url="memory://"), "one", {}.get)
    assert gate.acquire(holders(1)) == set()
    gate.close()
