"""The batched transport on real servers: every kind of URL, whose turn it is, no more than fits, and what breaks."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
import redis
from celery.worker import state
from kombu import Consumer, Queue
from kombu.exceptions import OperationalError

from orchestrator.dev import places
from orchestrator.dev.process import free_port
from orchestrator.dispatch.celery_app import create_client
from orchestrator.dispatch.pool import TaskPool
from orchestrator.dispatch.transport import MOST, Connection, shares
from orchestrator.errors import InvalidConfig
from orchestrator.settings import Settings
from tests.integration.pool_worker import Worker, eventually

pytestmark = pytest.mark.integration
HINTS = {"ack_emulation": False, "priority_steps": [0]}


@contextmanager
def served(folder: Path, *arguments: str, port: int | None = None, config: str = "") -> Iterator[Any]:
    """A Valkey of the test's own; yields its process and port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port() if port is None else port
    argv = [str(places.valkey_program()), *([config] if config else [])]
    argv += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *arguments]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            eventually(lambda: answers(client))
        yield SimpleNamespace(process=process, port=port, url=f"redis://127.0.0.1:{port}/0", folder=folder)
    finally:
        process.kill()
        process.wait()


def answers(client: "redis.Redis") -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@contextmanager
def encrypted(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """TLS in front of a server that has none; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: Any, sink: Any) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(near: Any) -> None:
        with suppress(OSError):
            secure = context.wrap_socket(near, server_side=True)
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pump, args=(far, secure), daemon=True).start()
            pump(secure, far)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    crt, key = folder / "server.crt", folder / "server.key"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=127.0.0.1",
    ]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(argv, check=True, capture_output=True)
    return crt, key


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Servers that outlive the workers of the test."""
    with ExitStack() as one:
        yield one


@pytest.fixture
def place(stack: ExitStack, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Starts a broker of a kind: its URL, a plain URL of the same Redis, and transport options."""

    def start(kind: str) -> Any:
        path = tmp_path / "s.sock"
        arguments = ("--unixsocket", str(path)) if kind == "redis+socket" else ()
        server = stack.enter_context(served(tmp_path / "data", *arguments))
        options: dict[str, Any] = {}
        url = server.url
        if kind == "redis+socket":
            url = f"redis+socket://{path}"
        elif kind == "rediss":
            crt, key = request.getfixturevalue("certificate")
            port = stack.enter_context(encrypted(server.port, crt, key))
            url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={crt}"
        elif kind == "sentinel":
            config = tmp_path / "sentinel.conf"
            config.write_text(f"sentinel monitor chief 127.0.0.1 {server.port} 1\n")
            guard = stack.enter_context(served(tmp_path / "guard", "--sentinel", config=str(config)))
            url, options = f"sentinel://127.0.0.1:{guard.port}/0", {"master_name": "chief"}
        return SimpleNamespace(url=url, facts=server.url, options=options, server=server)

    return start


@pytest.fixture
def worker_with() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(url: str, **more: Any) -> Worker:
        workers.append(Worker(url, **more))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def calls(client: "redis.Redis", command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def send(worker: Worker, count: int, queue: str | None = None, word: str = "") -> None:
    for number in range(count):
        worker.send("note", f"{word}{number}", queue=queue or worker.prefix)


def noted(worker: Worker, count: int) -> list[str]:
    return [worker.fact("noted") for _ in range(count)]


# -- every kind of URL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", "rediss", "redis+socket", "sentinel"])
def test_every_url_fetches_many_at_once_and_stays_under_remote_control(
    kind: str, place: Callable[[str], Any], worker_with: Callable[..., Worker]
) -> None:
    broker = place(kind)
    worker = worker_with(
        broker.url, facts=broker.facts, options=broker.options, before=lambda worker: send(worker, 200)
    )
    assert sorted(int(word.split()[0]) for word in noted(worker, 200)) == list(range(200))
    assert 0 < calls(worker.redis, "rpop") < 50, "200 messages came one by one"
    assert worker.app.control.ping([worker.name], timeout=5) == [{worker.name: {"ok": "pong"}}]
    task = worker.send("occupy", "held")
    worker.fact("held-began")
    assert [row["id"] for row in worker.active()] == [task]
    worker.app.control.revoke(task, terminate=True)
    assert worker.event("task-revoked", task)["terminated"] is True
    assert worker.event("task-succeeded", worker.send("add", 2, 3))["result"] == "5"


def test_a_prefix_is_in_front_of_every_key(redis_url: str, worker_with: Callable[..., Worker]) -> None:
    options = {"global_keyprefix": f"px-{uuid4().hex[:8]}:"}
    worker = worker_with(redis_url, options=options, before=lambda worker: send(worker, 60))
    noted(worker, 60)
    assert not worker.redis.exists(worker.prefix)
    assert not worker.redis.exists(options["global_keyprefix"] + worker.prefix)


def test_what_a_setting_says(redis_url: str) -> None:
    def kind(**more: Any) -> str:
        settings = Settings(database_url="postgresql://nowhere/db", redis_url=redis_url, **more)
        connection = create_client(settings).connection_for_write()
        return f"{connection.get_transport_cls().__module__}.{connection.get_transport_cls().__name__}"

    ours = "orchestrator.dispatch.transport"
    assert kind() == f"{ours}.Transport"
    assert kind(broker_url="rediss://nowhere/0") == f"{ours}.Transport"
    assert kind(broker_url="redis+socket:///s.sock") == f"{ours}.Transport"
    assert kind(broker_url="sentinel://a:1;sentinel://b:2") == f"{ours}.SentinelTransport"
    assert kind(transport="stock") == "kombu.transport.redis.Transport"
    assert kind(broker_url="amqp://nowhere//") == "kombu.transport.pyamqp.Transport"
    with pytest.raises(InvalidConfig, match="ORCHESTRATOR_TRANSPORT must be batched or stock"):
        kind(transport="fast")


def test_the_second_url_is_batched_too() -> None:
    connection = Connection("redis://first/0;redis://second/0")
    connection.switch("redis://second/0")
    assert connection.get_transport_cls().__module__ == "orchestrator.dispatch.transport"


# -- how many, and whose turn --------------------------------------------------------------------------------


def test_a_full_pool_asks_for_nothing(
    place: Callable[[str], Any], worker_with: Callable[..., Worker]
) -> None:
    def preload(worker: Worker) -> None:
        for _ in range(50):
            worker.send("linger", "same")

    broker = place("redis")
    worker = worker_with(broker.url, before=preload, POOL_APP_CONCURRENCY="5")
    for _ in range(5):
        worker.fact("same-began")
    eventually(lambda: len(worker.active()) == 5)
    with worker.redis.monitor() as monitor:
        for _ in range(10):  # each makes Celery's loop turn
            assert worker.app.control.ping([worker.name], timeout=5)
        worker.redis.set(f"{worker.prefix}:monitored", "1")
        said = takewhile(lambda one: "monitored" not in one["command"], monitor.listen())
        asked = [one["command"] for one in said if one["command"].startswith(("RPOP", "BRPOP"))]
    assert not [command for command in asked if f" {worker.prefix} " in f"{command} "]
    assert worker.waiting() == 45
    for _ in range(3):
        worker.tell("same-go")
        worker.fact("same-began")
    assert worker.waiting() == 42
    for _ in range(50):
        worker.tell("same-go")
    for _ in range(50):
        worker.fact("same-ended")


def test_one_slot_runs_messages_in_the_order_they_were_sent(
    redis_url: str, worker_with: Callable[..., Worker]
) -> None:
    worker = worker_with(redis_url, before=lambda worker: send(worker, 60), POOL_APP_CONCURRENCY="1")
    assert [int(word.split()[0]) for word in noted(worker, 60)] == list(range(60))


def test_a_long_queue_does_not_hold_up_a_short_one(
    redis_url: str, worker_with: Callable[..., Worker]
) -> None:
    name = f"pool-{uuid4().hex[:8]}"

    def preload(worker: Worker) -> None:
        send(worker, 300, word="long")
        send(worker, 10, f"{name}-short", word="short")

    queues = [name, f"{name}-short"]
    worker = worker_with(redis_url, prefix=name, queues=queues, before=preload, POOL_APP_CONCURRENCY="8")
    words = noted(worker, 310)
    last = max(at for at, word in enumerate(words) if word.startswith("short"))
    assert last < 60, "both queues share the slots"


@pytest.mark.parametrize(
    ("queues", "room", "expected"),
    [
        (["a"], 7, [("a", 7)]),
        (["a", "b", "c"], 8, [("a", 3), ("b", 3), ("c", 2)]),
        (["a", "b", "c"], 2, [("a", 1), ("b", 1)]),
        ([], 5, []),
    ],
)
def test_shares(queues: list[str], room: int, expected: list[tuple[str, int]]) -> None:
    assert list(shares(queues, room)) == expected


def test_a_stock_worker_and_a_batched_one_share_a_queue(
    redis_url: str, worker_with: Callable[..., Worker]
) -> None:
    name = f"pool-{uuid4().hex[:8]}"
    batched = worker_with(redis_url, prefix=name, POOL_APP_CONCURRENCY="3")
    stock = worker_with(redis_url, prefix=name, POOL_APP_CONCURRENCY="3", POOL_APP_AMQP="")
    send(batched, 400)
    words = [word.split() for word in noted(batched, 400)]
    assert sorted(int(number) for number, _ in words) == list(range(400)), "each ran exactly once"
    assert {int(pid) for _, pid in words} == {batched.process.pid, stock.process.pid}


# -- what breaks ---------------------------------------------------------------------------------------------


def test_redis_restarted_under_load_is_served_again(
    stack: ExitStack, tmp_path: Path, worker_with: Callable[..., Worker]
) -> None:
    first = stack.enter_context(served(tmp_path / "data"))
    worker = worker_with(first.url, POOL_APP_CONCURRENCY="20")
    send(worker, 100)
    noted(worker, 50)
    first.process.kill()
    first.process.wait()
    stack.enter_context(served(tmp_path / "data", port=first.port))
    send(worker, 100, word="after-")
    missing = {f"after-{number}" for number in range(100)}
    while missing:  # among others that the worker held when Redis fell
        missing.discard(worker.fact("noted").split()[0])
    eventually(lambda: bool(worker.app.control.ping([worker.name], timeout=2)))
    assert worker.process.poll() is None


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    """Ten free slots, seen by the transport of this very process."""
    assert not state.reserved_requests
    TaskPool.current = pool = TaskPool(10)
    yield pool
    TaskPool.current = None


@pytest.fixture
def channel(redis_url: str, pool: TaskPool) -> Iterator[Any]:
    """A consuming channel, its queue, and the bodies it was given."""
    name = f"transport-{uuid4().hex[:8]}"
    with (
        Connection(redis_url, transport_options=HINTS) as connection,
        redis.Redis.from_url(redis_url) as client,
    ):
        found: list[Any] = []
        consumer = Consumer(connection.default_channel, [Queue(name)], on_message=lambda m: found.append(m))
        consumer.consume()

        def push(*items: int | str) -> None:
            client.lpush(name, *(a_message(one, name) if isinstance(one, int) else one for one in items))

        yield SimpleNamespace(
            connection=connection, consumer=consumer, found=found, push=push, name=name, redis=client,
            inner=connection.default_channel,
        )  # fmt: skip
        consumer.cancel()
        client.delete(name)


def a_message(number: int, queue: str) -> str:
    properties = {"delivery_tag": str(uuid4()), "delivery_info": {"exchange": "", "routing_key": queue}}
    return json.dumps(
        {"body": str(number), "content-type": "application/json", "content-encoding": "utf-8", "headers": {},
         "properties": properties}
    )  # fmt: skip


def drain(channel: Any) -> None:
    with suppress(TimeoutError, OSError):
        channel.connection.drain_events(timeout=1)


def in_a_burst(channel: Any) -> None:
    """As after many full answers: it asks for all that there is room for."""
    channel.inner._eager = MOST


def test_a_burst_is_asked_for_in_ever_larger_handfuls(channel: Any) -> None:
    """So several workers that wait for one share it, and who is alone with it soon has all there is room for."""
    channel.push(*range(30))
    had = []
    for _ in range(7):
        drain(channel)
        had.append(len(channel.found))
    assert had == [1, 2, 4, 8, 16, 26, 30]
    assert channel.inner._eager == 1, "the last answer was not full"


def test_a_fetch_brings_what_there_is_room_for(channel: Any, pool: TaskPool) -> None:
    in_a_burst(channel)
    channel.push(*range(30))
    drain(channel)
    assert len(channel.found) == 1, "the first one wakes"
    drain(channel)
    assert [m.payload for m in channel.found] == list(range(11))
    pool.limit = 3
    drain(channel)
    assert [m.payload for m in channel.found] == list(range(14))
    assert channel.redis.llen(channel.name) == 16


def test_what_comes_after_the_consumer_was_cancelled_goes_back(channel: Any) -> None:
    in_a_burst(channel)
    channel.push(*range(8))
    drain(channel)
    cycle = channel.connection.transport.cycle
    cycle.on_poll_start()  # asks for the rest
    eventually(lambda: channel.redis.llen(channel.name) == 0)
    channel.consumer.cancel()
    cycle.get(None, timeout=1)
    assert len(channel.found) == 1
    assert channel.redis.llen(channel.name) == 7
    channel.consumer.consume()

    def arrived() -> bool:
        drain(channel)
        return len(channel.found) >= 8

    eventually(arrived)
    assert sorted(m.payload for m in channel.found) == list(range(8)), "and can be read again"


def test_what_was_fetched_and_not_acknowledged_goes_back_when_the_channel_closes(channel: Any) -> None:
    in_a_burst(channel)
    channel.push(*range(5))
    for _ in range(2):
        drain(channel)
    assert len(channel.found) == 5
    for message in channel.found[:2]:
        message.ack()
    channel.inner.close()
    assert channel.redis.llen(channel.name) == 3


def test_a_text_that_is_no_message_costs_the_others_nothing(channel: Any) -> None:
    broken = [
        "{broken",
        "5",
        "null",
        '{"properties": {}}',
        '{"properties": 5}',
        '{"properties": "delivery_tag"}',
    ]
    channel.push(0, 1, *broken, 2)

    def arrived() -> bool:
        drain(channel)
        return len(channel.found) == 3

    eventually(arrived)
    assert [m.payload for m in channel.found] == [0, 1, 2]


def asked(channel: Any) -> None:
    """Have an RPOP under way, with its answer in the socket."""
    channel.push(0)
    drain(channel)
    channel.push(*range(1, 6))
    channel.connection.transport.cycle.on_poll_start()
    assert channel.inner._asked
    eventually(lambda: channel.redis.llen(channel.name) < 5)


def test_what_was_asked_for_is_read_without_room(channel: Any) -> None:
    """It is gone from Redis: in the socket it would wait for who knows how long, and for a worker that is killed."""
    asked(channel)
    channel.inner.qos.can_consume = lambda: False
    drain(channel)
    assert len(channel.found) + channel.redis.llen(channel.name) == 6
    assert not channel.inner._in_poll
    held = len(channel.found)
    channel.connection.transport.cycle.on_poll_start()
    assert (len(channel.found), channel.inner._in_poll) == (held, None), "and nothing else is asked for"


def test_what_was_asked_for_goes_back_when_the_channel_closes(channel: Any) -> None:
    asked(channel)
    channel.inner.close()
    assert channel.redis.llen(channel.name) == 6


def test_a_consumer_that_raises_over_one_message_is_given_the_others(channel: Any) -> None:
    def picky(message: Any) -> None:
        if message.payload == 2:
            raise LookupError("not this one")
        channel.found.append(message)

    channel.consumer.on_message = picky
    in_a_burst(channel)
    channel.push(*range(5))
    drain(channel)
    with pytest.raises(LookupError, match="not this one"):
        drain(channel)
    assert [m.payload for m in channel.found] == [0, 1, 3, 4]


def test_a_connection_that_breaks_is_opened_again(channel: Any) -> None:
    channel.push(0)
    drain(channel)
    channel.inner.client.connection._sock.shutdown(socket.SHUT_RDWR)
    channel.push(*range(1, 6))

    def arrived() -> bool:
        with suppress(redis.ConnectionError):
            drain(channel)
        return len(channel.found) == 6

    eventually(arrived)
    assert [m.payload for m in channel.found] == list(range(6))


def test_a_redis_that_knows_no_count_is_read_one_by_one(channel: Any, caplog: Any) -> None:
    channel.push(*range(3))
    drain(channel)
    channel.inner._refuse(redis.ResponseError("wrong number of arguments for 'rpop' command"))
    for _ in range(2):
        drain(channel)
    assert [m.payload for m in channel.found] == [0, 1, 2]
    assert "older than 6.2" in caplog.text


def test_a_worker_without_room_says_that_it_waits(channel: Any, pool: TaskPool) -> None:
    class Held:
        """Stands for a task that holds a slot."""

    channel.push(0)
    drain(channel)
    held = [Held() for _ in range(10)]
    state.reserved_requests.update(held)
    try:
        channel.inner.qos.can_consume = lambda: len(state.reserved_requests) < 10
        channel.connection.transport.cycle.on_poll_start()
        assert pool.is_awaited
        assert not channel.inner._in_poll
        state.reserved_requests.discard(held.pop())
        pool.vacated()
        assert not pool.is_awaited
        pool.is_awaited = True
        pool.grow()  # so do more slots
        assert not pool.is_awaited
    finally:
        state.reserved_requests.clear()


# -- another broker ------------------------------------------------------------------------------------------


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[str]:
    """A throwaway RabbitMQ; the URL."""
    program = os.environ.get("RABBITMQ_SERVER") or shutil.which("rabbitmq-server")
    if program is None:
        pytest.skip("needs rabbitmq-server (Debian: apt install rabbitmq-server)")
    port, distribution, mapper = free_port(), free_port(), free_port()
    settings = {
        "HOME": str(tmp_path),
        "RABBITMQ_NODENAME": f"t{uuid4().hex[:8]}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_MNESIA_BASE": str(tmp_path / "mnesia"),
        "RABBITMQ_LOG_BASE": str(tmp_path / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(tmp_path / "plugins"),
    }
    process = subprocess.Popen(
        [program], env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    url = f"amqp://guest:guest@127.0.0.1:{port}//"

    def is_up() -> bool:
        assert process.poll() is None, "RabbitMQ ended while it started"
        with suppress(OSError, OperationalError):
            Connection(url).ensure_connection(max_retries=1, timeout=2).release()
            return True
        return False

    try:
        eventually(is_up, 90)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for one in psutil.process_iter(["name"]):  # Erlang's port mapper outlives who has started it
            if one.info["name"] == "epmd" and one.environ().get("ERL_EPMD_PORT") == str(mapper):
                one.kill()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_rabbitmq_is_served_by_its_own_transport(
    rabbit: str, redis_url: str, worker_with: Callable[..., Worker]
) -> None:
    worker = worker_with(rabbit, facts=redis_url, before=lambda worker: send(worker, 100))
    noted(worker, 100)
    assert worker.event("task-succeeded", worker.send("add", 2, 3))["result"] == "5"
    task = worker.send("occupy", "held")
    worker.fact("held-began")
    worker.app.control.revoke(task, terminate=True)
    assert worker.event("task-revoked", task)["terminated"] is True
    assert worker.stop() == 0
