"""Drives a shape to its end along a list of choices: who ends when, what fails, when events come and time passes.

Owns: what may happen outside the code. Choice 0 is always the plainest: what is oldest succeeds. When the choices
are used up only that happens, so every schedule ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.errors import NonRetryableError
from orchestrator.ports import FOREVER
from orchestrator.workflow.execution import Outcome, Wake
from tests.laws.corpus import Shape
from tests.laws.world import World

ROUNDS = 3000
MANY = 20
"""With more bodies than this under way they end together: such shapes are about width, not about order."""


class Schedule:
    """One way to drive one world."""

    def __init__(self, shape: Shape, choices: Iterable[int]) -> None:
        self.world: World = shape.world()
        self.events = list(shape.events)
        self._choices: Iterator[int] = iter(choices)
        self.ended: list[Outcome] = []

    def pick(self, count: int) -> int:
        """One of ``count`` possibilities."""
        return next(self._choices, 0) % count if count > 1 else 0

    def rounds(self) -> Iterator[World]:
        """Run to the end, yielding after each round of turns."""
        world = self.world
        world.turn()
        for _ in range(ROUNDS):
            yield world
            if world.finished:
                return
            self._round()
        raise AssertionError(f"{world.definition.name} does not end")

    def run(self) -> World:
        for _ in self.rounds():
            pass
        return self.world

    def _round(self) -> None:
        world = self.world
        if self.pick(8) == 7:
            world.evict()
        for key in world.handed():
            if self.pick(3) < 2:
                world.claim(key)
        world.now += (0, 0, 0.25, 7)[self.pick(4)]
        arrivals = [self._end(key) for key in self._ending()]
        self.ended += [arrival for arrival in arrivals if isinstance(arrival, Outcome)]
        if self.ended and self.pick(6) == 5:
            arrivals.append(self.ended[self.pick(len(self.ended))])  # delivered twice
        quiet = not arrivals and not world.handed() and not world.bodies
        if self.events and (quiet or self.pick(4) == 3):
            world.send(self.events.pop(0), world.events_sent)
            quiet = False
        if quiet:
            self._wait()
        outcomes = [arrival for arrival in arrivals if isinstance(arrival, Outcome)]
        if outcomes and len(outcomes) == len(arrivals) and self.pick(9) == 8:
            world.hold(*outcomes, error=LookupError("a worker with other code was here"))
            arrivals = []
        if world.ending is None and self.pick(60) == 59:
            world.terminate(rollback=self.pick(2) == 0)
        world.turn(*arrivals)

    def _ending(self) -> list[str]:
        """The running bodies that end now, in the order in which they do."""
        running = self.world.running()
        count = (1, 2, len(running), 0)[self.pick(4)] if len(running) <= MANY else len(running)
        ending = []
        while running and len(ending) < count:
            ending.append(running.pop(self.pick(len(running))))
        return ending

    def _end(self, key: str) -> Outcome | Wake:
        world = self.world
        how = self.pick(9)
        if world.rows[key].status == "cancelling" and how % 2:
            return world.outcome(key, error=RuntimeError("cancelled in the middle"))
        if how == 5:
            return world.outcome(key, error=ConnectionResetError("flaky"), dice=0.25, traceback="where")
        if how == 6:
            return world.outcome(key, error=NonRetryableError("gave up"))
        if how == 7:
            return world.outcome(key, loss="handed_back")
        if how == 8:
            del world.bodies[key]
            return Wake(lost=(key,))
        return world.outcome(key)

    def _wait(self) -> None:
        """Nothing runs: let time pass until something is due, or somewhat longer."""
        due = self.world.next_due()
        assert due < FOREVER, f"{self.world.definition.name} waits for nothing"
        self.world.now = max(self.world.now, due) + (0, 0.001, 30)[self.pick(3)]


def driven(shape: Shape, choices: Iterable[int]) -> World:
    """The world of ``shape`` after a whole run."""
    return Schedule(shape, choices).run()
