"""Restate: server from npm, Python SDK on granian or hypercorn, two processes.

Durable before acknowledged: the server appends to its replicated log (one node, the default), whose log-server
writes RocksDB's write-ahead log with fsync (``rocksdb-disable-wal-fsync = false``, default), in batches. State in
the partition store is rebuilt from that log.

Configured for speed: a plain service (no key, so cheaper than a workflow), called through the ingress on kept
connections by a client of few lines, whose answer is the result, so no polling; the streaming protocol over HTTP/2,
which granian speaks without TLS, hypercorn as in docs.restate.dev/develop/python/serving (limits of streams and of
kept connections at their maximum); uvloop; access logs off, server log at WARN; and for W4 limits of concurrency above
the number of invocations (the default is 1,000 per invoker). Everything else is default.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.peers import environment
from bench.peers.peer import READY_S, Peer
from bench.peers.system import Failed, Unavailable
from orchestrator.dev.process import free_port

ROOM = 30_000
SDK_PROCESSES = 2
"""As many as our workers; with one it was slower in every workload."""

_HYPERCORN = f"""
bind = "127.0.0.1:%d"
worker_class = "uvloop"
h2_max_concurrent_streams = 2147483647
keep_alive_max_requests = 2147483647
keep_alive_timeout = 2147483647
workers = {SDK_PROCESSES}
"""


class Restate(Peer):
    guarantees = "log with fsync"

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder)
        self.name = f"restate-{server}"
        self._asgi = server
        self.configuration = f"restate-server 1.7.12, SDK 1.3.0 on {server}, {SDK_PROCESSES} processes"

    def launch(self) -> None:
        binary = environment.restate_server()
        self._bin = environment.python("restate")
        ingress, admin, node, sdk = self._ports()
        settings = {
            "RESTATE_BASE_DIR": str(self._folder / "data"),
            "RESTATE_NODE_NAME": "bench",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_ADVERTISED_HOST": "127.0.0.1",
            "RESTATE_BIND_PORT": str(node),
            "RESTATE_INGRESS__BIND_PORT": str(ingress),
            "RESTATE_ADMIN__BIND_PORT": str(admin),
            "RESTATE_WORKER__INVOKER__CONCURRENT_INVOCATIONS_LIMIT": str(ROOM),
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "warn",
            "RUST_LOG": "warn",
        }
        self._crew.launch("server", [binary, "--no-logo"], settings)
        self._crew.launch("worker", self._sdk(sdk), {"RESTATE_LOGGING": "ERROR"}, folder=environment.APPS)
        self._register(admin, sdk)
        client = environment.APPS / "restate_client.py"
        self._client("client", [self._bin / "python", client, "127.0.0.1", str(ingress)])

    def _ports(self) -> list[int]:
        ports: set[int] = set()
        while len(ports) < 4:
            ports.add(free_port())
        return list(ports)

    def _sdk(self, port: int) -> list[str | Path]:
        if self._asgi == "granian":
            options = f"--interface asgi --loop uvloop --workers {SDK_PROCESSES} --no-ws --log-level warning"
            room = f"--backlog {ROOM} --backpressure {ROOM} --http2-max-concurrent-streams {ROOM}"
            where = ["--host", "127.0.0.1", "--port", str(port), "restate_service:app"]
            return [self._bin / "granian", *options.split(), *room.split(), *where]
        settings = self._folder / "hypercorn.toml"
        settings.write_text(_HYPERCORN % port)
        return [self._bin / "hypercorn", "--config", settings, "restate_service:app"]

    def _register(self, admin: int, sdk: int) -> None:
        """Tell the server where the service is. Raises ``Unavailable``, or ``Failed`` if a process has ended."""
        body = json.dumps({"uri": f"http://127.0.0.1:{sdk}", "force": True}).encode()
        headers = {"content-type": "application/json"}
        deadline = time.monotonic() + READY_S
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{admin}/deployments", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except urllib.error.HTTPError as error:
                said = f"{error}: {error.read()[:500].decode(errors='replace')}"
            except OSError as error:
                said = str(error)
            try:
                self._crew.check()
            except Failed as error:
                raise Unavailable(str(error)) from error
            if time.monotonic() > deadline:
                raise Unavailable(f"the service could not be registered: {said}\n{self._crew.tails()}")
            time.sleep(0.2)
