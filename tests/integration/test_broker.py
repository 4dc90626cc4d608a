"""What may be a broker, and whose keys are whose, on real servers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator.dev import places
from orchestrator.dev.process import free_port
from orchestrator.dev.valkey import ValkeyServer
from orchestrator.dispatch import bootsteps, celery_app
from orchestrator.settings import Settings
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


class ClusterNode(ValkeyServer):
    """One node of a Redis Cluster."""

    def _prepare(self) -> list[str]:
        return [*super()._prepare(), "--cluster-enabled", "yes"]


@pytest.fixture
def node() -> Iterator[ClusterNode]:
    with tempfile.TemporaryDirectory() as folder:
        server = ClusterNode(places.home(Path(folder), throwaway=False), free_port())
        server.start()
        yield server
        server.stop()


def test_a_redis_cluster_is_refused_by_name(node: ClusterNode, settings: Settings, tmp_path: Path) -> None:
    """protocols §20: Redis Cluster as a broker is refused by name, before a worker serves anything."""
    env = {
        **os.environ,
        "ORCHESTRATOR_DATABASE_URL": settings.database_url,
        "ORCHESTRATOR_REDIS_URL": settings.redis_url,
        "ORCHESTRATOR_BROKER_URL": node.url,
        "ORCHESTRATOR_WORKFLOWS": "orchestrator.demo.workflows",
    }
    worker = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker"]
    done = subprocess.run(
        worker, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "ORCHESTRATOR_BROKER_URL names a Redis Cluster" in done.stdout + done.stderr


def test_other_brokers_are_not_refused(settings: Settings) -> None:
    """protocols §20: a single Redis is fine, and one that is away is waited for, not refused."""
    bootsteps.refuse_cluster(celery_app.create_client(settings))
    away = Settings(database_url=settings.database_url, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    bootsteps.refuse_cluster(celery_app.create_client(away))


def test_channels_of_an_account_carry_its_hash_tag(site: Site, settings: Settings) -> None:
    """protocols §20: what is ours in Redis, beside Celery's queues, stands under one hash tag per account."""
    with redis.Redis.from_url(settings.redis_url, decode_responses=True) as client:
        before = set(client.pubsub_channels())
        site.workflow(waits).create(id="a")
        waiter = site.client.waiters
        answer = waiter.register(str(site.id_of("a")))
        heard = eventually(lambda: set(client.pubsub_channels()) - before)
        waiter.leave(str(site.id_of("a")), answer)
    assert all(channel.startswith(f"{{orchestrator:{settings.account}}}:") for channel in heard)


async def waits(event, step):
    await step.wait_for_event("never", type="never")
