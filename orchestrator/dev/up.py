"""``orchestrator dev``: the embedded servers, workers and Flower, up together and down together.

Owns: what is started in which order, when each is ready, and that all of it ends with this process. Does not own
how a process is kept (``programs``, ``servers``), nor how it is told to people (``cli``). Nothing is restarted.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator.dev import servers
from orchestrator.dev.process import HOST, free_port
from orchestrator.dev.programs import Program, free_name
from orchestrator.errors import ServiceUnavailable
from orchestrator.settings import PREFIX, Settings

DEFAULT_WORKFLOWS = "orchestrator.demo.workflows"
DEFAULT_GRACE_S = 5
"""A developer who presses Ctrl-C does not want to wait for long steps: they go on at the next start."""
FLOWER_PORT = 5555
_LATER_S = 10.0
_LOOK_AGAIN_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is wanted. A throwaway stack has new servers in a new folder, which is deleted at the end."""

    root: Path
    environ: Mapping[str, str] = field(repr=False)
    workers: int = 1
    flower: bool = True
    throwaway: bool = False


class Stack:
    """Servers, workers and Flower of one process. ``environ`` is what its programs, and clients of it, are given."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.environ: dict[str, str] = {}
        self.workers: list[Program] = []
        self.flower: Program | None = None
        self.flower_url: str | None = None
        self.revisions: tuple[str | None, str | None] = (None, None)
        self.is_stopping = False
        self._servers: servers.Servers | None = None
        self._gone: set[str] = set()

    @property
    def servers(self) -> servers.Servers:
        """The pair of servers. Raises ``ServiceUnavailable`` before it is up."""
        if self._servers is None:
            raise ServiceUnavailable("The servers are not started.")
        return self._servers

    @property
    def settings(self) -> Settings:
        """The settings that this stack's workers have."""
        return Settings.from_env(self.environ)

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs."""
        return self.servers.home if self.plan.throwaway else self.plan.root

    def start(self) -> None:
        """Start everything and wait until it answers. Raises ``ServiceUnavailable``; then nothing is left running."""
        from orchestrator.store import migrate

        try:
            pair = self._servers = servers.start(
                self.plan.root if not self.plan.throwaway else None, persistent=not self.plan.throwaway
            )
            self.environ = environment(self.plan.environ, pair.database_url, pair.redis_url)
            self.revisions = migrate.upgrade(pair.database_url)
            self.logs.mkdir(parents=True, exist_ok=True)
            for _ in range(self.plan.workers):
                self._start_worker()
            if self.plan.flower and flower_installed():
                self._start_flower()
            self._await_workers()
            if self.flower is not None:
                url = f"{self.flower_url}/healthcheck"
                self.flower.await_ready(lambda: answers(url))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything in order: Flower and workers, within their grace, then the servers."""
        self.is_stopping = True
        try:
            for program in self.programs:
                program.ask_to_stop()
            for program in self.programs:
                program.stop()
        finally:
            if self._servers is not None:
                self._servers.stop()

    def hurry(self) -> None:
        """Kill what is still on its way down. For signal handlers."""
        for program in self.programs:
            program.hurry()

    @property
    def programs(self) -> list[Program]:
        """Every program that was started."""
        return [*([self.flower] if self.flower else []), *self.workers]

    def watch(self, say: Callable[[str], None]) -> None:
        """Return when the servers are gone; a program that ends is told to ``say`` once, and not restarted."""
        pair = self.servers
        while pair.postgres.alive and pair.valkey.alive:
            for program in self.programs:
                if not program.alive and program.name not in self._gone:
                    self._gone.add(program.name)
                    say(program.failure("has ended, and is not restarted"))
                    if program in self.workers and not any(w.alive for w in self.workers):
                        say("No worker of this process is left: instances wait until one is started.")
            time.sleep(_LOOK_AGAIN_S)

    def _start_worker(self) -> None:
        name = free_name("worker", self.logs)
        argv = [*celery_command(), "worker", "-n", f"{name}@%h", "--loglevel", "INFO", "-E"]
        grace_s = float(self.environ[PREFIX + "SHUTDOWN_GRACE"])
        worker = Program(name, self.logs, [*argv, "--without-mingle", "--without-gossip"], grace_s + _LATER_S)
        self.workers.append(worker)
        worker.start(self.environ)

    def _start_flower(self) -> None:
        port = free_port(None if self.plan.throwaway else FLOWER_PORT)
        argv = [*celery_command(), "flower", f"--address={HOST}", f"--port={port}"]
        flower = Program(free_name("flower", self.logs), self.logs, argv, _LATER_S)
        self.flower, self.flower_url = flower, f"http://{HOST}:{port}"
        flower.start(self.environ)

    def _await_workers(self) -> None:
        """Until each answers Celery's own ping: then it consumes."""
        from orchestrator.dispatch.celery_app import create_client

        host = socket.gethostname()
        celery: Any = create_client(self.settings)
        try:
            for worker in self.workers:
                node = f"{worker.name}@{host}"
                worker.await_ready(
                    lambda node=node: bool(  # type: ignore[misc]
                        celery.control.ping(destination=[node], timeout=0.5, limit=1)
                    )
                )
        finally:
            celery.close()


@contextlib.contextmanager
def running(plan: Plan) -> Iterator[Stack]:
    """A started stack, stopped at the end of the block. For the main thread: it takes the signals meanwhile.

    The first SIGINT, SIGTERM or SIGHUP raises ``KeyboardInterrupt``; one that comes while the stack is stopping
    kills what is still there.
    """
    stack = Stack(plan)

    def heard(number: int, frame: FrameType | None) -> None:
        if not stack.is_stopping:
            raise KeyboardInterrupt
        stack.hurry()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, heard) for number in signals}
    try:
        stack.start()
        yield stack
    finally:
        try:
            stack.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def environment(environ: Mapping[str, str], database_url: str, redis_url: str) -> dict[str, str]:
    """What the programs are given: ``environ``, but with these servers, and defaults for a developer's machine."""
    return {
        PREFIX + "WORKFLOWS": DEFAULT_WORKFLOWS,
        PREFIX + "SHUTDOWN_GRACE": str(DEFAULT_GRACE_S),
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in environ.items() if value or not name.startswith(PREFIX)},
        PREFIX + "DATABASE_URL": database_url.replace("+psycopg", "", 1),
        PREFIX + "REDIS_URL": redis_url,
        PREFIX + "BROKER_URL": redis_url,
    }


def celery_command() -> list[str]:
    """The start of every command line of Celery with our app."""
    return [sys.executable, "-m", "celery", "-A", "orchestrator.worker"]


def flower_installed() -> bool:
    """Whether Flower is there; it is an extra."""
    return importlib.util.find_spec("flower") is not None


def answers(url: str) -> bool:
    """Whether a GET of ``url`` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
