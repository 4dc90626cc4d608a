"""Restate: the client. Calls through the ingress and keeps its connections; the answer is the result.

Usage: ``restate_client.py INGRESS_URL``.
"""

import asyncio
import sys
import time
from typing import Any

import aiohttp
import uvloop
from conversation import Answer, Request, serve

PATIENCE_S = 1800.0


async def run(url: str, request: Request) -> Answer:
    kind, size = request["kind"], int(request["size"])
    outstanding = size if kind == "w4" else int(request["outstanding"])
    connector = aiohttp.TCPConnector(limit=outstanding, keepalive_timeout=600)
    patience = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=patience) as session:

        async def call(handler: str, argument: Any, expected: int) -> None:
            async with session.post(f"/bench/{handler}", json=argument) as response:
                got = await response.text()
                if response.status != 200 or int(got) != expected:
                    raise RuntimeError(f"{handler}({argument}) gave {response.status}: {got[:500]}")

        await call("sequence", 1, 1)  # the connection is there
        began = time.perf_counter()
        taken = []
        if kind == "lone":
            for _ in range(size):
                before = time.perf_counter()
                await call("sequence", request["steps"], request["steps"])
                taken.append(time.perf_counter() - before)
        elif kind == "w1":
            room = asyncio.Semaphore(outstanding)

            async def one() -> None:
                async with room:
                    await call("sequence", request["steps"], request["steps"])

            await asyncio.gather(*(one() for _ in range(size)))
        elif kind == "w2":
            await call("sequence", size, size)
        elif kind == "w3":
            await call("parallel", size, size)
        else:
            await asyncio.gather(*(call("one_await", request["seconds"], 1) for _ in range(size)))
        return {"wall_s": time.perf_counter() - began, "taken_s": taken}


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serve(lambda request: runner.run(run(sys.argv[1], request)))


if __name__ == "__main__":
    main()
