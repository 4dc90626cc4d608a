"""The processes of one system: started, frozen between turns, metered by role, and ended whatever happens.

Owns: process groups and signals. Does not own: what the processes do, nor Postgres and Valkey, which it only
freezes and meters (``orchestrator.dev`` starts and stops them).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from bench.peers.system import Failed

MIB = 1024 * 1024
STOP_S = 20.0
TAIL = 2000


class Crew:
    """Processes by role. Those started here lead a session of their own, so that Ctrl-C reaches only the bench."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._trees: list[tuple[str, int]] = []
        self._logs: list[Path] = []
        self._frozen = False

    def launch(
        self,
        role: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        talks: bool = False,
        folder: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process for ``role``; one that ``talks`` gets pipes, every other one a log for its output."""
        log = self._folder / f"{role}{len(self._started)}.log"
        pipe = subprocess.PIPE if talks else None
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **(environment or {})},
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or out,
                stderr=out,
                cwd=folder or self._folder,
                start_new_session=True,
            )
        self._started.append((role, process))
        self._trees.append((role, process.pid))
        self._logs.append(log)
        return process

    def adopt(self, role: str, pid: int | None) -> None:
        """Freeze and meter a process, with its children, that somebody else starts and stops."""
        if pid is not None:
            self._trees.append((role, pid))

    def freeze(self) -> None:
        """Suspend all of them."""
        self._frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on. Raises ``Failed`` if one has ended meanwhile."""
        self._signal(signal.SIGCONT)
        self._frozen = False
        self.check()

    def check(self) -> None:
        """Raise ``Failed`` if one of those started here has ended."""
        for role, process in self._started:
            if process.poll() is not None:
                raise Failed(f"the {role} process ended with {process.returncode}\n{self.tails()}")

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU by role since each process began."""
        used: dict[str, float] = {}
        for role, pid in self._trees:
            used[role] = used.get(role, 0.0) + _cpu(pid)
        return used

    def forget_peak(self) -> None:
        for _, pid in self._trees:
            for process in _tree(pid):
                with suppress(OSError):
                    Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_mib(self) -> dict[str, float]:
        """The most memory held since ``forget_peak``, by role; Postgres not: its processes share theirs."""
        held: dict[str, float] = {}
        for role, pid in self._trees:
            if role != "postgres":
                held[role] = held.get(role, 0.0) + sum(_peak(p) for p in _tree(pid)) / MIB
        return held

    def tails(self) -> str:
        """The ends of the logs."""
        ends = ((log.name, log.read_text(errors="replace")[-TAIL:].strip()) for log in self._logs)
        return "\n".join(f"--- {name}\n{end}" for name, end in ends if end)

    def stop(self) -> None:
        """End what was started here, politely, then not; let go of the rest."""
        self._signal(signal.SIGCONT)
        for _, process in reversed(self._started):
            _close(process.stdin)
            _group(process, signal.SIGTERM)
        for _, process in reversed(self._started):
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            # Also where the leader went in order: what it may have left behind goes too.
            _group(process, signal.SIGKILL)
            process.wait(STOP_S)
            _close(process.stdout)
        self._started.clear()
        self._trees.clear()

    def _signal(self, which: signal.Signals) -> None:
        for _, pid in self._trees:
            for process in _tree(pid):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(which)


def busy() -> float:
    """Seconds that the processors of this machine worked, since it started."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))


def _group(process: subprocess.Popen[bytes], which: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, which)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with suppress(OSError):
            pipe.close()


def _tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _cpu(pid: int) -> float:
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            if process.pid == pid:  # children that have ended
                total += times.children_user + times.children_system
    return total


def _peak(process: psutil.Process) -> int:
    with suppress(OSError, psutil.NoSuchProcess):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(psutil.NoSuchProcess):  # not Linux: what it holds now
        return int(process.memory_info().rss)
    return 0
