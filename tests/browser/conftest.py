"""One worker and one Flower for all tests with a browser, in a database and on a broker of their own.

Owns: these processes, and the browser. Chromium must be there: none is ever fetched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import psycopg
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.dev import up
from orchestrator.dev.process import free_port
from orchestrator.dev.programs import Program
from orchestrator.dev.servers import Servers
from orchestrator.store import migrate

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def missing(reason: str) -> NoReturn:
    """Skip; where ORCHESTRATOR_CHROMIUM says that there is one, and what a build server has to have, fail."""
    if os.environ.get("ORCHESTRATOR_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    told = os.environ.get("ORCHESTRATOR_CHROMIUM")
    found = next(filter(None, map(shutil.which, [told] if told else NAMES)), None)
    if found is None:
        missing(
            "needs Chromium (a build server says with ORCHESTRATOR_CHROMIUM where it is, and that it must be)"
        )
    if not up.flower_installed():
        missing("needs Flower (extra `dev`)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `test`)")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, for tests run as root and in containers; nothing but our own pages is opened.
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def environ(servers: Servers) -> dict[str, str]:
    name = f"browser_{uuid4().hex[:8]}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database_url = servers.database_url.rpartition("/")[0] + "/" + name
    migrate.upgrade(database_url)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    kept["ORCHESTRATOR_WORKFLOWS"] = "tests.browser.flows"
    return up.environment(kept, database_url, servers.redis_url.replace("/0", "/9"))


@pytest.fixture(scope="module")
def worker(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    logs: Path = tmp_path_factory.mktemp("worker")
    arguments = ["worker", "-l", "INFO", "-E", "--without-gossip", "--without-mingle"]
    program = Program("worker", logs, [*up.celery_command(), *arguments], 15.0)
    try:
        program.start(environ)
        program.await_ready(lambda: " ready." in program.log.read_text())
        yield program
    finally:
        program.stop()


@pytest.fixture(scope="module")
def flower(
    browser: Any, worker: Program, environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The root of a Flower as it comes: without login, everything allowed."""
    yield from started(environ, tmp_path_factory.mktemp("flower"))


@pytest.fixture(scope="module")
def guarded(
    browser: Any, worker: Program, environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The root of a Flower that is read-only, asks for a password, and stands under a prefix."""
    options = ["--basic_auth=carol:secret", "--read_only", "--url_prefix=watch/it"]
    yield from started(environ, tmp_path_factory.mktemp("guarded"), *options, prefix="/watch/it")


def started(environ: dict[str, str], logs: Path, *options: str, prefix: str = "") -> Iterator[str]:
    """Run a Flower; its address, with the prefix."""
    port = free_port()
    arguments = ["flower", "--address=127.0.0.1", f"--port={port}", *options]
    program = Program("flower", logs, [*up.celery_command(), *arguments], 10.0)
    root = f"http://127.0.0.1:{port}{prefix}"
    try:
        program.start(environ)
        program.await_ready(lambda: up.answers(f"{root}/healthcheck"))
        yield root
    finally:
        program.stop()


@pytest.fixture(scope="module")
def orchestrator(environ: dict[str, str]) -> Iterator[Orchestrator]:
    with Orchestrator(Settings.from_env(environ)) as made:
        yield made


@pytest.fixture
def page(browser: Any, flower: str) -> Iterator[Any]:
    """A page of a browser of its own, which fails the test by any error of a script or of the content policy."""
    with watched(browser, base_url=flower) as one:
        yield one


class watched:
    """A page; what its console complains of is no success."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self._context = browser.new_context(**options)
        self.complaints: list[str] = []

    def __enter__(self) -> Any:
        page = self._context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._hear(message))
        return page

    def _hear(self, message: Any) -> None:
        # What the server refused on purpose is told there too ("Failed to load resource").
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def __exit__(self, kind: Any, *_: object) -> None:
        self._context.close()
        assert kind is not None or not self.complaints, self.complaints
