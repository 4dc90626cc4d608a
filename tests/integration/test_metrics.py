"""Metrics: what workers count, what becomes of it when they go, and what a real Flower tells Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from orchestrator import NonRetryableError, Orchestrator, Retries, Settings
from orchestrator.client.control import limits
from orchestrator.dev import up
from orchestrator.dev.process import free_port
from orchestrator.dev.programs import Program
from orchestrator.dev.servers import Servers
from orchestrator.errors import ServiceUnavailable
from orchestrator.monitoring.metrics.collector import AccountCollector, expose
from orchestrator.monitoring.metrics.reading import read
from orchestrator.store import migrate, workers
from orchestrator.store.session import connect
from orchestrator.store.views import totals
from orchestrator.workflow.status import Status
from tests.integration import monitored
from tests.integration.harness import Created, Site, eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "docs" / "grafana" / "orchestrator.json"
LABELS = {
    "orchestrator_up": set(),
    "orchestrator_reading_age_seconds": set(),
    "orchestrator_reading_seconds": set(),
    "orchestrator_workers": set(),
    "orchestrator_slots_granting": set(),
    "orchestrator_account_slots_used": set(),
    "orchestrator_account_slots_limit": set(),
    "orchestrator_instances": {"workflow", "status"},
    "orchestrator_slots_used": {"workflow"},
    "orchestrator_slots_limit": {"workflow"},
    "orchestrator_creation_rate_limit": {"workflow"},
    "orchestrator_queue_age_seconds": {"workflow"},
    "orchestrator_alarm_lateness_seconds": {"workflow"},
    "orchestrator_shards_unowned": {"workflow"},
    "orchestrator_steps": {"workflow", "kind", "outcome"},
    "orchestrator_attempts": {"workflow", "outcome"},
    "orchestrator_instances_ended": {"workflow", "status"},
    "orchestrator_turns": set(),
    "orchestrator_flush_seconds": set(),
}  # fmt: skip
"""Every family with its labels, as docs/guides/monitoring.md lists them."""


def fail() -> None:
    raise ValueError("no")


def refuse() -> None:
    raise NonRetryableError("never")


async def mixed(event, step):
    await step.do("good", lambda: 1, rollback=lambda r: None)
    await step.sleep("nap", 0)
    with contextlib.suppress(ValueError):
        await step.do("bad", fail, retries=Retries(limit=2, delay=0))
    if event.payload:
        await step.do("never", refuse)


@pytest.fixture
def flow(site: Site) -> Created:
    return site.workflow(mixed, name="metrics_mixed")


def run(flow: Created, payload: bool = False) -> None:
    one = flow.create(payload)
    eventually(lambda: one.status().status in (Status.COMPLETE, Status.ERRORED), patience_s=30)


def series(site: Site) -> dict[str, float]:
    with site.engine.connect() as connection:
        return totals.series(connection, site.settings.account)


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of ours by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("orchestrator_")
    }


def at(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_a_worker_counts_steps_attempts_and_ends(site: Site, flow: Created) -> None:
    """semantics §2.2, §5.3: each attempt, step and compensation counts once, when it is recorded."""
    worker = site.worker()
    for payload in (False, False, True):
        run(flow, payload)
    counted = worker.runtime.liveness.totals.series()
    expected = {
        "step metrics_mixed do done": 3, "step metrics_mixed do failed": 4, "step metrics_mixed sleep done": 3,
        "step metrics_mixed rollback done": 1, "failed-attempts metrics_mixed": 10,
        "ended metrics_mixed complete": 2, "ended metrics_mixed errored": 1,
    }  # fmt: skip
    assert {name: counted.get(name) for name in expected} == expected
    assert counted["turns"] >= 9 and counted["flush-s"] > 0
    assert sum(value for name, value in counted.items() if name.startswith("flush ")) > 0


def test_what_was_counted_outlives_its_worker(site: Site, flow: Created) -> None:
    """A counter never falls: what a worker counted is added up when it leaves, or is forgotten as dead."""
    worker = site.worker()
    run(flow)
    site.post.targets.remove(worker)
    worker.drain()
    kept = series(site)
    assert kept["step metrics_mixed do done"] == 1 and kept["ended metrics_mixed complete"] == 1
    assert site.sql("SELECT 1 FROM orchestrator_workers WHERE account = :a", a=site.settings.account) == []
    second = site.worker(heartbeat=0.05, lease=1.0)
    run(flow)
    eventually(lambda: series(site)["step metrics_mixed do done"] == 2, "the next heartbeat", 30)
    second.crash()
    assert series(site)["step metrics_mixed do done"] == 2
    site.sql(
        "UPDATE orchestrator_workers SET dead_at = now() - interval '2 hours' WHERE account = :a",
        a=site.settings.account,
    )
    with site.engine.begin() as connection:
        workers.forget_dead(connection, site.settings.account, 3600.0)
    assert site.sql("SELECT 1 FROM orchestrator_workers WHERE account = :a", a=site.settings.account) == []
    assert series(site)["step metrics_mixed do done"] == 2


def test_what_was_counted_counts_once_over_a_declared_death(site: Site, flow: Created) -> None:
    """protocols §6: a process that comes back under a new uuid begins a new row; what the old one holds stays there."""
    worker = site.worker(heartbeat=0.05, lease=1.0)
    run(flow)
    eventually(lambda: series(site).get("step metrics_mixed do done") == 1, "a heartbeat", 30)
    first = worker.runtime.liveness.id
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=first)
    eventually(lambda: worker.runtime.liveness.id != first, patience_s=30)
    run(flow)
    eventually(lambda: series(site)["step metrics_mixed do done"] >= 2, "a heartbeat", 30)
    assert series(site)["step metrics_mixed do done"] == 2


def test_a_scrape_asks_nobody(site: Site, flow: Created) -> None:
    """Flower collects on its event loop: a scrape is given what was read, and nothing else is done for it."""
    asked = []

    def reading() -> Any:
        asked.append(1)
        return read(site.client)

    collector = AccountCollector(reading)
    assert [family.name for family in collector.collect()] == ["orchestrator_up"]
    collector.look()
    for _ in range(10):
        assert {"orchestrator_turns"} <= {family.name for family in collector.collect()}
    assert len(asked) == 1


def test_while_postgres_is_away_that_is_said(site: Site) -> None:
    def reading() -> Any:
        raise ServiceUnavailable("Postgres does not answer", "postgres")

    collector = AccountCollector(reading)
    collector.look()
    (up_,) = collector.collect()
    assert [sample.value for sample in up_.samples] == [0.0]


def test_figures_are_those_of_the_account(site: Site, flow: Created) -> None:
    """semantics §6: slots, limits, counts and the age of queues, by workflow."""
    site.worker()
    run(flow)
    limits.set_limits(site.client, flow.name, concurrency=7)
    registry = CollectorRegistry()
    collector = expose(site.client, registry)
    try:
        eventually(lambda: registry.get_sample_value("orchestrator_up") == 1.0)
        sample = registry.get_sample_value
        assert sample("orchestrator_workers") == 1
        assert sample("orchestrator_slots_limit", {"workflow": flow.name}) == 7
        assert sample("orchestrator_instances", {"workflow": flow.name, "status": "complete"}) == 1
        assert sample("orchestrator_queue_age_seconds", {"workflow": flow.name}) == 0
        names = {family.name for family in collector.collect()}
        assert (
            names <= LABELS.keys() and {"orchestrator_account_slots_limit", "orchestrator_workers"} <= names
        )
    finally:
        collector.stop()


def test_a_late_alarm_is_told(site: Site, flow: Created) -> None:
    """protocols §7: every unfinished row has an alarm; how late the earliest is says whether anybody looks."""
    with site.engine.begin() as connection:
        workers.register_workflows(connection, site.settings.account, [(flow.name, "1", "x", "{}")])
    flow.plant(False, now=site.client.now() - 120.0)
    assert 100.0 < read(site.client).lateness[flow.name] < 150.0


@pytest.fixture(scope="module")
def environ(servers: Servers) -> dict[str, str]:
    name = f"metrics_{uuid4().hex[:8]}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    database_url = servers.database_url.rpartition("/")[0] + "/" + name
    migrate.upgrade(database_url)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    environ = up.environment(kept, database_url, servers.redis_url.replace("/0", "/10"))
    return {**environ, "ORCHESTRATOR_WORKFLOWS": "tests.integration.monitored", "ORCHESTRATOR_LEASE": "6"}


@pytest.fixture(scope="module")
def url(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Flower that asks for a password, beside a worker."""
    if not up.flower_installed() and not os.environ.get("CI"):
        pytest.skip("needs Flower (extra `dev`)")
    logs = tmp_path_factory.mktemp("logs")
    address = f"http://127.0.0.1:{free_port()}"
    worker = Program("worker", logs, [*up.celery_command(), "worker", "-l", "INFO", "--without-gossip"], 15.0)
    options = [
        "flower",
        "--address=127.0.0.1",
        f"--port={address.rpartition(':')[2]}",
        "--basic_auth=ann:hunter2",
    ]
    flower = Program("flower", logs, [*up.celery_command(), *options], 10.0)
    try:
        worker.start(environ)
        flower.start(environ)
        worker.await_ready(lambda: " ready." in worker.log.read_text())
        flower.await_ready(lambda: up.answers(f"{address}/healthcheck"))
        yield address
    finally:
        flower.stop()
        worker.stop()


def test_children_of_a_prefork_worker_count_too(environ: dict[str, str], tmp_path: Path) -> None:
    """protocols §19: a child runs turns of its own; what it counted is there once its worker has gone in order."""
    account = f"f{uuid4().hex[:8]}"
    own = {"ORCHESTRATOR_ACCOUNT": account, "ORCHESTRATOR_QUEUE": account, "ORCHESTRATOR_POOL": "prefork"}
    command = [*up.celery_command(), "worker", "-l", "INFO", "-P", "prefork", "-c", "2", "--without-gossip"]
    worker = Program("forking", tmp_path, command, 20.0)
    settings = Settings.from_env({**environ, **own})
    try:
        worker.start({**environ, **own})
        with Orchestrator(settings) as orchestrator:
            assert monitored.steps.create(3, orchestrator=orchestrator).result(60) == 3
    finally:
        worker.stop()
    engine = connect(settings.database_url)
    with engine.connect() as connection:
        counted = totals.series(connection, account)
    engine.dispose()
    assert counted["step api_steps do done"] == 3 and counted["ended api_steps complete"] == 1


def scraped(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10.0) as response:
        return str(response.read().decode())


def test_flower_tells_prometheus(url: str, environ: dict[str, str]) -> None:
    """pitfalls, Flower: ``/metrics`` answers without a password; no id, value or secret is in it."""
    secret = f"secret-{uuid4().hex[:8]}"
    with Orchestrator(Settings.from_env(environ)) as orchestrator:
        done = monitored.steps.create(5, orchestrator=orchestrator)
        stuck = monitored.stuck.create(orchestrator=orchestrator, id=secret)
        assert done.result(40) == 5
        eventually(lambda: stuck.status(), patience_s=40)
    labels = {"workflow": "api_steps", "kind": "do", "outcome": "completed"}
    eventually(
        lambda: values(scraped(url)).get(("orchestrator_steps_total", frozenset(labels.items()))) == 5,
        "the worker's heartbeat and the next reading",
        40,
    )
    text = scraped(url)
    found = values(text)
    assert at(found, "orchestrator_up") == 1 and at(found, "orchestrator_workers") == 1
    assert at(found, "orchestrator_attempts_total", workflow="api_steps", outcome="completed") == 5
    assert at(found, "orchestrator_instances_ended_total", workflow="api_steps", status="complete") == 1
    assert at(found, "orchestrator_slots_limit", workflow="api_order") == 50
    assert at(found, "orchestrator_account_slots_limit") == 50_000
    assert (
        at(found, "orchestrator_flush_seconds_bucket", le="+Inf")
        == at(found, "orchestrator_flush_seconds_count")
        > 0
    )
    assert 0 <= at(found, "orchestrator_reading_age_seconds") < 60
    families = {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith("orchestrator_")}
    assert families.keys() == LABELS.keys()
    for name, family in families.items():
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == LABELS[name], name
    ours = "\n".join(line for line in text.splitlines() if "orchestrator_" in line)
    assert secret not in text and done.id not in text and "hunter2" not in text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", ours), "no uuid is a label"


def test_the_dashboard_uses_the_metrics_that_there_are() -> None:
    """docs/grafana: every metric in it exists, and every one that there is stands in it, or in none of its panels for a
    reason given here."""
    written = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in written["panels"] for target in panel.get("targets", ())]
    used = {name for each in expressions for name in re.findall(r"\borchestrator_\w+", each)}
    there = {f"{name}_total" if name in COUNTERS else name for name in LABELS} - {
        "orchestrator_flush_seconds"
    }
    there |= {f"orchestrator_flush_seconds_{each}" for each in ("bucket", "sum", "count")}
    assert used <= there, used - there
    assert there - used <= {"orchestrator_flush_seconds_sum", "orchestrator_flush_seconds_count"}
    for expression in expressions:
        for name, inside in re.findall(r"\b(orchestrator_\w+)\{([^}]*)\}", expression):
            family = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert set(re.findall(r"(\w+)\s*[=!~]+", inside)) <= LABELS[family], expression


COUNTERS = {
    "orchestrator_steps",
    "orchestrator_attempts",
    "orchestrator_instances_ended",
    "orchestrator_turns",
}


def test_the_guide_lists_the_metrics_that_there_are() -> None:
    guide = (ROOT / "docs" / "guides" / "monitoring.md").read_text()
    listed = set(re.findall(r"^\| `(orchestrator_\w+)`", guide, re.MULTILINE))
    assert listed == {f"{name}_total" if name in COUNTERS else name for name in LABELS}
