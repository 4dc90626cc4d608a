"""A cluster to break: the embedded pair, workers under supervisors, and the records to judge by.

Owns: starting, killing and restarting worker processes; creating instances and waiting for facts about them.
Does not own: what is broken (the tests), what the bodies saw (``witness``).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psycopg

from orchestrator import Orchestrator, Settings
from orchestrator.dev import servers as embedded
from orchestrator.store import migrate
from tests.chaos import flows, witness

ROOT = Path(__file__).parents[2]
SOAK = bool(os.environ.get("ORCHESTRATOR_SOAK"))
LEASE_S = 2.0
PATIENCE_S = 90.0
LOOK_S = 0.05
FINISHED = ("complete", "errored", "terminated")


def seeds(few: int, many: int) -> range:
    """``ORCHESTRATOR_SEED``: one (``7``) or a range (``200-260``); else ``few``, or ``many`` in a soak."""
    first, _, last = os.environ.get("ORCHESTRATOR_SEED", f"0-{many if SOAK else few}").partition("-")
    return range(int(first), int(last or int(first) + 1))


def until(what: str, fact: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait for a fact; returns it. Postgres may be away meanwhile."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            if found := fact():
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:g} s in vain: {what}")
        time.sleep(LOOK_S)


@dataclass
class Death:
    """A worker process that ended; ``code`` as ``Popen`` gives it."""

    pid: int
    code: int
    at: float
    armed: str


@dataclass
class Figures:
    """What a module did to its clusters, for the summary of a soak."""

    runs: int = 0
    instances: int = 0
    lost: int = 0
    longest_recovery_s: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    def lines(self) -> list[str]:
        kills = ", ".join(f"{point} {count}" for point, count in sorted(self.kills.items()))
        missed = ", ".join(f"{point} {count}" for point, count in sorted(self.missed.items()))
        return [
            f"runs {self.runs} · seeds {min(self.seeds, default=0)} to {max(self.seeds, default=0)}",
            f"instances {self.instances} · lost attempts recorded {self.lost}",
            f"kills {sum(self.kills.values())}: {kills}",
            f"armed but never reached {sum(self.missed.values())}: {missed}",
            f"longest recovery {self.longest_recovery_s:.1f} s",
        ]


FIGURES = Figures()


class Worker:
    """One worker under a supervisor, which starts it again, with nothing armed, when it dies."""

    def __init__(self, cluster: "Cluster", name: str, environ: dict[str, str], restart: bool) -> None:
        self.name = name
        self.deaths: list[Death] = []
        self.log = cluster.folder / f"{name}.log"
        self._cluster = cluster
        self._environ = environ
        self._restart = restart
        self._ending = False
        self._lock = threading.Lock()
        self.process = self._start(environ)
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def registered(self) -> bool:
        """Whether the process of the moment has entered itself in Postgres and is alive by its own word."""
        query = "SELECT 1 FROM orchestrator_workers WHERE pid = %s AND account = %s AND dead_at IS NULL"
        return bool(self._cluster.rows(query, self.pid, self._cluster.account))

    def incarnations(self) -> list[tuple[Any, Any]]:
        """(id, dead_at) of every life of the process of the moment, oldest first."""
        query = (
            "SELECT id, dead_at FROM orchestrator_workers WHERE pid = %s AND account = %s ORDER BY started_at"
        )
        return self._cluster.rows(query, self.pid, self._cluster.account)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, patience_s: float = 30.0) -> int:
        """Shut down in order; returns the exit code."""
        self._ending = True
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)

    def end(self) -> None:
        """Kill for good."""
        with self._lock:
            self._ending = True
            self.process.kill()
        self._thread.join(10)

    def _start(self, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker", "-l", "INFO"]
        argv += ["--without-mingle", "--without-gossip", "-n", f"{self.name}-{uuid4().hex[:6]}@chaos"]
        with self.log.open("ab") as log:
            return subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT)

    def _supervise(self) -> None:
        environ = self._environ
        while True:
            code = self.process.wait()
            armed = ",".join(environ.get(k, "") for k in ("ORCHESTRATOR_FAILPOINT", "CHAOS_ARM_LATE")).strip(
                ","
            )
            with self._lock:
                self.deaths.append(Death(self.process.pid, code, time.monotonic(), armed))
                if self._ending or not self._restart:
                    return
                environ = {
                    k: v for k, v in environ.items() if k not in ("ORCHESTRATOR_FAILPOINT", "CHAOS_ARM_LATE")
                }
                self.process = self._start(environ)


class Cluster:
    """A pair of servers, one account with a queue of its own, its workers, and a client."""

    def __init__(self, pair: embedded.Servers, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        self.account = f"chaos-{uuid4().hex[:8]}"
        self.settings = Settings(
            database_url=pair.database_url,
            redis_url=pair.redis_url,
            account=self.account,
            queue=self.account,
            lease=LEASE_S,
            creation_rate=1e6,
            workflow_creation_rate=1e6,
        )
        self.client = Orchestrator(self.settings)
        self.ids: dict[str, Any] = {}
        self._workers: list[Worker] = []
        self._connection: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for worker in self._workers:
            worker.end()
        if error is not None:
            print(self.report())
        self.client.close()
        if self._connection is not None:
            self._connection.close()

    # -- workers -------------------------------------------------------------------------------------------

    def worker(self, name: str, *, restart: bool = True, wait: bool = True, **environ: str) -> Worker:
        """Start a worker; with ``wait`` it is up when this returns."""
        own = {
            "ORCHESTRATOR_DATABASE_URL": self.pair.database_url,
            "ORCHESTRATOR_REDIS_URL": self.pair.redis_url,
            "ORCHESTRATOR_ACCOUNT": self.account,
            "ORCHESTRATOR_QUEUE": self.account,
            "ORCHESTRATOR_WORKFLOWS": "tests.chaos.flows",
            "ORCHESTRATOR_LEASE": str(LEASE_S),
            "CHAOS_WITNESS_URL": self.pair.database_url,
            "CHAOS_OWNER": str(os.getpid()),
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "CHAOS_"))}
        worker = Worker(self, name, {**kept, **own, **environ}, restart)
        self._workers.append(worker)
        if wait:
            until(f"worker {name} is up", worker.registered)
        return worker

    # -- instances -----------------------------------------------------------------------------------------

    def orders(self, names: Sequence[str], *, fails: Callable[[int], bool], bonus: int = 5) -> None:
        """Create an order for each name, and send half of them their event at once."""
        batch = [{"id": name, "params": {"n": n, "fails": fails(n)}} for n, name in enumerate(names)]
        self.create(flows.order, batch)
        for name in names[::2]:
            self._retried(
                lambda: flows.order.get(name, orchestrator=self.client).send_event("go", {"bonus": bonus})
            )

    def create(self, workflow: Any, batch: list[dict[str, Any]]) -> None:
        made = workflow.create_batch(batch, orchestrator=self.client)
        assert not made.errors, made.errors
        rows = self.rows(
            "SELECT name_id, id FROM orchestrator_instances WHERE account = %s AND name_id = ANY(%s)",
            self.account,
            [entry["id"] for entry in batch],
        )
        self.ids.update(rows)
        FIGURES.instances += len(batch)

    def feed_waiting(self, names: Sequence[str], bonus: int = 5) -> None:
        """Send the event to those of ``names`` that wait for it and have none."""
        waiting = self.rows(
            "SELECT i.name_id FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id "
            "WHERE i.id = ANY(%s) AND s.kind = 'wait' AND s.status = 'waiting' "
            "AND NOT EXISTS (SELECT 1 FROM orchestrator_inbox b WHERE b.instance_id = i.id)",
            [self.ids[name] for name in names],
        )
        for (name,) in waiting:
            self._retried(
                lambda: flows.order.get(name, orchestrator=self.client).send_event("go", {"bonus": bonus})
            )

    def _retried(self, verb: Callable[[], None]) -> None:
        """A client whose Postgres is away tries again; one that finds the instance finished need not."""
        from orchestrator import InvalidTransition, ServiceUnavailable

        def sent() -> bool:
            try:
                verb()
            except ServiceUnavailable:
                return False
            except InvalidTransition:
                return True
            return True

        until("the event is sent", sent)

    def finished(self, names: Sequence[str]) -> bool:
        left = self.rows(
            "SELECT count(*) FROM orchestrator_instances WHERE id = ANY(%s) AND NOT status = ANY(%s)",
            [self.ids[name] for name in names],
            list(FINISHED),
        )
        return bool(left[0][0] == 0)

    def settle(self, names: Sequence[str], patience_s: float = PATIENCE_S) -> None:
        """Send the missing events and wait until all are finished."""

        def done() -> bool:
            self.feed_waiting(names)
            return self.finished(names)

        until(f"all of {len(names)} instances are finished", done, patience_s)

    # -- judging -------------------------------------------------------------------------------------------

    def judge(self, names: Sequence[str]) -> None:
        """Every record must fit what the witness saw; outputs and ends must be right."""
        ids = [self.ids[name] for name in names]
        wrong = witness.audit(self._connected(), ids)
        assert not wrong, "\n".join(wrong)

    def judge_orders(self, names: Sequence[str], *, fails: Callable[[int], bool], bonus: int = 5) -> None:
        self.judge(names)
        for n, name in enumerate(names):
            status = flows.order.get(name, orchestrator=self.client).status()
            keys = dict(self.steps(name))
            if fails(n):
                assert (status.status, status.error and status.error.name) == ("errored", "ValueError"), (
                    name,
                    status,
                )
                assert status.rollback is not None and status.rollback.outcome == "complete", (name, status)
                assert set(keys) == flows.FORWARD | flows.UNDONE | {"do:refuse:1"}, (name, keys)
                done = set(keys) - {"do:refuse:1"}
            else:
                expected = {"n": n, "total": flows.total(n, bonus)}
                assert (status.status, status.output) == ("complete", expected), (name, status)
                assert set(keys) == flows.FORWARD, (name, keys)
                done = set(keys)
            assert {keys[key] for key in done} == {"done"}, (name, keys)

    def steps(self, name: str) -> list[tuple[str, str]]:
        query = "SELECT key, status FROM orchestrator_steps WHERE instance_id = %s ORDER BY started_seq"
        return self.rows(query, self.ids[name])

    def attempts(self, names: Sequence[str], error: str) -> int:
        """Recorded failed attempts with this error."""
        ids = [self.ids[name] for name in names]
        query = "SELECT count(*) FROM orchestrator_attempts WHERE instance_id = ANY(%s) AND error::json ->> 'name' = %s"
        return int(self.rows(query, ids, error)[0][0])

    def bodies(self, key: str) -> list[tuple[Any, int, Any, Any]]:
        """(instance, pid, started, ended) of the bodies of a step, in all instances of this cluster."""
        query = (
            "SELECT instance_id, pid, extract(epoch FROM started_at)::float8, extract(epoch FROM ended_at)::float8 "
            "FROM chaos_bodies WHERE key = %s AND instance_id = ANY(%s) ORDER BY started_at"
        )
        return self.rows(query, key, list(self.ids.values()))

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return self._connected().execute(query, parameters).fetchall()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            url = witness.libpq(self.pair.database_url)
            self._connection = psycopg.connect(url, autocommit=True, connect_timeout=5)
        return self._connection

    def report(self) -> str:
        """What is left unfinished and the ends of the logs, for a run that failed."""
        lines = [f"account {self.account}"]
        with contextlib.suppress(Exception):
            query = (
                "SELECT i.name_id, i.id, i.status, i.seq, i.alarm_at - clock_timestamp(), i.blocked, s.key, s.status, "
                "s.fence, s.attempt, s.worker, s.due_at - clock_timestamp() FROM orchestrator_instances i "
                "LEFT JOIN orchestrator_steps s ON s.instance_id = i.id AND s.finished_at IS NULL "
                "WHERE i.account = %s AND NOT i.status = ANY(%s) LIMIT 20"
            )
            lines += [str(tuple(map(str, row))) for row in self.rows(query, self.account, list(FINISHED))]
        for worker in self._workers:
            lines.append(f"--- {worker.name}: {worker.deaths}")
            lines += worker.log.read_text(errors="replace").splitlines()[-60:]
        return "\n".join(lines)


@contextlib.contextmanager
def pair(*, fsync: bool) -> Iterator[embedded.Servers]:
    """A throwaway pair with the schema and the witness's table."""
    with embedded.running(persistent=False, fsync=fsync) as found:
        migrate.upgrade(found.database_url)
        with psycopg.connect(witness.libpq(found.database_url), autocommit=True) as connection:
            connection.execute(witness.TABLE)
        yield found
