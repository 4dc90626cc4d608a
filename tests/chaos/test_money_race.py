"""The money race: two charges at once, one fails while the body of the other is about to capture.

Every seed draws its interleavings: kinds of bodies, up to when the second holds, who is first, failure or termination,
small delays where turns, claims and verbs may be overtaken. Ten seeds, two hundred in a soak;
``ORCHESTRATOR_SEED=<n>`` repeats one.
"""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from orchestrator import InvalidTransition
from orchestrator.store import migrate
from orchestrator.workflow.status import FINISHED
from tests.chaos import harness, till
from tests.chaos.dawdling import dawdling
from tests.chaos.harness import SOAK, Cluster, seeds
from tests.chaos.till import Till
from tests.chaos.witness import libpq
from tests.integration.conftest import settings_of
from tests.integration.harness import Site, eventually

INSTANCES = 8
PATIENCE_S = 60.0


@pytest.fixture
def site(postgres_url: str, redis_url: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Two workers, which dawdle before and after they read, claim and commit."""
    settings = settings_of(postgres_url, redis_url)
    migrate.upgrade(settings.database_url)
    dawdling(monkeypatch, seed)
    with Site(settings) as one:
        for delivery in ("in_place", ("in_place", "broker")[seed % 2]):
            one.worker(delivery=delivery)
        yield one


def connected(database_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(libpq(database_url), autocommit=True)
    connection.execute(till.TABLE)
    return connection


def is_about(book: psycopg.Connection[Any], created: Any) -> bool:
    return "about" in {line.what for line in till.lines(book, created.id)}


def is_over(created: Any) -> bool:
    return created.status().status in FINISHED


def terminate(
    book: psycopg.Connection[Any], many: list[tuple[Any, dict[str, Any]]], dice: random.Random
) -> None:
    """End those that are to be ended from outside, each when its body is about to capture."""
    for created, plan in many:
        if plan["how"] == "terminated":
            eventually(lambda: is_about(book, created), f"{created.id} is about to capture", PATIENCE_S)
            time.sleep(dice.random() * 0.01)
            with suppress(InvalidTransition):  # it may have failed by itself
                created.terminate(rollback=True)


def judge(book: psycopg.Connection[Any], created: Any, plan: dict[str, Any]) -> None:
    status, found = created.status(), till.lines(book, created.id)
    story = (created.id, plan, status, found, [(step.key, step.status) for step in created.steps()])
    assert till.wrong(found) == [], story
    assert status.status == ("errored" if plan["how"] == "fails" else "terminated"), story
    assert status.rollback is not None and status.rollback.outcome == "complete", story


@pytest.mark.integration
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", seeds(10, 200))
def test_nothing_is_captured_after_its_refund(site: Site, seed: int) -> None:
    """semantics §5.0, protocols §14: a charge that was about to capture when the other failed is refunded exactly if it
    captured, and afterwards; what a body returned after it was told to stop is the output its handler sees."""
    print(f"repeat with ORCHESTRATOR_SEED={seed}")
    dice = random.Random(seed)
    flow = site.workflow(till.race(Till(site.settings.database_url)), name="money-race")
    with connected(site.settings.database_url) as book:
        plans = [till.plan(dice) for _ in range(INSTANCES)]
        many = [(flow.create(plan), plan) for plan in plans]
        terminate(book, many, dice)
        for created, plan in many:
            eventually(lambda: is_over(created), f"the end of {created.id}, {plan}", PATIENCE_S)
            judge(book, created, plan)
        eventually(lambda: all(w.runtime.attempts.active == 0 for w in site.workers), "all bodies ended")
        for created, plan in many:  # also when every body has come to its end
            judge(book, created, plan)
            if plan["hold"] == "told" and (plan["b"] == "sync" or plan["b_returns"]):
                key = f"{site.id_of(created.id)}:0:do:charge_b:1"
                told = [line for line in till.lines(book, created.id) if line.key == key]
                assert [(line.what, line.saw) for line in told] == [
                    ("about", None),
                    ("captured", None),
                    ("refunded", key),
                ], (plan, told)


# -- in processes that are killed when they are told to stop ---------------------------------------------------


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A prefork worker with three children, and one of the other pool."""
    modules = {"ORCHESTRATOR_WORKFLOWS": "tests.chaos.flows,tests.chaos.till"}
    with harness.pair(fsync=SOAK) as pair, Cluster(pair, tmp_path_factory.mktemp("forked")) as cluster:
        cluster.worker(
            "prefork", wait=False, ORCHESTRATOR_POOL="prefork", ORCHESTRATOR_PROCESSES="3", **modules
        )
        cluster.worker("asyncio", **modules)
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", seeds(2, 20))
def test_nothing_is_captured_after_its_refund_by_a_process(forked: Cluster, seed: int) -> None:
    """semantics §5.0, protocols §14: the same where the body that is about to capture is killed in its process."""
    dice = random.Random(seed)
    plans = [{**till.plan(dice), "b": "sync"} for _ in range(INSTANCES)]
    names = [f"forked-{seed}-{n}" for n in range(INSTANCES)]
    try:
        with connected(forked.settings.database_url) as book:
            forked.create(till.forked, [{"id": n, "params": p} for n, p in zip(names, plans, strict=True)])
            handles = [till.forked.get(name, orchestrator=forked.client) for name in names]
            many = list(zip(handles, plans, strict=True))
            terminate(book, many, dice)
            harness.until("all have ended", lambda: forked.finished(names))
            for created, plan in many:
                judge(book, created, plan)
    except BaseException:
        print(forked.report())
        raise
