"""A worker or a Flower as a process of ours: under a guard, so that it never outlives its owner.

Owns: the life of the process, its log, and the name it takes among others of its folder. Does not own which
programs there are or when one of them is ready (``up``), nor what happens when the owner dies (``guard``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.dev import guard
from orchestrator.errors import ServiceUnavailable

_READY_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.05
_LOG_LIMIT_BYTES = 16_000_000
_TAIL_LINES = 20


class Program:
    """One process. Its log is ``<folder>/<name>.log``, and ``<name>.pid`` says its pid while it runs."""

    def __init__(self, name: str, folder: Path, argv: Sequence[str], patience_s: float) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._lock = folder / f"{name}.lock"
        self._mark = folder / f"{name}.pid"
        self._argv = list(argv)
        self._patience_s = patience_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.pid: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be on its way up."""
        return self._guard is not None and self._guard.poll() is None

    def start(self, environ: Mapping[str, str]) -> None:
        """Start it in the working directory; does not wait until it is ready. Raises ``ServiceUnavailable``."""
        order = {
            "argv": self._argv,
            "cwd": str(Path.cwd()),
            "env": None,  # what the guard has: a command line is for all to read
            "lock": str(self._lock),
            "mark": str(self._mark),
            "owner": os.getpid(),
            "uid": None,
            "gid": None,
            "stop": [(int(signal.SIGTERM), self._patience_s)],
            "discard": False,
        }
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".old"))
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
            self._log_start = os.fstat(log.fileno()).st_size
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, json.dumps(order)],
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        assert self._guard.stdout is not None
        with self._guard.stdout as report:
            line = report.readline()
        if not line:
            raise ServiceUnavailable(self.failure("could not be started"), self.name)
        self.pid = int(line)
        self._mark.write_text(f"{self.pid}\n")

    def await_ready(self, answers: Callable[[], bool]) -> None:
        """Wait until ``answers()``. Raises ``ServiceUnavailable`` with the end of the log if it ends, or never does."""
        deadline = time.monotonic() + _READY_PATIENCE_S
        while not answers():
            if not self.alive:
                raise ServiceUnavailable(self.failure("ended while starting"), self.name)
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    self.failure(f"did not answer for {_READY_PATIENCE_S:.0f} s"), self.name
                )
            time.sleep(_LOOK_AGAIN_S)

    def ask_to_stop(self) -> None:
        """Tell it to stop, in order. Does not wait."""
        self._say(guard.STOP)

    def stop(self) -> None:
        """Stop it in order, by force after its patience, and wait until it is gone."""
        self.ask_to_stop()
        self._gone()

    def kill(self) -> None:
        """Kill it at once, as a crash would, and wait until it is gone."""
        self._say(guard.KILL)
        self._gone()

    def hurry(self) -> None:
        """Kill one that is being stopped. For signal handlers: it does nothing but send the signal."""
        if self.alive and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def failure(self, what: str) -> str:
        """A text that says so, with the end of the log."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join([f"{self.name} {what}. The end of {self.log}:", *lines[-_TAIL_LINES:]])

    def _say(self, word: bytes) -> None:
        process = self._guard
        if process is None or process.stdin is None or process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # it had ended by itself
            process.stdin.write(word)
            process.stdin.flush()

    def _gone(self) -> None:
        process = self._guard
        if process is None:
            return
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self._mark.unlink(missing_ok=True)


def free_name(kind: str, folder: Path) -> str:
    """``kind-1``, or the next number that no running program of the folder has."""
    number = 1
    while _held(folder / f"{kind}-{number}.lock"):
        number += 1
    return f"{kind}-{number}"


def _held(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
