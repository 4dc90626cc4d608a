"""Random sagas on real Postgres with two workers, against the oracle that computes from the records alone what was to
be undone.

``tests/laws/test_saga_oracle.py`` plays the same programs on the kit; here verbs, losses of workers and changes of the
code meet turns, claims, bodies and handlers wherever they are.
"""

from __future__ import annotations

import contextlib
import os
import time
from random import Random
from uuid import UUID

import pytest

from orchestrator import InvalidTransition, Status
from orchestrator.store import histories, steps
from orchestrator.workflow.status import FINISHED
from tests.integration.harness import Created, Site, eventually
from tests.laws import sagas
from tests.laws.oracle import Ended, check
from tests.laws.sagas import POLICIES, WORKFLOWS, drawn

pytestmark = pytest.mark.integration

EXAMPLES = 100 if os.environ.get("ORCHESTRATOR_SOAK") else 8
OPERATIONS = (
    "event", "event", "pause", "resume", "resume", "crash", "crash", "reload_without", "undo", "undo", "nothing",
    "nothing", "nothing",
)  # fmt: skip


class Met:
    """One instance on a site with two workers, and what meets it."""

    def __init__(self, site: Site, seed: int) -> None:
        self.dice = Random(seed)
        self.site = site
        self.policy = sorted(POLICIES)[seed % len(POLICIES)]
        self.delivery = ("broker", "in_place")[seed // len(POLICIES) % 2]
        self.may_crash = self.dice.random() < 0.5
        sagas.code.without = ""
        definition = site.registry.register(WORKFLOWS[self.policy].definition)
        for _ in range(2):
            self._worker()
        program = drawn(self.dice.randrange(2**32), (0.0, 0.02), (1.0,))
        self.instance = Created(definition, site).create(program, id=f"saga-{seed}")
        self.id: UUID = site.id_of(self.instance.id)
        self.is_undone = self.has_crashed = False

    def _worker(self) -> None:
        self.site.worker(chef=True, lease=1.0, delivery=self.delivery)

    def operate(self) -> None:
        with contextlib.suppress(InvalidTransition):
            getattr(self, self.dice.choice(OPERATIONS))()

    def nothing(self) -> None:
        time.sleep(self.dice.random() * 0.05)  # an interleaving is drawn, nothing is waited for

    def event(self) -> None:
        self.instance.send_event("x", 1)

    def pause(self) -> None:
        self.instance.pause()

    def resume(self) -> None:
        self.instance.resume()

    def undo(self) -> None:
        if self.dice.random() < 0.3:
            self.instance.terminate(rollback=True)
            self.is_undone = True

    def crash(self) -> None:
        """One worker is gone without a word, with its replays, and another one comes: with the code as it was at
        first."""
        if self.may_crash and self.dice.random() < 0.4:
            self.has_crashed = True
            sagas.code.without = ""
            self.site.post.targets[0].crash()
            self._worker()

    def reload_without(self) -> None:
        """Whoever replays from now on finds code that gives steps of a name no rollback any more."""
        if self.dice.random() < 0.2:
            sagas.code.without = self.dice.choice(sagas.NAMES)

    def finish(self) -> Ended:
        def ended() -> bool:
            status = self.instance.status().status
            if status is Status.PAUSED:
                with contextlib.suppress(InvalidTransition):
                    self.instance.resume()
            return status in FINISHED

        eventually(ended, "the end", patience_s=60)
        with self.site.engine.connect() as connection:
            stored = histories.load(connection, [histories.Known(self.id)])[self.id]
            attempts = steps.failed_attempts(connection, self.id)
        (values,) = self.site.sql(
            "SELECT i.status, i.rollback, p.error FROM orchestrator_instances i "
            "LEFT JOIN orchestrator_payloads p ON p.instance_id = i.id WHERE i.id = :id",
            id=self.id,
        )
        status = Status(values.status)
        return Ended(
            self.id, POLICIES[self.policy], status, status is Status.ERRORED or self.is_undone, stored.rows,
            values.error, values.rollback, stored.rows[0].run if stored.rows else 0, attempts,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_what_was_undone_on_real_workers_is_what_had_to_be(site: Site, seed: int) -> None:
    """semantics §5.0, §5.1, §5.2, §5.3, §5.4, §5.5, §5.6, §5.8: whatever fails, is late, lost, paused or reloaded in
    between, the handlers that ran, their order and what they were told follow from the records alone."""
    met = Met(site, seed)
    for _ in range(met.dice.randrange(5, 20)):
        met.operate()
    ended = met.finish()
    check(ended, all_claimed_ran=not met.has_crashed, all_cut_ran=False)
