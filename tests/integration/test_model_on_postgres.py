"""The random programs of the laws, on real Postgres with two workers: what is read from the rows at the end.

``tests/laws/test_model.py`` looks after every turn; here operations meet turns, claims and bodies wherever they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from random import Random
from uuid import UUID

import pytest
from sqlalchemy import Connection

from orchestrator import InvalidTransition, Status
from orchestrator.store import histories, steps
from orchestrator.testing import replay_history
from orchestrator.workflow.execution import Transition
from orchestrator.workflow.status import FINISHED
from tests.integration.harness import Created, Site, eventually
from tests.laws import model

pytestmark = pytest.mark.integration

EXAMPLES = 200 if os.environ.get("ORCHESTRATOR_SOAK") else 15
OPERATIONS = (
    "event", "event", "event", "pause", "resume", "resume", "restart", "restart_from", "restart_from", "terminate",
    "undo", "crash", "nothing", "nothing",
)  # fmt: skip


class Met:
    """One instance on a site, and what was sent to it."""

    def __init__(self, site: Site, seed: int) -> None:
        self.dice = Random(seed)
        self.site = site
        self.workflow = Created(site.registry.register(model.model.definition), site)
        program = model.drawn(self.dice.randrange(2**32), (0.0, 0.02), (0.0, 0.05, 1.0))
        self.instance = self.workflow.create(program, id=f"m-{seed}")
        self.id: UUID = site.id_of(self.instance.id)
        self.events = 0
        self.refused: list[int] = []

    def operate(self) -> None:
        operation = self.dice.choice(OPERATIONS)
        with contextlib.suppress(InvalidTransition):
            getattr(self, operation)()

    def nothing(self) -> None:
        time.sleep(self.dice.random() * 0.03)  # an interleaving is drawn, nothing is waited for

    def event(self) -> None:
        self.events += 1
        try:
            self.instance.send_event(self.dice.choice("xxxy"), self.events)
        except InvalidTransition:
            self.refused.append(self.events)

    def pause(self) -> None:
        self.instance.pause()

    def resume(self) -> None:
        self.instance.resume()

    def restart(self) -> None:
        self.instance.restart()

    def restart_from(self) -> None:
        records = [step for step in self.instance.steps() if step.kind in ("do", "sleep", "wait", "invoke")]
        if records:
            chosen = self.dice.choice(records)
            self.instance.restart(chosen.name, chosen.count, chosen.kind)

    def terminate(self) -> None:
        self.instance.terminate()

    def undo(self) -> None:
        self.instance.terminate(rollback=True)

    def crash(self) -> None:
        """One worker is gone without a word, and another one comes."""
        if self.dice.random() < 0.3:
            self.site.post.targets[0].crash()
            self.site.worker(chef=True, lease=1.0)

    def finish(self) -> None:
        def ended() -> bool:
            status = self.instance.status().status
            if status is Status.PAUSED:
                self.instance.resume()
            return status in FINISHED

        eventually(ended, "the end", patience_s=60)


def transitions_of(connection: Connection, instance: UUID) -> list[Transition]:
    rows = connection.exec_driver_sql(
        "SELECT seq, status, extract(epoch FROM at)::float8 FROM orchestrator_transitions "
        "WHERE instance_id = %(id)s ORDER BY seq",
        {"id": instance},
    )
    return [Transition(*row) for row in rows]


def all_ended(site: Site) -> list[tuple[UUID, Status]] | None:
    """The instance and its children, with their ends; ``None`` while one goes on."""
    rows = site.sql(
        "SELECT id, status FROM orchestrator_instances WHERE account = :account",
        account=site.settings.account,
    )
    found = [(UUID(str(id_)), Status(status)) for id_, status in rows]
    return found if all(status in FINISHED for _, status in found) else None


def check(site: Site, instance: UUID, status: Status, refused: set[int]) -> None:
    """The invariants of the laws, read from rows."""
    with site.engine.connect() as connection:
        stored = histories.load(connection, [histories.Known(instance)])[instance]
        attempts = steps.failed_attempts(connection, instance)
        transitions = transitions_of(connection, instance)
    rows, inbox = stored.rows, stored.inbox
    model.check_rows(status, rows)
    model.check_seqs(rows, attempts, transitions, stored.seq)
    model.check_attempts(rows, attempts)
    model.check_undone(rows, status)
    # A restart drops what was sent before it, so here only this is known: none comes twice, none that was refused.
    held = [*model.taken(rows), *[(e.type, int(e.payload)) for e in inbox]]
    numbers = [number for _, number in held]
    assert len(numbers) == len(set(numbers)), f"an event was delivered twice: {held}"
    assert not set(numbers) & refused, "an event that was refused came all the same"
    model.check_events(rows, inbox, held)  # the order in which they were taken


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_whatever_meets_on_postgres_the_rules_hold(site: Site, seed: int) -> None:
    """semantics §2.1, §3.2, §4, protocols §4: verbs, events and losses of workers meet turns wherever they are; what is
    recorded in the end obeys the same rules, and today's code replays it."""
    for _ in range(2):
        site.worker(chef=True, lease=1.0)
    met = Met(site, seed)
    for _ in range(met.dice.randrange(5, 25)):
        met.operate()
    met.finish()
    replay_history(met.workflow, met.instance.export_history())
    for each, end in eventually(lambda: all_ended(site), "the end of the children", patience_s=60):
        check(site, each, end, set(met.refused) if each == met.id else set())
