"""A real Flower beside a real worker: the step tasks of a workflow are there by name."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.client.instance import WorkflowInstance
from orchestrator.demo.ledger import Ledger
from orchestrator.demo.workflows import Transfer, transfer
from orchestrator.dev import up
from orchestrator.dev.process import free_port
from orchestrator.dev.programs import Program
from orchestrator.dev.servers import Servers
from orchestrator.errors import WorkflowFailed
from orchestrator.store import migrate

pytestmark = pytest.mark.integration

PATIENCE_S = 40.0
STEPS = {"transfer.debit-bank-a", "transfer.credit-bank-b", "transfer.notify"}

if not up.flower_installed() and not os.environ.get("CI"):
    pytest.skip("needs Flower (extra `dev`)", allow_module_level=True)


@pytest.fixture(scope="module")
def environ(servers: Servers) -> dict[str, str]:
    """A database and a broker of its own, on the session's servers."""
    name = f"flower_{uuid4().hex[:8]}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database_url = servers.database_url.rpartition("/")[0] + "/" + name
    migrate.upgrade(database_url)
    Ledger(database_url).create()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    return up.environment(kept, database_url, servers.redis_url.replace("/0", "/8"))


@pytest.fixture(scope="module")
def flower(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Flower whose worker was started before it and *without* events, as in production."""
    logs: Path = tmp_path_factory.mktemp("logs")
    url = f"http://127.0.0.1:{free_port()}"
    worker = Program("worker", logs, [*up.celery_command(), "worker", "-l", "INFO", "--without-gossip"], 15.0)
    page = ["flower", "--address=127.0.0.1", f"--port={url.rpartition(':')[2]}"]
    program = Program("flower", logs, [*up.celery_command(), *page], 10.0)
    try:
        worker.start(environ)
        worker.await_ready(lambda: " ready." in worker.log.read_text())
        assert "task events: OFF" in worker.log.read_text()
        program.start({**environ, "FLOWER_UNAUTHENTICATED_API": "true"})
        program.await_ready(lambda: up.answers(f"{url}/healthcheck"))
        yield url
    finally:
        program.stop()
        worker.stop()


@pytest.fixture
def orchestrator(environ: dict[str, str]) -> Iterator[Orchestrator]:
    with Orchestrator(Settings.from_env(environ)) as made:
        yield made


def tasks_of(url: str, instance: WorkflowInstance) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/tasks", timeout=5.0) as response:
        tasks = json.load(response).values()
    return [task for task in tasks if instance.id in str(task["args"])]


def await_names(
    url: str, instance: WorkflowInstance, names: set[str], patience_s: float
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + patience_s
    while True:
        tasks = tasks_of(url, instance)
        ended = {task["name"] for task in tasks if task["state"] == "SUCCESS"}
        if names <= ended or time.monotonic() > deadline:
            return tasks
        time.sleep(0.1)


def run(orchestrator: Orchestrator, order: Transfer) -> WorkflowInstance:
    instance = transfer.create(order, orchestrator=orchestrator)
    instance.send_event("approval", {"by": "a test"})
    return instance


def test_step_tasks_are_shown_by_name_with_instance_and_step(flower: str, orchestrator: Orchestrator) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:  # Flower switches the worker's events on a moment after it started
        instance = run(orchestrator, Transfer("alice", "bob", 5))
        instance.result(20)
        tasks = await_names(flower, instance, STEPS, 1.5)
        if len(tasks) == 3 or time.monotonic() > deadline:
            break
    assert {task["name"] for task in tasks} == STEPS
    for task in tasks:
        key = f"do:{task['name'].partition('.')[2]}:1"
        assert task["args"].startswith(f"('{instance.id}', '{key}', ")
        assert (task["state"], task["worker"].partition("@")[0]) == ("SUCCESS", "celery")


def test_compensations_are_shown_by_name(
    flower: str, orchestrator: Orchestrator, environ: dict[str, str]
) -> None:
    """semantics §5.3: each handler is a Celery task of its own, ``<workflow>.<step>.rollback``."""
    Ledger(environ["ORCHESTRATOR_DATABASE_URL"]).arrange("letters", "dave", "refused")
    instance = run(orchestrator, Transfer("carol", "dave", 5))
    with pytest.raises(WorkflowFailed):
        instance.result(20)
    undone = {"transfer.credit-bank-b.rollback", "transfer.debit-bank-a.rollback"}
    tasks = await_names(flower, instance, STEPS | undone, PATIENCE_S)
    assert {task["name"] for task in tasks} == STEPS | undone


def test_coordinator_tasks_make_no_noise(flower: str) -> None:
    with urllib.request.urlopen(f"{flower}/api/tasks", timeout=5.0) as response:
        names = {task["name"] for task in json.load(response).values()}
    assert not [name for name in names if str(name).startswith("orchestrator.")]
