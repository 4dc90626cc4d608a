"""Duties of the SousChef: one that fails, when the next round comes, and real workers that see to them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.control.rounds import Round
from orchestrator.control.shards import Share
from orchestrator.control.souschef import SousChef
from orchestrator.ports import Holder, OpenGate, new_id
from orchestrator.settings import Settings
from tests.integration.harness import START, Site, eventually
from tests.integration.schedule_flows import NEW_YEAR, sched_new_year
from tests.integration.test_shutdown import Process

pytestmark = pytest.mark.integration


async def duty_flow(event, step):
    """Nothing."""


class Seen:
    """A duty that answers what it was told to."""

    def __init__(self, answer: Round | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[float, Sequence[str]]] = []

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        self.asked.append((now, known))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_duty_that_fails_keeps_nobody_waiting(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """design §3 (control): a failure is logged, and neither alarms nor the other duties miss their cycle."""
    woken: UUID = new_id(START)
    duties = [
        Seen(RuntimeError("no such luck")),
        Seen(Round([(woken, START + 0.5)], START + 0.7)),
        Seen(Round(again_at=START + 0.3)),
    ]
    planted = site.workflow(duty_flow).plant(now=START - 5)
    bench = site.bench()
    chef = SousChef(
        bench.engine,
        site.settings.account,
        site.registry.known,
        bench.clock,
        OpenGate(),
        list,
        bench.shards(),
        duties=duties,
    )
    with caplog.at_level(logging.ERROR):
        cycle = chef.cycle(START)
    assert set(cycle.wakes) == {(planted, START), (woken, START + 0.5)}
    assert cycle.again_at == START + 0.3
    assert START < chef._next_full(cycle, START) <= START + 0.301
    assert [duty.asked for duty in duties] == [[(START, ["duty_flow@1"])]] * 3
    assert "A round of Seen failed." in caplog.text
    assert "no such luck" in caplog.text


class Failing(OpenGate):
    """A gate that a queue asks in vain, as if what it does were broken."""

    def ask(
        self, wanted: Sequence[Holder], weights: Mapping[str, int] | None = None, more: Collection[str] = ()
    ) -> set[UUID]:
        raise RuntimeError("nobody can be asked")


def test_a_queue_that_cannot_be_looked_at_keeps_no_alarm_waiting(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §6: alarms ring on time; neither a look at the shards nor one at the queue that fails holds them up."""

    def cycle(now: float) -> Share:
        raise RuntimeError("no shards to be seen")

    planted = site.workflow(duty_flow).plant(now=START - 5)
    bench = site.bench()
    shards = bench.shards()
    shards.cycle(START - 1)
    monkeypatch.setattr(shards, "cycle", cycle)
    account, known = site.settings.account, site.registry.known
    chef = SousChef(bench.engine, account, known, bench.clock, Failing(), list, shards)
    with caplog.at_level(logging.ERROR):
        found = chef.cycle(START)
    assert found.wakes == [(planted, START)]
    assert "no shards to be seen" in caplog.text
    assert "nobody can be asked" in caplog.text


@pytest.fixture
def client(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings) as one:
        yield one


@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
def test_a_celery_worker_fires_its_schedules(
    settings: Settings, client: Orchestrator, site: Site, tmp_path: Path, pool: str
) -> None:
    """protocols §20: from a definition to a result with nothing but ``celery worker``, whatever its pool."""
    worker = Process(
        settings,
        tmp_path,
        ORCHESTRATOR_WORKFLOWS="tests.integration.schedule_flows",
        ORCHESTRATOR_POOL=pool,
        ORCHESTRATOR_PROCESSES="1",
    )
    try:
        (entered,) = eventually(
            lambda: sched_new_year.schedules(orchestrator=client), "the schedule", patience_s=60
        )
        assert (entered.cron, entered.params, entered.last_at) == (NEW_YEAR, "ann", None)
        assert entered.next_at is not None
        last = entered.next_at.replace(year=entered.next_at.year - 1)
        site.sql(
            "UPDATE orchestrator_schedules SET next_at = :at WHERE account = :account",
            at=last,
            account=settings.account,
        )
        name = f"{NEW_YEAR}-{int(last.timestamp()) * 1000}"
        eventually(lambda: sched_new_year.schedules(orchestrator=client)[0].last_at, "a firing")
        output = sched_new_year.get(name, orchestrator=client).result(30)
        assert output == ["happy new year, ann", NEW_YEAR, last.isoformat(), name]
        assert sched_new_year.schedules(orchestrator=client)[0].next_at == entered.next_at
    finally:
        worker.stop(60)
