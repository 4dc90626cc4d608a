"""DBOS: the application, which is client and worker in one, as its makers mean it.

Usage: ``dbos_app.py DATABASE_URL async|sync EXECUTOR_ID POOL_SIZE``. A workflow that is called runs in its caller,
durably: no polling for its result.
"""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop
from conversation import Answer, Request, serve
from dbos import DBOS

THREADS = 64


@DBOS.step()
async def anoop() -> dict[str, bool]:
    return {"ok": True}


@DBOS.step()
async def aawaits(seconds: float) -> dict[str, bool]:
    await asyncio.sleep(seconds)
    return {"ok": True}


@DBOS.workflow()
async def asequence(steps: int) -> int:
    for _ in range(steps):
        await anoop()
    return steps


@DBOS.workflow()
async def aparallel(steps: int) -> int:
    return len(await asyncio.gather(*(anoop() for _ in range(steps))))


@DBOS.workflow()
async def aone_await(seconds: float) -> int:
    await aawaits(seconds)
    return 1


@DBOS.step()
def noop() -> dict[str, bool]:
    return {"ok": True}


@DBOS.workflow()
def sequence(steps: int) -> int:
    for _ in range(steps):
        noop()
    return steps


def run_sync(pool: ThreadPoolExecutor, request: Request) -> Answer:
    kind, size = request["kind"], int(request["size"])
    began = time.perf_counter()
    taken = []
    if kind == "lone":
        for _ in range(size):
            before = time.perf_counter()
            sequence(request["steps"])
            taken.append(time.perf_counter() - before)
    elif kind == "w1":
        done = sum(pool.map(lambda _: sequence(request["steps"]), range(size)))
        if done != size * request["steps"]:
            raise RuntimeError(f"{done} steps were run, not {size * request['steps']}")
    elif kind == "w2":
        sequence(size)
    else:
        raise RuntimeError(f"the sync application does not do {kind}")
    return {"wall_s": time.perf_counter() - began, "taken_s": taken}


async def run_async(request: Request) -> Answer:
    kind, size = request["kind"], int(request["size"])
    room = asyncio.Semaphore(size if kind == "w4" else int(request["outstanding"]))

    async def one(workflow: Any, argument: Any) -> int:
        async with room:
            return int(await workflow(argument))

    began = time.perf_counter()
    taken, done, expected = [], size, size
    if kind == "lone":
        for _ in range(size):
            before = time.perf_counter()
            await asequence(request["steps"])
            taken.append(time.perf_counter() - before)
    elif kind == "w1":
        expected = size * request["steps"]
        done = sum(await asyncio.gather(*(one(asequence, request["steps"]) for _ in range(size))))
    elif kind == "w2":
        done = await asequence(size)
    elif kind == "w3":
        done = await aparallel(size)
    else:
        done = sum(await asyncio.gather(*(one(aone_await, request["seconds"]) for _ in range(size))))
    if done != expected:
        raise RuntimeError(f"{kind}: {done} were done, not {expected}")
    return {"wall_s": time.perf_counter() - began, "taken_s": taken}


def main() -> None:
    url, mode, executor, pool_size = sys.argv[1:]
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "executor_id": executor,
            "application_version": "1",
            "sys_db_pool_size": int(pool_size),
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    try:
        if mode == "sync":
            with ThreadPoolExecutor(THREADS) as pool:
                serve(lambda request: run_sync(pool, request))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                serve(lambda request: runner.run(run_async(request)))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
