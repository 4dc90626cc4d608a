"""A pair of embedded servers and worker processes, and the CPU each of them uses.

Owns: starting, stopping and metering. Does not own: what is run on them (``workloads``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator import Orchestrator, Settings, configure
from orchestrator.dev import servers
from orchestrator.store import migrate

STOP_S = 40.0


@dataclass
class Cluster:
    """What runs, by role. ``cpu()`` is in seconds since each process began, children included."""

    pair: servers.Servers
    environment: dict[str, str]
    orchestrator: Orchestrator
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self) -> None:
        """Start one more worker process."""
        command = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker", "-l", "WARNING"]
        command += ["--without-mingle", "--without-gossip", "-n", f"bench{len(self.workers)}@%h"]
        self.workers.append(
            subprocess.Popen(
                command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(STOP_S)
        self.workers.clear()

    def cpu(self) -> dict[str, float]:
        return {
            "client": _cpu(os.getpid(), children=False),
            "worker": sum(_cpu(worker.pid) for worker in self.workers),
            "postgres": _cpu(self.pair.postgres.pid),
            "valkey": _cpu(self.pair.valkey.pid),
        }


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """A throwaway pair with fsync on, migrated; everything is stopped at the end."""
    with servers.running(root, persistent=False, fsync=True) as pair:
        migrate.upgrade(pair.database_url)
        environment = dict(
            os.environ,
            ORCHESTRATOR_DATABASE_URL=pair.database_url,
            ORCHESTRATOR_REDIS_URL=pair.redis_url,
            ORCHESTRATOR_WORKFLOWS="bench.flows",
            PYTHONPATH=str(Path(__file__).parent.parent),
        )
        orchestrator = configure(Settings(database_url=pair.database_url, redis_url=pair.redis_url))
        made = Cluster(pair, environment, orchestrator)
        try:
            yield made
        finally:
            made.stop_workers()
            orchestrator.close()


def _cpu(pid: int | None, *, children: bool = True) -> float:
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    total = 0.0
    for one in [process, *(process.children(recursive=True) if children else [])]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if one is process:  # backends that have ended since
            total += times.children_user + times.children_system
    return total
