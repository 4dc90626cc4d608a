"""Restate: the service that is measured. Served by granian or hypercorn, see ``bench/peers/restate.py``."""

import asyncio

import restate

bench = restate.Service("bench")


async def noop() -> dict[str, bool]:
    return {"ok": True}


async def awaits(seconds: float) -> dict[str, bool]:
    await asyncio.sleep(seconds)
    return {"ok": True}


@bench.handler()
async def sequence(ctx: restate.Context, steps: int) -> int:
    """W1, W2: steps one after the other."""
    for _ in range(steps):
        await ctx.run_typed("noop", noop)
    return steps


@bench.handler()
async def parallel(ctx: restate.Context, steps: int) -> int:
    """W3: steps at once."""
    done = await restate.gather(*(ctx.run_typed("noop", noop) for _ in range(steps)))
    return len(done)


@bench.handler()
async def one_await(ctx: restate.Context, seconds: float) -> int:
    """W4: one step that awaits."""
    await ctx.run_typed("awaits", awaits, seconds=seconds)
    return 1


app = restate.app(services=[bench])
