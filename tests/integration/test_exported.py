"""Histories of production instances, exported and run against code."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from orchestrator import InstanceNotFound, NonDeterminismError, Retries, WorkflowEvent, WorkflowStep
from orchestrator.cli import main
from orchestrator.client import orchestrator as client
from orchestrator.testing import WorkflowEnvironment, replay_history
from orchestrator.workflow.language.definition import define
from tests.integration.harness import Site

pytestmark = pytest.mark.integration


def flaky(ctx: Any, n: int) -> int:
    if ctx.attempt < 2:
        raise ConnectionError("not yet")
    return n


async def exported_flow(event: WorkflowEvent[int], step: WorkflowStep) -> list[Any]:
    numbers = await asyncio.gather(
        *[step.do("n", flaky, n, retries=Retries(limit=1, delay=0)) for n in range(event.payload)]
    )
    got = await step.wait_for_event("go", type="go", sensitive=True)
    await step.sleep("a little", 0.01)
    return [*numbers, got.payload, step.random(), str(step.uuid())]


async def other_flow(event: WorkflowEvent[int], step: WorkflowStep) -> None:
    await step.sleep("a little", 0.01)


class Once:
    """A workflow that no registry knows."""

    def __init__(self, fn: Any) -> None:
        self.definition = define(fn, name="exported-flow")


def test_a_history_from_production_replays(site: Site) -> None:
    """api §6: what production recorded is run against today's code: it fits, and code that does not is told."""
    site.worker(chef=True)
    workflow = site.workflow(exported_flow, name="exported-flow")
    instance = workflow.create(3, id="h")
    instance.send_event("go", "secret")
    instance.result(20)
    redacted = instance.export_history()
    assert "secret" not in json.dumps(redacted)
    history = json.loads(json.dumps(instance.export_history(include_sensitive=True)))
    assert asyncio.run(instance.aexport_history(include_sensitive=True)) == history
    replay_history(workflow, history)
    with pytest.raises(NonDeterminismError, match="do:n:1"):
        replay_history(Once(other_flow), history)  # type: ignore[arg-type]
    instance.delete()
    with pytest.raises(InstanceNotFound):
        instance.export_history()


def test_the_kit_writes_the_same_document(site: Site) -> None:
    """The format is one: beside ids and moments, production and the kit export the same."""
    site.worker(chef=True)
    workflow = site.workflow(exported_flow, name="exported-flow")
    real = workflow.create(1, id="h")
    real.send_event("go", 1)
    real.result(20)
    with WorkflowEnvironment() as env:
        env.disable_retry_delays()
        env.disable_sleeps()
        simulated = env.create(workflow, 1, id="h")
        simulated.send_event("go", 1)
        simulated.result()
        there, here = real.export_history(), simulated.export_history()
    assert there.keys() == here.keys()
    for name in (
        "format",
        "version",
        "workflow",
        "workflow_version",
        "instance_id",
        "run",
        "seed",
        "params",
        "status",
    ):
        assert there[name] == here[name]
    keys = [[(s["key"], s["kind"], s["status"]) for s in document["steps"]] for document in (there, here)]
    assert keys[0] == keys[1]
    assert there["steps"][0].keys() == here["steps"][0].keys()


def test_the_command_prints_the_document(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """api §4: orchestrator instances history NAME ID: JSON, with or without --json."""
    site.worker(chef=True)
    instance = site.workflow(exported_flow, name="exported-flow").create(1, id="h")
    instance.send_event("go", 1)
    instance.result(20)
    settings = site.settings
    monkeypatch.setattr(client, "_default", None)
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ORCHESTRATOR_ACCOUNT", settings.account)
    try:
        for more in ((), ("--json",)):
            assert main(("instances", "history", "exported-flow", "h", *more)) == 0
            assert json.loads(capsys.readouterr().out) == instance.export_history()
    finally:
        if client._default is not None:
            client._default.close()
