"""Celery signatures as steps: real workers of an application's own app claim, run and report them."""

import os
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis
from celery import Celery
from sqlalchemy import text

from orchestrator.client.workflow import Workflow
from orchestrator.dispatch.foreign import signatures
from orchestrator.dispatch.foreign.signatures import task_id
from orchestrator.dispatch.publisher import Publisher
from orchestrator.errors import WorkflowFailed
from orchestrator.ports import HandOut, new_id
from orchestrator.settings import Settings
from orchestrator.store.session import connect
from tests.chaos.proxy import Proxy
from tests.integration.existing_worker import PATIENCE_S, Shop, flows
from tests.integration.harness import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def shop(settings: Settings) -> Iterator[Shop]:
    one = Shop(settings)
    yield one
    one.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "orchestrator.dispatch.pool:TaskPool"])
def test_every_pool_claims_runs_and_reports(shop: Shop, pool: str) -> None:
    """protocols §16: the outcome is written by the process that ran the task, whatever the pool."""
    shop.worker(pool=pool)
    assert shop.result(flows.existing_buy, "o-1") == [{"order": "o-1", "amount": 2}, 3]
    order, amount, pid, _ = shop.fact("charged").split()
    ours = shop.fact("ours").split()
    assert (order, amount) == ("o-1", "2")
    assert (pid == ours[1]) is (pool != "prefork")
    assert ours[2] == "orchestrator-loop"


def test_a_worker_for_tasks_alone_reports_to_one_that_runs_workflows(shop: Shop) -> None:
    """protocols §16: every worker of the app claims and reports; the turn is run where the workflows are."""
    shop.worker(serves="tasks")
    shop.worker(serves=shop.settings.queue, pool="solo")
    assert shop.result(flows.existing_buy, "o-2") == [{"order": "o-2", "amount": 2}, 3]


def test_a_failure_is_revived_by_its_class(shop: Shop) -> None:
    """protocols §16: what the task raises is the step's error, retried by the step's rules."""
    shop.worker(pool="threads")
    assert shop.result(flows.existing_fail, "sold out") == ["caught", "sold out", "OutOfStock"]
    assert len(shop.facts("failed")) == 3


def test_an_error_that_ends_retries_ends_them(shop: Shop) -> None:
    """semantics §2: NonRetryableError from a task is the last attempt."""
    shop.worker(pool="solo")
    with pytest.raises(WorkflowFailed) as failed:
        shop.result(flows.existing_refuse)
    assert (failed.value.error.name, failed.value.error.message) == ("NonRetryableError", "no")
    assert len(shop.facts("refused")) == 1


def test_a_delay_function_answers_for_a_task(shop: Shop) -> None:
    """semantics §2.4: it is asked by a worker of the workflows; no answer fails the step."""
    shop.worker()
    with shop.said():
        instance = shop.create(flows.existing_asks, True)
        with pytest.raises(WorkflowFailed, match="sold out"):
            instance.result(timeout=PATIENCE_S)
        assert shop.facts("asked") == ["fail 1 OutOfStock: sold out"]
        (record,) = instance.steps()
        assert [attempt.retry_delay for attempt in record.attempts] == [0.0, None]
        with pytest.raises(WorkflowFailed) as failed:
            shop.create(flows.existing_asks, False).result(timeout=PATIENCE_S)
    assert failed.value.error.name == "RetryDelayError"
    assert len(shop.facts("failed")) == 3


@pytest.mark.parametrize("pool", ["prefork", "solo", "orchestrator.dispatch.pool:TaskPool"])
def test_celerys_own_retries_are_invisible(shop: Shop, pool: str) -> None:
    """protocols §16: autoretry_for goes on under one claim; only the last failure is the attempt's."""
    shop.worker(pool=pool)
    with shop.said():
        instance = shop.create(flows.existing_flaky)
        assert instance.result(timeout=PATIENCE_S) == "at last"
        (record,) = instance.steps()
        assert [(attempt.number, attempt.error) for attempt in record.attempts] == [(1, None)]
        assert len(shop.facts("flaky")) == 3


def test_the_last_of_celerys_retries_fails_the_attempt(shop: Shop) -> None:
    """protocols §16: two runs by Celery are one attempt; the step makes three of them."""
    shop.worker(pool="threads")
    with pytest.raises(WorkflowFailed, match="never"):
        shop.result(flows.existing_hopeless)
    assert len(shop.facts("hopeless")) == 6


# -- losses ------------------------------------------------------------------------------------------------------


def test_a_child_that_is_killed_is_a_lost_worker(shop: Shop) -> None:
    """protocols §16: what Celery reports as WorkerLostError is a lost attempt, run again at once."""
    shop.worker()
    with shop.said():
        instance = shop.create(flows.existing_suicide)
        assert instance.result(timeout=PATIENCE_S) == "alive"
        (record,) = instance.steps()
        assert [a.error.name if a.error else None for a in record.attempts] == ["WorkerLost", None]


def test_a_worker_that_is_killed_is_found_by_its_lease(shop: Shop) -> None:
    """protocols §16: a worker for tasks alone has a row that goes stale; its attempt is lost, and run elsewhere."""
    shop.worker(serves=shop.settings.queue, pool="solo")
    first = shop.worker(serves="tasks")
    with shop.said():
        instance = shop.create(flows.existing_linger, "doomed")
        shop.fact("doomed-began")
        first.kill()
        shop.worker(serves="tasks", pool="threads")
        shop.fact("doomed-began")
        shop.tell("doomed-go")
        assert instance.result(timeout=PATIENCE_S) == "doomed"
        (record,) = instance.steps()
        assert record.attempts[0].error.name == "WorkerLost"


def test_a_worker_that_stood_still_records_nothing_afterwards(shop: Shop) -> None:
    """design, crash matrix: stopped for longer than its lease and continued, its result has an old fence."""
    shop.worker(serves=shop.settings.queue, pool="solo")
    stopped = shop.worker(serves="tasks", pool="solo")
    with shop.said():
        instance = shop.create(flows.existing_linger, "still")
        shop.fact("still-began")
        os.kill(stopped.process.pid, signal.SIGSTOP)
        shop.worker(serves="tasks", pool="threads")
        shop.fact("still-began")
        os.kill(stopped.process.pid, signal.SIGCONT)
        for _ in range(2):
            shop.tell("still-go")
            shop.fact("still-ended")
        assert instance.result(timeout=PATIENCE_S) == "still"
        eventually(lambda: "is not recorded" in "".join(stopped.log), "the late result", PATIENCE_S)
        (record,) = instance.steps()
    assert [a.error.name if a.error else None for a in record.attempts] == ["WorkerLost", None]


def test_a_lost_message_is_sent_again(shop: Shop) -> None:
    """protocols §16: the process that notices has the signature in its replay, and sends it again."""
    shop.worker(serves=shop.settings.queue, pool="solo")
    with shop.said():
        instance = shop.create(flows.existing_buy, "o-3")
        queue = f"{shop.settings.account}-tasks"
        eventually(lambda: shop.redis.lpop(queue), "its message", PATIENCE_S)
        shop.worker(serves="tasks", pool="solo")
        assert instance.result(timeout=PATIENCE_S)[0] == {"order": "o-3", "amount": 2}
    assert len(shop.facts("charged")) == 1


def test_of_two_copies_of_a_message_one_runs(shop: Shop) -> None:
    """protocols §16: the claim comes before the body; the copy is dropped while the first runs, and after it."""
    shop.worker(serves=shop.settings.queue, pool="solo")
    queue = f"{shop.settings.account}-tasks"
    with shop.said():
        instance = shop.create(flows.existing_linger, "twin")
        message = eventually(lambda: shop.redis.lpop(queue), "its message", PATIENCE_S)
        shop.redis.lpush(queue, message, message)
        shop.worker(serves="tasks", EXISTING_CONCURRENCY="4")
        shop.fact("twin-began")
        eventually(lambda: "is not run" in shop.logs(), "the refusal of the copy", PATIENCE_S)
        shop.tell("twin-go")
        assert instance.result(timeout=PATIENCE_S) == "twin"
        shop.redis.lpush(queue, message)
        eventually(lambda: shop.logs().count("is not run") >= 2, "the refusal of a late copy", PATIENCE_S)
    assert shop.facts("twin-began") == []
    assert len(shop.facts("twin-ended")) == 1


@pytest.mark.parametrize("flow", [flows.existing_suicide, flows.existing_hesitate])
def test_a_message_that_celery_puts_back_goes_on_under_the_same_claim(shop: Shop, flow: Workflow) -> None:
    """protocols §16: reject_on_worker_lost and Reject(requeue=True) are Celery's own retries, invisible to the step."""
    shop.worker(EXISTING_ACKS_LATE="1")
    with shop.said():
        instance = shop.create(flow)
        assert instance.result(timeout=PATIENCE_S) in ("alive", "now")
        (record,) = instance.steps()
        assert [(a.number, a.error) for a in record.attempts] == [(1, None)]


@pytest.mark.parametrize("place", ["signature.after_claim", "signature.after_body", "signature.after_report"])
def test_killed_between_claim_body_and_report(shop: Shop, place: str) -> None:
    """design, crash matrix: before the report the attempt is lost and made again; after it, it counts."""
    dying = shop.worker(EXISTING_CONCURRENCY="1", ORCHESTRATOR_FAILPOINT=place)
    with shop.said():
        instance = shop.create(flows.existing_buy, "o-4")
        eventually(lambda: "WorkerLostError" in "".join(dying.log), "the death of the child", PATIENCE_S)
        dying.kill()
        shop.worker()
        assert instance.result(timeout=PATIENCE_S)[0] == {"order": "o-4", "amount": 2}
        record = next(step for step in instance.steps() if step.key == "do:charge:1")
    lost = [a.error.name for a in record.attempts if a.error is not None]
    assert set(lost) == ({"WorkerLost"} if place != "signature.after_report" else set())
    charged = len(shop.facts("charged"))
    assert charged == {"signature.after_claim": 1, "signature.after_report": 1}.get(place, charged)
    assert charged >= 1


# -- time-outs and ends ------------------------------------------------------------------------------------------


def test_an_attempt_that_takes_too_long_ends_at_its_timeout(shop: Shop) -> None:
    """semantics §2: the timeout of an attempt holds for a task; its late result is discarded."""
    shop.worker(pool="threads")
    with shop.said(), pytest.raises(WorkflowFailed) as failed:
        shop.create(flows.existing_late, "late").result(timeout=PATIENCE_S)
    assert failed.value.error.name == "StepTimeout"
    assert "took over 2 seconds" in failed.value.error.message
    shop.tell("late-go")
    shop.fact("late-ended")
    eventually(lambda: "is not recorded" in shop.logs(), "the late result to be refused", PATIENCE_S)


def test_a_worker_without_the_package_cannot_report(shop: Shop) -> None:
    """protocols §16: then the attempt ends at its timeout with an error that names the queue and says so."""
    shop.worker(serves=shop.settings.queue, pool="solo")
    shop.worker(serves=f"{shop.settings.account}-elsewhere", pool="solo", EXISTING_KNOWS="0")
    with shop.said(), pytest.raises(WorkflowFailed) as failed:
        shop.create(flows.existing_elsewhere).result(timeout=PATIENCE_S)
    assert shop.fact("charged").startswith("1 0 ")
    assert failed.value.error.name == "StepTimeout"
    assert f"queue '{shop.settings.account}-elsewhere'" in failed.value.error.message
    assert "Orchestrator(celery=app)" in failed.value.error.message


def test_revoking_a_task_that_runs_fails_its_attempt(shop: Shop) -> None:
    """protocols §16: task_revoked is the end of the attempt; another one has another task."""
    shop.worker()
    with shop.said():
        instance = shop.create(flows.existing_linger, "revoked")
        shop.fact("revoked-began")
        shop.control.control.revoke(task_of(shop, instance, "do:linger:1"), terminate=True)
        shop.fact("revoked-began")
        shop.tell("revoked-go")
        assert instance.result(timeout=PATIENCE_S) == "revoked"
        (record,) = instance.steps()
        assert [a.error.name if a.error else None for a in record.attempts] == ["Cancelled", None]


def test_revoking_a_task_before_it_begins_fails_its_attempt(shop: Shop) -> None:
    """protocols §16: a message that is discarded in the worker's main process is reported from there."""
    shop.worker(EXISTING_CONCURRENCY="1")
    with shop.said():
        first = shop.create(flows.existing_linger, "one")
        shop.fact("one-began")
        second = shop.create(flows.existing_linger, "two")
        task = eventually(lambda: task_of(shop, second, "do:linger:1"), "the hand-out", PATIENCE_S)
        shop.control.control.revoke(task)
        eventually(lambda: f"flagged as revoked: {task}" in shop.logs(), "the revocation", PATIENCE_S)
        shop.tell("one-go")
        shop.tell("two-go")
        assert (first.result(timeout=PATIENCE_S), second.result(timeout=PATIENCE_S)) == ("one", "two")
        (record,) = second.steps()
        assert record.attempts[0].error.message.endswith("was revoked.")


@pytest.mark.parametrize(
    ("kind", "said"), [("hard", "was killed at its hard time limit"), ("expired", "expired (expires=)")]
)
def test_celerys_own_limits_end_an_attempt(shop: Shop, kind: str, said: str) -> None:
    """protocols §16: options are the user's; what Celery does for their sake is seen by the worker's main process."""
    shop.worker()
    with pytest.raises(WorkflowFailed) as failed:
        shop.result(flows.existing_limited, kind)
    assert failed.value.error.name == "StepTimeout"
    assert said in failed.value.error.message


def test_ends_that_are_neither_results_nor_failures(shop: Shop) -> None:
    """protocols §16: Ignore and Reject end the attempt by name; types that JSON lacks are written by our codec."""
    shop.worker()
    ignored, rejected, stamp, shared = shop.result(flows.existing_ends)
    assert ignored[0] == "NonRetryableError"
    assert "raised Ignore" in ignored[1]
    assert rejected[0] == "StepFailed"
    assert "rejected its message" in rejected[1]
    assert (stamp, shared) == ("2026-01-02T03:04:05", "A")


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["", "redis"])
def test_a_result_without_a_json_form_fails_the_step(shop: Shop, backend: str) -> None:
    """semantics §2.6: SerializationError without retry, with and without a result backend of Celery's."""
    shop.worker(pool="solo", EXISTING_BACKEND=backend and shop.settings.redis_url)
    with pytest.raises(WorkflowFailed) as failed:
        shop.result(flows.existing_unfit)
    assert failed.value.error.name == "SerializationError"
    assert len(shop.facts("unfit")) == 1


def test_arguments_that_the_serializer_refuses_fail_the_step(shop: Shop) -> None:
    """protocols §16: what cannot be sent is an error of the step, not a message that is lost for ever."""
    shop.worker(pool="solo")
    with pytest.raises(WorkflowFailed) as failed:
        shop.result(flows.existing_unsendable)
    assert failed.value.error.name == "SerializationError"
    with pytest.raises(WorkflowFailed) as failed:
        shop.result(flows.existing_miscalled)
    assert failed.value.error.name == "TypeError"


# -- sending -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sender(settings: Settings) -> Celery:
    """An application whose result backend is away."""
    app = Celery("sends", broker=settings.redis_url, backend="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.task_default_queue = f"{settings.account}-sent"

    @app.task(name="sends.body", shared=False)
    def body(number: int) -> None:
        raise AssertionError("the body ran where it was sent from")

    return app


def sent(app: Celery, settings: Settings, queue: str = "") -> list[Any]:
    """What becomes of two hand-outs: what is refused, or else the messages in the queue."""
    refused: list[Any] = []
    for number in range(2):
        signature = app.tasks["sends.body"].s(number)
        handout = HandOut(new_id(0.0), "do:body:1", 3, queue, "sends", "sends.body", signature)
        signatures.send(handout, lambda _, outcome: refused.append(outcome.error))
    with redis.Redis.from_url(settings.redis_url) as client:
        return refused or client.lrange(queue or app.conf.task_default_queue, 0, -1)


def test_a_task_is_sent_while_the_result_backend_is_away(sender: Celery, settings: Settings) -> None:
    """protocols §16: nobody hears of its result there, so sending it subscribes to nothing, and needs no backend.
    Celery's own way took 20 s per task, in which no other hint went out, and ended as a failed attempt."""
    messages = sent(sender, settings)
    assert len(messages) == 2
    # The app's worker still stores it.
    assert all(b'"ignore_result": false' in message for message in messages)


def test_a_broker_that_went_silent_holds_up_no_other_hint(settings: Settings) -> None:
    """protocols §20: messages are hints. An app's own connections have no timeout, as kombu comes; what carries the
    hints gives up on a task in time, drops the next ones at once, and sends again when the broker is back."""
    place = urlsplit(settings.redis_url)
    with Proxy((str(place.hostname), int(place.port or 6379))) as proxy:
        app = Celery("silent", set_as_current=False)
        app.conf.broker_url = place._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
        app.conf.task_default_queue = queue = f"{settings.account}-silent"
        publisher = Publisher(app, settings)

        @app.task(name="silent.idle", shared=False)
        def idle() -> None: ...

        def send() -> int:
            publisher.steps([HandOut(new_id(0.0), "do:idle:1", 3, "", "silent", "silent.idle", idle.s())])
            return publisher.failures

        assert send() == 0
        proxy.blackhole()
        assert send() == 1  # it returns
        assert [send() for _ in range(100)][-1] == 101
        proxy.heal()
        with redis.Redis.from_url(settings.redis_url) as client:  # what went into the hole may come out of it
            eventually(lambda: send() and client.llen(queue) > 3, "tasks arrive again", PATIENCE_S)
        publisher.close()


def test_an_app_that_runs_its_tasks_eagerly_sends_those_that_are_steps(
    sender: Celery, settings: Settings
) -> None:
    """protocols §16: the body runs in a worker of its queue, never in the thread that carries the hints."""
    sender.conf.task_always_eager = True
    assert len(sent(sender, settings)) == 2
    assert len(sent(sender, settings, f"{settings.account}-named")) == 2


def test_a_sensitive_result_is_shown_to_nobody_else(shop: Shop) -> None:
    """semantics §2.8: the workflow gets the value, people see that there is one."""
    shop.worker(pool="solo")
    with shop.said():
        instance = shop.create(flows.existing_secret)
        assert instance.result(timeout=PATIENCE_S) == {"order": "s3cret", "amount": 0}
        (record,) = instance.steps()
    assert record.output == "[REDACTED]"


def test_a_task_is_compensated_like_any_step(shop: Shop) -> None:
    """semantics §5: its handler runs in our worker, and gets the arguments and the output of the task."""
    shop.worker()
    with pytest.raises(WorkflowFailed, match="no more"):
        shop.result(flows.existing_saga)
    assert shop.fact("undone") == "('o-1',) {'order': 'o-1', 'amount': 7}"


def test_a_base_class_of_the_applications_own_runs_as_ever(shop: Shop) -> None:
    """protocols §16: the claim is made within Celery's tracer, inside whatever wraps the task."""
    shop.worker(pool="threads")
    with shop.said():
        instance = shop.create(flows.existing_contextual)
        value, retries, task = instance.result(timeout=PATIENCE_S)
    assert (value, retries) == ("x", 0)
    assert UUID(task).version == 5
    assert len(shop.facts("custom")) == 1


def task_of(shop: Shop, instance, key: str) -> str | None:
    """The id of the task of a step's attempt in flight."""
    engine = connect(shop.settings.database_url)
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT s.instance_id, s.fence FROM orchestrator_steps s JOIN orchestrator_instances i "
                "ON i.id = s.instance_id WHERE i.account = :account AND i.name_id = :name AND s.key = :key"
            ),
            {"account": shop.settings.account, "name": instance.id, "key": key},
        ).all()
    engine.dispose()
    return task_id(UUID(str(rows[0][0])), key, rows[0][1]) if rows else None
