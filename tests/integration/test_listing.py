"""Lists, counts, and deleting many: what they give, what they refuse, and that their cost does not grow."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.store import session
from orchestrator.store.records import listing
from orchestrator.workflow.status import Status
from tests.integration.harness import Created, Site, eventually

pytestmark = pytest.mark.integration


async def waits(event, step):
    return (await step.wait_for_event("go", type="go")).payload


@pytest.fixture
def flow(site: Site) -> Created:
    return site.workflow(waits, name="listing_waits")


def ids(page: Any) -> list[str]:
    return [item.id for item in page.items]


def set_status(site: Site, **by_id: str) -> None:
    for name_id, status in by_id.items():
        site.sql(
            "UPDATE orchestrator_instances SET status = :status WHERE account = :account AND name_id = :name",
            status=status, account=site.settings.account, name=name_id,
        )  # fmt: skip


def all_pages(flow: Created, **options: Any) -> list[list[str]]:
    pages, cursor = [], None
    while True:
        page = flow.list(cursor=cursor, **options)
        pages.append(ids(page))
        cursor = page.cursor
        if cursor is None:
            return pages


def test_pages_give_every_instance_once_in_the_order_of_creation(flow: Created) -> None:
    """API §3, protocols §20: newest first or oldest first, page by page, ``cursor`` ``None`` at the end."""
    made = [f"i{n}" for n in range(10)]
    for name_id in made:
        flow.create(id=name_id)
    assert all_pages(flow, limit=4, newest_first=False) == [made[:4], made[4:8], made[8:]]
    assert all_pages(flow, limit=4) == [made[::-1][:4], made[::-1][4:8], made[::-1][8:]]
    assert all_pages(flow, limit=5) == [made[::-1][:5], made[::-1][5:]], "a full last page has no cursor"
    assert ids(flow.list()) == made[::-1]


def test_items_carry_what_the_list_knew(site: Site, flow: Created, monkeypatch: pytest.MonkeyPatch) -> None:
    """API §3: items are handles; ``listed`` needs no further query, verbs ask as ever."""
    site.worker()
    done, open_ = flow.create(id="done"), flow.create(id="open")
    done.send_event("go", 7)
    assert done.result(30) == 7
    first, second = flow.list(newest_first=False).items
    site.client.close()
    monkeypatch.setattr(site.client, "_engine", object())  # nothing can be asked now
    listed = first.listed
    assert (listed.status, listed.version) == (Status.COMPLETE, "1")
    assert listed.created_at <= listed.started_at <= listed.ended_at
    assert second.id == "open" and second.listed.ended_at is None
    monkeypatch.setattr(site.client, "_engine", None)
    assert first.result(5) == 7
    assert open_.listed is None


def test_one_status_or_several(site: Site, flow: Created) -> None:
    """API §3: ``status`` filters; a merge of several is in one order."""
    for n in range(9):
        flow.create(id=f"i{n}")
    by_turn = {f"i{n}": ("queued", "complete", "errored")[n % 3] for n in range(9)}
    set_status(site, **by_turn)
    assert ids(flow.list(status="complete")) == ["i7", "i4", "i1"]
    assert ids(flow.list(status=Status.QUEUED, newest_first=False)) == ["i0", "i3", "i6"]
    several = all_pages(flow, status=["complete", Status.ERRORED], limit=2)
    assert several == [["i8", "i7"], ["i5", "i4"], ["i2", "i1"]]
    assert ids(flow.list(status="paused")) == []


def test_inserts_between_pages_neither_repeat_nor_hide(flow: Created) -> None:
    """Semantics §6: listing is by cursor and consistent under inserts."""
    for n in range(6):
        flow.create(id=f"i{n}")
    page = flow.list(limit=3)
    flow.create(id="new")
    assert ids(page) + ids(flow.list(limit=3, cursor=page.cursor)) == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert ids(flow.list(limit=1)) == ["new"]


def test_accounts_and_workflows_do_not_see_each_other(site: Site, flow: Created) -> None:
    """API §3: a list is of one workflow, all versions of it."""
    other = site.workflow(waits, name="listing_other")
    second = site.workflow(waits, name="listing_waits", version="2")
    flow.create(id="one")
    second.create(id="two")
    other.create(id="elsewhere")
    assert [(i.id, i.listed.version) for i in flow.list().items] == [("two", "2"), ("one", "1")]
    assert flow.latest().id == "two"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"limit": 0}, "from 1 to 1,000"),
        ({"limit": 1001}, "from 1 to 1,000"),
        ({"limit": True}, "from 1 to 1,000"),
        ({"status": "done"}, "no status 'done'.*queued"),
        ({"status": []}, "status is empty"),
        ({"status": 5}, "no status 5;.*queued"),
        ({"status": [["queued"]]}, "no status .'queued'.;.*queued"),
        ({"cursor": "nonsense"}, "cursor of a Page"),
        ({"cursor": 7}, "cursor of a Page"),
    ],
)
def test_what_cannot_be_listed(flow: Created, options: dict[str, Any], text: str) -> None:
    """API §3: bad input gets an error that says what would do."""
    with pytest.raises(InvalidConfig, match=text):
        flow.list(**options)


def test_a_cursor_has_a_direction(flow: Created) -> None:
    """API §3: a cursor of the newest first is refused by a list of the oldest first."""
    for n in range(2):
        flow.create(id=f"i{n}")
    cursor = flow.list(limit=1).cursor
    with pytest.raises(InvalidConfig, match="other direction"):
        flow.list(limit=1, cursor=cursor, newest_first=False)


def test_counts_name_every_status(site: Site, flow: Created) -> None:
    """API §3, protocols §20: per status, 0 where there is none."""
    assert set(flow.count().values()) == {0}
    for n in range(5):
        flow.create(id=f"i{n}")
    set_status(site, i0="complete", i1="complete", i2="waiting")
    running = dict.fromkeys(Status, 0) | {Status.COMPLETE: 2, Status.WAITING: 1, Status.RUNNING: 2}
    assert flow.count() == flow.count(exact=True) == running


def planted(site: Site, many: int) -> None:
    """Instances of three statuses, and others around them; statistics as autovacuum leaves them."""
    site.sql(
        "INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, created_at, "
        "success_retention_s, error_retention_s) SELECT gen_random_uuid(), :account, w, w || n, '1', "
        "(ARRAY['complete', 'complete', 'complete', 'errored', 'waiting'])[1 + n % 5], 'infinity', now(), 60, 60 "
        "FROM unnest(ARRAY['listing_many', 'listing_noise']) AS w, generate_series(1, :many) AS n",
        account=site.settings.account, many=many,
    )  # fmt: skip

    def vacuumed() -> bool:
        with site.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(
                "VACUUM ANALYZE orchestrator_instances"
            )
        visible = site.sql(
            "SELECT relallvisible = relpages FROM pg_class WHERE relname = 'orchestrator_instances'"
        )
        return bool(visible[0][0])

    eventually(vacuumed, "that the commit is on disk, and all see the rows")


def plan(site: Site, statement: str, **parameters: Any) -> str:
    with site.engine.begin() as connection:
        rows = session.rows(
            connection,
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + statement,
            {"account": site.settings.account, "workflow": "listing_many", **parameters},
        )
    return "\n".join(row[0] for row in rows)


def test_a_page_reads_as_many_rows_as_it_gives(own_site: Site) -> None:
    """Semantics §6: as fast at two million instances as at two thousand: no scan of the table, no sort of everything;
    every row that is read comes off the index of lists in its order, a page's worth for each status."""
    planted(own_site, 10_000)
    cursor = own_site.sql(
        "SELECT id FROM orchestrator_instances WHERE workflow = 'listing_many' ORDER BY id"
    )[5000][0]
    for statuses in (tuple(sorted(Status)), ("complete",), ("complete", "errored")):
        for newest_first in (True, False):
            for beyond in (None, str(cursor)):
                text = plan(
                    own_site,
                    listing._list(statuses, beyond is not None, newest_first),
                    limit=100,
                    cursor=beyond,
                )
                assert "Seq Scan" not in text, text
                read = [
                    int(float(n))
                    for n in re.findall(r"Scan.* on orchestrator_instances.*rows=([\d.]+)", text)
                ]
                assert read and max(read) <= 100, text
                assert "Rows Removed" not in text, text


def test_counting_reads_the_index_alone(own_site: Site) -> None:
    """Protocols §20: a count reads the index of lists, not the instances."""
    planted(own_site, 10_000)
    text = plan(own_site, listing._COUNT)
    assert "Index Only Scan using orchestrator_instances_list" in text, text


# -- deleting many ---------------------------------------------------------------------------------------------


def test_each_position_of_a_batch_is_answered(flow: Created) -> None:
    """Semantics §4: ``delete_batch`` answers per id, duplicates per position; ids are free at once."""
    for name_id in ("a", "b", "c"):
        flow.create(id=name_id)
    result = flow.delete_batch(["a", "nobody", "b", "a", "not an id!\n", 7])
    assert result.deleted == ["a", "b"]
    assert [(e.index, e.id, e.code) for e in result.errors] == [
        (1, "nobody", "instance_not_found"),
        (3, "a", "instance_not_found"),
        (4, "not an id!\n", "invalid_instance_id"),
        (5, "7", "invalid_instance_id"),
    ]
    assert ids(flow.list()) == ["c"]
    assert flow.create(id="a").status().status is Status.RUNNING
    assert flow.delete_batch([]).deleted == []
    with pytest.raises(InvalidConfig, match="at most 1,000"):
        flow.delete_batch([f"i{n}" for n in range(1001)])


def test_whoever_waits_for_what_is_deleted_is_told(site: Site, flow: Created) -> None:
    """API §3: ``result()`` of an instance that goes raises InstanceNotFound; nothing waits for ever."""
    instance = flow.create(id="gone")

    async def wait() -> None:
        waiting = asyncio.ensure_future(instance.aresult(30))
        await asyncio.sleep(0)
        await flow.adelete_batch(["gone"], orchestrator=site.client)
        with pytest.raises(InstanceNotFound):
            await waiting

    asyncio.run(wait())


def test_deleting_all_of_a_workflow(site: Site, flow: Created) -> None:
    """CLI ``workflows delete``: every instance, of every version, and the registration; other workflows stay."""
    other = site.workflow(waits, name="listing_kept")
    second = site.workflow(waits, name="listing_waits", version="2")
    site.worker()
    for n in range(250):
        flow.create(id=f"i{n}")
    second.create(id="second")
    other.create(id="kept")

    def registered() -> set[str]:
        rows = site.sql(
            "SELECT name FROM orchestrator_workflows WHERE account = :account", account=site.settings.account
        )
        return {row[0] for row in rows}

    def left() -> set[tuple[str, Any]]:
        """Rows whose instance is gone; other tests of this database may have left some."""
        return {
            (table, row[0])
            for table in ("steps", "payloads", "transitions")
            for row in site.sql(
                f"SELECT instance_id FROM orchestrator_{table} t WHERE NOT EXISTS "
                "(SELECT 1 FROM orchestrator_instances i WHERE i.id = t.instance_id)"
            )
        }

    assert "listing_waits" in registered()
    before = left()
    assert flow.delete_all() == 251
    assert flow.list().items == []
    assert ids(other.list()) == ["kept"]
    assert registered() == {"listing_kept"}
    with pytest.raises(InstanceNotFound, match="has no instances"):
        flow.latest()
    assert left() == before


# -- versions --------------------------------------------------------------------------------------------------


@workflow(name="listing_typed", version="1")
async def typed_one(event, step) -> int:
    return 1


@workflow(name="listing_typed", version="2")
async def typed_two(event, step) -> set[int]:
    return {1, 2}


def test_an_instance_is_read_by_the_code_of_its_own_version(site: Site) -> None:
    """API §1: an instance keeps its version; whatever version asks, its output is of its own version's type."""
    for each in (typed_one, typed_two):
        site.registry.register(each.definition)
    site.worker()
    typed_two.create(id="two", orchestrator=site.client)
    found = typed_one.get("two", orchestrator=site.client)
    assert found.result(30) == {1, 2}
    assert found.status().output == {1, 2}
    (listed,) = typed_one.list(orchestrator=site.client).items
    assert listed.result(5) == {1, 2}


def test_the_async_twins(site: Site, flow: Created) -> None:
    """API §3: each verb has an async twin with the prefix ``a``."""

    async def use() -> None:
        await flow.acreate(id="one", orchestrator=site.client)
        await flow.acreate(id="two", orchestrator=site.client)
        page = await flow.alist(limit=1, orchestrator=site.client)
        assert ids(page) == ["two"]
        assert (await flow.alatest(orchestrator=site.client)).id == "two"
        assert sum((await flow.acount(orchestrator=site.client)).values()) == 2
        assert (await flow.adelete_batch(["one"], orchestrator=site.client)).deleted == ["one"]
        assert await flow.adelete_all(orchestrator=site.client) == 1

    asyncio.run(use())
