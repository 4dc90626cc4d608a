"""Workflows for the tests of limits with a real Celery worker: bodies stay until they are let go."""

import asyncio
import os

import redis.asyncio

from orchestrator import workflow

GO = os.environ.get("ORCHESTRATOR_ACCOUNT", "limits") + ":go"
"""A key of Redis: while it is there, bodies end."""
LOOK_S = 0.05


async def stay() -> None:
    async with redis.asyncio.Redis.from_url(os.environ["ORCHESTRATOR_REDIS_URL"]) as client:
        while not await client.exists(GO):
            await asyncio.sleep(LOOK_S)


@workflow
async def limits_steady(event, step):
    """One step that stays."""
    await step.do("stay", stay)


@workflow
async def limits_passing(event, step):
    """Ends at once."""
