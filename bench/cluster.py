"""A pair of embedded servers and worker processes; the CPU and the memory each of them uses.

Owns: starting, stopping, suspending and metering. Does not own: what is run on them (``workloads``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from orchestrator import Orchestrator, Settings, configure
from orchestrator.dev import servers
from orchestrator.store import migrate

READY_S = 60.0
STOP_S = 40.0
LOG_TAIL = 3000

Fleet = tuple[int, tuple[tuple[str, str], ...], tuple[str, ...]]
"""How many workers, with which settings and which arguments."""


@dataclass
class Cluster:
    """What runs, by role. ``cpu()`` is in seconds since each process began, children included."""

    pair: servers.Servers
    environment: dict[str, str]
    orchestrator: Orchestrator
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: Path | None = None
    """The folder that takes the workers' logs; without one they are thrown away."""
    _fleet: Fleet = (0, (), ())
    _connection: psycopg.Connection[Any] | None = None

    # -- workers -------------------------------------------------------------------------------------------

    def start_worker(
        self, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> None:
        """Start one more worker process, with further settings and further arguments of ``celery worker``."""
        command = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker", "-l", "WARNING"]
        command += ["--without-mingle", "--without-gossip", "-n", f"bench{len(self.workers)}@%h", *arguments]
        everything = {**self.environment, **(environment or {})}
        path = Path(os.devnull) if self.logs is None else self.logs / f"worker{len(self.workers)}.log"
        with path.open("ab") as log:
            self.workers.append(subprocess.Popen(command, env=everything, stdout=log, stderr=log))

    def staff(
        self, count: int, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> bool:
        """Have exactly ``count`` such workers; whether any had to be started or stopped for it."""
        wanted = (count, tuple(sorted((environment or {}).items())), tuple(arguments))
        before, self._fleet = self._fleet, wanted
        if wanted == before and len(self.workers) == count:
            return False
        self.stop_workers(keep=count if wanted[1:] == before[1:] else 0)
        while len(self.workers) < count:
            self.start_worker(environment, arguments)
        return True

    def stop_workers(self, keep: int = 0) -> None:
        """End the workers but the first ``keep`` in order, and wait until they are gone."""
        leaving = self.workers[keep:]
        for worker in leaving:
            worker.terminate()
        for worker in leaving:
            worker.wait(STOP_S)
        del self.workers[keep:]

    def kill_worker(self, position: int) -> int:
        """End a worker as a crash does, without a word; its pid."""
        worker = self.workers.pop(position)
        worker.kill()
        worker.wait(STOP_S)
        return worker.pid

    def ready(self) -> None:
        """Wait until every worker is registered. Raises ``RuntimeError`` with the logs if one ends, or takes long."""
        deadline = time.monotonic() + READY_S
        while self.sql("SELECT count(*) FROM orchestrator_workers WHERE dead_at IS NULL")[0][0] != len(
            self.workers
        ):
            if time.monotonic() > deadline or self.lost_workers():
                raise RuntimeError(f"The workers did not come up:\n{self.worker_log()}")
            time.sleep(0.02)

    def lost_workers(self) -> bool:
        """Whether a worker has ended by itself."""
        return any(worker.poll() is not None for worker in self.workers)

    def pause_workers(self) -> None:
        """Suspend every worker process. One that stays so for a lease is declared dead."""
        for worker in self.workers:
            worker.send_signal(signal.SIGSTOP)

    def continue_workers(self) -> None:
        """Let suspended workers go on."""
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)

    def worker_log(self) -> str:
        """The ends of the workers' logs."""
        if self.logs is None:
            return "(the workers' logs were not kept)"
        ends = {
            path.name: path.read_text(errors="replace")[-LOG_TAIL:]
            for path in sorted(self.logs.glob("*.log"))
        }
        return "\n".join(f"--- {name}\n{end.strip() or '(empty)'}" for name, end in ends.items())

    # -- figures -------------------------------------------------------------------------------------------

    def cpu(self) -> dict[str, float]:
        return {
            "client": _cpu(os.getpid(), children=False),
            "worker": sum(_cpu(worker.pid) for worker in self.workers),
            "postgres": _cpu(self.pair.postgres.pid),
            "valkey": _cpu(self.pair.valkey.pid),
        }

    def resident(self) -> int:
        """Bytes of memory that the workers hold now, together."""
        return sum(_resident(worker.pid) for worker in self.workers)

    def peak(self) -> int:
        """The most bytes of memory each worker held since ``forget_peak``, added up.

        Only Linux keeps account of it; elsewhere this is what they hold now.
        """
        peaks = [_status(worker.pid).get("VmHWM") for worker in self.workers]
        return sum(peak for peak in peaks if peak is not None) if all(peaks) and peaks else self.resident()

    def forget_peak(self) -> None:
        for worker in self.workers:
            with suppress(OSError):
                Path(f"/proc/{worker.pid}/clear_refs").write_text("5")

    def sql(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of the bench's own; its rows, if it has any."""
        if self._connection is None:
            url = self.pair.database_url.replace("postgresql+psycopg://", "postgresql://", 1)
            self._connection = psycopg.connect(url, autocommit=True)
            self._connection.execute("SET enable_seqscan = off")  # what is asked here has an index
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Stop the workers and give back the connections."""
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
        self.stop_workers()
        self.orchestrator.close()
        if self._connection is not None:
            self._connection.close()


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
        settings = Settings(
            database_url=pair.database_url,
            redis_url=pair.redis_url,
            creation_rate=1e6,
            workflow_creation_rate=1e6,
        )
        orchestrator = configure(settings)
        made = Cluster(pair, environment, orchestrator, logs=root)
        try:
            yield made
        finally:
            made.close()


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


def _resident(pid: int) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _status(pid: int) -> dict[str, int]:
    """What Linux says about the memory of a process, in bytes; nothing elsewhere."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = (line.split() for line in lines if line.endswith(" kB"))
        return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in sizes}
    return {}
