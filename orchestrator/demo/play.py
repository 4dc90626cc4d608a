"""The play: servers, workers and Flower are started, four transfers made, a worker killed, the evidence gathered.

Owns: the order of events, the approvals, the kill, the exit status. Does not own processes (``dev``), what is
claimed (``checks``) or how it looks (``stage``).
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.records import StepRecord
from orchestrator.demo import checks
from orchestrator.demo.acts import ACTS, APPROVER, CREDIT, Act, Outcome
from orchestrator.demo.checks import Check, Evidence
from orchestrator.demo.ledger import Ledger
from orchestrator.demo.stage import Stage
from orchestrator.demo.workflows import transfer
from orchestrator.dev.up import Plan, Stack
from orchestrator.workflow.status import FINISHED

LEASE_S = 3
"""A worker that is silent for this long is taken for dead: short, so that the play is."""
_ACT_PATIENCE_S = 25.0
_FLOWER_PATIENCE_S = 10.0
_APPROVAL_AFTER_S = 0.7
_LOOK_AGAIN_S = 0.1


def plan(environ: Mapping[str, str] = os.environ) -> Plan:
    """Throwaway servers, two workers with a short lease, and Flower with its API; nothing of the user's settings."""
    kept = {k: v for k, v in environ.items() if not k.startswith(("ORCHESTRATOR_", "FLOWER_", "CELERY_"))}
    ours = {"ORCHESTRATOR_LEASE": str(LEASE_S), "FLOWER_UNAUTHENTICATED_API": "true"}
    return Plan(root=Path.cwd(), environ={**kept, **ours}, workers=2, throwaway=True)


def perform(stack: Stack, console: Console) -> list[Check]:
    """Play all acts on a stack that is up, show them, and return the checks."""
    stage = Stage(console)
    if stack.flower_url:
        stage.say(f"Flower shows the step tasks, while this runs, at {stack.flower_url}/tasks")
    with Orchestrator(stack.settings) as orchestrator:
        ledger = Ledger(stack.settings.database_url)
        ledger.create()
        before = ledger.balances()
        play = _Play(stack, stage, ledger, orchestrator)
        outcomes = {act.name: play.act(number, act) for number, act in enumerate(ACTS, 1)}
        tasks = None if stack.flower_url is None else _flower_tasks(stack.flower_url, list(outcomes.values()))
        evidence = Evidence(outcomes, before, ledger.balances(), ledger.bookings(), ledger.calls(), tasks)
    stage.ledger(before, evidence.after)
    made = checks.examine(evidence)
    stage.checks(made)
    return made


class _Play:
    """What the acts share."""

    def __init__(self, stack: Stack, stage: Stage, ledger: Ledger, orchestrator: Orchestrator) -> None:
        self._stack = stack
        self._stage = stage
        self._ledger = ledger
        self._orchestrator = orchestrator
        self._names = {worker.pid: worker.name for worker in stack.workers}

    def act(self, number: int, act: Act) -> Outcome:
        """Play one act to its end, or until nobody would believe in one any more."""
        if act.trouble is not None:
            trouble = act.trouble
            self._ledger.arrange(trouble.place, trouble.holder, trouble.kind, trouble.times)
        instance = transfer.create(act.order, orchestrator=self._orchestrator)
        began, asked_at, killed = time.monotonic(), None, None
        with self._stage.act(number, act, instance.id):
            while True:
                status = instance.status()
                steps = instance.steps()
                self._stage.show(steps, self._ran(instance.id, steps))
                now = time.monotonic()
                if status.status in FINISHED or now - began > _ACT_PATIENCE_S:
                    return Outcome(act, instance.id, status, steps, killed)
                if asked_at is None and any(s.kind == "wait" and s.status == "waiting" for s in steps):
                    asked_at = now
                if asked_at is not None and now - asked_at > _APPROVAL_AFTER_S:
                    self._approve(instance)
                    asked_at = float("inf")
                if act.kills and killed is None:
                    killed = self._kill(instance.id)
                time.sleep(_LOOK_AGAIN_S)

    def _approve(self, instance: WorkflowInstance) -> None:
        instance.send_event("approval", {"by": APPROVER})
        self._stage.say(f"   event: approval by {APPROVER}", "dim")

    def _kill(self, id: str) -> int | None:
        """Kill the worker whose process said that it is in the body of the credit, once that has booked."""
        key = f"{id}:0:{CREDIT}"
        if not any(booking.key == key for booking in self._ledger.bookings()):
            return None
        pid = next(call.pid for call in self._ledger.calls() if call.key == key)
        for worker in self._stack.workers:
            if worker.pid == pid:
                worker.kill()
                text = f"   kill -9 {pid} ({worker.name}): in the middle of credit-bank-b; its lease is {LEASE_S} s"
                self._stage.say(text, "bold red")
        return pid

    def _ran(self, id: str, steps: list[StepRecord]) -> dict[str, list[str]]:
        calls = self._ledger.calls()
        return {
            step.key: [
                f"{self._names.get(call.pid, '?')} ({call.pid})"
                for call in calls
                if call.key == f"{id}:0:{step.key}"
            ]
            for step in steps
        }


def _flower_tasks(url: str, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """What Flower lists; events reach it a moment after the facts."""
    deadline = time.monotonic() + _FLOWER_PATIENCE_S
    while True:
        with urllib.request.urlopen(f"{url}/api/tasks", timeout=5.0) as response:
            tasks = list(json.load(response).values())
        if not checks.missing_tasks(outcomes, tasks) or time.monotonic() > deadline:
            return tasks
        time.sleep(_LOOK_AGAIN_S)
