"""Celery: the client. Chains and groups of no-op tasks with results, or bare tasks without.

Usage: ``celery_client.py chains|bare``. Settings as in ``celery_tasks``.
"""

import sys
import time
from collections import deque
from typing import Any

import redis
from celery import chain, group
from celery_tasks import app, noop
from conversation import Answer, Request, serve

PATIENCE_S = 600.0
LOOK_S = {"lone": 0.005, "w1": 0.1, "w2": 0.1, "w3": 0.1}
"""How often a result in Postgres is looked for (each look connects anew); those in Redis announce themselves."""


def get(result: Any, kind: str) -> None:
    """Wait for the last task of a chain. Its parents are not asked for: it runs only after they succeeded."""
    got = result.get(timeout=PATIENCE_S, interval=LOOK_S[kind], propagate=False)
    if got != {"ok": True}:
        raise RuntimeError(f"a chain ended with {got!r}")


def chains(request: Request) -> Answer:
    kind, size, steps = request["kind"], int(request["size"]), int(request["steps"])
    began = time.perf_counter()
    taken = []
    if kind == "lone":
        for _ in range(size):
            before = time.perf_counter()
            get(chain(*(noop.si() for _ in range(steps))).apply_async(), kind)
            taken.append(time.perf_counter() - before)
    elif kind == "w1":
        waiting: deque[Any] = deque()
        for _ in range(size):
            if len(waiting) == request["outstanding"]:
                get(waiting.popleft(), kind)
            waiting.append(chain(*(noop.si() for _ in range(steps))).apply_async())
        while waiting:
            get(waiting.popleft(), kind)
    elif kind == "w2":
        get(chain(*(noop.si() for _ in range(size))).apply_async(), kind)
    else:
        at_once = group(noop.si() for _ in range(size)).apply_async()
        done = at_once.get(timeout=PATIENCE_S, interval=LOOK_S[kind])
        if done != [{"ok": True}] * size:
            raise RuntimeError(f"the group gave {len(done)} results, not {size}")
    return {"wall_s": time.perf_counter() - began, "taken_s": taken}


def bare(request: Request) -> Answer:
    """As many tasks as W1 has steps; done when the queue and what is unacknowledged are empty."""
    broker = redis.Redis.from_url(app.conf.broker_url)
    deadline = time.perf_counter() + PATIENCE_S
    began = time.perf_counter()
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(int(request["size"]) * int(request["steps"])):
            noop.apply_async(producer=producer)
    while broker.llen("celery") or broker.hlen("unacked"):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{broker.llen('celery')} tasks are left")
        time.sleep(0.01)
    return {"wall_s": time.perf_counter() - began, "taken_s": []}


if __name__ == "__main__":
    serve(chains if sys.argv[1] == "chains" else bare)
