"""An application's own Celery app, as its authors wrote it, with three lines more: run by real worker processes.

Its pool and what it knows of us come from the environment, so that one module is every worker of the tests. Tasks tell
what they did by pushing to Redis lists.
"""

import asyncio
import os
import signal
import threading
from datetime import datetime

import redis
from celery import Celery, shared_task
from celery.exceptions import Ignore, Reject

from orchestrator import NonRetryableError, Orchestrator, Retries, Settings, configure, workflow

PREFIX = os.environ.get("ORCHESTRATOR_ACCOUNT", "existing")
BROKER = os.environ.get("ORCHESTRATOR_REDIS_URL", "memory://")
TASKS = f"{PREFIX}-tasks"

app = Celery("shop", broker=BROKER, set_as_current=False)
app.conf.update(
    task_default_queue=TASKS,
    control_exchange=f"{PREFIX}-control",
    event_exchange=f"{PREFIX}-events",
    broker_connection_retry_on_startup=True,
    worker_pool=os.environ.get("EXISTING_POOL", "prefork"),
    worker_concurrency=int(os.environ.get("EXISTING_CONCURRENCY", "2")),
    result_backend=os.environ.get("EXISTING_BACKEND") or None,
    task_acks_late=os.environ.get("EXISTING_ACKS_LATE") == "1",
    task_reject_on_worker_lost=os.environ.get("EXISTING_ACKS_LATE") == "1",
    worker_max_tasks_per_child=1 if os.environ.get("EXISTING_RECYCLE") else None,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
if os.environ.get("EXISTING_KNOWS", "1") == "1":
    orchestrator = (
        Orchestrator(Settings.from_env(), celery=app) if "ORCHESTRATOR_DATABASE_URL" in os.environ else None
    )
    if orchestrator is not None:
        configure(orchestrator)

never = Retries(limit=0)
soon = Retries(limit=2, delay=0)


def tell(fact: str, value: object = "1") -> None:
    with redis.Redis.from_url(BROKER) as client:
        client.rpush(f"{PREFIX}:{fact}", str(value))


def wait(fact: str) -> None:
    with redis.Redis.from_url(BROKER, socket_timeout=70) as client:
        if client.blpop([f"{PREFIX}:{fact}"], timeout=60) is None:
            raise TimeoutError(fact)


class OutOfStock(Exception):
    """Known to the workflow, by its module."""


@app.task
def charge(order, amount=0):
    tell("charged", f"{order} {amount} {os.getpid()} {threading.current_thread().name}")
    return {"order": order, "amount": amount}


@app.task
def fail(text):
    tell("failed")
    raise OutOfStock(text)


@app.task
def refuse(text):
    tell("refused")
    raise NonRetryableError(text)


@app.task(autoretry_for=(LookupError,), retry_backoff=False, default_retry_delay=0, max_retries=5)
def flaky(times):
    tell("flaky")
    with redis.Redis.from_url(BROKER) as client:
        if client.llen(f"{PREFIX}:flaky") < times:
            raise LookupError("not yet")
    return "at last"


@app.task(autoretry_for=(LookupError,), default_retry_delay=0, max_retries=1)
def hopeless():
    tell("hopeless")
    raise LookupError("never")


@app.task
def linger(name):
    """Tell ``<name>-began``, wait for ``<name>-go``, tell ``<name>-ended``."""
    tell(f"{name}-began", os.getpid())
    wait(f"{name}-go")
    tell(f"{name}-ended")
    return name


@app.task
def suicide():
    """Its process is killed the first time."""
    tell("suicide", os.getpid())
    with redis.Redis.from_url(BROKER) as client:
        if client.llen(f"{PREFIX}:suicide") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@app.task
def unfit():
    tell("unfit")
    return object()


@app.task
def stamp():
    return datetime(2026, 1, 2, 3, 4, 5)


@app.task
def ignore():
    tell("ignore")
    raise Ignore


@app.task
def reject():
    tell("reject")
    raise Reject("no", requeue=False)


@app.task(acks_late=True)
def hesitate():
    """Puts its message back the first time."""
    tell("hesitate")
    with redis.Redis.from_url(BROKER) as client:
        if client.llen(f"{PREFIX}:hesitate") == 1:
            raise Reject("not now", requeue=True)
    return "now"


@shared_task(name=f"{PREFIX}.shared")
def shared(text):
    return text.upper()


class Custom(app.Task):
    """A base class of the application's own, as Flask's documentation has one."""

    abstract = True

    def __call__(self, *args, **kwargs):
        tell("custom")
        return super().__call__(*args, **kwargs)


@app.task(base=Custom, bind=True)
def contextual(self, value):
    return [value, self.request.retries, self.request.id]


@app.task
def plain(text):
    """No step of any workflow."""
    tell("plain", text)


async def ours(value):
    tell("ours", f"{value} {os.getpid()} {threading.current_thread().name}")
    return value + 1


def ours_sync(value):
    tell("ours_sync", f"{value} {os.getpid()} {threading.current_thread().name}")
    return value + 1


async def endless(ctx):
    """On its first attempt it does not end by itself."""
    tell("endless")
    if ctx.attempt == 1:
        await asyncio.sleep(600)
    return ctx.attempt


@workflow
async def existing_endless(event, step):
    return await step.do("endless", endless, retries=soon)


@workflow
async def existing_buy(event, step):
    """A task of the application between two steps of ours."""
    first = await step.do("first", ours, 1)
    paid = await step.do("charge", charge.s(event.payload, amount=first))
    return [paid, await step.do("last", ours_sync, first)]


@workflow
async def existing_fail(event, step):
    try:
        await step.do("fail", fail.s(event.payload), retries=soon)
    except OutOfStock as error:
        return ["caught", str(error), type(error).__name__]


def patience(ctx, error):
    tell("asked", f"{ctx.name} {ctx.attempt} {type(error).__name__}: {error}")
    return 0


def impatience(ctx, error):
    raise RuntimeError("no patience")


@workflow
async def existing_asks(event, step):
    """A delay function is asked where the workflow's code is."""
    delay = patience if event.payload else impatience
    await step.do("fail", fail.s("sold out"), retries=Retries(limit=1, delay=delay))


@workflow
async def existing_refuse(event, step):
    await step.do("refuse", refuse.s("no"), retries=soon)


@workflow
async def existing_flaky(event, step):
    return await step.do("flaky", flaky.s(3), retries=never)


@workflow
async def existing_hopeless(event, step):
    await step.do("hopeless", hopeless.s(), retries=soon)


@workflow
async def existing_linger(event, step):
    return await step.do("linger", linger.s(event.payload), retries=soon, timeout="60 seconds")


@workflow
async def existing_limited(event, step):
    """Celery's own limits, as options of the signature."""
    options = {"time_limit": 1} if event.payload == "hard" else {"expires": 0.001}
    await step.do("linger", linger.s("limited").set(**options), retries=never)


@workflow
async def existing_late(event, step):
    return await step.do("linger", linger.s(event.payload), retries=never, timeout=2)


@workflow
async def existing_elsewhere(event, step):
    return await step.do("far", charge.s(1), retries=never, timeout=2, queue=f"{PREFIX}-elsewhere")


@workflow
async def existing_suicide(event, step):
    return await step.do("suicide", suicide.s(), retries=Retries(limit=1, delay=0))


@workflow
async def existing_hesitate(event, step):
    return await step.do("hesitate", hesitate.s(), retries=never)


@workflow
async def existing_unfit(event, step):
    await step.do("unfit", unfit.s(), retries=soon)


@workflow
async def existing_unsendable(event, step):
    await step.do("unsendable", charge.s(object()), retries=soon)


@workflow
async def existing_miscalled(event, step):
    await step.do("miscalled", charge.s(), retries=never)


@workflow
async def existing_ends(event, step):
    """Tasks that end without a result, and types that JSON does not have."""
    found = []
    for name, task in (("ignore", ignore), ("reject", reject)):
        try:
            await step.do(name, task.s(), retries=never)
        except Exception as error:
            found.append([type(error).__name__, str(error)])
    return [*found, await step.do("stamp", stamp.s()), await step.do("shared", shared.s("a"))]


@workflow
async def existing_contextual(event, step):
    return await step.do("contextual", contextual.s("x"))


@workflow
async def existing_secret(event, step):
    return await step.do("secret", charge.s("s3cret"), sensitive=True)


async def undo(r):
    tell("undone", f"{r.args} {r.output}")


@workflow
async def existing_saga(event, step):
    await step.do("charge", charge.s("o-1", amount=7), rollback=undo)
    raise RuntimeError("no more")


@workflow
async def existing_fan(event, step):
    return await asyncio.gather(*[step.do("charge", charge.s(n)) for n in range(event.payload)])
