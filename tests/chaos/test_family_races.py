"""Verbs on parents and children while both are at work: whatever is done to whom, every parent comes to its end and no
child is left.

Owns: the storms, seeded (``ORCHESTRATOR_SEED`` repeats one), and what must be so afterwards. Engines of the test's own.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import Retries
from orchestrator.errors import OrchestratorError
from orchestrator.store import migrate
from tests.chaos.harness import seeds
from tests.integration.conftest import settings_of
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

QUICK = Retries(limit=2, delay=0.05, backoff="constant")
PARENTS = 6


@pytest.fixture
def site(postgres_url: str, redis_url: str) -> Iterator[Site]:
    settings = settings_of(postgres_url, redis_url)
    migrate.upgrade(settings.database_url)
    with Site(settings) as one:
        yield one


class Family:
    """Parents whose children wait, work, fail, and have children of their own."""

    def __init__(self, site: Site) -> None:
        async def body(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return seconds

        async def undo(r: Any) -> None:
            await asyncio.sleep(0.01)

        def work(step: Any, name: str, seconds: float = 0.02) -> Any:
            return step.do(name, body, seconds, retries=QUICK, rollback=undo, rollback_retries=QUICK)

        async def leaf(event, step):
            await work(step, "x", event.payload)
            await step.sleep("nap", event.payload)
            return await work(step, "y", event.payload)

        self.leaf = site.workflow(leaf, name="races_leaf")

        async def child(event, step):
            await work(step, "before")
            if event.payload % 3 == 0:
                await step.invoke("leaf", self.leaf, 0.05)
            if event.payload % 5 == 4:
                raise ValueError("child")
            await work(step, "after")
            return event.payload

        self.child = site.workflow(child, name="races_child")

        async def parent(event, step):
            await work(step, "first")
            going = [step.invoke("c", self.child, event.payload + n, timeout=5) for n in range(4)]
            found = await asyncio.gather(*going, return_exceptions=True)
            if event.payload % 2:
                raise RuntimeError("parent")
            return len(found)

        self.parent = site.workflow(parent, name="races_parent")

    def verbs(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            ("pause", {}),
            ("resume", {}),
            ("terminate", {}),
            ("terminate", {"rollback": True}),
            ("restart", {}),
            ("restart", {"from_step": "first"}),
            ("restart", {"from_step": "c", "count": 2, "kind": "invoke"}),
        ]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", seeds(4, 80))
def test_a_storm_of_verbs_leaves_no_child(site: Site, seed: int) -> None:
    """protocols §4, §15: verbs on parents and on children, at any moment, by two callers and two workers."""
    print(f"repeat with ORCHESTRATOR_SEED={seed}")
    family = Family(site)
    site.worker(chef=True)
    site.worker(chef=True)
    for n in range(PARENTS):
        family.parent.create(n)

    def storm(dice: random.Random) -> None:
        for _ in range(25):
            rows = site.sql(
                "SELECT name_id, workflow FROM orchestrator_instances WHERE account = :account ORDER BY id",
                account=site.settings.account,
            )
            row = dice.choice(rows)
            workflow = {"races_leaf": family.leaf, "races_child": family.child}.get(
                row.workflow, family.parent
            )
            verb, options = dice.choice(family.verbs())
            if workflow is not family.parent and dice.random() < 0.3:
                verb, options = "delete", {}
            with contextlib.suppress(OrchestratorError):  # it had ended, was gone, or has no such step
                getattr(workflow.get(row.name_id), verb)(**options)
            time.sleep(dice.random() * 0.05)

    callers = [threading.Thread(target=storm, args=(random.Random(seed * 10 + n),)) for n in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    eventually(lambda: wake_up(site, family), "every parent ends, and every child with it", 90)
    left = site.sql(
        "SELECT count(*) FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id "
        "WHERE i.account = :account AND s.status NOT IN ('done', 'failed', 'cancelled', 'abandoned')",
        account=site.settings.account,
    )
    assert left[0][0] == 0
    blocked = site.sql(
        "SELECT blocked FROM orchestrator_instances WHERE account = :account AND blocked IS NOT NULL",
        account=site.settings.account,
    )
    assert blocked == []


def wake_up(site: Site, family: Family) -> bool:
    """Resume whatever was left paused; whether nothing is unfinished any more."""
    rows = site.sql(
        "SELECT name_id, workflow, status FROM orchestrator_instances WHERE account = :account AND ended_at IS NULL",
        account=site.settings.account,
    )
    for row in rows:
        if row.status in ("paused", "waiting_for_pause"):
            workflow = {"races_leaf": family.leaf, "races_child": family.child}.get(
                row.workflow, family.parent
            )
            with contextlib.suppress(OrchestratorError):
                workflow.get(row.name_id).resume()
    return not rows
