"""Workflows for the tests with a real Celery worker. Bodies tell facts by pushing to Redis lists."""

import asyncio
import os

import redis

from orchestrator import Retries, workflow

PREFIX = os.environ.get("ORCHESTRATOR_ACCOUNT", "flows")


def tell(fact: str, value: str) -> None:
    with redis.Redis.from_url(os.environ["ORCHESTRATOR_REDIS_URL"]) as client:
        client.rpush(f"{PREFIX}:{fact}", value)


async def short(ctx):
    await asyncio.to_thread(tell, "short", ctx.idempotency_key)
    await asyncio.sleep(0.05)


async def long(ctx):
    """On its first attempt it does not end by itself."""
    await asyncio.to_thread(tell, "long", f"{ctx.attempt}")
    if ctx.attempt == 1:
        await asyncio.sleep(600)
    return ctx.attempt


def polite(ctx):
    """A sync body that looks whether it was told to stop."""
    tell("polite", f"{ctx.attempt}")
    if ctx.attempt == 1 and ctx.cancelled.wait(600):
        raise RuntimeError("told to stop")
    return ctx.attempt


@workflow
async def busy(event, step):
    """Many short steps."""
    for _ in range(event.payload):
        await step.do("short", short)
    return "done"


@workflow
async def stays(event, step):
    """Steps that no grace is long enough for."""
    never = Retries(limit=0)
    return await asyncio.gather(
        step.do("long", long, retries=never), step.do("polite", polite, retries=never)
    )


@workflow
async def killed(event, step):
    """A step that somebody terminates."""
    return await step.do(f"long-{event.instance_id}", long, retries=Retries(limit=2, delay=0))
