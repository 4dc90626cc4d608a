"""How the tab comes into a real Flower, and what of it answers whom."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner

from orchestrator.dev import up
from orchestrator.dev.process import free_port
from orchestrator.dev.programs import Program
from orchestrator.settings import Settings

pytestmark = pytest.mark.integration

if not up.flower_installed() and not os.environ.get("CI"):
    pytest.skip("needs Flower (extra `dev`)", allow_module_level=True)

ENTRY = ">Workflows</a>"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    text: str


class Site:
    """A Flower process."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self._port = port

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    @property
    def log(self) -> str:
        return self.program.log.read_text()


@contextmanager
def running(app: str, environ: dict[str, str], folder: Path, *options: str) -> Iterator[Site]:
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", app, "flower", "--address=127.0.0.1", f"--port={port}"]
    program = Program(f"flower-{uuid4().hex[:6]}", folder, [*command, *options], 10.0)
    try:
        program.start(environ)
        program.await_ready(lambda: up.answers(f"http://127.0.0.1:{port}/healthcheck"))
        yield Site(program, port)
    finally:
        program.stop()


@pytest.fixture
def environ(settings: Settings) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    found = up.environment(kept, settings.database_url, settings.redis_url)
    return {**found, "ORCHESTRATOR_ACCOUNT": settings.account, "ORCHESTRATOR_QUEUE": settings.queue}


# -- into which Flower it comes -----------------------------------------------------------------------------------


def test_this_deployment_has_the_tab(environ: dict[str, str], tmp_path: Path) -> None:
    """api §4: ``celery -A workers flower``, with a Workflows tab; Flower's own pages and API stay as they are."""
    with running("workers", environ, tmp_path) as site:
        assert ENTRY in site.get("/workers").text
        page = site.get("/workflows")
        assert page.status == 200 and "<h1>Workflows</h1>" in page.text
        assert site.get("/tasks").status == site.get("/broker").status == 200
        assert site.get("/nothing-like-it").status == 404
        assert site.get("/workflows/nothing").status == 404
        policy = page.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy and page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Cache-Control"] == "no-store"
        assert "Workflows tab" not in site.log


def test_an_adopted_app_has_the_tab_without_a_line_more(environ: dict[str, str], tmp_path: Path) -> None:
    """api §4: an application's own app, given to an ``Orchestrator``, needs nothing else."""
    with running("tests.integration.existing_app", environ, tmp_path) as site:
        assert ENTRY in site.get("/workers").text
        assert site.get("/workflows").status == 200


def test_an_app_without_workflows_has_none(environ: dict[str, str], tmp_path: Path) -> None:
    """Who only has the package installed sees Flower as it is."""
    kept = {k: v for k, v in environ.items() if not k.startswith("ORCHESTRATOR_")}
    bare = {**kept, "EXISTING_KNOWS": "0", "ORCHESTRATOR_REDIS_URL": environ["ORCHESTRATOR_REDIS_URL"]}
    with running("tests.integration.existing_app", bare, tmp_path) as site:
        assert site.get("/workers").status == 200 and ENTRY not in site.get("/workers").text
        assert site.get("/workflows").status == site.get("/api/workflows").status == 404


def test_an_app_that_knows_nothing_of_us_has_it_where_the_environment_says_so(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Beside workers of ours the settings of the environment are enough."""
    with running("tests.integration.existing_app", {**environ, "EXISTING_KNOWS": "0"}, tmp_path) as site:
        assert ENTRY in site.get("/workers").text
        assert site.get("/workflows").status == 200


def test_a_flower_with_other_insides_starts_without_the_tab(environ: dict[str, str], tmp_path: Path) -> None:
    """It is said in the log, and Flower is there all the same."""
    with running("tests.integration.odd_flower", environ, tmp_path) as site:
        assert site.get("/workers").status == 200 and ENTRY not in site.get("/workers").text
        assert site.get("/workflows").status == 404
        assert "starts without its Workflows tab" in site.log


def test_other_commands_of_celery_load_none_of_it() -> None:
    """Every ``celery`` command loads its plugins: ours brings no library of a server, and no new command."""
    code = (
        "import sys, celery.bin.celery as c; print(sorted(c.celery.commands)); "
        "print([name for name in ('sqlalchemy', 'psycopg', 'alembic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    commands, loaded = done.stdout.splitlines()
    assert "'flower'" in commands and "orchestrator" not in commands
    assert loaded == "[]"


def test_without_flower_its_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.monitoring import plugin

    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(plugin._command(), ["--port=5555"])
    assert result.exit_code == 1 and "pip install 'orchestrator-celery[flower]'" in result.output


def test_where_the_tab_cannot_even_be_loaded_flower_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from orchestrator.monitoring import plugin

    started: list[bool] = []
    stand_in = click.Command("flower", callback=lambda: started.append(True))
    entry = SimpleNamespace(load=lambda: stand_in)
    monkeypatch.setitem(sys.modules, "orchestrator.monitoring.flower", None)
    monkeypatch.setattr(plugin.importlib.metadata, "entry_points", lambda **_: {"flower": entry})
    result = CliRunner().invoke(plugin._command(), [])
    assert result.exit_code == 0 and started == [True]
    assert "starts without its Workflows tab" in caplog.text


# -- whom it answers ----------------------------------------------------------------------------------------------

OAUTH = ("--auth=.*@example[.]com", "--auth_provider=flower.views.auth.GoogleAuth2LoginHandler",
         "--oauth2_key=key", "--oauth2_secret=secret", "--oauth2_redirect_uri=http://localhost/login")  # fmt: skip
PATHS = ("/workflows", "/workflows/a", "/workflows/a/b", "/workflows/a/b/timeline", "/workflows/a/b/steps/c",
         "/workflows-assets/forms.js", f"/workflows-tasks/{uuid4()}")  # fmt: skip


def test_with_oauth_pages_lead_to_the_login_and_the_api_refuses(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Nothing of ours answers without the login that Flower asks for."""
    with running("orchestrator.worker", environ, tmp_path, *OAUTH) as site:
        for path in PATHS:
            answer = site.get(path)
            assert (answer.status, answer.headers["Location"].partition("?")[0]) == (302, "/login"), path
        for path in ("/api/workflows", "/api/workflows/a/instances/b/events", "/api/workflows/openapi.json"):
            answer = site.get(path)
            assert (answer.status, '"unauthenticated"' in answer.text) == (401, True), path
        assert site.get("/api/workflows/a/instances", "POST").status in (401, 403)
        assert site.get("/login").status == 302  # Flower's own, to the provider


def test_what_another_site_causes_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    """Without a login too: a page of another site cannot write through the browser of who has Flower open."""
    target = "/api/workflows/a/instances/b/pause"
    with running("orchestrator.worker", environ, tmp_path) as site:
        cookie = site.get("/workflows").headers["Set-Cookie"].partition(";")[0]
        token = cookie.partition("=")[2]
        ours: dict[str, Any] = {"Cookie": cookie, "X_XSRFToken": token}
        assert site.get(target, "POST").status == 403
        assert site.get(target, "POST", Cookie=cookie).status == 403
        assert site.get(target, "POST", Sec_Fetch_Site="cross-site", **ours).status == 403
        assert site.get(target, "POST", **ours).status == 404  # let through: there is no such instance
        assert (
            site.get("/api/workflows", Origin="http://evil.example").headers["Access-Control-Allow-Origin"]
            is None
        )
