"""One embedded server as a process: started under its guard, asked to stop, killed, or only looked at.

Owns: the life of the process and what is common to both servers (log, port, lock). Does not own how a server is
configured or when it is ready (`postgres.py`, `valkey.py`), nor what happens when its owner dies (`guard.py`).

A server is *owned* by the process that started it, and only *attached to* by others: they can see it and use it,
and their verbs are refused.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

from orchestrator.dev import guard
from orchestrator.dev.places import Account, Home
from orchestrator.errors import ServiceUnavailable

HOST = "127.0.0.1"
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_READY_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.01
_LOG_LIMIT_BYTES = 16_000_000
_TAIL_LINES = 20


class PortTaken(ServiceUnavailable):
    """Another program listens on the port that was to be used."""


class ServerProcess(ABC):
    """A server on loopback. ``start``, ``stop``, ``restart`` and ``kill`` keep its port; all but ``kill`` its data."""

    service: ClassVar[str]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, home: Home, port: int, *, owned: bool = True) -> None:
        self.port = port
        self.folder = home.path / self.service
        self.log = self.folder / "log"
        self._home = home
        self._owner = os.getpid() if owned else None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._log_start = 0

    @property
    def account(self) -> Account | None:
        """The user it runs as; None is the calling user."""
        return self._home.account

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is not running."""
        if self._owner is None:
            return self._noted_pid() if self.held() else None
        return self._pid if self.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be on its way up."""
        if self._owner is None:
            return self.held()
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing if it is running.

        Raises :class:`ServiceUnavailable`, with the end of the log, if it does not come up.
        """
        self._refuse_unless_owned()
        if self.alive:
            return
        self._end(guard.STOP)  # of one that ended by itself
        argv = self._prepare()
        try:
            self._launch(argv)
            self._await_ready()
        except BaseException:
            self._end(guard.STOP)
            raise
        self._settled()

    def stop(self) -> None:
        """Stop it in order and wait until it is gone. Does nothing if it is not running."""
        self._refuse_unless_owned()
        self._end(guard.STOP)

    def kill(self) -> None:
        """Kill it and all its children at once, as a crash would, and wait until they are gone."""
        self._refuse_unless_owned()
        self._end(guard.KILL)

    def restart(self) -> None:
        """Stop it in order and start it again, on the same port and with its data."""
        self.stop()
        self.start()

    def held(self) -> bool:
        """Whether some guard, of whatever process, has this server's files in use."""
        if not self._lock.exists():
            return False
        with self._lock.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves this pair's clients on its port, now."""

    @abstractmethod
    def _prepare(self) -> list[str]:
        """Make its files and return the command that starts it."""

    @abstractmethod
    def _settled(self) -> None:
        """Called when it answers."""

    @property
    def _lock(self) -> Path:
        return self.folder / "guard.lock"

    def _noted_pid(self) -> int | None:
        text = self._lock.read_text().strip()
        return int(text) if text else None

    def _launch(self, argv: list[str]) -> None:
        account = self.account
        order = {
            "argv": argv,
            "cwd": str(self.folder),
            "env": dict(ENVIRONMENT),
            "lock": str(self._lock),
            "mark": str(self._home.mark),
            "owner": os.getpid(),
            "uid": account and account.uid,
            "gid": account and account.gid,
            "stop": [(int(number), patience_s) for number, patience_s in self.stop_signals],
            "discard": self._home.throwaway,
        }
        with self._open_log() as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        assert self._guard.stdout is not None
        with self._guard.stdout as report:
            line = report.readline()
        if not line:
            busy = self._guard.wait() == guard.BUSY_EXIT
            raise ServiceUnavailable(
                f"{self.folder} is in use by another process"
                if busy
                else self._failure("could not be started"),
                self.service,
            )
        self._pid = int(line)

    def _open_log(self) -> BinaryIO:
        """The log, to append to; a long one is put aside first."""
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".old"))
        log = os.fdopen(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        self._log_start = os.fstat(log.fileno()).st_size
        return log

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_PATIENCE_S
        while not (self.alive and self.answers()):
            if not self.alive:
                failure = self._failure("ended while starting")
                raise (PortTaken if "Address already in use" in failure else ServiceUnavailable)(
                    failure, self.service
                )
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    self._failure(f"did not answer for {_READY_PATIENCE_S:.0f} s"), self.service
                )
            time.sleep(_LOOK_AGAIN_S)

    def _end(self, word: bytes) -> None:
        """Tell the guard, and wait for it: it goes last."""
        process, self._guard, self._pid = self._guard, None, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # broken: it had ended by itself
            pipe.write(word)
            pipe.flush()
            process.wait()
        process.wait()

    def _failure(self, what: str) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join([f"{self.service} {what}. The end of {self.log}:", *lines[-_TAIL_LINES:]])

    def _refuse_unless_owned(self) -> None:
        if self._owner != os.getpid():
            raise ServiceUnavailable(f"{self.service} belongs to the process that started it", self.service)


def free_port(preferred: int | None = None) -> int:
    """A port nobody listens on: ``preferred`` if possible, else one chosen by chance.

    Below the ports that systems give to outgoing connections (32768 and up, or 49152 and up): while a server is
    down, a client that keeps trying to reach such a port can be given that very port, and so connect to itself.
    """
    chosen = random.Random()  # seeded by the system: two starters at once must not draw the same numbers
    candidates = [preferred] if preferred else []
    candidates += [chosen.randrange(20_000, 32_000) for _ in range(200)]
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServiceUnavailable("no free port between 20000 and 32000")
