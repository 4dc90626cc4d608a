"""The command line on a real Postgres: answers for people and programs, refusals, exit statuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.dev.servers import Servers
from orchestrator.store import migrate

pytestmark = pytest.mark.integration

ORDER = '{"source": "alice", "target": "bob", "amount": 5}'
Run = Callable[..., tuple[int, str, str]]


def new_database(servers: Servers) -> str:
    name = f"cli_{uuid4().hex[:8]}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return servers.database_url.rpartition("/")[0] + "/" + name


@pytest.fixture(scope="module")
def migrated(servers: Servers) -> str:
    url = new_database(servers)
    migrate.upgrade(url)
    return url


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command without configuration; returns status, stdout, stderr."""
    for name in os.environ:
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(client, "_default", None)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return command


@pytest.fixture
def configured(run: Run, migrated: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", migrated)
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", redis_url.replace("/0", "/9"))  # nobody works for this queue
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")
    yield run
    if client._default is not None:
        client._default.close()


def document(answer: tuple[int, str, str], status: int = 0) -> Any:
    assert answer[0] == status, answer
    return json.loads(answer[1])


def one_line(answer: tuple[int, str, str], status: int, code: str) -> str:
    assert answer[0] == status, answer
    (line,) = answer[2].splitlines()
    assert line.startswith(f"{code}: ")
    return line


def test_migrate_says_from_where_to_where(
    run: Run, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", new_database(servers))  # and no Redis
    head = migrate.head()
    assert run("migrate") == (0, f"Migrated the database from nothing to revision {head}.\n", "")
    assert run("migrate")[1] == f"The database is at revision {head}: nothing to do.\n"
    assert document(run("migrate", "--json")) == {"before": head, "after": head}


def test_a_transfer_from_the_command_line(configured: Run) -> None:
    assert configured("workflows", "trigger", "transfer", ORDER, "--id", "t-1")[:2] == (0, "transfer t-1\n")
    assert "t-1" in one_line(
        configured("workflows", "trigger", "transfer", ORDER, "--id", "t-1"), 1, "instance_exists"
    )
    sent = configured(
        "instances", "send-event", "transfer", "t-1", "--type", "approval", "--payload", '{"by": "me"}'
    )
    assert sent[:2] == (0, "sent approval to transfer t-1\n")
    shown = document(configured("instances", "describe", "transfer", "t-1", "--json"))
    assert (shown["id"], shown["status"], shown["steps"]) == ("t-1", "queued", [])
    assert "status    queued" in configured("instances", "describe", "transfer", "t-1")[1]
    one_line(configured("instances", "result", "transfer", "t-1", "--timeout", "0.1"), 1, "timeout")
    assert document(configured("instances", "terminate", "transfer", "t-1", "--json"))["id"] == "t-1"
    one_line(
        configured("instances", "result", "transfer", "t-1", "--timeout", "0.1"), 1, "workflow_terminated"
    )
    one_line(configured("instances", "terminate", "transfer", "t-1"), 1, "invalid_transition")


def test_an_id_is_made_where_none_is_given(configured: Run) -> None:
    made = document(configured("workflows", "trigger", "transfer", ORDER, "--json"))
    assert made["workflow"] == "transfer"
    assert document(configured("instances", "describe", "transfer", made["id"], "--json"))["id"] == made["id"]


def test_the_creation_rate_is_told_or_waited_for(configured: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """api §4, semantics §6: refused with the code and when to come again; ``--wait`` waits."""
    monkeypatch.setenv("ORCHESTRATOR_ACCOUNT", f"cli-{uuid4().hex[:8]}")
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOW_CREATION_RATE", "0.5")
    trigger = ("workflows", "trigger", "transfer", ORDER)
    assert configured(*trigger, "--id", "first")[0] == 0
    assert "0.5 instances of workflow 'transfer'" in one_line(configured(*trigger), 1, "rate_limited")
    refused = document(configured(*trigger, "--json"), 1)["error"]
    assert refused["code"] == "rate_limited"
    assert 0 < refused["retry_after"] <= 2.01
    assert configured(*trigger, "--id", "second", "--wait", "60")[:2] == (0, "transfer second\n")
    assert configured(*trigger, "--wait", "-1")[0] == 2


def test_the_list_needs_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")
    listed = document(run("workflows", "list", "--json"))["workflows"]
    (transfer,) = [each for each in listed if each["name"] == "transfer"]
    assert (transfer["version"], transfer["module"]) == ("1", "orchestrator.demo.workflows")
    assert "transfer" in run("workflows", "list")[1]


def test_a_workflow_is_described(run: Run, configured: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its code and options say; with a database also how many instances it has."""
    configured("workflows", "trigger", "transfer", ORDER)
    described = document(configured("workflows", "describe", "transfer", "--json"))
    assert (described["payload"], described["output"], described["versions"]) == (
        "Transfer",
        "Receipt",
        ["1"],
    )
    assert described["instances"]["queued"] >= 1
    assert "Debit at bank A" in configured("workflows", "describe", "transfer")[1]
    one_line(configured("workflows", "describe", "nope"), 1, "unknown_workflow")
    monkeypatch.delenv("ORCHESTRATOR_DATABASE_URL")
    assert document(run("workflows", "describe", "transfer", "--json"))["instances"] is None


def test_a_workflow_is_deleted_with_its_instances(configured: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = document(configured("workflows", "trigger", "transfer", ORDER, "--json"))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    status, out, err = configured("workflows", "delete", "transfer")
    assert (status, out, "instances of workflow transfer?" in err) == (130, "", True)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # a script
    status, out, err = configured("workflows", "delete", "transfer")
    assert (status, out, "give --yes" in err) == (2, "", True)
    assert configured("instances", "describe", "transfer", made["id"])[0] == 0
    assert document(configured("workflows", "delete", "transfer", "--yes", "--json"))["deleted"] >= 1
    one_line(configured("instances", "describe", "transfer", made["id"]), 1, "instance_not_found")
    assert document(configured("instances", "list", "transfer", "--json"))["instances"] == []


def test_no_instance_may_be_named_as_the_newest_is(configured: Run) -> None:
    status, _, err = configured("workflows", "trigger", "transfer", ORDER, "--id", "latest")
    assert (status, "stands for the newest" in err) == (2, True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_workflows(
    run: Run, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, script, _ = run("completion", shell)
    assert (status, "_ORCHESTRATOR_COMPLETE" in script) == (0, True)
    asked = {
        "_ORCHESTRATOR_COMPLETE": f"{shell}_complete",
        "ORCHESTRATOR_WORKFLOWS": "orchestrator.demo.workflows",
    }

    def completed(words: str, last: str) -> str:
        at = {
            "COMP_WORDS": f"{words} {last}",
            "COMP_CWORD": last if shell == "fish" else str(len(words.split())),
        }
        done = subprocess.run(
            [Path(sys.executable).with_name("orchestrator")],
            env={**os.environ, **asked, **at}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert "subscribe" in completed("orchestrator instances", "su")
    assert "transfer" in completed("orchestrator workflows trigger", "tr")
    assert "latest" in completed("orchestrator instances describe transfer", "la")


def test_refusals_are_one_line_with_a_code(configured: Run) -> None:
    cases = {
        "invalid_params": ["workflows", "trigger", "transfer", '{"source": "alice"}'],
        "unknown_workflow": ["workflows", "trigger", "nope"],
        "invalid_instance_id": ["workflows", "trigger", "transfer", ORDER, "--id", "no spaces"],
        "instance_not_found": ["instances", "describe", "transfer", "nobody"],
    }
    for code, arguments in cases.items():
        one_line(configured(*arguments), 1, code)
        assert document(configured(*arguments, "--json"), 1)["error"]["code"] == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["workflows", "trigger"],
        ["workflows", "trigger", "transfer", "{not json"],
        ["instances", "send-event", "transfer", "t-1"],
        ["instances", "send-event", "transfer", "t-1", "--type", "a", "--payload", "text"],
        ["dev", "--workers", "-1"],
        ["--wrong"],
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Usage: orchestrator" in err


def test_without_configuration_it_says_what_to_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ORCHESTRATOR_DATABASE_URL" in one_line(run("migrate"), 1, "invalid_config")
    assert "ORCHESTRATOR_WORKFLOWS" in one_line(run("workflows", "list"), 1, "invalid_config")
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")
    line = one_line(run("workflows", "trigger", "transfer", ORDER), 1, "invalid_config")
    assert "ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_REDIS_URL" in line


def test_a_service_that_is_away_is_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d")
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "orchestrator.demo.workflows")
    for arguments in (["migrate"], ["workflows", "trigger", "transfer", ORDER]):
        assert "Postgres does not answer" in one_line(run(*arguments), 3, "service_unavailable")
        assert document(run(*arguments, "--json"), 3)["error"]["code"] == "service_unavailable"


def test_a_database_that_was_not_migrated(
    configured: Run, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", new_database(servers))
    line = one_line(configured("workflows", "trigger", "transfer", ORDER), 1, "schema_not_migrated")
    assert "orchestrator migrate" in line


def test_modules_that_cannot_be_imported(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_workflows.py").write_text("print('hello')\nraise RuntimeError('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "missing_workflows")
    assert "'missing_workflows'" in one_line(run("workflows", "list"), 1, "invalid_config")
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "broken_workflows")
    status, out, err = run("workflows", "list")
    assert (status, out) == (1, "")
    assert "broken_workflows.py, line 2: RuntimeError: no" in err


def test_the_script_is_installed_and_light(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    script = Path(sys.executable).with_name("orchestrator")
    done = subprocess.run(
        [script, "migrate"], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("invalid_config: Set ORCHESTRATOR_DATABASE_URL")
    heavy = "{'alembic', 'celery', 'kombu', 'psycopg', 'redis', 'rich', 'sqlalchemy'}"
    code = f"import sys, orchestrator.cli; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
