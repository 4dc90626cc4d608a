"""Waiting for results: by the thousand, in threads and on a loop, with and without news, until closed or forked."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from orchestrator import (
    InstanceNotFound,
    InvalidTransition,
    ServiceUnavailable,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.client import waiters as module
from orchestrator.client.instance import AT_HAND, WorkflowInstance
from orchestrator.client.lanes import Lanes
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.dev.process import free_port
from orchestrator.dispatch.news import PER_MESSAGE, News, Subscription
from orchestrator.store.instances import Result
from tests.chaos.proxy import Proxy
from tests.integration.harness import Client, Post, Site, eventually

pytestmark = pytest.mark.integration


class Counting(Client):
    """A client that counts what it asks Postgres: rows by name one by one, and questions for many."""

    def __init__(self, site: Site, **settings: Any) -> None:
        super().__init__(replace(site.settings, **settings), Post())
        self.questions: list[int] = []

    def _ended(self, lanes: Lanes, instances: Any) -> dict[str, Result | None]:
        self.questions.append(len(instances))
        return super()._ended(lanes, instances)


@pytest.fixture
def client(site: Site) -> Iterator[Counting]:
    with Counting(site) as one:
        yield one


async def flow(event, step): ...


def listening(client: Orchestrator) -> None:
    """Wait until the client hears all news."""
    eventually(lambda: client.waiters._heard_since < float("inf"), "listening")


def stand(site: Site, client: Orchestrator) -> Any:
    """Have the client listen: as it does once somebody has waited. Returns an instance that does not end."""
    endless = site.workflow(flow, name="endless").create(orchestrator=client)
    with pytest.raises(TimeoutError):
        endless.result(0)
    listening(client)
    return endless


def end(site: Site, *names: str, output: str = "7", status: str = "complete", news: bool = True) -> None:
    """End these instances as a turn does, all in one transaction; then tell it, or do not."""
    ids = [
        row[0]
        for row in site.sql(
            "WITH i AS (UPDATE orchestrator_instances SET status = :status WHERE account = :account "
            "AND name_id = ANY(:names) RETURNING id) UPDATE orchestrator_payloads p SET output = :output FROM i "
            "WHERE p.instance_id = i.id RETURNING i.id",
            status=status,
            account=site.settings.account,
            names=list(names),
            output=output,
        )
    ]
    assert len(ids) == len(names)
    if news:
        site.client.news.announce(ids)


def waiting(client: Orchestrator) -> int:
    return sum(map(len, client.waiters._table.values()))


def in_thread(verb: Callable[[], Any]) -> Any:
    """The verb under way in a thread; ask what came back for its ``result()``."""
    pool = ThreadPoolExecutor(1)
    coming = pool.submit(verb)
    pool.shutdown(wait=False)
    return coming


def watchers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "orchestrator-waiters"]


# -- many at once ------------------------------------------------------------------------------------------


def test_a_thousand_on_one_loop_share_the_questions(site: Site, client: Counting) -> None:
    """protocols §20: news name many; one question answers all of them, and none needs a look at its row before."""
    stand(site, client)
    created = site.workflow(flow).create_batch(count=1000, orchestrator=client).created
    client.questions.clear()

    async def go() -> list[Any]:
        coming = [asyncio.create_task(one.aresult(60)) for one in created]
        while waiting(client) < len(created):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(end, site, *(one.id for one in created))
        return await asyncio.gather(*coming)

    assert asyncio.run(go()) == [7] * 1000
    polls = [size for size in client.questions if size >= 1000]
    told = [size for size in client.questions if size < 1000]
    assert len(told) <= 2 * (1000 // PER_MESSAGE), "one question for each message at most"
    assert polls or sum(told) >= 1000
    assert waiting(client) == 0


@pytest.mark.parametrize("how", ["aresult", "asubscribe"])
def test_the_first_to_wait_on_a_loop_loads_nothing_there(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """api §3: async twins leave the caller's loop free. What the first one needs (libraries, a pool) is made in a
    thread: it held the loop for a third of a second."""
    site.workflow(flow, name="first-on-a-loop").create(id="a")
    makers: list[threading.Thread] = []
    stock = News.__init__

    def init(self: News, settings: Any) -> None:
        makers.append(threading.current_thread())
        stock(self, settings)

    monkeypatch.setattr(News, "__init__", init)
    with Orchestrator(site.settings) as fresh:
        instance = WorkflowInstance(site.workflow(flow, name="first-on-a-loop").definition, "a", fresh)

        async def wait() -> None:
            if how == "aresult":
                with pytest.raises(TimeoutError):
                    await instance.aresult(0)
            else:
                events = instance.asubscribe()
                await anext(events)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(events), 0.2)

        asyncio.run(wait())
    assert makers
    assert threading.main_thread() not in makers


def test_instances_that_were_there_before_are_asked_for_together(site: Site, client: Counting) -> None:
    """protocols §20: what ended before anybody listened is found at once, many in one question."""
    created = site.workflow(flow).create_batch(count=300, orchestrator=client).created
    end(site, *(one.id for one in created), news=False)

    async def go() -> list[Any]:
        return await asyncio.gather(*(one.aresult(60) for one in created))

    assert asyncio.run(go()) == [7] * 300
    assert len(client.questions) <= 60, "most of them shared a question"


def test_many_threads_wait_for_many_and_for_the_same(site: Site, client: Counting) -> None:
    """api §3: the client is safe for threads; several may wait for one instance."""
    stand(site, client)
    flows = site.workflow(flow)
    created = flows.create_batch([{"id": f"i{n}"} for n in range(40)], orchestrator=client).created
    again = [flows.get(one.id, orchestrator=client) for one in created]
    with ThreadPoolExecutor(80) as pool:
        coming = [pool.submit(one.result, 60) for one in (*created, *again)]
        eventually(lambda: waiting(client) == 80)
        assert len(watchers()) == 1, "one thread for all"
        end(site, *(f"i{n}" for n in range(40)))
        assert [one.result() for one in coming] == [7] * 80


def test_results_of_real_instances_good_and_bad(site: Site) -> None:
    """api §3: each waiter gets its own value or error, with what it says about compensation."""

    async def some(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: None)
        if event.payload % 3 == 1:
            raise LookupError(f"no {event.payload}")
        if event.payload % 3 == 2:
            await step.wait_for_event("never", type="never")
        return event.payload

    site.worker()
    entries = [{"params": n} for n in range(60)]
    created = site.workflow(some).create_batch(entries).created

    async def go() -> list[Any]:
        coming = [asyncio.create_task(one.aresult(60)) for one in created]
        for one in created[2::3]:
            await one.aterminate()
        return await asyncio.gather(*coming, return_exceptions=True)

    for n, got in enumerate(asyncio.run(go())):
        if n % 3 == 1:
            assert isinstance(got, WorkflowFailed)
            assert (got.error.name, got.error.message) == ("LookupError", f"no {n}")
            assert got.rollback is not None
        else:
            assert isinstance(got, WorkflowTerminated) if n % 3 else got == n


# -- what is asked, and what is not ------------------------------------------------------------------------


def test_a_fresh_instance_is_not_looked_at_before_there_are_news(
    site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §20: who has heard everything since it was created knows that it has not ended."""
    stand(site, client)
    created = site.workflow(flow).create(orchestrator=client)
    looks: list[str] = []
    find = type(created)._find
    monkeypatch.setattr(type(created), "_find", lambda self: (looks.append(self.id), find(self))[1])
    coming = in_thread(lambda: created.result(60))
    eventually(lambda: waiting(client) == 1)
    end(site, created.id)
    assert coming.result(30) == 7
    assert looks == []
    assert created.result(60) == 7, "of one that has ended, the row is read"
    assert looks == [created.id]


def test_news_before_anybody_waits_are_not_lost(
    site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocols §20: what was heard earlier is remembered, so the row is read at once; this must not take a poll."""
    monkeypatch.setattr(module, "POLL_S", 30.0)
    stand(site, client)
    created = site.workflow(flow).create(orchestrator=client)
    end(site, created.id)
    eventually(lambda: not client.waiters.is_unfinished(*created._seen))
    client.questions.clear()
    assert created.result(60) == 7
    assert client.questions == [], "the poll had no part in it"


def test_more_news_than_are_remembered(site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is not taken for silence."""
    monkeypatch.setattr(module, "REMEMBERED", 10)
    stand(site, client)
    created = site.workflow(flow).create(orchestrator=client)
    others = [one.id for one in site.workflow(flow).create_batch(count=30, orchestrator=client).created]
    end(site, created.id)
    for at in range(0, 30, 10):
        end(site, *others[at : at + 10])
        eventually(lambda at=at: others[at] in client.waiters._young | client.waiters._old)
    assert created.id not in client.waiters._young | client.waiters._old
    assert len(client.waiters._young | client.waiters._old) <= 30
    assert not client.waiters.is_unfinished(*created._seen)
    assert created.result(60) == 7


def test_without_news_the_poll_finds_it(site: Site, client: Counting) -> None:
    """protocols §20: the message is a hint; Postgres is asked each second, for all who wait, in one question."""
    stand(site, client)
    created = site.workflow(flow).create_batch(count=50, orchestrator=client).created
    with ThreadPoolExecutor(50) as pool:
        coming = [pool.submit(one.result, 60) for one in created]
        eventually(lambda: waiting(client) == 50)
        client.questions.clear()
        end(site, *(one.id for one in created), news=False)
        assert [one.result() for one in coming] == [7] * 50
    assert 50 in client.questions


def test_at_the_deadline_the_row_is_read_once_more(site: Site, client: Counting) -> None:
    """api §3: ``TimeoutError`` says where the instance stands; one that ended unheard is not late."""
    endless = stand(site, client)
    for wait in (endless.result, lambda timeout: asyncio.run(endless.aresult(timeout))):
        for timeout, said in ((0.05, "0.05"), (0, "0"), (-1, "-1")):
            with pytest.raises(TimeoutError, match=f"is still running after {said} seconds"):
                wait(timeout)
    assert waiting(client) == 0
    one, other = site.workflow(flow).create_batch(count=2, orchestrator=client).created
    end(site, one.id, other.id, news=False)
    assert one.result(0) == 7
    assert asyncio.run(other.aresult(0)) == 7
    with pytest.raises(TimeoutError):
        in_thread(lambda: endless.result(1e-3)).result(30)
    forever = in_thread(lambda: endless.result(float("inf")))
    eventually(lambda: waiting(client) == 1)
    end(site, endless.id)
    assert forever.result(30) == 7


def test_an_instance_that_goes_while_it_is_waited_for(site: Site, client: Counting) -> None:
    """api §3: deleted, it is not found; another of its name is another instance, and answers."""
    stand(site, client)
    flows = site.workflow(flow)
    gone, replaced = flows.create(id="gone", orchestrator=client), flows.create(id="new", orchestrator=client)
    with ThreadPoolExecutor(2) as pool:
        coming = [pool.submit(one.result, 60) for one in (gone, replaced)]
        eventually(lambda: waiting(client) == 2)
        ids = {name: site.id_of(name) for name in ("gone", "new")}
        with site.engine.begin() as connection:
            for table, key in (("instances", "id"), ("payloads", "instance_id")):
                for uuid in ids.values():
                    connection.exec_driver_sql(f"DELETE FROM orchestrator_{table} WHERE {key} = %s", (uuid,))
            flows.create(id="new", connection=connection)
        with pytest.raises(InstanceNotFound, match="gone"):
            coming[0].result(30)
        end(site, "new")
        assert coming[1].result(30) == 7


def test_a_cancelled_waiter_is_forgotten(site: Site, client: Counting) -> None:
    """Whoever gives up leaves nothing behind, and a long output does not stop the loop."""
    endless = stand(site, client)

    async def go() -> Any:
        task = asyncio.create_task(endless.aresult())
        while not waiting(client):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting(client) == 0
        coming = asyncio.create_task(endless.aresult(60))
        await asyncio.to_thread(end, site, endless.id, output=f'"{"x" * AT_HAND}"')
        return await coming

    assert asyncio.run(go()) == "x" * AT_HAND


# -- the thread --------------------------------------------------------------------------------------------


def test_closing_tells_those_who_wait(site: Site) -> None:
    """api §4: the wait ends with an error that says so; the thread ends; the next call opens everything anew."""
    client = Counting(site)
    created = site.workflow(flow).create(orchestrator=client)
    thread = in_thread(lambda: created.result(60))

    async def go() -> Any:
        task = asyncio.create_task(created.aresult(60))
        while waiting(client) < 2:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(client.close)
        with pytest.raises(ServiceUnavailable, match="closed"):
            await task

    asyncio.run(go())
    with pytest.raises(ServiceUnavailable, match="The instance goes on"):
        thread.result(30)
    assert watchers() == []
    again = in_thread(lambda: created.result(60))
    eventually(lambda: waiting(client) == 1)
    end(site, created.id)
    assert again.result(30) == 7
    client.close()
    assert watchers() == []


def test_a_question_that_outlives_the_client(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """api §4: what is closed stays closed. The question under way ends, gives its connection back, and is the last."""
    monkeypatch.setattr(module, "PER_QUESTION", 1)
    monkeypatch.setattr(module, "POLL_S", 0.1)
    begun: list[Any] = []
    go_on = threading.Event()

    class Slow(Counting):
        def _ended(self, lanes: Lanes, instances: Any) -> dict[str, Result | None]:
            begun.append(instances)
            assert go_on.wait(60)
            return super()._ended(lanes, instances)

    client = Slow(site)
    created = site.workflow(flow).create_batch(count=3, orchestrator=client).created
    engine = client.engine

    async def go() -> list[Any]:
        coming = [asyncio.create_task(one.aresult(60)) for one in created]
        while waiting(client) < 3 or not begun:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(client.close)
        told = await asyncio.gather(*coming, return_exceptions=True)
        begun.append("closed")
        go_on.set()
        return told

    assert [type(error) for error in asyncio.run(go())] == [ServiceUnavailable] * 3
    eventually(lambda: not watchers(), "the end of the thread")
    assert begun[-1] == "closed", "nothing more was asked"
    assert (client._engine, client._lanes) == (None, None)
    assert (engine.pool.checkedin(), engine.pool.checkedout()) == (0, 0)  # type: ignore[attr-defined]


def test_with_nobody_waiting_the_thread_ends(
    site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waited once does not listen for ever; who comes later starts a new thread."""
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(module, "IDLE_S", 0.1)
    endless = stand(site, client)
    eventually(lambda: not watchers(), "the end of the thread")
    assert not client.waiters.is_unfinished(*endless._seen), "nobody listens, so nothing is known"
    coming = in_thread(lambda: endless.result(60))
    eventually(lambda: len(watchers()) == 1)
    listening(client)
    end(site, endless.id)
    assert coming.result(30) == 7


def test_a_failure_of_the_thread_is_told_to_those_who_wait(
    site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a thread that is gone: they get its error, and the next one starts another."""
    endless = stand(site, client)
    coming = in_thread(lambda: endless.result(60))
    eventually(lambda: waiting(client) == 1)
    with monkeypatch.context() as patch:
        patch.setattr(Subscription, "heard", lambda self, timeout: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            coming.result(30)
        eventually(lambda: not watchers())
    again = in_thread(lambda: endless.result(60))
    eventually(lambda: waiting(client) == 1)
    end(site, endless.id)
    assert again.result(30) == 7


def test_a_thread_that_cannot_start(site: Site, client: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needed it is told; the next one to wait has it started."""
    created = site.workflow(flow).create(orchestrator=client)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "orchestrator-waiters":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            created.result(60)
    assert waiting(client) == 0
    coming = in_thread(lambda: created.result(60))
    eventually(lambda: waiting(client) == 1)
    end(site, created.id)
    assert coming.result(30) == 7


FORKING = """
import os, sys, threading
from orchestrator import Orchestrator, Settings, workflow

@workflow
async def flow(event, step): ...

orchestrator = Orchestrator(Settings.from_env())
mine = flow.create(id="parent", orchestrator=orchestrator)
got = []
thread = threading.Thread(target=lambda: got.append(mine.result(60)))
thread.start()
while orchestrator.waiters._heard_since == float("inf"):
    pass
read, write = os.pipe()
child = os.fork()
if child == 0:
    theirs = flow.create(id="child", orchestrator=orchestrator)
    os.write(write, b"%r %r" % (theirs.result(60), flow.get("parent", orchestrator=orchestrator).result(60)))
    os._exit(0)
os.waitpid(child, 0)
thread.join()
flow.create(id="after", orchestrator=orchestrator)
print(got[0], os.read(read, 100).decode())
"""


FORKING_WHILE_LOCKED = """
import os, signal
from orchestrator import Settings, configure
from orchestrator.client import orchestrator as module

with module._default_lock:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if configure(Settings.from_env()) is module.current() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def environment(site: Site) -> dict[str, str]:
    settings = site.settings
    return dict(
        os.environ,
        ORCHESTRATOR_DATABASE_URL=settings.database_url,
        ORCHESTRATOR_REDIS_URL=settings.redis_url,
        ORCHESTRATOR_ACCOUNT=settings.account,
        ORCHESTRATOR_QUEUE=settings.queue,
    )


@forks
def test_a_child_forked_while_the_default_was_being_set(site: Site) -> None:
    """The parent's thread that held the lock is not in the child to release it."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING_WHILE_LOCKED],
        env=environment(site),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@forks
def test_a_forked_child_has_connections_of_its_own(site: Site) -> None:
    """A prefork server forks after it has waited: both sides go on, neither on the other's connections."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        env=environment(site),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        names = "SELECT name_id FROM orchestrator_instances WHERE account = :account"
        eventually(lambda: len(site.sql(names, account=site.settings.account)) == 2, "both instances", 60)
        end(site, "parent", "child")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "7 7 7\n"), err
    assert err == ""


# -- services that are away --------------------------------------------------------------------------------


def through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{proxy.port}"))


def to(url: str) -> Proxy:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy((parts.hostname, parts.port))


def refuse(proxy: Proxy) -> tuple[str, int]:
    """The server is gone: connections break, new ones are refused. Returns where it was."""
    there, proxy._target = proxy._target, ("127.0.0.1", free_port())
    proxy.cut()
    return there


def test_redis_lost_while_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §20: then the poll answers; when Redis is back, news are heard again, and nothing is taken for known
    that was announced meanwhile."""
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    with to(site.settings.redis_url) as proxy:
        url = through(site.settings.redis_url, proxy)
        with Counting(site, redis_url=url, broker_url=url) as client:
            stand(site, client)
            created = site.workflow(flow).create_batch(count=3, orchestrator=client).created
            first = in_thread(lambda: created[0].result(60))
            eventually(lambda: waiting(client) == 1)
            proxy.blackhole()
            proxy.cut()
            eventually(lambda: client.waiters._heard_since == float("inf"), "noticing")
            end(site, created[0].id, created[1].id)
            assert first.result(30) == 7
            assert created[1].result(30) == 7
            proxy.heal()
            listening(client)
            second = in_thread(lambda: created[2].result(60))
            eventually(lambda: waiting(client) == 1)
            end(site, created[2].id)
            assert second.result(30) == 7


def test_redis_that_is_gone_for_good(site: Site) -> None:
    """protocols §20: without Redis results are found by polling, and closing is not held up."""
    with to(site.settings.redis_url) as proxy:
        url = through(site.settings.redis_url, proxy)
        client = Counting(site, redis_url=url, broker_url=url)
        stand(site, client)
        refuse(proxy)
        created = site.workflow(flow).create(orchestrator=client)
        assert client.waiters._news.subscribe() is None
        coming = in_thread(lambda: created.result(60))
        eventually(lambda: waiting(client) == 1)
        end(site, created.id)
        assert coming.result(30) == 7
        client.close()
        assert watchers() == []


def test_postgres_lost_while_waiting(site: Site) -> None:
    """semantics §6: everybody who waits is told, each by an error of their own; afterwards all is well again."""
    with (
        to(site.settings.database_url) as proxy,
        Counting(site, database_url=through(site.settings.database_url, proxy)) as client,
    ):
        stand(site, client)
        created = site.workflow(flow).create_batch(count=20, orchestrator=client).created
        with ThreadPoolExecutor(20) as pool:
            coming = [pool.submit(one.result, 60) for one in created]
            eventually(lambda: waiting(client) == 20)
            there, proxy._target = (
                proxy._target,
                ("127.0.0.1", free_port()),
            )  # whoever connects now is refused
            proxy.cut()
            errors = [one.exception(30) for one in coming]
        assert {type(error) for error in errors} == {ServiceUnavailable}
        assert {error.service for error in errors if isinstance(error, ServiceUnavailable)} == {"postgres"}
        assert len({id(error) for error in errors}) == 20
        proxy._target = there
        end(site, created[0].id)
        assert created[0].result(30) == 7


def test_connections_that_the_server_closed_meanwhile_are_noticed(site: Site, client: Counting) -> None:
    """No verb fails for a connection that was lost while it was idle, and none asks first whether it lives."""
    flows = site.workflow(flow)
    created = flows.create(orchestrator=client)
    for verb in (
        lambda: flows.create(orchestrator=client),
        lambda: created.send_event("go"),
        created.status,
        created.terminate,
    ):
        idle = list(client.lanes._idle)
        assert idle
        for _, driver in idle:
            site.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=driver.info.backend_pid)
        verb()
    with pytest.raises(WorkflowTerminated):
        created.result(30)


def test_a_refusal_costs_no_connection(site: Site, client: Counting) -> None:
    """Errors about what was asked for leave the connection as good as it was."""
    done = site.workflow(flow).create(orchestrator=client)
    end(site, done.id)
    (kept,) = client.lanes._idle
    nobody = WorkflowInstance(done._definition, "nobody", client)
    for instance, error in ((nobody, InstanceNotFound), (done, InvalidTransition)):
        with pytest.raises(error, match=instance.id):
            instance.send_event("go")
        assert list(client.lanes._idle) == [kept]


def test_the_clock_is_set_before_it_counts_as_read(client: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads take it from then on."""
    adjust, seen = client._clock.adjust, []

    def adjusting(*reading: float) -> None:
        seen.append(client._clock_read_at)
        adjust(*reading)

    monkeypatch.setattr(client._clock, "adjust", adjusting)
    assert client.now() <= client.now()
    assert seen == [float("-inf")], "read once, and not taken for read meanwhile"
    assert client._clock_read_at > float("-inf")


def test_more_threads_than_lanes(site: Site, client: Counting) -> None:
    """At most four connections are kept; who needs one more gets it for the call."""
    flows = site.workflow(flow)
    with ThreadPoolExecutor(32) as pool:
        created = list(pool.map(lambda n: flows.create(id=f"i{n}", orchestrator=client), range(200)))
    assert len({one.id for one in created}) == 200
    assert len(client.lanes._idle) <= 4
    assert client.engine.pool.checkedout() == len(client.lanes._idle)  # type: ignore[attr-defined]


def test_news_are_told_in_messages_of_bounded_size(site: Site) -> None:
    """protocols §20: one message for many instances, several for very many; all are heard."""
    news = News(site.settings)
    subscription = news.subscribe()
    assert subscription is not None
    planted = [site.workflow(flow).plant() for _ in range(3)]
    news.announce([])
    news.announce(planted * 400)
    heard: list[str] = []
    eventually(lambda: heard.extend(subscription.heard(0.1)) or len(heard) >= 1200)
    assert sorted(heard) == sorted(str(one) for one in planted * 400)
    news.wake(subscription)
    assert subscription.heard(30) == []
    subscription.close()
    news.close()


class Halved:
    """A socket whose data ends in ``mark`` at first; what comes after it is held back."""

    def __init__(self, source: socket.socket, mark: bytes) -> None:
        self._source, self._mark, self._rest = source, mark, b""
        self.held, self.let_go = threading.Event(), threading.Event()

    def recv(self, size: int) -> bytes:
        if self._rest:
            self.held.set()
            assert self.let_go.wait(60)
            data, self._rest = self._rest, b""
            return data
        data = self._source.recv(size)
        head, mark, self._rest = data.partition(self._mark)
        return head + mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class Halving(Proxy):
    """Forwards what the server says up to ``mark``."""

    def __init__(self, target: tuple[str, int], mark: bytes) -> None:
        super().__init__(target)
        self.mark = mark
        self.halved: list[Halved] = []

    def _pump(self, source: Any, sink: Any) -> None:
        self.halved.append(Halved(source, self.mark))
        super()._pump(self.halved[-1], sink)  # type: ignore[arg-type]

    @property
    def holding(self) -> Halved | None:
        return next((one for one in self.halved if one.held.is_set()), None)


def test_a_message_that_has_arrived_in_part_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not break the subscription, also not behind another message."""
    whole, parted = (site.workflow(flow).plant() for _ in range(2))
    url = site.settings.redis_url
    parts = urlsplit(url)
    with Halving((str(parts.hostname), int(parts.port or 6379)), str(parted)[:28].encode()) as proxy:
        news = News(replace(site.settings, redis_url=through(url, proxy)))
        subscription = news.subscribe()
        assert subscription is not None
        site.client.news.announce([whole])
        site.client.news.announce([parted])
        halved = eventually(lambda: proxy.holding, "half a message")
        connection: Any = subscription._pubsub.connection
        read, reads = connection.read_response, []

        def reading(*arguments: Any, **options: Any) -> Any:
            reads.append(options.get("timeout"))
            if len(reads) == 2 and reads[1]:  # it waits for the rest
                halved.let_go.set()
            return read(*arguments, **options)

        monkeypatch.setattr(connection, "read_response", reading)
        heard: list[str] = []
        eventually(
            lambda: heard.extend(subscription.heard(1.0)) or len(heard) == 2 or not subscription.is_well
        )
        assert heard == [str(whole), str(parted)]
        assert subscription.is_well
        assert len(reads) == 2
        subscription.close()
        news.close()
