"""Workflows whose heavy steps run on a prefork queue, ``cpu``. Bodies tell facts by pushing to Redis lists."""

import asyncio
import contextlib
import ctypes
import os
import threading
import time

import redis

from orchestrator import Retries, workflow

PREFIX = os.environ.get("ORCHESTRATOR_ACCOUNT", "flows")
CPU = f"{PREFIX}-cpu"
AGAIN = Retries(limit=3, delay=0)
ONCE = Retries(limit=0)
IMPORTED_BY = os.getpid()
"""The parent of a prefork worker; its children inherit the module."""


class TooHot(Exception):
    """An error of the application's own."""


def tell(fact, value):
    with redis.Redis.from_url(os.environ["ORCHESTRATOR_REDIS_URL"]) as client:
        client.rpush(f"{PREFIX}:{fact}", f"{value}")


def crunch(ctx, n):
    """Sync, and busy."""
    tell("pid", os.getpid())
    return sum(i * i for i in range(n))


async def crunch_async(ctx, n):
    tell("pid", os.getpid())
    await asyncio.sleep(0.01)
    return n + 1


def where(ctx):
    return os.getpid()


async def where_async(ctx):
    return os.getpid()


def spin(ctx):
    """On its first attempt it never ends, and listens to nobody."""
    tell("spin", f"{ctx.attempt}:{os.getpid()}")
    while ctx.attempt == 1:
        pass
    return ctx.attempt


async def spin_async(ctx):
    """The same, of the kind that swallows its cancellation."""
    tell("spin", f"{ctx.attempt}:{os.getpid()}")
    while ctx.attempt == 1:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    return ctx.attempt


def hold(ctx, seconds):
    """Keeps the interpreter to itself, as an extension in C may: no other thread of the process runs meanwhile."""
    tell("spin", f"{ctx.attempt}:{os.getpid()}")
    if ctx.attempt == 1:
        ctypes.PyDLL(None).sleep(seconds)
    return ctx.attempt


def spin_deaf(ctx):
    return hold(ctx, 600)


def die(ctx):
    tell("die", f"{ctx.attempt}:{os.getpid()}")
    if ctx.attempt == 1:
        os._exit(3)
    return ctx.attempt


def hot(ctx):
    raise TooHot("over 90 degrees")


def undo(r):
    tell("undone_apart", f"{r.output}:{os.getpid()}")


def refuse(ctx):
    raise ValueError("refused")


def nap(ctx, seconds):
    tell("nap", f"{ctx.attempt}:{os.getpid()}")
    time.sleep(seconds)
    return ctx.attempt


@workflow
async def both(event, step):
    """Here and there: the workflow's own steps, and two kinds of bodies on the queue for heavy work."""
    here = await step.do("here", where_async)
    heavy = await step.do("crunch", crunch, 1000, queue=CPU)
    light = await step.do("crunch async", crunch_async, 1, queue=CPU)
    there = await step.do("there", where, queue=CPU)
    return [here, heavy, light, there]


@workflow
async def spins(event, step):
    body = {"sync": spin, "async": spin_async, "deaf": spin_deaf}[event.payload]
    return await step.do("spin", body, retries=AGAIN, timeout=1, queue=CPU)


@workflow
async def spins_with_delay(event, step):
    """The delay comes from a function, which only code can answer."""
    retries = Retries(limit=3, delay=lambda ctx, error: 0.25)
    return await step.do("spin", spin, retries=retries, timeout=1, queue=CPU)


@workflow
async def endless(event, step):
    """No timeout comes to its help."""
    try:
        return await step.do("spin", spin, retries=AGAIN, timeout="1 hour", queue=CPU)
    except Exception as error:
        return type(error).__name__


@workflow
async def deaf(event, step):
    return await step.do("hold", hold, event.payload, retries=AGAIN, timeout="1 hour", queue=CPU)


@workflow
async def dies(event, step):
    return await step.do("die", die, retries=AGAIN, queue=CPU)


@workflow
async def dies_once(event, step):
    return await step.do("die", die, retries=ONCE, queue=CPU)


@workflow
async def catches(event, step):
    try:
        await step.do("hot", hot, retries=ONCE, queue=CPU)
    except TooHot as error:
        return f"caught {error}"


@workflow
async def undone_apart(event, step):
    await step.do("crunch", crunch, 10, queue=CPU, sensitive=True, rollback=undo)
    await step.do("refuse", refuse, retries=ONCE)


@workflow
async def raced(event, step):
    """One branch fails while the other is in a body that does not listen."""
    slow = step.do("spin", spin, timeout="1 hour", queue=CPU, rollback=undo)
    await step.wait_for_event("go", type="go")
    try:
        await step.do("refuse", refuse, retries=ONCE)
    finally:
        del slow


@workflow
async def taken_back(event, step):
    """The code cancels a step that is in its body."""
    slow = step.do("spin", spin, timeout="1 hour", queue=CPU)
    await step.wait_for_event("go", type="go")
    slow.cancel()
    return "gone on"


@workflow
async def naps_there(event, step):
    return await step.do("nap", nap, event.payload, retries=ONCE, queue=CPU)


@workflow
async def many(event, step):
    return sum(
        await asyncio.gather(*(step.do("crunch", crunch, 1000, queue=CPU) for _ in range(event.payload)))
    )


@workflow
async def stalls(event, step):
    """Its second turn blocks the process that has imported this, and no child. Who sleeps longer than two seconds is
    woken by the parent's alarms."""
    await step.sleep("a while", 3)
    if os.getpid() == IMPORTED_BY:
        time.sleep(event.payload)
    return "done"


def break_second_child():
    """Have the start of the engine fail in the second child that is forked."""
    from orchestrator.dispatch import prefork

    whole = prefork.Child.__init__

    def start(self, *parts):
        with redis.Redis.from_url(os.environ["ORCHESTRATOR_REDIS_URL"]) as client:
            if client.incr(f"{PREFIX}:children") == 2:
                raise RuntimeError("broken on purpose")
        whole(self, *parts)

    prefork.Child.__init__ = start


if os.environ.get("PREFORK_BREAKS"):
    break_second_child()


def end_with(owner):
    """End this process soon after its owner: tests that are killed cannot end their workers."""
    while os.getppid() == owner:
        time.sleep(1)
    os._exit(1)


if os.environ.get("PREFORK_OWNER"):
    threading.Thread(target=end_with, args=(int(os.environ["PREFORK_OWNER"]),), daemon=True).start()
