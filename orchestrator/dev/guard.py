"""The parent process of one embedded server: it sees to it that the server never outlives its owner.

Owns: starting the server in a session of its own, holding the server's lock while it lives, and stopping it, in
order and then by force, when the owner says so or is gone (a closed pipe, or another parent: a fork of the owner
may keep the pipe open). Does not own what is started or whether it is ready: `process.py` decides that.

It runs as a script, under ``python -I -S``, and so imports nothing but the standard library. One argument, JSON:
``argv cwd lock mark owner uid gid stop discard``. It writes the server's pid and a newline to stdout, then obeys
single bytes on stdin: ``s`` stop in order, ``k`` kill at once with all children, end of file: the owner is gone.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP, KILL, LOST, ENDED = b"s", b"k", b"", b"e"
BUSY_EXIT = 3
_LOCK_PATIENCE_S = 5.0
_GONE_PATIENCE_S = 5.0
_OWNER_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(order: dict[str, Any]) -> int:
    """Run the server of ``order`` to its end; the exit status says only whether it was started."""
    lock = _take_lock(order["lock"])
    if lock is None:
        return BUSY_EXIT
    wake = _wake_on_signals()
    _adopt_orphans()
    server = _spawn(order)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{server.pid}\n".encode(), 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{server.pid}\n".encode())
    os.close(1)
    word = _watch(server, order["owner"], wake)
    if word == LOST:
        Path(order["mark"]).unlink(missing_ok=True)  # first of all: nobody attaches to a pair that goes away
    if word == KILL:
        _kill(server)
    else:
        _stop(server, order["stop"])
    _reap_orphans()
    if word == LOST and order["discard"]:
        _discard(Path(order["cwd"]))
    return 0


def _take_lock(path: str) -> int | None:
    """The locked file, or None where somebody else keeps it. Those who only look hold it for an instant."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)


def _wake_on_signals() -> int:
    """A file descriptor that becomes readable when a child ended or somebody wants this process to end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _spawn(order: dict[str, Any]) -> "subprocess.Popen[bytes]":
    account: dict[str, Any] = {}
    if order["uid"] is not None:
        account = {"user": order["uid"], "group": order["gid"], "extra_groups": []}
    return subprocess.Popen(
        order["argv"],
        cwd=order["cwd"],
        env=order["env"],
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        umask=0o077,
        # After the change of user, which would clear it. This process has one thread: no deadlock in the child.
        preexec_fn=_end_with_parent(order["stop"][0][0]),  # noqa: PLW1509
        **account,
    )


def _end_with_parent(number: int) -> Callable[[], None] | None:
    """Linux: the server also gets its stop signal when this very process is killed."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _watch(server: "subprocess.Popen[bytes]", owner: int, wake: int) -> bytes:
    """Wait for whatever comes first: the server's end, a word of the owner, or the owner's end."""
    while server.poll() is None:
        ready, _, _ = select.select([0, wake], [], [], _OWNER_CHECK_S)
        if wake in ready and set(os.read(wake, 64)) - {signal.SIGCHLD}:
            return LOST
        if 0 in ready:
            return os.read(0, 1)
        if os.getppid() != owner:
            return LOST
    return ENDED


def _stop(server: "subprocess.Popen[bytes]", signals: list[tuple[int, float]]) -> None:
    for number, patience_s in [*signals, (signal.SIGKILL, 10.0)]:
        server.send_signal(number)
        server.send_signal(signal.SIGCONT)  # a stopped process would never hear the first one
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
            return


def _kill(server: "subprocess.Popen[bytes]") -> None:
    """What a crash of the machine does to it: no child lives on to finish what it was doing."""
    children = _children(server.pid)
    server.kill()
    server.wait()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    """Empty where there is no /proc: there, Postgres' children notice by themselves that their parent is dead."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()  # the name may hold anything
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def _adopt_orphans() -> None:
    """Linux: the server's children become ours when it dies, and not those of an init that may not reap them."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans() -> None:
    deadline = time.monotonic() + _GONE_PATIENCE_S
    with contextlib.suppress(ChildProcessError):  # there are none left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.005)


def _discard(folder: Path) -> None:
    """Delete a throwaway server's folder, and that of the pair unless its other server is still running."""
    shutil.rmtree(folder, ignore_errors=True)
    for lock in folder.parent.glob("*/guard.lock"):
        with contextlib.suppress(OSError), lock.open("r+") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # it does the rest
    shutil.rmtree(folder.parent, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
