"""The duty that looks after leases: what the rows say, against what Redis holds. Its time is the test's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from orchestrator.control import leases
from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.leases import Leases
from orchestrator.ports import Holder, new_ids
from orchestrator.store.control import holders
from orchestrator.workflow.status import HOLDS_SLOT, Status
from tests.integration.gatekeepers import SERVER, LossyScripts, Server, serving
from tests.integration.harness import START, Site

pytestmark = pytest.mark.integration

_PLANT = """
INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, created_at,
  success_retention_s, error_retention_s)
SELECT id, :account, :workflow, id::text, '1', :status, 'infinity', now(), 60, 60
FROM unnest(CAST(:ids AS uuid[])) AS i(id)
"""


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    with serving(redis_url, max_concurrency=100) as one:
        yield one


def plant(site: Site, status: str, count: int = 1, workflow: str = "w") -> list[UUID]:
    """Rows of instances in this status."""
    ids = new_ids(START, count)
    account = site.settings.account
    site.sql(_PLANT, account=account, workflow=workflow, status=status, ids=[str(each) for each in ids])
    return ids


def turn(site: Site, ids: Sequence[UUID], status: str) -> None:
    site.sql("UPDATE orchestrator_instances SET status = :s WHERE id = ANY(:ids)", s=status, ids=list(ids))


def duty(site: Site, server: Server, name: str = "one", **more: Any) -> Leases:
    return Leases(site.engine, site.settings.account, server.gatekeeper(name), **more)


def texts(ids: Sequence[UUID]) -> set[str]:
    return {str(each) for each in ids}


def pass_time(server: Server, *duties: Leases, seconds: int) -> None:
    """Cycles of a second each."""
    for _ in range(seconds):
        server.advance(1000)
        for each in duties:
            each.cycle(server.now / 1000, ["w@1"])


def test_the_first_worker_writes_the_leases_of_all_that_run(site: Site, server: Server) -> None:
    """protocols §8: slots are granted once one process has written the leases of all rows that hold a slot."""
    running = [
        *plant(site, "running", 5),
        *plant(site, "rolling_back"),
        *plant(site, "waiting_for_pause", 1, "x"),
    ]
    for status in set(Status) - HOLDS_SLOT:
        plant(site, status)
    told: list[float] = []
    one = duty(site, server, lost=told.append)
    assert server.gatekeeper("two").acquire([Holder(running[0], "w")]) == set()
    one.cycle(START, ["w@1"])
    assert server.held() == texts(running)
    assert server.held("x") == texts(running[-1:])
    assert server.gatekeeper("two").acquire([Holder(each, "w") for each in new_ids(START, 95)]) != set()
    assert told == [], "nothing was lost: it was never there"


def test_leases_stay_as_long_as_their_instances_run(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §8: renewed every 10 s, page by page; what has ended and gave nothing back is free after 30 s."""
    monkeypatch.setattr(leases, "PAGE", 7)
    running = [*plant(site, "running", 40), *plant(site, "rolling_back", 3), *plant(site, "running", 5, "x")]
    one = duty(site, server)
    pass_time(server, one, seconds=1)
    turn(site, running[:2], "complete")  # by a worker that died then
    pass_time(server, one, seconds=65)
    assert server.held() == texts(running[2:])
    assert server.client.get(server.keys.ready) is not None


def test_a_lost_lease_is_put_back_and_others_are_not(site: Site, server: Server) -> None:
    """protocols §8: the set heals itself."""
    running, ended = plant(site, "running", 30), plant(site, "complete", 5)
    one = duty(site, server)
    pass_time(server, one, seconds=1)
    gate = server.gatekeeper("two")
    gate.release([Holder(each, "w") for each in (*running[:4], *ended)])
    pass_time(server, one, seconds=12)
    assert server.held() == server.held("w") == texts(running)


def test_a_slot_given_back_while_it_is_put_back_stays_free(site: Site, server: Server) -> None:
    """protocols §8: what ended between the look at its row and the lease that is put back has no lease in the end."""
    running = plant(site, "running", 3)
    one = duty(site, server)
    pass_time(server, one, seconds=1)
    gate = server.gatekeeper("two")
    gate.release([Holder(each, "w") for each in running])
    restore = one._gatekeeper.restore

    def ends_meanwhile(some: Sequence[Holder]) -> str | None:
        turn(site, running[:1], "complete")
        gate.release([Holder(running[0], "w")])
        return restore(some)

    one._gatekeeper.restore = ends_meanwhile  # type: ignore[method-assign]
    pass_time(server, one, seconds=12)
    assert server.held() == server.held("w") == texts(running[1:])


def test_rows_that_change_while_leases_are_rebuilt(site: Site, server: Server) -> None:
    """protocols §8: all rows are read twice: what ended in between loses its lease, what began gets one."""
    running, waiting = plant(site, "running", 4), plant(site, "waiting", 2)
    one, changes = duty(site, server), [True]
    restore = one._gatekeeper.restore

    def changes_meanwhile(some: Sequence[Holder]) -> str | None:
        if changes and changes.pop():
            turn(site, running[:1], "errored")
            turn(site, waiting[:1], "rolling_back")
        return restore(some)

    one._gatekeeper.restore = changes_meanwhile  # type: ignore[method-assign]
    one.cycle(START, ["w@1"])
    assert server.held() == texts([*running[1:], waiting[0]])


def test_a_loss_that_cannot_be_told_at_once_is_told_later(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §8: after a loss hand-outs are looked at, also where Redis was lost once more while leases were
    rebuilt, or Postgres went away before all hand-outs were looked at."""
    plant(site, "running", 4)
    told: list[float] = []

    def lost(now: float) -> None:
        told.append(now)
        if len(told) == 1:
            raise ConnectionError("Postgres went away")

    one = duty(site, server, lost=lost)
    pass_time(server, one, seconds=1)
    server.wipe()
    with monkeypatch.context() as patched:
        patched.setattr(one._gatekeeper, "open", lambda *_: False)
        pass_time(server, one, seconds=1)
    with pytest.raises(ConnectionError):
        pass_time(server, one, seconds=1)
    assert len(told) == 1
    pass_time(server, one, seconds=3)
    assert len(told) == 2


@pytest.mark.parametrize("blow", ["wipe", "restart", "failover"])
def test_a_loss_is_seen_told_once_and_made_good(site: Site, server: Server, blow: str) -> None:
    """protocols §8: a wipe, a restart with an old snapshot and another server all mean: nothing is granted until the
    leases are rebuilt; then one process is told, and what operators set is there before."""
    running, order = plant(site, "running", 4), []
    workers = [
        duty(
            site,
            server,
            name,
            lost=lambda now: order.append("told"),
            prepare=lambda: order.append("prepared"),
        )
        for name in ("one", "two")
    ]
    pass_time(server, *workers, seconds=3)
    assert order == ["prepared"]
    snapshot, gate = server.saved(), server.gatekeeper("three")
    granted = [Holder(each, "w") for each in new_ids(START, 10)]
    assert len(gate.acquire(granted)) == 10, "granted after the snapshot"
    turn(site, running[:2], "complete")
    if blow == "wipe":
        server.wipe()
    elif blow == "restart":
        server.load(snapshot)
    else:
        server.restart()
    assert gate.acquire([Holder(each, "w") for each in new_ids(START, 1)]) == set()
    pass_time(server, *workers, seconds=3)
    assert order == ["prepared", "prepared", "told"]
    assert server.held() == texts(running[2:]), "those of rows, none of a snapshot"


def test_leases_that_were_evicted_are_all_written_anew(
    site: Site, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §8: Redis may lose a part of what it holds: when most are missing, all are written anew."""
    monkeypatch.setattr(leases, "MANY", 10)
    running, prepared = plant(site, "running", 40), []
    one = duty(site, server, prepare=lambda: prepared.append(True))
    pass_time(server, one, seconds=1)
    server.client.delete(server.keys.slots())
    pass_time(server, one, seconds=12)
    assert len(prepared) == 2
    assert server.held() == server.held("w") == texts(running)


def test_one_worker_renews_and_another_takes_over(site: Site, server: Server) -> None:
    """protocols §8: while one dies and another is cut off from Postgres, leases stay."""
    running = plant(site, "running", 10)
    dies, fails, lives = (duty(site, server, name) for name in ("dies", "fails", "lives"))
    pass_time(server, dies, fails, lives, seconds=2)
    pages: list[int] = []
    page = holders.page

    class Away:
        def begin(self) -> Any:
            raise ConnectionError("Postgres is away, for this one")

    fails._engine = Away()  # type: ignore[assignment]
    for _ in range(40):
        server.advance(1000)
        try:
            fails.cycle(server.now / 1000, ["w@1"])
        except ConnectionError:
            pages.append(server.now)
        lives.cycle(server.now / 1000, ["w@1"])
    assert page is holders.page
    assert server.held() == texts(running)
    assert 0 < len(pages) <= 4, "who failed leaves it to others for a while"


def test_slots_are_not_granted_when_nobody_could_renew_leases(site: Site, server: Server) -> None:
    """protocols §8: Postgres was away for longer than a lease, Redis was not: what runs has no lease any more, and
    nobody gets its slot."""
    running = plant(site, "running", 100)
    one = duty(site, server)
    pass_time(server, one, seconds=2)
    for _ in range(40):  # its rounds fail
        server.advance(1000)
        one._gatekeeper.uphold()
    gate, others = server.gatekeeper("two"), [Holder(each, "w") for each in new_ids(START, 5)]
    assert server.held() == set()
    assert gate.acquire(others) == set()
    pass_time(server, one, seconds=1)
    assert server.held() == texts(running)
    assert gate.acquire(others) == set()


def test_one_process_rebuilds_at_a_time(site: Site, server: Server) -> None:
    """protocols §8: under an advisory lock; whoever does not get it grants nothing and comes again."""
    running = plant(site, "running", 3)
    one = duty(site, server)
    with site.engine.begin() as connection:
        assert holders.may_rebuild(connection, site.settings.account)
        assert not one.rebuild()
        assert server.held() == set()
    assert one.rebuild()
    assert server.held() == texts(running)


def test_redis_that_goes_away_amid_a_rebuild_is_not_opened(site: Site, server: Server) -> None:
    """protocols §8: half-written leases grant nothing."""
    plant(site, "running", 3)
    scripts = LossyScripts(server.settings, SERVER)
    gate = Gatekeeper(server.settings, "one", {}.get, scripts)
    one = Leases(site.engine, site.settings.account, gate)
    restore = gate.restore

    def breaks(some: Sequence[Holder]) -> str | None:
        scripts.loses = 2
        return restore(some)

    gate.restore = breaks  # type: ignore[method-assign]
    assert not one.rebuild()
    assert server.client.get(server.keys.ready) is None
    scripts.close()


def test_pages_come_to_every_holder_once(site: Site) -> None:
    """protocols §8: leases are renewed in bulk: pages over workflows and statuses miss nobody and repeat nobody."""
    expected = {
        Holder(each, workflow)
        for workflow, status, count in [
            ("a", "running", 7),
            ("a", "rolling_back", 2),
            ("c", "waiting_for_pause", 5),
        ]
        for each in plant(site, status, count, workflow)
    }
    plant(site, "complete", 50, "b")
    plant(site, "queued", 20, "a")
    account, found = site.settings.account, []
    with site.engine.begin() as connection:
        names = holders.workflows(connection, account)
        assert names == ["a", "b", "c"]
        left = holders.stretches(names)
        while left:
            page, left = holders.page(connection, account, left, 3)
            assert len(page) <= 3
            found += page
        assert holders.page(connection, account, [], 3) == ([], [])
        assert holders.still(connection, [each.instance for each in found[:3]]) == {
            e.instance for e in found[:3]
        }
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_ended_instances_are_not_read(own_site: Site) -> None:
    """semantics §6: the pages that renew leases read an index of what runs, however much has ended."""
    plant(own_site, "complete", 20_000)
    running = plant(own_site, "running", 50)
    own_site.sql("ANALYZE orchestrator_instances")
    account = own_site.settings.account
    with own_site.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '5s'")
        page, left = holders.page(connection, account, holders.stretches(["w"]), 2000)
        assert ({holder.instance for holder in page}, left) == (set(running), [])
        one = {"workflow": "w", "status": "running", "after": UUID(int=0), "limit": 2000}
        for statement, more in ((holders._WORKFLOWS, {}), (holders._PAGE, one)):
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", {"account": account, **more}
            ).scalar_one()
            assert "orchestrator_instances_list" in str(plan), plan
            assert "Seq Scan" not in str(plan)
            assert _rows_read(plan[0]["Plan"]) < 200, plan


def _rows_read(node: dict[str, Any]) -> int:
    own = node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
    return max([int(own), *(_rows_read(each) for each in node.get("Plans", []))])
