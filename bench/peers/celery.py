"""Celery as it is: chains and groups with results, and bare tasks. Not durable: what it would cost without us.

Not durable: a worker that is killed loses what it held (acknowledged early), Redis keeps its data in memory
(no append-only file), and a chain whose worker dies between two tasks ends there. Results in Postgres are committed
with fsync, one transaction per task.

Configured for speed: no mingle, gossip, heartbeat or events; prefetch multiplier 64
(docs.celeryq.dev/en/stable/userguide/optimizing.html: 50 to 150 for many short tasks); two prefork children, the
default for two cores; JSON; log level WARNING. Results in Redis announce themselves; those in Postgres are
looked for each 5 ms for a lone chain, each 100 ms for many (the default is 500 ms; Celery's client connects anew for
each look, its workers keep their connections). Bare tasks, as many as W1 has steps, keep no results.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psycopg

from bench.peers import environment
from bench.peers.peer import Peer
from bench.peers.system import Workload

Results = Literal["redis", "postgres", "none"]
THREADS = 10


class Celery(Peer):
    def __init__(self, folder: Path, results: Results, pool: str = "prefork") -> None:
        super().__init__(folder)
        self._results, self._pool = results, pool
        self.name = f"celery-bare-{pool}" if results == "none" else f"celery-{results}"
        kind = "bare tasks" if results == "none" else f"chains and groups, results in {results}"
        count = f"{os.cpu_count()} processes" if pool == "prefork" else f"{THREADS} threads"
        self.configuration = f"celery 5.7.0, {kind}, {pool} with {count}"
        self.guarantees = "none" + "; each result committed with fsync" * (results == "postgres")

    def unfit(self, workload: Workload) -> str | None:
        if self._results == "none" and workload.kind != "w1":
            return "bare tasks only"
        if workload.kind == "w4":
            return "no asyncio pool: a task that waits holds a process or a thread"
        if workload.kind == "w2" and (workload.size > 1000 or self._results == "postgres"):
            return "each task of a chain carries the rest of it: quadratic"
        if workload.kind == "w3" and workload.size > 1000:
            return "takes minutes"
        return None

    def launch(self) -> None:
        found = environment.python("celery")
        pair = self._servers()
        results = {"redis": pair.redis_url, "postgres": self._database(pair.database_url), "none": ""}
        settings = {
            "BENCH_BROKER_URL": pair.redis_url,
            "BENCH_RESULT_URL": results[self._results],
            "PYTHONPATH": str(environment.APPS),
        }
        count = os.cpu_count() or 1 if self._pool == "prefork" else THREADS
        worker = f"-m celery -A celery_tasks worker -l WARNING -P {self._pool} -c {count}".split()
        worker += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        self._crew.launch("worker", [found / "python", *worker], settings)
        mode = "bare" if self._results == "none" else "chains"
        self._client("client", [found / "python", environment.APPS / "celery_client.py", mode], settings)

    def _database(self, url: str) -> str:
        """The address of a database for results, which is made if it is used."""
        base = url.replace("postgresql+psycopg://", "postgresql://", 1)
        if self._results == "postgres":
            with psycopg.connect(base, autocommit=True) as connection:
                connection.execute("CREATE DATABASE results")
        return "db+postgresql+psycopg://" + base.removeprefix("postgresql://").rpartition("/")[0] + "/results"
