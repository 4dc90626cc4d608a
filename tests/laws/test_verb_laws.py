"""The laws of replay hold whatever operators do meanwhile: pauses, resumes, restarts from any step, over all shapes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding.restarting import KINDS
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.execution import Arrival, Writes
from orchestrator.workflow.history import BUSY, FINAL
from orchestrator.workflow.status import Status
from tests.laws import shown
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule
from tests.laws.world import Driven, World

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
choices = st.lists(st.integers(0, 719), max_size=160)
laws = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
RESTARTS = 3
"""With more, a schedule of many choices would go round and round."""


class Steered(Schedule):
    """A schedule with an operator who pauses, resumes and restarts."""

    def __init__(self, shape: Shape, choices: Any) -> None:
        super().__init__(shape, choices)
        self.shape = shape
        self.restarts = 0

    def _round(self) -> None:
        world = self.world
        if world.status is Status.PAUSED:
            self._rest()
        elif self.pick(5) == 4:
            world.pause()
        elif world.status is Status.WAITING_FOR_PAUSE and self.pick(3) == 2:
            world.resume()
        elif self.restarts < RESTARTS and self.pick(7) == 6:
            self._restart()
        else:
            super()._round()

    def _rest(self) -> None:
        """Paused: nothing may change by itself. Resuming is the plainest of choices."""
        world = self.world
        assert world.alarm_at == FOREVER
        assert not any(row.status in BUSY for row in world.rows.values())
        how = self.pick(5)
        if how == 1 and self.events:
            world.send(self.events.pop(0), world.events_sent)
        elif how == 2:
            world.now += 40
            rows, seq = dict(world.rows), world.seq
            world.turn(*self.ended[-2:])
            assert (world.rows, world.seq, world.status) == (rows, seq, Status.PAUSED)
        elif how == 3 and self.restarts < RESTARTS:
            self._restart()
        elif how == 4:
            world.terminate(rollback=self.pick(2) == 0)
        else:
            world.resume()

    def _restart(self) -> None:
        world = self.world
        chosen = [row for row in world.rows.values() if row.kind in KINDS]
        if not chosen:
            return
        self.restarts += 1
        self.events = list(self.shape.events)  # the buffered ones are dropped
        row = chosen[self.pick(len(chosen))]
        before = {key: (each.output, each.error, each.run) for key, each in world.rows.items()}
        order = ends(world, row.started_seq)
        run, seq, seed = world.run, world.seq, world.seed
        earlier = {each.key for each in world.rows.values() if each.started_seq < row.started_seq}
        done = {key for key in earlier if world.rows[key].status in ("done", "failed")}
        world.restart(row.key)
        assert (world.run, world.seed) == (run + 1, seed)
        assert world.seq > seq
        forward = {key: each for key, each in world.rows.items() if each.kind != "rollback"}
        assert earlier >= {key for key, each in forward.items() if each.run <= run}
        for key in done & forward.keys():
            each = forward[key]
            assert (each.output, each.error, each.run) == before[key]
        again = [key for key, _ in sorted(ends_after(world, seq), key=lambda end: end[1]) if key in done]
        assert again[: len(order)] == order, "ends are fed again in their old order"


def ends(world: World, since: int) -> list[str]:
    """Kept steps that ended after ``since``, in that order."""
    late = [
        row
        for row in world.rows.values()
        if row.started_seq < since
        and row.kind != "rollback"
        and row.status in ("done", "failed")
        and (row.finished_seq or 0) > since
    ]
    return [row.key for row in sorted(late, key=lambda row: row.finished_seq or 0)]


def ends_after(world: World, seq: int) -> list[tuple[str, int]]:
    return [(row.key, row.finished_seq) for row in world.rows.values() if (row.finished_seq or 0) > seq]  # type: ignore[misc]


@every_shape
@laws
@given(choices)
def test_a_cold_replay_is_the_live_one_whatever_is_done_to_it(shape: Shape, choices: list[int]) -> None:
    """Protocols §10: a rebuild sees the same facts and holds the same commands, after a pause, a resume, a restart
    from a step; it writes the same for the same arrivals; and the instance comes to an end all the same."""
    schedule = Steered(shape, choices)
    world = schedule.world

    def compare(arrivals: tuple[Arrival, ...]) -> Any:
        cold = world.cold()
        live = world.live
        if live is not None and live.execution.started_at is not None and world.blocked is None:
            live.execution.inbox = list(world.inbox)
            assert shown.execution(cold.execution) == shown.execution(live.execution)
            assert cold.seen == live.seen
        unaware = any(row.status == "running" for row in cold.execution.open.values())
        with cold.watched() as execution:
            rebuilt = shown.writes(decide(execution, arrivals, world.now))

        def after(live: Driven, writes: Writes) -> None:
            kept = shown.writes(writes)
            if unaware:  # of a claim: then it looks for the loss of a message at another moment
                del kept["alarm_at"], rebuilt["alarm_at"]
            assert rebuilt == kept
            assert shown.replay(cold.execution.replay) == shown.replay(live.execution.replay)
            assert cold.seen == live.seen
            cold.discard()

        return after

    world.before_turn = compare
    schedule.run()
    assert all(row.status in FINAL for row in world.rows.values())
    assert not world.bodies or set(world.bodies) <= {key for key, _ in world.told}
