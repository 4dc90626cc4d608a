"""The publisher: what it puts on the broker is what Celery would have put there, and it never raises."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery
from kombu import Queue

from orchestrator.dispatch.publisher import Publisher
from orchestrator.errors import ServiceUnavailable
from orchestrator.ports import HandOut
from orchestrator.settings import Settings
from tests.chaos.proxy import Proxy

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30
NOWHERE = "redis://127.0.0.1:1/0"

pytestmark = pytest.mark.integration


@pytest.fixture
def queue(redis_url: str) -> Iterator[str]:
    name = f"publisher-{uuid4().hex[:8]}"
    yield name
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"*{name}*"):
            client.delete(key)


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=2 * PATIENCE_S) as one:
        yield one


def an_app(url: str, **conf: Any) -> Celery:
    app = Celery("publisher", broker=url, set_as_current=False)
    app.conf.update(conf)
    return app


def a_publisher(url: str, queue: str, **conf: Any) -> Publisher:
    settings = Settings(database_url="postgresql://nowhere/db", redis_url="redis://nowhere", queue=queue)
    return Publisher(an_app(url, **conf), settings)


def a_handout(queue: str, key: str = "charge-1", label: str = "order.charge") -> HandOut:
    return HandOut(uuid4(), key, 7, queue, "order", label)


def messages(client: "redis.Redis", queue: str) -> list[dict[str, Any]]:
    """Oldest first, as kombu reads them."""
    texts: list[str] = client.lrange(queue, 0, -1)
    return [json.loads(text) for text in reversed(texts)]


def shape(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one to the next, its body decoded."""
    body = message["body"]
    if message["properties"].pop("body_encoding", None):
        body = base64.b64decode(body).decode()
    ids = {message["headers"].pop("id"), message["headers"].pop("root_id")}
    ids.add(message["properties"].pop("correlation_id"))
    assert len(ids) == 1
    message["properties"].pop("delivery_tag")
    message["properties"].pop("argsrepr", None)  # send_task leaves a copy there, by accident
    message["properties"].pop("reply_to")  # the result queue of the sender, which nobody reads here
    return {**message, "body": json.loads(body)}


NASTY = 'it\'s "100%" ${x} %(id)s \\ \u0000 \n ✓'


@pytest.mark.parametrize("key, label", [("charge-1", "order.charge"), (NASTY, NASTY)])
def test_a_step_message_is_what_celery_itself_would_send(
    client: "redis.Redis", redis_url: str, queue: str, key: str, label: str
) -> None:
    handout = a_handout(queue, key, label)
    publisher = a_publisher(redis_url, queue)
    publisher.steps([handout])
    an_app(redis_url, task_queues=[Queue(queue, exchange="", routing_key=queue)]).send_task(
        "orchestrator.step",
        [str(handout.instance), key, 7],
        queue=queue,
        shadow=label,
        ignore_result=True,
        argsrepr=f"('{handout.instance}', {key!r}, 7)",
    )
    ours, theirs = map(shape, messages(client, queue))
    assert ours == theirs
    publisher.close()


def test_ids_are_fresh_uuids(client: "redis.Redis", redis_url: str, queue: str) -> None:
    a_publisher(redis_url, queue).steps([a_handout(queue) for _ in range(50)])
    ids = [message["headers"]["id"] for message in messages(client, queue)]
    assert len(set(ids)) == 50
    assert all(UUID(one).version == 4 and str(UUID(one)) == one for one in ids)


def test_steps_keep_their_order_and_go_to_their_queues(
    client: "redis.Redis", redis_url: str, queue: str
) -> None:
    other = f"{queue}-cpu"
    handouts = [a_handout(other if n % 3 == 0 else queue, f"step-{n}") for n in range(1200)]
    publisher = a_publisher(redis_url, queue)
    publisher.steps(handouts)
    for name in (queue, other):
        keys = [json.loads(message["body"])[0][1] for message in messages(client, name)]
        assert keys == [handout.key for handout in handouts if handout.queue == name]
    assert publisher.backlog(queue) == 800
    assert publisher.backlog(other) == 400
    assert publisher.backlog(f"{queue}-empty") == 0


def test_coordinate_names_up_to_a_hundred_instances_per_message(
    client: "redis.Redis", redis_url: str, queue: str
) -> None:
    instances = [uuid4() for _ in range(250)]
    a_publisher(redis_url, queue).coordinate(iter(instances))
    args = [json.loads(message["body"])[0] for message in messages(client, queue)]
    assert [len(ids) for (ids,) in args] == [50] * 5
    assert [one for (ids,) in args for one in ids] == [str(instance) for instance in instances]
    shown = messages(client, queue)[0]["headers"]["argsrepr"]
    assert str(instances[0]) in shown
    assert "50 in all" in shown


def test_nothing_to_say_says_nothing() -> None:
    publisher = a_publisher(NOWHERE, "q")
    publisher.steps([])
    publisher.coordinate([])
    assert publisher.failures == 0


def test_the_key_prefix_of_the_broker_is_kept(client: "redis.Redis", redis_url: str, queue: str) -> None:
    prefixed = a_publisher(redis_url, queue, broker_transport_options={"global_keyprefix": f"{queue}:"})
    prefixed.steps([a_handout(queue)])
    assert client.llen(f"{queue}:{queue}") == 1
    assert prefixed.backlog(queue) == 1
    assert a_publisher(redis_url, queue).backlog(queue) == 0


def test_a_broker_that_is_gone_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    publisher = a_publisher(NOWHERE, "q")
    publisher.steps([a_handout("q") for _ in range(3)])
    publisher.coordinate([uuid4() for _ in range(51)])
    assert publisher.failures == 5
    assert publisher.backlog("q") is None
    assert len([record for record in caplog.records if "publishing failed" in record.message]) == 1
    with pytest.raises(ServiceUnavailable) as caught:
        publisher.ping()
    assert caught.value.service == "broker"


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_a_broker_that_refuses_costs_no_time() -> None:
    """protocols §19: without the broker, creating goes on at its pace: no wait between tries, and then a pause."""
    publisher = a_publisher(NOWHERE, "q")
    assert seconds(lambda: publisher.coordinate([uuid4()])) < 1
    assert seconds(lambda: [publisher.coordinate([uuid4()]) for _ in range(100)]) < 0.5
    assert seconds(lambda: publisher.backlog("q")) < 0.1
    assert publisher.failures == 101
    several = a_publisher(f"{NOWHERE};redis://127.0.0.1:2/0", "q")
    assert seconds(lambda: several.coordinate([uuid4()])) < 1


def test_the_second_of_two_brokers_is_taken_at_once(
    client: "redis.Redis", redis_url: str, queue: str
) -> None:
    publisher = a_publisher(f"{NOWHERE};{redis_url}", queue)
    assert seconds(lambda: publisher.steps([a_handout(queue)])) < 1
    assert (client.llen(queue), publisher.failures) == (1, 0)


def test_a_silent_broker_holds_up_one_thread_only_until_it_speaks_again(
    client: "redis.Redis", redis_url: str, queue: str
) -> None:
    """protocols §19: one connects, the others drop their hints; what comes after the silence is sent."""
    url = urlsplit(redis_url)
    with Proxy((str(url.hostname), int(url.port or 6379))) as proxy:
        proxy.blackhole()
        publisher = a_publisher(url._replace(netloc=f"127.0.0.1:{proxy.port}").geturl(), queue)
        first = threading.Thread(target=publisher.steps, args=([a_handout(queue)],))
        first.start()
        time.sleep(0.1)
        assert seconds(lambda: publisher.steps([a_handout(queue)])) < 2
        first.join()
        assert seconds(lambda: [publisher.steps([a_handout(queue)]) for _ in range(100)]) < 0.5
        assert publisher.failures == 102
        proxy.heal()
        deadline = time.monotonic() + PATIENCE_S
        while publisher.backlog(queue) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        publisher.steps([a_handout(queue)])
        assert (client.llen(queue), publisher.failures) == (1, 102)
        publisher.close()


def test_a_connection_that_was_cut_is_opened_again(client: "redis.Redis", redis_url: str, queue: str) -> None:
    publisher = a_publisher(redis_url, queue, broker_transport_options={"client_name": queue})
    publisher.steps([a_handout(queue)])
    for row in client.client_list():
        if row["name"] == queue:
            client.client_kill_filter(_id=row["id"])
    publisher.steps([a_handout(queue)])  # may be lost, never raises
    publisher.steps([a_handout(queue)])
    publisher.ping()
    assert (publisher.backlog(queue) or 0) + publisher.failures == 3
    assert publisher.failures <= 1


def test_the_client_waits_no_longer_than_its_timeouts_and_tries_once(redis_url: str, queue: str) -> None:
    publisher = a_publisher(redis_url, queue)
    publisher.ping()
    assert publisher._client is not None
    parameters = publisher._client.connection_pool.connection_kwargs
    assert parameters["socket_timeout"] == 5
    assert parameters["socket_connect_timeout"] == 5
    assert parameters["health_check_interval"] == 25
    connection = publisher._client.connection_pool.get_connection()
    assert connection.retry.get_retries() == 0
    publisher._client.connection_pool.release(connection)


def test_many_threads_may_publish(client: "redis.Redis", redis_url: str, queue: str) -> None:
    publisher = a_publisher(redis_url, queue)
    threads = [
        threading.Thread(target=publisher.steps, args=([a_handout(queue) for _ in range(100)],))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.backlog(queue) == 1600
    assert publisher.failures == 0


def test_another_transport_gets_the_same_through_kombu() -> None:
    queue = f"memory-{uuid4().hex[:8]}"
    app = an_app("memory://", task_queues=[Queue(queue)], accept_content=["json"])
    settings = Settings(database_url="postgresql://nowhere/db", redis_url="redis://nowhere", queue=queue)
    publisher = Publisher(app, settings)
    publisher.ping()
    handout = a_handout(queue, NASTY)
    publisher.steps([handout])
    publisher.coordinate([handout.instance])
    assert publisher.failures == 0
    assert publisher.backlog(queue) is None
    with app.connection_for_read() as connection:
        box = connection.SimpleQueue(app.amqp.queues[queue])
        step, turn = box.get(timeout=5), box.get(timeout=5)
        box.close()
    assert step.headers["task"] == "orchestrator.step"
    assert step.headers["shadow"] == "order.charge"
    assert step.headers["argsrepr"] == f"('{handout.instance}', {NASTY!r}, 7)"
    assert step.headers["id"] == step.headers["root_id"] == step.properties["correlation_id"]
    assert step.payload[0] == [str(handout.instance), NASTY, 7]
    assert turn.payload[0] == [[str(handout.instance)]]


def test_a_stock_worker_runs_what_was_published(client: "redis.Redis", redis_url: str, queue: str) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "tests.integration.pool_app", "worker"]
    argv += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    env = {**os.environ, "POOL_APP_BROKER": redis_url, "POOL_APP_PREFIX": queue}
    worker = subprocess.Popen([*argv, "-P", "solo"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        publisher = a_publisher(redis_url, queue)
        handout = a_handout(queue, NASTY.replace("\0", ""))
        publisher.steps([handout])
        publisher.coordinate([handout.instance])
        step = client.blpop([f"{queue}:step"], timeout=PATIENCE_S)
        turn = client.blpop([f"{queue}:coordinate"], timeout=PATIENCE_S)
    finally:
        worker.terminate()
        worker.wait(PATIENCE_S)
    assert step is not None
    assert step[1] == f"{handout.instance} {handout.key} 7"
    assert turn is not None
    assert turn[1] == str(handout.instance)
