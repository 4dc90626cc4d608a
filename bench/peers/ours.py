"""Our system, with its defaults and with every step through the broker; its workloads are those of ``bench``.

Durable before acknowledged: rows in Postgres 18 with fsync and ``synchronous_commit`` on, many steps to a commit.
Valkey keeps nothing that matters.

Two worker processes for W1 and W3, one for the rest; for W4 a worker with room for all instances. They are started for
each turn and stopped after it, since a suspended one would be declared dead; Postgres is suspended between turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import workloads
from bench.cluster import Cluster, cluster
from bench.completion import Incomplete
from bench.peers.processes import Crew
from bench.peers.system import WARM_INSTANCES, Failed, Figures, System, Workload
from orchestrator import OrchestratorError

ROOM = 1000
CACHED = 20_000


@contextmanager
def servers(folder: Path) -> Iterator[Cluster]:
    """The servers and the client that both configurations share."""
    folder.mkdir(parents=True, exist_ok=True)
    with cluster(folder) as made:
        yield made


class Ours(System):
    guarantees = "Postgres, commits with fsync shared by steps"

    def __init__(self, made: Cluster, delivery: str) -> None:
        self._cluster = made
        self._delivery = delivery
        self.name = "ours" if delivery == "in_place" else f"ours-{delivery}"
        how = "as by default" if delivery == "in_place" else f"ORCHESTRATOR_DELIVERY={delivery}"
        self.configuration = f"this checkout, {how}; asyncio pool, 1 or 2 worker processes"
        self._postgres = Crew(made.pair.home)

    def start(self) -> None:
        self._postgres.adopt("postgres", self._cluster.pair.postgres.pid)
        self.rest()

    def wake(self, workload: Workload) -> None:
        self._postgres.thaw()
        settings = {} if self._delivery == "in_place" else {"ORCHESTRATOR_DELIVERY": self._delivery}
        if workload.kind == "w4":
            settings["ORCHESTRATOR_CONCURRENCY"] = str(max(ROOM, workload.size))
            settings["ORCHESTRATOR_CACHED_REPLAYS"] = str(max(CACHED, workload.size + ROOM))
        count = 2 if workload.kind in {"w1", "w3"} else 1
        try:
            self._cluster.staff(count, settings)
            workloads.warm_up(self._cluster, 10)
            workloads.throughput(self._cluster, WARM_INSTANCES)
        except (OrchestratorError, RuntimeError, TimeoutError, Incomplete) as error:
            raise Failed(f"{self.name}: {error}\n{self._cluster.worker_log()}") from error

    def run(self, workload: Workload) -> Figures:
        try:
            figures = self._measure(workload)
        except (OrchestratorError, RuntimeError, TimeoutError, AssertionError, Incomplete) as error:
            raise Failed(f"{self.name}: {error}\n{self._cluster.worker_log()}") from error
        cpu = {("redis" if role == "valkey" else role): us for role, us in figures["cpu_us_per_step"].items()}
        return figures | {"cpu_us_per_step": cpu, "peak_mib": {"worker": figures["worker_peak_mib"]}}

    def _measure(self, workload: Workload) -> Figures:
        match workload.kind:
            case "lone":
                return workloads.lone(self._cluster, workload.size)
            case "w1":
                return workloads.throughput(self._cluster, workload.size)
            case "w2":
                return workloads.sequence(self._cluster, workload.size)
            case "w3":
                return workloads.parallel(self._cluster, workload.size)
            case "w4":
                return workloads.awaiting(self._cluster, workload.size)

    def rest(self) -> None:
        self._cluster.staff(0)
        self._postgres.freeze()

    def stop(self) -> None:
        """The servers are stopped by who started them; here they are only let go on."""
        self._postgres.stop()
