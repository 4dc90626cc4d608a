"""The asyncio pool under a real worker: concurrency, events, failures, revocation, the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery

from tests.integration.pool_worker import PATIENCE_S, ROOT, Worker, eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def worker_with(redis_url: str) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(**environ: str) -> Worker:
        workers.append(Worker(redis_url, **environ))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def worker(redis_url: str) -> Iterator[Worker]:
    one = Worker(redis_url)
    yield one
    one.close()


def test_a_thousand_native_tasks_run_at_once(worker: Worker) -> None:
    for _ in range(1000):
        worker.send("meet", 1000)
    assert worker.fact("met") == "1000"


def test_a_native_task_has_the_events_of_any_task(worker: Worker) -> None:
    task = worker.send("add", 2, 3, shadow="order.charge")
    succeeded = worker.event("task-succeeded", task)
    assert succeeded["result"] == "5"
    assert succeeded["runtime"] >= 0
    assert worker.kinds(task) == ["task-received", "task-started", "task-succeeded"]
    assert worker.event("task-received", task)["name"] == "order.charge"
    eventually(lambda: not worker.active())


def test_a_stock_task_runs_in_a_thread_beside_native_ones(worker: Worker) -> None:
    beside = worker.send("linger", "beside")
    worker.fact("beside-began")
    task = worker.send("stock", "stocked")
    worker.fact("stocked")
    assert worker.event("task-succeeded", task)["result"] == "'stocked'"
    assert worker.kinds(task) == ["task-received", "task-started", "task-succeeded"]
    assert [row["id"] for row in worker.active()] == [beside]
    worker.tell("beside-go")
    worker.event("task-succeeded", beside)


def test_a_stock_task_retries_through_celerys_own_tracer(worker: Worker) -> None:
    task = worker.send("stock_retry", "again")
    worker.fact("again")
    worker.event("task-retried", task)
    assert worker.event("task-succeeded", task)["result"] == "'retried'"


def test_a_native_task_that_raises_is_failed(worker: Worker) -> None:
    task = worker.send("fail", "no such order")
    failed = worker.event("task-failed", task)
    assert failed["exception"] == "LookupError('no such order')"
    assert "in fail" in failed["traceback"]
    assert "_attend" not in failed["traceback"]
    eventually(lambda: not worker.active())


def test_a_native_task_with_wrong_arguments_is_failed(worker: Worker) -> None:
    assert "TypeError" in worker.event("task-failed", worker.send("fail"))["exception"]


def test_a_native_task_that_wants_to_exit_does_not_take_the_loop_with_it(worker: Worker) -> None:
    assert "SystemExit" in worker.event("task-failed", worker.send("leave"))["exception"]
    worker.event("task-succeeded", worker.send("add", 1, 1))


def test_terminating_a_native_task_cancels_it(worker: Worker) -> None:
    task = worker.send("linger", "doomed")
    worker.fact("doomed-began")
    worker.event("task-started", task)
    worker.app.control.revoke(task, terminate=True)
    worker.fact("doomed-cancelled")
    assert worker.event("task-revoked", task)["terminated"] is True
    worker.event("task-succeeded", worker.send("add", 1, 1))
    assert "task-failed" not in worker.kinds(task)
    assert worker.kinds(task).count("task-revoked") == 1
    eventually(lambda: not worker.active())
    worker.tell("doomed-go")  # for the thread that waits for it


def test_a_task_revoked_before_it_comes_does_not_run(worker: Worker) -> None:
    task = str(uuid4())
    worker.app.control.revoke(task)
    worker.send("note", "never", task_id=task)
    revoked = worker.event("task-revoked", task)
    assert (revoked["terminated"], revoked["expired"]) == (False, False)
    worker.send("note", "always")
    assert worker.fact("noted").startswith("always ")


def test_what_cannot_begin_at_once_goes_celerys_own_way(worker: Worker) -> None:
    """An ETA, an expiry and a rate limit; Celery's strategy knows them, and the pool runs what it sends."""
    later = worker.send("add", 1, 2, countdown=0.1)
    assert worker.event("task-succeeded", later)["result"] == "3"
    assert worker.event("task-received", later)["eta"] is not None
    expired = worker.send("add", 1, 2, expires=-1.0)
    assert worker.event("task-revoked", expired)["expired"] is True
    worker.app.control.rate_limit("add", "50/s", reply=True)
    assert worker.event("task-succeeded", worker.send("add", 2, 2))["result"] == "4"
    worker.app.control.rate_limit("add", "0", reply=True)


def test_an_argument_of_a_type_that_kombu_marks_arrives_as_that_type(worker: Worker) -> None:
    worker.send("note", UUID(int=7))
    assert worker.fact("noted").startswith(f"{UUID(int=7)} ")


def test_totals_count_by_name(worker: Worker) -> None:
    worker.event("task-succeeded", worker.send("add", 4, 4, shadow="shown.as"))
    (stats,) = (worker.app.control.inspect(timeout=2).stats() or {}).values()
    assert stats["total"]["shown.as"] == 1


def test_task_events_begin_when_somebody_asks_for_them(worker_with: Callable[..., Worker]) -> None:
    worker = worker_with(POOL_APP_EVENTS="0")
    silent = worker.send("note", "silent")
    worker.fact("noted")
    eventually(lambda: not worker.active())  # its end would be an event, too
    worker.app.control.enable_events(reply=True)
    heard = worker.send("add", 1, 1)
    worker.event("task-succeeded", heard)
    assert worker.kinds(heard) == ["task-received", "task-started", "task-succeeded"]
    assert worker.kinds(silent) == []


def test_the_pool_tells_its_state(worker: Worker) -> None:
    (stats,) = (worker.app.control.inspect(timeout=2).stats() or {}).values()
    pool = stats["pool"]
    assert pool["implementation"] == "orchestrator.dispatch.pool:TaskPool"
    assert pool["max-concurrency"] == 1000
    assert {"running", "waiting", "threads"} <= pool.keys()


def test_no_more_messages_are_fetched_than_there_are_slots(worker_with: Callable[..., Worker]) -> None:
    worker = worker_with(POOL_APP_CONCURRENCY="3")
    for number in range(5):
        worker.send("linger", f"slot{number}")
    for number in range(3):
        worker.fact(f"slot{number}-began")
    eventually(lambda: len(worker.active()) == 3)
    assert worker.waiting() == 2
    worker.tell("slot0-go")
    worker.fact("slot3-began")
    assert worker.waiting() == 1
    for number in range(1, 5):
        worker.tell(f"slot{number}-go")
    worker.fact("slot4-ended")


def test_a_grown_pool_runs_more(worker_with: Callable[..., Worker]) -> None:
    worker = worker_with(POOL_APP_CONCURRENCY="1")
    worker.send("linger", "a")
    worker.fact("a-began")
    worker.send("linger", "b")
    worker.app.control.pool_grow(1)
    worker.fact("b-began")
    worker.tell("a-go")
    worker.tell("b-go")
    worker.fact("b-ended")


def test_sigterm_lets_running_tasks_end_and_leaves_the_rest_in_the_queue(
    worker_with: Callable[..., Worker],
) -> None:
    worker = worker_with(POOL_APP_CONCURRENCY="1")
    task = worker.send("linger", "last")
    worker.fact("last-began")
    worker.send("linger", "never")
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: any("Warm shutdown" in line for line in worker.log))
    worker.tell("last-go")
    worker.fact("last-ended")
    assert worker.process.wait(PATIENCE_S) == 0
    assert worker.event("task-succeeded", task)["result"] == "'ended'"
    assert worker.waiting() == 1  # and the ended one was acknowledged, or it would be back too


def test_sigterm_cancels_what_outlives_the_grace(worker_with: Callable[..., Worker]) -> None:
    worker = worker_with(POOL_APP_GRACE="0.2")
    ids = [worker.send("occupy", "stubborn") for _ in range(3)]
    for _ in ids:
        worker.fact("stubborn-began")
    assert worker.stop() == 0
    for task in ids:
        assert worker.event("task-revoked", task)["terminated"] is True


def test_sigquit_cancels_at_once(worker_with: Callable[..., Worker]) -> None:
    worker = worker_with()
    task = worker.send("linger", "quit")
    worker.fact("quit-began")
    eventually(lambda: len(worker.active()) == 1)
    worker.process.send_signal(signal.SIGQUIT)
    worker.fact("quit-cancelled")
    worker.event("task-cancelled", task)
    worker.tell("quit-go")  # for the thread that waits for it
    worker.process.wait(PATIENCE_S)
    assert not any("Traceback" in line for line in worker.log)


def test_drain_decides_how_long_the_end_takes_and_callbacks_still_arrive(
    worker_with: Callable[..., Worker],
) -> None:
    worker = worker_with(POOL_APP_DRAIN="1")
    assert worker.fact("loop") == "orchestrator-loop"
    task = worker.send("linger", "held")
    worker.fact("held-began")
    worker.process.send_signal(signal.SIGTERM)
    worker.fact("draining")
    worker.tell("held-go")
    worker.event("task-started", task)
    worker.fact("held-ended")
    assert worker.process.poll() is None
    worker.tell("drain-go")
    worker.fact("drained")
    assert worker.process.wait(PATIENCE_S) == 0
    assert worker.event("task-succeeded", task)["result"] == "'ended'"


def test_a_transport_without_an_event_loop_works_too(redis_url: str, tmp_path: Path) -> None:
    """Such a worker has no hub: a thread of the pool makes Celery's callbacks."""
    prefix = f"pool-{uuid4().hex[:8]}"
    env = {"POOL_APP_BROKER": "filesystem://", "POOL_APP_FACTS": redis_url, "POOL_APP_PREFIX": prefix}
    env |= {"POOL_APP_FOLDER": str(tmp_path), "POOL_APP_CONCURRENCY": "2"}
    argv = [sys.executable, "-m", "celery", "-A", "tests.integration.pool_app", "worker"]
    argv += ["--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "ERROR"]
    app = Celery("client", broker="filesystem://", set_as_current=False)
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path)}
    app.conf.update(
        task_default_queue=prefix,
        broker_transport_options={**folders, "control_folder": str(tmp_path / "control")},
    )
    client = redis.Redis.from_url(redis_url, socket_timeout=2 * PATIENCE_S)
    process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(3):  # more than the slots: the third begins once an acknowledgement has made room
            app.send_task("linger", ["quiet"], ignore_result=True)
        app.send_task("stock", ["stocked"], ignore_result=True)
        for _ in range(3):
            assert client.blpop([f"{prefix}:quiet-began"], timeout=PATIENCE_S)
            client.rpush(f"{prefix}:quiet-go", "1")
        assert client.blpop([f"{prefix}:stocked"], timeout=PATIENCE_S)
        for _ in range(3):
            assert client.blpop([f"{prefix}:quiet-ended"], timeout=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        client.close()
