"""Random graphs of decorated steps: who needs whom, called, awaited and cancelled in any order."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.workflow import codec
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.definition import Definition, define
from tests.laws.corpus import SOON, Shape, look, see
from tests.laws.schedules import Schedule
from tests.laws.test_replay_laws import choices, laws

ACTIONS = ("call", "call", "call", "await", "gather", "cancel", "beside")


@dataclass(frozen=True)
class Graph:
    """``needs[i]`` are the earlier steps that step i asks for; ``together[i]`` says whether it asks for all at once.
    ``actions``: what the code does, each with a number to choose by."""

    needs: tuple[tuple[int, ...], ...]
    together: tuple[bool, ...]
    actions: tuple[tuple[str, int], ...]

    def value(self, step: int) -> list[Any]:
        """What step gives: its number, and what it was given."""
        return [step, *[self.value(each) for each in self.needs[step]]]

    def definition(self) -> Definition:
        async def graph(event, step):
            made = [self._make(step, number) for number in range(len(self.needs))]
            calls: list[asyncio.Future[Any]] = []
            for action, number in self.actions:
                if action == "call":
                    calls.append(made[number % len(made)]())
                elif action == "beside":
                    await look(step.sleep("beside", 1))
                elif calls:
                    await self._settle(action, calls, number)
            return see([repr(each) for each in await asyncio.gather(*calls, return_exceptions=True)])

        return define(graph, name="graph")

    async def _settle(self, action: str, calls: list[asyncio.Future[Any]], number: int) -> None:
        chosen = calls[number % len(calls)]
        if action == "cancel":
            chosen.cancel()
        elif action == "gather":
            see([repr(each) for each in await asyncio.gather(*calls, return_exceptions=True)])
        else:
            try:
                await look(chosen)
            except (Exception, asyncio.CancelledError):
                return

    def _make(self, step: Any, number: int) -> Any:
        """The decorated step: a function whose parameters are named after what it needs."""
        names: dict[str, Any] = {}
        given = ", ".join(f"s{each}" for each in self.needs[number])
        exec(f"def body({given}): return [{number}, {given}]", names)
        return step.do(f"s{number}", concurrent=self.together[number], retries=SOON)(names["body"])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    count = draw(st.integers(2, 6))
    needs = []
    for number in range(count):
        earlier = st.lists(st.integers(0, number - 1), unique=True, max_size=3) if number else st.just([])
        needs.append(tuple(draw(earlier)))
    together = tuple(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    actions = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 30)), min_size=3, max_size=12)
    return Graph(tuple(needs), together, tuple(draw(actions)))


def number_of(row: StepRow) -> int:
    return int(row.key.split(":")[1].removeprefix("s"))


def check_order(graph: Graph, rows: list[StepRow]) -> None:
    """No step starts before all it needs has ended well, and it is given what those gave."""
    for row in rows:
        number = number_of(row)
        if row.status == "done":
            assert codec.decode(row.output or "") == graph.value(number)
        for needed in graph.needs[number]:
            ended = [
                each.finished_seq
                for each in rows
                if number_of(each) == needed and each.status == "done" and each.finished_seq is not None
            ]
            assert min(ended, default=row.started_seq) < row.started_seq, (row.key, needed)


@laws
@given(graphs(), choices)
def test_needs_are_run_before_once_and_alike_on_every_replay(graph: Graph, choices: list[int]) -> None:
    """API §2, semantics §1.5: whatever needs what, ends how, and is cancelled when: a step starts after what it needs,
    receives its results, is run once for all that need it, and a cold replay is the live one."""
    schedule = Schedule(Shape(graph.definition()), choices)
    for world in schedule.rounds():
        cold = world.cold()
        assert not cold.execution.replay.pending or world.blocked is not None
        if world.live is not None:
            assert cold.seen == world.live.seen
        cold.discard()
    rows = [row for row in schedule.world.rows.values() if row.kind == "do"]
    check_order(graph, rows)
    called = Counter(number % len(graph.needs) for action, number in graph.actions if action == "call")
    runs = Counter(number_of(row) for row in rows)
    cancelled = sum(action == "cancel" for action, _ in graph.actions)
    for number, count in runs.items():
        assert count <= called[number] + 1 + cancelled, (number, count)


def test_a_graph_that_nobody_disturbs() -> None:
    """API §2: without failures and cancellations each step that is needed runs exactly once, and all succeed."""
    graph = Graph(
        ((), (0,), (0, 1), (2, 1), (3, 0)), (False, True, True, False, True), (("call", 4), ("call", 3))
    )
    world = Schedule(Shape(graph.definition()), ()).run()
    rows = list(world.rows.values())
    assert Counter(number_of(row) for row in rows) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1}
    assert codec.decode(world.output or "") == [repr(graph.value(4)), repr(graph.value(3))]
