"""An application's own Celery app with workflows: its workers run both, and its settings stay as they are."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import text

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import Workflow
from orchestrator.dispatch.existing.adoption import Resident
from orchestrator.errors import InvalidConfig
from orchestrator.settings import Settings
from orchestrator.store.session import connect
from orchestrator.workflow.language.definition import define, registry
from tests.chaos.proxy import Proxy
from tests.integration.existing_worker import PATIENCE_S, Shop, flows
from tests.integration.harness import eventually

pytestmark = pytest.mark.integration

ASYNCIO = "orchestrator.dispatch.pool:TaskPool"


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    one = Shop(settings)
    yield one
    one.close()


def sql(shop: Shop, statement: str) -> list:
    engine = connect(shop.settings.database_url)
    with engine.connect() as connection:
        rows = connection.execute(text(statement), {"account": shop.settings.account}).all()
    engine.dispose()
    return rows


# -- what is left as it is ---------------------------------------------------------------------------------------


def test_the_settings_of_the_app_stay_as_they_are(settings: Settings) -> None:
    """protocols §19: with an app of the user's own its pool, transport, serializer and events are not touched."""
    app = Celery("theirs", broker="memory://", set_as_current=False)
    app.conf.update(task_serializer="json", worker_concurrency=3, task_acks_late=True)
    before = dict(app.conf)
    with Orchestrator(settings, celery=app):
        assert dict(app.conf) == before
        assert {"orchestrator.step", "orchestrator.coordinate"} < app.tasks.keys()


def test_the_app_may_be_configured_later(settings: Settings) -> None:
    """api §4: the module that defines the app may go on after ``Orchestrator(settings, celery=app)``."""
    app = Celery("later", set_as_current=False)
    with Orchestrator(settings, celery=app):
        assert not app.configured
        app.conf.task_default_queue = "mine"
        assert app.conf.task_default_queue == "mine"


def test_an_app_serves_one_account(settings: Settings) -> None:
    """api §4: a second account on the same app is refused by name; the same again is the same."""
    app = Celery("twice", broker="memory://", set_as_current=False)
    Orchestrator(settings, celery=app).close()
    Orchestrator(settings, celery=app).close()
    other = Settings(database_url=settings.database_url, redis_url=settings.redis_url, account="other")
    with pytest.raises(InvalidConfig, match="give each account an app of its own"):
        Orchestrator(other, celery=app)


def test_other_settings_of_a_second_orchestrator_are_not_ignored_in_silence(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """api §4: the app's workers have one database; whoever names another is told, without its password."""
    app = Celery("moved", broker="memory://", set_as_current=False)
    Orchestrator(settings, celery=app).close()
    with pytest.raises(InvalidConfig, match="another database_url before") as refused:
        Orchestrator(replace(settings, database_url="postgresql://u:s3cret@elsewhere/db"), celery=app)
    assert "s3cret" not in str(refused.value)
    assert caplog.messages == []
    Orchestrator(replace(settings, lease=settings.lease + 1), celery=app).close()
    assert "lease of another one are not theirs" in caplog.text


def test_an_app_that_refuses_json_is_told_so(settings: Settings) -> None:
    """protocols §19: our messages are JSON, and an app that does not accept it would drop every one."""
    app = Celery("pickles", broker="memory://", set_as_current=False)
    app.conf.accept_content = ["pickle"]
    Orchestrator(settings, celery=app).close()
    with pytest.raises(InvalidConfig, match='add "json" to accept_content'):
        Resident(app._orchestrator_adoption, None)


# -- one worker for both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", ASYNCIO])
def test_tasks_and_steps_share_a_worker(shop: Shop, pool: str) -> None:
    """protocols §19: the app's tasks run in its pool; bodies of ours on the loop and in threads of the main process."""
    worker = shop.worker(pool=pool)
    shop.control.send_task(
        "tests.integration.existing_app.plain", ["hello"], queue=f"{shop.settings.account}-tasks"
    )
    assert shop.fact("plain") == "hello"
    assert shop.result(flows.existing_buy, "o-1") == [{"order": "o-1", "amount": 2}, 3]
    _, pid, thread = shop.fact("ours").split(maxsplit=2)
    assert (int(pid), thread) == (worker.process.pid, "orchestrator-loop")
    _, pid, thread = shop.fact("ours_sync").split(maxsplit=2)
    assert int(pid) == worker.process.pid
    assert thread != "MainThread"


def test_a_worker_within_the_process_may_be_started_again(shop: Shop) -> None:
    """api §4: an application's own tests start workers in their process, one after the other."""
    app = Celery("within", broker=shop.settings.redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=f"{shop.settings.account}-tasks", broker_connection_retry_on_startup=True
    )
    app.conf.control_exchange = f"{shop.settings.account}-control"

    @app.task(name="within.add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    async def existing_within(event, step):
        return await step.do("add", add.s(event.payload, 1))

    flow = Workflow(registry.register(define(existing_within)))
    queues = f"{shop.settings.account}-tasks,{shop.settings.queue}"
    with Orchestrator(shop.settings, celery=app) as here:
        for number in range(2):
            with start_worker(app, pool="solo", perform_ping_check=False, queues=queues):
                assert flow.create(number, orchestrator=here).result(timeout=PATIENCE_S) == number + 1
    assert sql(shop, "SELECT 1 FROM orchestrator_workers WHERE account = :account") == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_loses_nothing(shop: Shop, pool: str) -> None:
    """protocols §18: the worker lets its tasks end, they are reported, and it signs off."""
    worker = shop.worker(pool=pool)
    with shop.said():
        instance = shop.create(flows.existing_linger, "warm")
        shop.fact("warm-began")
        threading.Timer(1.0, shop.tell, ["warm-go"]).start()
        assert worker.stop() == 0, shop.logs()
        (row,) = sql(
            shop,
            "SELECT s.status, (SELECT count(*) FROM orchestrator_reports r WHERE r.instance_id = s.instance_id) "
            "FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id WHERE account = :account",
        )
        assert row.status == "done" or row.count == 1
        assert sql(shop, "SELECT 1 FROM orchestrator_workers WHERE account = :account") == []
        shop.worker(serves=shop.settings.queue, pool="solo")
        assert instance.result(timeout=PATIENCE_S) == "warm"
        (record,) = instance.steps()
        assert [attempt.number for attempt in record.attempts] == [1]


def test_a_cold_shutdown_puts_back_what_is_ours(shop: Shop) -> None:
    """protocols §18: SIGQUIT ends the worker at once; its body is handed back, and both its rows are gone."""
    worker = shop.worker(pool="threads")
    with shop.said():
        instance = shop.create(flows.existing_endless)
        shop.fact("endless")
        worker.process.send_signal(signal.SIGQUIT)
        worker.process.wait(PATIENCE_S)
        assert sql(shop, "SELECT 1 FROM orchestrator_workers WHERE account = :account") == []
        shop.worker(pool="solo")
        assert instance.result(timeout=PATIENCE_S) == 2
        (record,) = instance.steps()
        assert record.attempts[0].error.name == "WorkerShutdown"


def test_children_that_are_replaced_beside_the_engine_report_too(shop: Shop) -> None:
    """protocols §19: a child forked later inherits the engine's threads and connections, and uses none of them."""
    shop.worker(EXISTING_RECYCLE="1")
    results = shop.result(flows.existing_fan, 6)
    assert [one["order"] for one in results] == list(range(6))
    pids = {fact.split()[2] for fact in shop.facts("charged")}
    assert len(pids) == 6


def test_terminating_a_step_of_ours_touches_no_child(shop: Shop) -> None:
    """protocols §19: Flower's Terminate cancels the body on our loop; the pool's children are others' processes."""
    worker = shop.worker()
    with shop.said():
        instance = shop.create(flows.existing_endless)
        shop.fact("endless")
        children = {child.pid for child in psutil.Process(worker.process.pid).children(recursive=True)}
        (active,) = eventually(lambda: active_of(shop), "the active task", PATIENCE_S)
        shop.control.control.revoke(active["id"], terminate=True)
        assert instance.result(timeout=PATIENCE_S) == 2
        (record,) = instance.steps()
        assert record.attempts[0].error.name == "Cancelled"
    after = {child.pid for child in psutil.Process(worker.process.pid).children(recursive=True)}
    assert after == children


def test_a_report_waits_for_postgres(shop: Shop) -> None:
    """protocols §5: a body that has ended is not run again because Postgres was away; its report is retried."""
    parts = urlsplit(shop.settings.database_url)
    with Proxy((parts.hostname or "", parts.port or 5432)) as proxy:
        where = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}")
        shop.environ["ORCHESTRATOR_LEASE"] = "60"
        shop.worker(serves=shop.settings.queue, pool="solo")
        shop.worker(serves="tasks", pool="threads", ORCHESTRATOR_DATABASE_URL=urlunsplit(where))
        with shop.said():
            instance = shop.create(flows.existing_linger, "away")
            shop.fact("away-began")
            proxy.blackhole()
            proxy.cut()
            shop.tell("away-go")
            shop.fact("away-ended")
            eventually(lambda: "waits for Postgres" in shop.logs(), "a report that waits", PATIENCE_S)
            proxy.heal()
            assert instance.result(timeout=PATIENCE_S) == "away"
            (record,) = instance.steps()
            assert [attempt.number for attempt in record.attempts] == [1]
    assert shop.facts("away-began") == []


def active_of(shop: Shop) -> list[dict]:
    answer = shop.control.control.inspect(timeout=1).active() or {}
    return [task for tasks in answer.values() for task in tasks if task["name"] == "orchestrator.step"]


def test_the_app_as_a_client(shop: Shop) -> None:
    """api §4: a web process with the same three lines creates instances through the app's own broker."""
    app = Celery("web", broker=shop.settings.redis_url, set_as_current=False)
    shop.worker(pool="solo")
    with Orchestrator(shop.settings, celery=app) as web, shop.said():
        result = flows.existing_buy.create("o-9", orchestrator=web).result(timeout=PATIENCE_S)
    assert result[0]["order"] == "o-9"
    assert os.getpid() != int(shop.fact("ours").split()[1])


def test_our_tasks_are_on_the_app_alone(settings: Settings) -> None:
    """api §4: other apps of the process, such as another account's, do not get the tasks of this one."""
    one, other = (Celery(name, broker="memory://", set_as_current=False) for name in ("one", "other"))
    Orchestrator(settings, celery=one).close()
    one.finalize()
    other.finalize()
    assert "orchestrator.step" in one.tasks
    assert "orchestrator.step" not in other.tasks
