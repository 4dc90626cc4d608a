"""``orchestrator dev`` with real processes: what is up, who shares it, and that all of it ends with its owner."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Orchestrator, Settings
from orchestrator.demo.workflows import Receipt, Transfer, transfer
from orchestrator.dev import servers, up

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (servers.installed() and importlib.util.find_spec("flower")) and not os.environ.get("CI"),
        reason="needs the embedded servers and Flower (extra `dev`)",
    ),
]

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One for all, so that its cluster is made once. Not pytest's own, which `nobody` cannot enter."""
    path = Path(tempfile.mkdtemp(prefix="orchestrator-test-dev-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    assert remains(path) == []
    shutil.rmtree(path, ignore_errors=True)


class Dev:
    """``orchestrator dev --json`` in a folder."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_"))}
        self.errors = folder / f"stderr-{time.monotonic_ns()}"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("orchestrator"), "dev", "--json", *options],
                cwd=folder,
                env={**kept, **environ, "DEV_TEST_MARK": str(folder)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def up(self) -> dict[str, Any]:
        """What it says when all is up."""
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            if line == "}\n":
                return dict(json.loads(text))
        raise AssertionError(f"it ended: {self.errors.read_text()}")

    def stop(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def says(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.errors.read_text():
            assert time.monotonic() < deadline, (text, self.errors.read_text())
            time.sleep(0.05)


@contextlib.contextmanager
def dev(folder: Path, *options: str, **environ: str) -> Iterator[Dev]:
    made = Dev(folder, *options, **environ)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()
        nothing_remains(folder)


def remains(folder: Path) -> list[str]:
    """The processes of the folder, by what they were told or given."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), process.environ().get("DEV_TEST_MARK", "")]
            if process.pid != os.getpid() and any(str(folder) in each for each in told):
                found.append(f"{process.pid} {process.cmdline()}")
    return found


def nothing_remains(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while remains(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert remains(folder) == []


def run_a_transfer(told: dict[str, Any]) -> None:
    settings = Settings(database_url=told["database_url"], redis_url=told["redis_url"])
    with Orchestrator(settings) as orchestrator:
        instance = transfer.create(Transfer("alice", "bob", 1), orchestrator=orchestrator)
        instance.send_event("approval", {"by": "a test"})
        assert isinstance(instance.result(30), Receipt)


def test_all_is_up_and_shared_and_ends_in_order(folder: Path) -> None:
    with dev(folder) as first:
        told = first.up()
        assert (told["attached"], told["workflows"]) == (False, "orchestrator.demo.workflows")
        assert [program["name"] for program in told["programs"]] == ["flower-1", "worker-1"]
        for program in told["programs"]:
            assert (folder / ".local" / f"{program['name']}.pid").read_text() == f"{program['pid']}\n"
            guard = psutil.Process(program["pid"]).parent()
            assert guard is not None
            assert told["database_url"] not in " ".join(guard.cmdline())  # which is for all to read
        assert up.answers(f"{told['flower_url']}/healthcheck")
        run_a_transfer(told)
        assert "ready." in (folder / ".local" / "worker-1.log").read_text()

        with dev(folder, "--no-flower") as second:
            shared = second.up()
            assert shared["attached"]
            assert shared["database_url"] == told["database_url"]
            assert [program["name"] for program in shared["programs"]] == ["worker-2"]
            assert second.stop() == 0
            assert second.process.wait() == 0
            assert not psutil.pid_exists(shared["programs"][0]["pid"])
            run_a_transfer(told)
            assert first.stop(signal.SIGTERM) == 0
    assert not list((folder / ".local").glob("*.pid"))


def test_what_ends_is_told_and_a_killed_owner_takes_everything_with_it(folder: Path) -> None:
    with dev(folder, "--no-flower", "--workers", "3") as made:
        told = made.up()
        one, two, _ = (psutil.Process(program["pid"]) for program in told["programs"])
        one.kill()
        made.says("worker-1 has ended, and is not restarted")
        guard = two.parent()
        assert guard is not None
        guard.kill()
        made.says("worker-2 has ended, and is not restarted")
        two.wait(PATIENCE_S)
        run_a_transfer(told)  # by the third
        made.process.kill()
        made.process.wait()
        nothing_remains(folder)


def test_a_worker_that_cannot_start_is_told_with_the_end_of_its_log(folder: Path) -> None:
    with dev(folder, "--no-flower", ORCHESTRATOR_WORKFLOWS="no_such_module") as made:
        assert made.process.wait(PATIENCE_S) == 3
        assert made.process.stdout is not None
        assert json.loads(made.process.stdout.read())["error"]["code"] == "service_unavailable"
        text = made.errors.read_text()
        assert "worker-1 ended while starting" in text
        assert "ORCHESTRATOR_WORKFLOWS names the module 'no_such_module'" in text
