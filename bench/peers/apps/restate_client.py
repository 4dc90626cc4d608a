"""Restate: the client. Calls through the ingress on connections that it keeps; the answer is the result.

Usage: ``restate_client.py HOST PORT``. The few lines of HTTP stand here because the usual clients need as much CPU for
a call as the server, and on a small machine that would count against Restate.
"""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop
from conversation import Answer, Request, serve

CALL_S = 1200.0


class Ingress:
    """Kept connections, one call at a time on each; a new one where none is free."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, handler: str, argument: Any, expected: int) -> None:
        """Run a handler. Raises ``RuntimeError`` unless it gives ``expected``."""
        free = self._free.pop() if self._free else await asyncio.open_connection(self._host, self._port)
        reader, writer = free
        body = json.dumps(argument).encode()
        head = f"POST /bench/{handler} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(CALL_S):
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = answer.partition(b"content-length:")[2].partition(b"\r\n")[0]
            got = await reader.readexactly(int(length)) if length.strip() else b""
        if not answer.startswith(b"http/1.1 200 ") or not length.strip() or int(got) != expected:
            raise RuntimeError(f"{handler}({argument}) was answered with {answer!r} {got[:500]!r}")
        self._free.append(free)

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def run(ingress: Ingress, request: Request) -> Answer:
    kind, size = request["kind"], int(request["size"])
    room = asyncio.Semaphore(size if kind == "w4" else int(request["outstanding"]))

    async def one(handler: str, argument: Any, expected: int) -> None:
        async with room:
            await ingress.call(handler, argument, expected)

    began = time.perf_counter()
    taken = []
    if kind == "lone":
        for _ in range(size):
            before = time.perf_counter()
            await ingress.call("sequence", request["steps"], request["steps"])
            taken.append(time.perf_counter() - before)
    elif kind == "w1":
        await asyncio.gather(*(one("sequence", request["steps"], request["steps"]) for _ in range(size)))
    elif kind == "w2":
        await ingress.call("sequence", size, size)
    elif kind == "w3":
        await ingress.call("parallel", size, size)
    else:
        await asyncio.gather(*(one("one_await", request["seconds"], 1) for _ in range(size)))
    return {"wall_s": time.perf_counter() - began, "taken_s": taken}


def main() -> None:
    ingress = Ingress(sys.argv[1], int(sys.argv[2]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serve(lambda request: runner.run(run(ingress, request)))


if __name__ == "__main__":
    main()
