"""The client: creating, finding, asking, steering, within the caller's transaction or without; and bad input."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from orchestrator import (
    BatchError,
    InstanceExists,
    InstanceNotFound,
    InvalidConfig,
    InvalidInstanceId,
    InvalidTransition,
    PayloadTooLarge,
    Retries,
    ServiceUnavailable,
    Status,
    WorkflowEvent,
    WorkflowFailed,
    WorkflowTerminated,
    configure,
)
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.dev.process import free_port
from orchestrator.errors import (
    InvalidParams,
    OrchestratorError,
    SchemaNotMigrated,
    SerializationError,
    UnknownWorkflow,
)
from orchestrator.settings import Settings
from orchestrator.store import workers
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Client, Created, Post, Site, eventually

pytestmark = pytest.mark.integration


@dataclass
class Order:
    item: str
    count: int = 1


@dataclass
class Receipt:
    order: Order
    paid: float


async def buy(event: WorkflowEvent[Order], step) -> Receipt:
    paid = await step.do("pay", lambda o: o.count * 1.5, event.payload)
    return Receipt(event.payload, paid)


async def waits(event, step):
    return (await step.wait_for_event("w", type="go")).payload


def count(site: Site) -> int:
    account = site.settings.account
    found = site.sql("SELECT count(*) FROM orchestrator_instances WHERE account = :account", account=account)
    orphans = site.sql(
        "SELECT count(*) FROM orchestrator_payloads p WHERE NOT EXISTS "
        "(SELECT 1 FROM orchestrator_instances i WHERE i.id = p.instance_id)"
    )
    assert orphans == [(0,)], "params without an instance"
    return int(found[0][0])


# -- the verbs ---------------------------------------------------------------------------------------------


def test_create_ask_and_have_the_result(site: Site) -> None:
    """protocols §11: what comes back is typed, and the record of the steps is for people."""
    site.worker()
    flow = site.workflow(buy)
    created = flow.create({"item": "book", "count": 4}, id="order-1")
    assert created.result(10) == Receipt(Order("book", 4), 6.0)
    status = flow.get("order-1").status()
    assert (status.status, status.output) == (Status.COMPLETE, Receipt(Order("book", 4), 6.0))
    assert (status.error, status.rollback, status.blocked) == (None, None, None)
    (record,) = created.steps()
    assert (record.key, record.kind, record.name, record.count) == ("do:pay:1", "do", "pay", 1)
    assert (record.status, record.output, len(record.attempts)) == ("done", 6.0, 1)
    assert record.started_at <= record.finished_at  # type: ignore[operator]
    assert flow.create(Order("pen")).result(10).order == Order("pen")


def test_the_async_twins(site: Site) -> None:
    """api §3: every verb has an async twin that does not block the caller's loop."""

    async def go() -> None:
        site.worker()
        flow = site.workflow(waits)
        options = {"orchestrator": site.client}
        created = await flow.acreate(id="a", **options)
        other = await flow.acreate(id="b", **options)
        batch = await flow.acreate_batch([{"id": "a"}, {"id": "c"}], **options)
        assert [e.code for e in batch.errors] == ["instance_exists"]
        assert (await (await flow.aget("a", **options)).astatus()).status in (Status.RUNNING, Status.WAITING)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        result = asyncio.create_task(created.aresult(10))
        await asyncio.sleep(0.3)
        assert ticks > 10, "the loop was blocked"
        await created.asend_event("go", {"x": 1})
        assert await result == {"x": 1}
        await other.aterminate()
        with pytest.raises(WorkflowTerminated):
            await other.aresult(10)
        assert [s.key for s in await created.asteps()] == ["wait:w:1"]
        with pytest.raises(TimeoutError):
            await batch.created[0].aresult(0.1)
        ticking.cancel()

    asyncio.run(go())


def test_result_tells_how_it_ended(site: Site) -> None:
    """api §3: failed, terminated and not yet over are three different errors."""

    async def fails(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: None)
        raise LookupError("no such book")

    site.worker()
    failed, waiting = site.workflow(fails).create(), site.workflow(waits).create()
    with pytest.raises(WorkflowFailed) as caught:
        failed.result(10)
    assert (caught.value.error.name, caught.value.error.message) == ("LookupError", "no such book")
    assert caught.value.rollback is not None
    assert caught.value.rollback.outcome == "complete"
    with pytest.raises(TimeoutError):
        waiting.result(0.1)
    waiting.terminate()
    with pytest.raises(WorkflowTerminated):
        waiting.result(10)
    with pytest.raises(InvalidTransition):
        waiting.terminate()
    with pytest.raises(InvalidTransition):
        failed.terminate(rollback=True)


def test_an_orchestrator_takes_settings() -> None:
    """api §4: what else it is given is refused at once, not at the first call; ``configure`` keeps what it has."""
    wrong: list[Any] = ["postgresql://u:p@h/d", None, {"database_url": "postgresql://u:p@h/d"}]
    for settings in wrong:
        for take in (Orchestrator, configure):
            with pytest.raises(InvalidConfig, match=r"takes Settings, not .*from_env"):
                take(settings)


@pytest.mark.parametrize("patience", [0, -1, -0.5, 0.05, timedelta(milliseconds=50), "0 seconds"])
def test_result_waits_for_a_duration(site: Site, patience: Any) -> None:
    """api §2: durations everywhere; what is left of a caller's own deadline may be nothing."""
    created = site.workflow(waits).create()
    for ask in (created.result, lambda timeout: asyncio.run(created.aresult(timeout))):
        with pytest.raises(TimeoutError, match="is still"):
            ask(timeout=patience)


def test_result_refuses_what_is_no_duration(site: Site) -> None:
    """api §2: by name, without waiting."""
    created = site.workflow(waits).create()
    bad: list[Any] = ["soon", True, float("nan"), [1], b"1 second"]
    for patience in bad:
        with pytest.raises(InvalidConfig, match=r"timeout of result\(\) is"):
            created.result(timeout=patience)


def test_terminate_with_rollback(site: Site) -> None:
    """semantics §5.6: compensation runs first, also from waiting; its error is that of a termination."""
    undone: list[Any] = []

    async def flow(event, step):
        await step.do("a", lambda: 7, rollback=lambda r: undone.append((r.output, r.error.name)))
        await step.wait_for_event("w", type="go")

    site.worker()
    created = site.workflow(flow).create()
    eventually(lambda: created.status().status == "waiting")
    created.terminate(rollback=True)
    with pytest.raises(WorkflowTerminated) as caught:
        created.result(10)
    assert caught.value.rollback is not None
    assert caught.value.rollback.outcome == "complete"
    assert undone == [(7, "Terminated")]


def test_a_batch_reports_by_index(site: Site) -> None:
    """semantics §4: existing ids and duplicates are reported per index; anything invalid refuses the whole call."""
    flow = site.workflow(buy)
    flow.create({"item": "x"}, id="old")
    entries = [{"id": i, "params": {"item": "y"}} for i in ("new", "old", "new", "newer")]
    done = flow.create_batch(entries)
    assert [i.id for i in done.created] == ["new", "newer"]
    assert [(e.index, e.id, e.code) for e in done.errors] == [
        (1, "old", "instance_exists"),
        (2, "new", "instance_exists"),
    ]
    assert isinstance(done.errors[0], BatchError)
    assert count(site) == 3
    bad: list[Any] = [
        [{"id": "ok", "params": {"item": "y"}}, {"id": "not ok", "params": {"item": "y"}}],
        [{"params": {"item": "y"}}, {"params": {"count": "many"}}],
        [{"params": {"item": "y"}, "color": "red"}],
        [{"params": {"item": "y"}}] * 1001,
        ["not a mapping"],
        [{"params": {"item": "y"}, "success_retention": "soon"}],
        [{"params": {"item": "y"}, "color": "red", 5: "five"}],
        ({"params": {"item": "y"}} for _ in range(2)),
    ]
    for batch in bad:
        with pytest.raises(OrchestratorError):
            flow.create_batch(batch)
    for options in (
        {},
        {"count": -1},
        {"count": True},
        {"batch": [], "count": 1},
        {"batch": [{}], "params": 1},
    ):
        with pytest.raises(InvalidConfig):
            flow.create_batch(**options)
    assert count(site) == 3
    assert len(flow.create_batch(count=1000, params={"item": "z"}).created) == 1000


def test_a_batch_that_is_refused_names_the_entry(site: Site) -> None:
    """semantics §4: which of a thousand entries was wrong, under the class and code it has alone."""
    flow = site.workflow(buy)
    good = {"params": {"item": "y"}}
    bad: list[tuple[Any, type[OrchestratorError]]] = [
        ({"params": {"count": "many"}}, InvalidParams),
        ({**good, "id": "not ok"}, InvalidInstanceId),
        ({**good, "success_retention": "soon"}, InvalidConfig),
        ({"params": {"item": "x" * 1_100_000}}, PayloadTooLarge),
    ]
    for entry, error in bad:
        with pytest.raises(error, match=r"^Entry 3: \S") as caught:
            flow.create_batch([good, good, good, entry, good])
        assert caught.value.__cause__ is not None
        assert str(caught.value) == f"Entry 3: {caught.value.__cause__}"
    with pytest.raises(SerializationError, match=r"^Entry 1: "):
        site.workflow(waits).create_batch([{}, {"params": object()}])
    with pytest.raises(InvalidParams) as alone:
        flow.create_batch(count=2, params={})
    assert "Entry" not in str(alone.value)
    assert count(site) == 0


def test_an_output_that_does_not_fit_any_more_is_shown_as_it_is(site: Site) -> None:
    """protocols §17: whoever asks for the status gets it, with plain values; only the typed result is refused."""

    async def total(event, step) -> dict[str, int]:
        return {"paid": 7}

    async def changed(event, step) -> Receipt: ...

    site.worker()
    site.workflow(total, name="total").create(id="x").result(10)
    today = site.workflow(changed, Registry(), name="total").get("x")
    for status in (today.status(), asyncio.run(today.astatus())):
        assert (status.status, status.output) == (Status.COMPLETE, {"paid": 7})
    with pytest.raises(SerializationError, match="Receipt"):
        today.result(1)
    with pytest.raises(SerializationError, match="Receipt"):
        asyncio.run(today.aresult(1))


def test_sensitive_values_are_not_shown(site: Site) -> None:
    """semantics §1.8: people see ``[REDACTED]``; the workflow gets the value."""

    async def flow(event, step):
        secret = await step.do("s", lambda: "secret", sensitive=True)
        got = await step.wait_for_event("w", type="go", sensitive=True)
        return len(secret) + got.payload

    site.worker()
    created = site.workflow(flow).create()
    created.send_event("go", 4)
    assert created.result(10) == 10
    assert [s.output for s in created.steps()] == ["[REDACTED]", "[REDACTED]"]


# -- in the caller's own transaction -----------------------------------------------------------------------


def in_connection(url: str, act: Callable[[Any], Any], commit: bool) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        act(connection)
        connection.commit() if commit else connection.rollback()
    engine.dispose()


def in_session(url: str, act: Callable[[Any], Any], commit: bool) -> None:
    engine = create_engine(url)
    with Session(engine) as session:
        act(session)
        session.commit() if commit else session.rollback()
    engine.dispose()


def in_async(kind: Any) -> Callable[..., None]:
    def run(url: str, act: Callable[[Any], Any], commit: bool) -> None:
        async def go() -> None:
            engine = create_async_engine(url)
            async with engine.connect() if kind is AsyncConnection else AsyncSession(engine) as one:
                await act(one)
                await (one.commit() if commit else one.rollback())
            await engine.dispose()

        asyncio.run(go())

    return run


KINDS = {
    "connection": in_connection,
    "session": in_session,
    "async-connection": in_async(AsyncConnection),
    "async-session": in_async(AsyncSession),
}


@pytest.mark.parametrize("kind", KINDS)
def test_created_within_a_transaction_it_runs_if_that_commits(site: Site, kind: str) -> None:
    """protocols §20: with ``connection=`` the instance exists, and runs, if and only if the caller commits."""
    site.worker(chef=True)
    flow = site.workflow(waits)
    within = KINDS[kind]

    def create(name: str) -> Callable[[Any], Any]:
        verb = flow.acreate if kind.startswith("async") else flow.create
        return lambda one: verb(id=name, connection=one, orchestrator=site.client)

    within(site.settings.database_url, create("never"), False)
    within(site.settings.database_url, create("runs"), True)
    created = flow.get("runs")
    created.send_event("go", "went")
    assert created.result(10) == "went"
    with pytest.raises(InstanceNotFound):
        flow.get("never")
    hinted = site.id_of("runs") in site.post.turns
    assert hinted or not kind.endswith("session"), "a session's commit tells the workers"


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_within_a_transaction_counts_if_that_commits(site: Site, kind: str) -> None:
    """protocols §20: ``send_event`` takes ``connection=`` as ``create`` does: an event of a transaction that is undone
    was never sent, one that commits reaches its waiter, without a hint by the alarm."""
    site.worker(chef=True)
    created = site.workflow(waits).create(id="told")
    within = KINDS[kind]

    def send(payload: str) -> Callable[[Any], Any]:
        verb = created.asend_event if kind.startswith("async") else created.send_event
        return lambda one: verb("go", payload, connection=one)

    within(site.settings.database_url, send("undone"), False)
    within(site.settings.database_url, send("kept"), True)
    assert created.result(10) == "kept"
    with pytest.raises(InvalidTransition):
        within(site.settings.database_url, send("late"), True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_exists_does_not_abort_the_callers_transaction(site: Site, kind: str) -> None:
    """protocols §20: ``InstanceExists``, and what the caller does beside it still commits."""
    flow = site.workflow(waits)
    flow.create(id="taken")
    table = f"{site.settings.account}_own"
    site.sql(f"CREATE TABLE {table} (x int)")

    def act(one: Any) -> None:
        with pytest.raises(InstanceExists):
            flow.create(id="taken", connection=one)
        one.execute(text(f"INSERT INTO {table} VALUES (1)"))

    async def act_async(one: Any) -> None:
        with pytest.raises(InstanceExists):
            await flow.acreate(id="taken", connection=one, orchestrator=site.client)
        await one.execute(text(f"INSERT INTO {table} VALUES (1)"))

    KINDS[kind](site.settings.database_url, act_async if kind.startswith("async") else act, True)
    assert site.sql(f"SELECT x FROM {table}") == [(1,)]
    assert count(site) == 1
    site.sql(f"DROP TABLE {table}")


def test_a_connection_of_another_kind_is_refused(site: Site) -> None:
    """protocols §20: what is no SQLAlchemy connection is named."""
    with pytest.raises(InvalidConfig, match="SQLAlchemy"):
        site.workflow(waits).create(connection=object())
    assert count(site) == 0


def test_a_connection_through_another_driver_is_refused(site: Site) -> None:
    """protocols §20: another database or driver is named before anything is sent through it."""
    flow = site.workflow(waits)
    engine = create_engine("sqlite://")
    with engine.connect() as connection, Session(engine) as session:
        for one in (connection, session):
            with pytest.raises(InvalidConfig, match=r"psycopg 3.*sqlite\+pysqlite"):
                flow.create(connection=one)
        with pytest.raises(InvalidConfig, match="AsyncConnection"):
            asyncio.run(flow.acreate(connection=connection, orchestrator=site.client))
    engine.dispose()


def test_acreate_in_a_transaction_leaves_the_callers_loop_free(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """api §3: neither the clock of Postgres nor the broker is waited for on the loop."""
    flow, seen = site.workflow(waits), {}
    read, hint = workers.clock, site.client.hint

    def clock(connection: Any) -> float:
        seen["clock"] = threading.get_ident()
        return read(connection)

    def hinted(instances: Any) -> None:
        seen["hint"] = threading.get_ident()
        hint(instances)

    monkeypatch.setattr(workers, "clock", clock)
    monkeypatch.setattr(site.client, "hint", hinted)
    in_async(AsyncSession)(
        site.settings.database_url,
        lambda one: flow.acreate(id="x", connection=one, orchestrator=site.client),
        True,
    )
    assert seen.keys() == {"clock", "hint"}
    assert threading.get_ident() not in seen.values()
    assert site.post.turns == [site.id_of("x")]


def test_a_long_lived_session_hints_at_what_it_committed(site: Site) -> None:
    """protocols §20: one hint for each commit; a rollback, a closed session and a savepoint tell nothing."""
    flow, hints, hint = site.workflow(waits), [], site.client.hint
    site.client.hint = lambda instances: hints.append(list(instances)) or hint(hints[-1])  # type: ignore[method-assign]
    engine = create_engine(site.settings.database_url)
    with Session(engine) as session:
        flow.create(id="undone", connection=session)
        session.rollback()
        flow.create(id="left", connection=session)
        session.close()
        session.execute(text("SELECT 1"))
        session.commit()
        assert hints == []
        flow.create(id="a", connection=session)
        with session.begin_nested():
            flow.create(id="b", connection=session)
        with pytest.raises(InstanceExists):
            flow.create(id="a", connection=session)
        assert hints == []
        session.commit()
        assert hints == [[site.id_of("a"), site.id_of("b")]]
        for name in ("c", "d"):
            flow.create(id=name, connection=session)
            session.commit()
        assert hints[1:] == [[site.id_of("c")], [site.id_of("d")]]
        assert len(list(session.dispatch.after_commit)) == 1
    engine.dispose()


# -- bad input ---------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_anything_is_written(site: Site) -> None:
    """semantics §3.4, §6: ids, params and options are checked first; each error says what is wrong."""
    flow = site.workflow(buy)
    for name in ("", "with space", "-x", "é", "x" * 101, "a/b", 7):
        with pytest.raises(InvalidInstanceId):
            flow.create({"item": "x"}, id=name)
    for params in (None, {}, {"item": "x", "count": "many"}, [1], "text"):
        with pytest.raises(InvalidParams, match=r"params|payload|Order|item|count"):
            flow.create(params)
    with pytest.raises(OrchestratorError):
        site.workflow(waits).create(object())
    with pytest.raises(PayloadTooLarge):
        flow.create({"item": "x" * 1_100_000})
    with pytest.raises(InvalidConfig):
        flow.create({"item": "x"}, success_retention="soon")
    assert count(site) == 0
    flow.create({"item": "x"}, id="twice")
    with pytest.raises(InstanceExists, match="twice"):
        flow.create({"item": "x"}, id="twice")
    for verb in ("status", "result", "steps", "terminate"):
        unknown = flow.get("twice")
        unknown.id = "nobody"
        with pytest.raises(InstanceNotFound, match="nobody"):
            getattr(unknown, verb)()
    with pytest.raises(InstanceNotFound):
        flow.get("nobody")


def test_a_workflow_that_nobody_knows(site: Site) -> None:
    """semantics §1.6: the registry names what it knows; an instance of what no worker knows stays as it is."""
    with pytest.raises(UnknownWorkflow, match="not registered"):
        site.registry.get("ghost", "1")
    elsewhere = Registry()
    flow = site.workflow(waits, elsewhere)
    site.worker(chef=True)
    site.workflow(buy)
    created = flow.create()
    own = site.workflow(buy).create({"item": "x"})
    own.result(10)
    status = created.status()
    assert (status.status, status.blocked, created.steps()) == (Status.RUNNING, None, [])


def test_a_result_that_cannot_be_stored_fails_the_instance(site: Site) -> None:
    """protocols §17: the workflow's own result is encoded like any value; compensation runs."""
    undone: list[int] = []

    async def flow(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: undone.append(1))
        return object()

    site.worker()
    created = site.workflow(flow).create()
    with pytest.raises(WorkflowFailed) as caught:
        created.result(10)
    assert caught.value.error.name == "SerializationError"
    assert undone == [1]


def test_client_calls_within_workflow_code_name_the_way_out(site: Site) -> None:
    """protocols §2: uncaught, it is the instance's error."""
    other = site.workflow(waits)

    async def flow(event, step):
        other.create()

    site.worker()
    with pytest.raises(WorkflowFailed) as caught:
        site.workflow(flow).create().result(10)
    assert caught.value.error.name == "NotDurable"
    assert "inside step.do" in caught.value.error.message
    assert count(site) == 1


# -- services that are away --------------------------------------------------------------------------------


def nowhere(settings: Settings, **urls: str) -> Settings:
    return replace(settings, **urls)


def test_without_postgres_nothing_is_created_and_that_is_said(site: Site) -> None:
    """semantics §6: the error names the service, and what became of the caller's data."""
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    away = Client(
        nowhere(site.settings, database_url=url.replace("postgresql:", "postgresql+psycopg:")), Post()
    )
    flow = site.workflow(waits)
    created = flow.create(id="x")
    for verb in (
        lambda: flow.create(orchestrator=away),
        lambda: flow.create_batch(count=2, orchestrator=away),
    ):
        with pytest.raises(ServiceUnavailable) as caught:
            verb()
        assert caught.value.service == "postgres"
        assert "No instance was created" in str(caught.value) or "Nothing was written" in str(caught.value)
    lost = Created(flow.definition, site)
    with pytest.raises(ServiceUnavailable):
        lost.get("x", orchestrator=away)
    created._orchestrator = away
    for act in (created.status, lambda: created.send_event("go"), created.terminate, created.steps):
        with pytest.raises(ServiceUnavailable):
            act()
    away.close()


def cut_while_it_waits(site: Site, verb: Callable[[], Any], holder: Connection) -> ServiceUnavailable:
    """Call ``verb``, which waits for what ``holder`` has locked; its connection is then ended by the server."""
    caught: list[Any] = []

    def call() -> None:
        try:
            verb()
        except ServiceUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    held_by = holder.execute(text("SELECT pg_backend_pid()")).scalar_one()
    waiting = "SELECT pid FROM pg_stat_activity WHERE :held_by = ANY(pg_blocking_pids(pid))"
    ((pid,),) = eventually(lambda: site.sql(waiting, held_by=held_by), "waiting for the lock")
    site.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    thread.join(10)
    return caught[0]


def test_an_answer_that_got_lost_is_not_taken_for_a_no(site: Site) -> None:
    """semantics §6: what became of the data is said only where it is known."""
    flow = site.workflow(waits)
    created = flow.create(id="x")
    lost = []
    with site.locked(site.id_of("x")) as holder:
        lost.append(cut_while_it_waits(site, lambda: created.send_event("go"), holder))
    with site.engine.connect() as holder:
        flow.create(id="y", connection=holder)
        lost.append(cut_while_it_waits(site, lambda: flow.create(id="y"), holder))
        holder.rollback()

    @event.listens_for(site.client.engine, "commit")
    def cut(connection: Any) -> None:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        site.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)

    with pytest.raises(ServiceUnavailable) as caught:
        created.terminate()
    for error in (*lost, caught.value):
        assert "it is unknown whether" in str(error)
        assert "No instance" not in str(error)
        assert " not " not in str(error).split("unknown", 1)[1]
    flow.create(id="y")
    created.send_event("go")


def test_a_verb_neither_holds_a_lock_for_ever_nor_waits_for_one(site: Site) -> None:
    """protocols §1 (9): an application that is stuck in a transaction loses it, and a held row is reported."""
    site.workflow(waits).create(id="x")
    with site.client.engine.begin() as connection:
        for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
            assert connection.exec_driver_sql(f"SHOW {setting}").scalar_one() == "10s"
    with Client(site.settings, site.post) as hurried:

        @event.listens_for(hurried.engine, "connect")
        def hurry(driver: Any, _: Any) -> None:
            driver.execute("SET lock_timeout = '100ms'")
            driver.commit()

        created = site.workflow(waits).get("x", orchestrator=hurried)
        with site.locked(site.id_of("x")):
            for verb, kept in (
                (lambda: created.send_event("go"), "event was not stored"),
                (created.terminate, "was not terminated"),
            ):
                with pytest.raises(ServiceUnavailable, match=kept):
                    verb()
        created.send_event("go")


def test_the_options_in_the_url_are_kept(site: Site) -> None:
    """design §3: what the URL says to Postgres is said, beside what the client adds."""
    url = f"{site.settings.database_url}?options=-c%20work_mem%3D5MB%20-c%20lock_timeout%3D1s"
    with Orchestrator(nowhere(site.settings, database_url=url)) as client, client.engine.begin() as one:
        assert one.exec_driver_sql("SHOW work_mem").scalar_one() == "5MB"
        assert one.exec_driver_sql("SHOW lock_timeout").scalar_one() == "10s"


def test_without_redis_an_instance_is_created_and_starts_by_its_alarm(site: Site) -> None:
    """protocols §7, law 1: losing the message costs time; the result is found by asking Postgres."""
    site.worker(chef=True)
    flow = site.workflow(buy)
    url = f"redis://127.0.0.1:{free_port()}/0"
    with Orchestrator(nowhere(site.settings, redis_url=url, broker_url=url)) as away:
        began = time.monotonic()
        created = flow.create({"item": "x"}, orchestrator=away)
        assert time.monotonic() - began < 3, "creating waited for Redis"
        waiting = site.workflow(waits).create(orchestrator=away)
        waiting.send_event("go", 1)
        assert created.result(15).paid == 1.5
        assert waiting.result(15) == 1


def test_without_the_schema_the_way_to_it_is_named(empty_database: str, redis_url: str) -> None:
    """design §3: a database without our tables: run `orchestrator migrate`."""
    with Site(Settings(database_url=empty_database, redis_url=redis_url)) as site:
        flow = site.workflow(waits)
        with pytest.raises(SchemaNotMigrated, match="orchestrator migrate"):
            flow.create()
        with pytest.raises(SchemaNotMigrated):
            flow.get("x")


def test_a_worker_waits_for_the_schema(empty_database: str, redis_url: str) -> None:
    """design §3: a worker that is started before the migration says so, and begins when the tables are there."""
    from orchestrator.store import migrate

    with Site(Settings(database_url=empty_database, redis_url=redis_url)) as site:
        flow = site.workflow(buy)
        worker = site.worker()
        migrate.upgrade(site.settings.database_url)
        eventually(lambda: worker.runtime.liveness.is_registered)
        assert flow.create({"item": "x"}).result(10).paid == 1.5


def test_a_second_worker_with_other_code_blocks_and_says_why(site: Site) -> None:
    """protocols §12: an instance that today's code of one worker does not fit is blocked, not failed; where the code
    fits it goes on."""

    async def changed(event, step):
        await step.do("renamed", lambda: 1)

    async def original(event, step):
        await step.do("first", lambda: 1)
        return (await step.wait_for_event("w", type="go")).payload

    flow = site.workflow(original, name="flow")
    fits = site.worker()
    created = flow.create()
    eventually(lambda: created.status().status == "waiting")
    other = Registry()
    site.workflow(changed, other, name="flow")
    site.post.targets.clear()
    differs = site.worker(other)
    created.send_event("go", "went")
    blocked = eventually(lambda: created.status().blocked)
    assert blocked.name == "NonDeterminismError"
    assert "first" in blocked.message
    assert created.status().status == Status.WAITING
    site.post.targets[:] = [fits]
    assert differs.is_open
    fits.runtime.coordinate([site.id_of(created.id)])
    assert created.result(10) == "went"


def test_retries_are_seen_in_the_record(site: Site) -> None:
    """protocols §11: failed attempts keep their error, their times and the delay that followed."""

    def flaky(ctx):
        if ctx.attempt < 3:
            raise ConnectionError(f"down {ctx.attempt}")
        return "up"

    async def flow(event, step):
        return await step.do("s", flaky, retries=Retries(limit=3, delay=0.05, backoff="exponential"))

    site.worker()
    created = site.workflow(flow).create()
    assert created.result(10) == "up"
    (record,) = created.steps()
    assert [(a.number, a.error.message if a.error else None, a.retry_delay) for a in record.attempts] == [
        (1, "down 1", 0.05),
        (2, "down 2", 0.1),
        (3, None, None),
    ]
    for attempt in record.attempts:
        assert attempt.started_at is not None
        assert attempt.finished_at is not None
        assert attempt.started_at <= attempt.finished_at
