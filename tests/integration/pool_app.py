"""A small Celery app for the tests of the pool and the publisher, run by a real worker process.

Tasks tell what they did by pushing to Redis lists that the tests block on: facts, not times.
"""

import asyncio
import json
import os
import threading

import redis
from celery import Celery, bootsteps
from kombu import Queue

from orchestrator.dispatch.native import NativeTask
from orchestrator.dispatch.pool import TaskPool

URL = os.environ.get("POOL_APP_BROKER", "memory://")
FACTS = os.environ.get("POOL_APP_FACTS", URL)
FOLDER = os.environ.get("POOL_APP_FOLDER", "")
PREFIX = os.environ.get("POOL_APP_PREFIX", "pool-app")
QUEUE = PREFIX

OPTIONS = json.loads(os.environ.get("POOL_APP_OPTIONS", "{}"))
AMQP = os.environ.get("POOL_APP_AMQP", "orchestrator.dispatch.transport:AMQP")

app = Celery("pool_app", broker=URL, amqp=AMQP or None, set_as_current=False)
app.conf.update(
    worker_pool="orchestrator.dispatch.pool:TaskPool",
    worker_concurrency=int(os.environ.get("POOL_APP_CONCURRENCY", "1000")),
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_send_task_events=os.environ.get("POOL_APP_EVENTS", "1") == "1",
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE)],
    accept_content=["json"],
    control_exchange=f"{PREFIX}-control",
    event_exchange=f"{PREFIX}-events",
    broker_transport_options={"ack_emulation": False, "priority_steps": [0], **OPTIONS},
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
if FOLDER:
    app.conf.broker_transport_options = {
        "data_folder_in": FOLDER, "data_folder_out": FOLDER, "control_folder": f"{FOLDER}/control",
    }  # fmt: skip
TaskPool.grace = float(os.environ.get("POOL_APP_GRACE", "25"))


def tell(fact: str, value: str = "1") -> None:
    with redis.Redis.from_url(FACTS) as client:
        client.rpush(f"{PREFIX}:{fact}", value)


def wait(fact: str) -> None:
    with redis.Redis.from_url(FACTS, socket_timeout=70) as client:
        if client.blpop([f"{PREFIX}:{fact}"], timeout=60) is None:
            raise TimeoutError(fact)


class Attach(bootsteps.StartStopStep):
    """What a bootstep of the worker does with the pool: it is told the loop, and holds up the end."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker):
        worker.pool.on_loop_start.append(self.began)
        worker.pool.drain = self.drain

    def began(self, loop: asyncio.AbstractEventLoop) -> None:
        assert loop is asyncio.get_running_loop()
        tell("loop", threading.current_thread().name)

    async def drain(self) -> None:
        await asyncio.to_thread(tell, "draining")
        await asyncio.to_thread(wait, "drain-go")
        tell("drained")


if os.environ.get("POOL_APP_DRAIN"):
    app.steps["worker"].add(Attach)


class Barrier:
    """Opens for all when ``count`` are in it: only possible if they all run at once."""

    def __init__(self) -> None:
        self.inside = 0
        self.peak = 0
        self.open = asyncio.Event()

    async def meet(self, count: int) -> None:
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        if self.inside == count:
            self.open.set()
        await self.open.wait()
        self.inside -= 1
        if self.inside == 0:
            await asyncio.to_thread(tell, "met", str(self.peak))


barrier = Barrier()


@app.task(base=NativeTask, name="meet")
async def meet(count: int) -> None:
    await barrier.meet(count)


@app.task(base=NativeTask, name="add", bind=True)
async def add(self: NativeTask, a: int, b: int) -> int:
    assert self.name == "add"
    assert threading.current_thread().name == "orchestrator-loop"
    return a + b


@app.task(base=NativeTask, name="fail")
async def fail(text: str) -> None:
    raise LookupError(text)


@app.task(base=NativeTask, name="leave")
async def leave() -> None:
    raise SystemExit(3)


@app.task(base=NativeTask, name="linger")
async def linger(fact: str) -> str:
    """Tell ``<fact>-began``, wait for ``<fact>-go`` and tell ``<fact>-ended``, or ``<fact>-cancelled``."""
    await asyncio.to_thread(tell, f"{fact}-began")
    try:
        await asyncio.to_thread(wait, f"{fact}-go")
    except asyncio.CancelledError:
        tell(f"{fact}-cancelled")
        raise
    await asyncio.to_thread(tell, f"{fact}-ended")
    return "ended"


@app.task(base=NativeTask, name="occupy")
async def occupy(fact: str) -> None:
    """Keep a slot until it is cancelled."""
    await asyncio.to_thread(tell, f"{fact}-began")
    await asyncio.Event().wait()


@app.task(name="stock")
def stock(fact: str) -> str:
    assert threading.current_thread().name.startswith("orchestrator-task")
    tell(fact)
    return "stocked"


@app.task(name="stock_retry", bind=True, max_retries=2)
def stock_retry(self, fact: str) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    tell(fact)
    return "retried"


@app.task(base=NativeTask, name="orchestrator.step")
async def step(instance: str, key: str, fence: int) -> None:
    await asyncio.to_thread(tell, "step", f"{instance} {key} {fence}")


@app.task(base=NativeTask, name="orchestrator.coordinate")
async def coordinate(instances: list[str]) -> None:
    await asyncio.to_thread(tell, "coordinate", " ".join(instances))


@app.task(base=NativeTask, name="note")
async def note(text: str) -> None:
    """Tell what it was given, and by whom."""
    await asyncio.to_thread(tell, "noted", f"{text} {os.getpid()}")


class Count:
    left = 0


@app.task(base=NativeTask, name="count")
async def count(total: int) -> None:
    """For measuring: one await, and a word when all have come."""
    Count.left = (Count.left or total) - 1
    await asyncio.sleep(0)
    if Count.left == 0:
        await asyncio.to_thread(tell, "counted")
