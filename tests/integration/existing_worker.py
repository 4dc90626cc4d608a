"""Worker processes of ``existing_app``, and what a client of it sees.

Owns: the processes, their logs, the facts their tasks tell. Does not own: what is tested with them.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from celery import Celery

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import Workflow
from orchestrator.settings import Settings
from tests.integration import existing_app

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40
TASKS_ONLY, BOTH = "tasks", "both"


class Process:
    """One worker. ``serves``: the application's tasks, or the workflows as well, or a list of queues."""

    def __init__(self, shop: "Shop", serves: str, **environ: str) -> None:
        account = shop.settings.account
        queues = {TASKS_ONLY: f"{account}-tasks", BOTH: f"{account}-tasks,{shop.settings.queue}"}
        self.name = f"{uuid4().hex[:8]}@test"
        argv = [sys.executable, "-m", "celery", "-A", "tests.integration.existing_app", "worker"]
        argv += ["--without-mingle", "--without-gossip", "-l", "INFO", "-n", self.name]
        argv += ["-Q", queues.get(serves, serves)]
        self.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **shop.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(PATIENCE_S), f"it did not come up:\n{''.join(self.log)}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if " ready." in line:
                self._ready.set()

    def stop(self) -> int:
        """A warm shutdown; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """It and its children, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Shop:
    """One account of the application: its workers, its facts, its workflows as a client has them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.environ = {
            "ORCHESTRATOR_DATABASE_URL": settings.database_url,
            "ORCHESTRATOR_REDIS_URL": settings.redis_url,
            "ORCHESTRATOR_ACCOUNT": settings.account,
            "ORCHESTRATOR_QUEUE": settings.queue,
            "ORCHESTRATOR_LEASE": "3",
            "ORCHESTRATOR_SHUTDOWN_GRACE": "5",
        }
        self.redis = redis.Redis.from_url(
            settings.redis_url, decode_responses=True, socket_timeout=2 * PATIENCE_S
        )
        self.client = Orchestrator(settings)
        self.control = Celery("control", broker=settings.redis_url, set_as_current=False)
        self.control.conf.update(control_exchange=f"{settings.account}-control")
        self.processes: list[Process] = []

    def worker(self, serves: str = BOTH, pool: str = "prefork", **environ: str) -> Process:
        process = Process(self, serves, EXISTING_POOL=pool, **environ)
        self.processes.append(process)
        return process

    def create(self, flow: Workflow, params: Any = None) -> Any:
        return flow.create(params, orchestrator=self.client)

    def result(self, flow: Workflow, params: Any = None) -> Any:
        with self.said():
            return self.create(flow, params).result(timeout=PATIENCE_S)

    def fact(self, name: str) -> str:
        answer = self.redis.blpop([f"{self.settings.account}:{name}"], timeout=PATIENCE_S)
        assert answer is not None, f"{name} never came; the workers say:\n{self.logs()}"
        return str(answer[1])

    def facts(self, name: str) -> list[str]:
        return list(self.redis.lrange(f"{self.settings.account}:{name}", 0, -1))

    def tell(self, name: str) -> None:
        self.redis.rpush(f"{self.settings.account}:{name}", "1")

    def logs(self) -> str:
        return "\n".join("".join(process.log) for process in self.processes)

    @contextmanager
    def said(self) -> Iterator[None]:
        """Show what the workers said if something fails."""
        try:
            yield
        except TimeoutError:
            raise AssertionError(f"no result; the workers say:\n{self.logs()}") from None

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.client.close()
        for key in self.redis.scan_iter(f"*{self.settings.account}*"):
            self.redis.delete(key)
        self.redis.close()


flows = existing_app
