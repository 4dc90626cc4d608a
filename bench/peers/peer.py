"""A peer: its processes, the embedded servers it needs, and the talk with its client programs.

Owns: the frame that Restate, DBOS and Celery have in common. Does not own: how each is configured (their modules).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from bench.figures import percentiles
from bench.peers.processes import Crew, busy
from bench.peers.system import AWAIT_S, OUTSTANDING, STEPS, WARM_INSTANCES, Failed, Figures, System, Workload
from orchestrator.dev import servers

READY_S = 90.0
WARM_S = 120.0
CHUNK = 65536


class Peer(System):
    """Clients are programs that take a request per line and answer it (``apps/conversation.py``).

    Where there are several, each does its part of W1 and W4; the wall time is that of the last.
    """

    outstanding = OUTSTANDING
    """Instances of W1 at once, in all; a peer that is faster with fewer has fewer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._crew = Crew(folder)
        self._clients: list[subprocess.Popen[bytes]] = []
        self._pair: servers.Servers | None = None

    @abstractmethod
    def launch(self) -> None:
        """Start the processes, and the clients with ``_client``. Raises ``Unavailable``."""

    def start(self) -> None:
        self.launch()
        for client in self._clients:
            self._answer(client, READY_S)

    def wake(self, workload: Workload) -> None:
        self._crew.thaw()
        self._ask(Workload("w1", WARM_INSTANCES), WARM_S)

    def run(self, workload: Workload) -> Figures:
        self._crew.forget_peak()
        before, machine = self._crew.cpu(), busy()
        began = time.perf_counter()
        answers = self._ask(workload, workload.patience_s)
        after, machine = self._crew.cpu(), busy() - machine
        others = (machine - sum(after.values()) + sum(before.values())) / (time.perf_counter() - began)
        self._crew.check()
        figures: Figures = {
            "wall_s": max(float(answer["wall_s"]) for answer in answers),
            "cpu_us_per_step": {r: (after[r] - before[r]) / workload.steps * 1e6 for r in after},
            "peak_mib": self._crew.peak_mib(),
            "other_cpus": max(0.0, others),
        }
        taken = [seconds for answer in answers for seconds in answer["taken_s"]]
        return figures | (percentiles(taken) if taken else {})

    def rest(self) -> None:
        self._crew.freeze()

    def stop(self) -> None:
        try:
            self._crew.stop()
        finally:
            self._clients.clear()
            if self._pair is not None:
                self._pair.stop()

    def _servers(self) -> servers.Servers:
        """A Postgres with fsync on and a Valkey, for this system alone."""
        self._pair = servers.start(self._folder, persistent=False, fsync=True)
        self._crew.adopt("postgres", self._pair.postgres.pid)
        self._crew.adopt("redis", self._pair.valkey.pid)
        return self._pair

    def _client(
        self, role: str, command: list[str | Path], environment: dict[str, str] | None = None
    ) -> None:
        self._clients.append(self._crew.launch(role, command, environment, talks=True))

    def _ask(self, workload: Workload, patience_s: float) -> list[dict[str, Any]]:
        """Have the clients do it. Raises ``Failed``."""
        divided = workload.kind in {"w1", "w4"}
        clients = self._clients if divided else self._clients[:1]
        for number, client in enumerate(clients):
            size = workload.size // len(clients) + (number < workload.size % len(clients))
            outstanding = max(1, self.outstanding // len(clients))
            request = {"kind": workload.kind, "size": size, "steps": STEPS, "seconds": AWAIT_S}
            self._tell(client, request | {"outstanding": outstanding})
        deadline = time.monotonic() + patience_s
        return [self._answer(client, deadline - time.monotonic()) for client in clients]

    def _tell(self, client: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert client.stdin is not None
        try:
            client.stdin.write(json.dumps(request).encode() + b"\n")
            client.stdin.flush()
        except OSError as error:
            raise Failed(f"{self.name}: its client is gone: {error}\n{self._crew.tails()}") from error

    def _answer(self, client: subprocess.Popen[bytes], patience_s: float) -> dict[str, Any]:
        assert client.stdout is not None
        deadline = time.monotonic() + patience_s
        line = b""
        while not line.endswith(b"\n"):
            # Not readline: it would wait for ever for a client that hangs.
            left = max(0.0, deadline - time.monotonic())
            if not select.select([client.stdout], [], [], left)[0]:
                raise Failed(f"{self.name}: no answer within {patience_s:.0f} s\n{self._crew.tails()}")
            read = os.read(client.stdout.fileno(), CHUNK)
            if not read:
                raise Failed(f"{self.name}: its client ended\n{self._crew.tails()}")
            line += read
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}\n{self._crew.tails()}")
        return answer
