"""A Postgres and a Valkey on loopback, for development, the demo and the tests.

Owns: the pair. Who starts it, who finds it running and attaches, which ports it keeps, when its data is deleted.
Does not own how each server is run (`postgres.py`, `valkey.py`, `process.py`). Not for production.

Two processes that call :func:`start` for one folder share one pair. The first owns it, and the pair ends with it,
however it ends; the others only attach.

    with servers.running(Path(".local")) as pair:
        settings = Settings(database_url=pair.database_url, redis_url=pair.redis_url)
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.dev import places
from orchestrator.dev.places import Home, installed
from orchestrator.dev.postgres import PostgresServer
from orchestrator.dev.process import PortTaken, free_port
from orchestrator.dev.valkey import ValkeyServer
from orchestrator.errors import ServiceUnavailable

__all__ = ["PostgresServer", "Servers", "ValkeyServer", "installed", "running", "start"]

_SETTLE_PATIENCE_S = 40.0
_PORT_ATTEMPTS = 5


@dataclass(frozen=True)
class Servers:
    """Where the pair answers, and its two servers. ``owned`` is False where another process started it.

    ``home`` is the folder of the data: the one asked for, or, for root in a project that ``nobody`` cannot enter,
    one in the temporary directory.
    """

    database_url: str = field(repr=False)
    redis_url: str
    postgres: PostgresServer
    valkey: ValkeyServer
    home: Path
    owned: bool
    throwaway: bool
    _pid: int = field(default_factory=os.getpid, repr=False)

    def stop(self) -> None:
        """Stop both and wait until they are gone; delete a throwaway pair's data. A second call does nothing.

        In a process that only attached, and in a fork of the owner, it does nothing at all.
        """
        if not self.owned or self._pid != os.getpid():
            return
        (self.home / "owner.pid").unlink(missing_ok=True)
        try:
            if self.throwaway:
                self.valkey.kill()  # nothing to save
            else:
                self.valkey.stop()
        finally:
            self.postgres.stop()
        if self.throwaway:
            shutil.rmtree(self.home, ignore_errors=True)


def start(
    root: Path | None = None, *, fsync: bool = True, persistent: bool = True, appendonly: bool = False
) -> Servers:
    """Start the pair that keeps its files in ``root`` (default ``.local`` here), or attach to it if it is running.

    ``fsync=False`` makes Postgres faster and its data mortal. ``persistent=False`` starts a new pair in a new
    folder (inside ``root``, if given) which is deleted when it stops. ``appendonly`` lets Valkey keep its data
    through a kill. Settings of a running pair are not changed.

    Raises :class:`ServiceUnavailable` if the wheels are missing, or with the end of the log if a server does not
    come up.
    """
    home = places.home(root, throwaway=not persistent)
    try:
        with _alone(home):
            return _attach(home) or _launch(home, fsync=fsync, appendonly=appendonly)
    except BaseException as error:
        if home.throwaway:
            shutil.rmtree(home.path, ignore_errors=True)
        if isinstance(error, PermissionError):
            raise ServiceUnavailable(f"{home.path} belongs to another user: {error}") from error
        raise


@contextlib.contextmanager
def running(
    root: Path | None = None, *, fsync: bool = True, persistent: bool = True, appendonly: bool = False
) -> Iterator[Servers]:
    """:func:`start`, and :meth:`Servers.stop` at the end of the block."""
    pair = start(root, fsync=fsync, persistent=persistent, appendonly=appendonly)
    try:
        yield pair
    finally:
        pair.stop()


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Only one process at a time starts, or decides to attach."""
    lock = os.open(home.starting, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _attach(home: Home) -> Servers | None:
    """The running pair, or None when there is none. A pair on its way down is waited for."""
    ports = _noted_ports(home)
    postgres = PostgresServer(home, ports.get("postgres", 0), owned=False)
    valkey = ValkeyServer(home, ports.get("valkey", 0), owned=False)
    deadline = time.monotonic() + _SETTLE_PATIENCE_S
    while True:
        held = [server.held() for server in (postgres, valkey)]
        if not any(held):
            home.mark.unlink(missing_ok=True)
            return None
        if all(held) and home.mark.exists() and valkey.answers() and postgres.answers():
            return _pair(home, postgres, valkey, owned=False)
        if time.monotonic() > deadline:
            raise ServiceUnavailable(f"the servers in {home.path} are running, but do not answer")
        time.sleep(0.05)


def _launch(home: Home, *, fsync: bool, appendonly: bool) -> Servers:
    ports = _noted_ports(home)
    postgres = PostgresServer(home, free_port(ports.get("postgres")), fsync=fsync)
    valkey = ValkeyServer(home, free_port(ports.get("valkey")), fsync=fsync, appendonly=appendonly)
    try:
        for server in (valkey, postgres):
            _start_somewhere(server)
    except BaseException:
        valkey.stop()
        raise
    home.ports.write_text(json.dumps({"postgres": postgres.port, "valkey": valkey.port}))
    home.mark.write_text(f"{os.getpid()}\n")
    return _pair(home, postgres, valkey, owned=True)


def _start_somewhere(server: PostgresServer | ValkeyServer) -> None:
    """Start it on another port if somebody took the first one in the meantime."""
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return server.start()
        except PortTaken:
            server.port = free_port()
    return server.start()


def _noted_ports(home: Home) -> dict[str, int]:
    try:
        noted = json.loads(home.ports.read_text())
        return {str(name): int(port) for name, port in noted.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _pair(home: Home, postgres: PostgresServer, valkey: ValkeyServer, *, owned: bool) -> Servers:
    return Servers(postgres.url, valkey.url, postgres, valkey, home.path, owned, home.throwaway)
