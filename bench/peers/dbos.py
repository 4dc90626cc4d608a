"""DBOS: the library on the same embedded Postgres 18, fsync and ``synchronous_commit`` on.

Durable before acknowledged: each step commits its row in Postgres, as does each start and end of a workflow.

Configured for speed: workflows are called directly, so they run in the process that starts them and nobody polls for
results (docs.dbos.dev/python/tutorials/workflow-tutorial); uvloop; log level WARNING; a connection pool of 50
(``sys_db_pool_size``, default 20); 60 instances of W1 at once (1,000 at once cost it a quarter more CPU per step); the
sync application runs W1 on 64 threads. ``dbos-async-2`` is two applications on one database, half of the instances
each. Parallel steps are ``asyncio.gather`` of async steps; the sync application has none inside one workflow. Which of
them is fastest differs by workload, so the report has all.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from bench.peers import environment
from bench.peers.peer import Peer
from bench.peers.system import Workload

POOL = 50


class Dbos(Peer):
    outstanding = 60
    guarantees = "Postgres, a commit with fsync per step"

    def __init__(self, folder: Path, mode: str, processes: int = 1) -> None:
        super().__init__(folder)
        self._mode, self._processes = mode, processes
        self.name = f"dbos-{mode}" + (f"-{processes}" if processes > 1 else "")
        self.configuration = (
            f"dbos 3.4.0, {mode}, {processes} process{'es' * (processes > 1)}, pool of {POOL}"
        )

    def unfit(self, workload: Workload) -> str | None:
        if self._mode == "sync" and workload.kind in {"w3", "w4"}:
            return "sync steps of one workflow run one after the other, and each that waits holds a thread"
        if self._processes > 1 and workload.kind not in {"w1", "w4"}:
            return "one instance runs in one process"
        if workload.kind == "w4" and workload.size > 2000:
            return "takes minutes"
        return None

    def launch(self) -> None:
        python = environment.python("dbos") / "python"
        base = self._servers().database_url.replace("postgresql+psycopg://", "postgresql://", 1)
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute("CREATE DATABASE dbos")
        address, _, _ = base.rpartition("/")
        app = environment.APPS / "dbos_app.py"
        for number in range(self._processes):
            arguments = [f"{address}/dbos", self._mode, f"bench{number}", str(POOL)]
            self._client("worker", [python, app, *arguments])
            if number == 0:  # it makes the tables; the second finds them
                self._answer(self._clients[0], 90.0)

    def start(self) -> None:
        self.launch()
        for client in self._clients[1:]:
            self._answer(client, 90.0)
