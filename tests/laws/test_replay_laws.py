"""The laws of replay, over every shape of the corpus and many schedules of each.

A schedule is a list of choices (``schedules``): the order in which bodies end, how arrivals share turns, which
attempts fail, whose worker is lost, when events come and time passes, when the live execution is evicted.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.execution import Arrival, Writes
from orchestrator.workflow.history import FINAL, Ended, Fact, Started
from orchestrator.workflow.language.commands import Complete, Fail
from orchestrator.workflow.replay import Replay
from orchestrator.workflow.status import Status
from tests.laws import shown
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule, driven
from tests.laws.world import Driven, World

ROOT = Path(__file__).resolve().parents[2]

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
choices = st.lists(st.integers(0, 719), max_size=150)
laws = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=400 if os.environ.get("ORCHESTRATOR_SOAK") else 10,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The same examples on every run; more of them in a soak."""


def fed(world: World, facts: list[Fact], *portions: int) -> Driven:
    """A fresh replay, fed these facts in portions that end at these places."""
    replay = world.replay()
    driven = Driven(world.cold().execution, [])
    driven.discard()
    driven.execution.replay = replay
    with driven.watched():
        for begin, end in zip((0, *portions), (*portions, len(facts)), strict=True):
            replay.feed(facts[begin:end])
    return driven


def state(driven: Driven) -> Any:
    return shown.replay(driven.execution.replay), list(driven.seen)


def state_after(world: World, facts: list[Fact], *portions: int) -> Any:
    driven = fed(world, facts, *portions)
    found = state(driven)
    driven.discard()
    return found


@every_shape
@laws
@given(choices)
def test_a_cold_replay_is_the_live_one(shape: Shape, choices: list[int]) -> None:
    """Semantics §1.5, protocols §1: rebuilt from rows before any turn, an execution holds the same steps, has seen
    the same values, and writes the same for the same arrivals."""
    schedule = Schedule(shape, choices)
    world = schedule.world

    def compare(arrivals: tuple[Arrival, ...]) -> Any:
        cold = world.cold()
        if world.blocked is None:  # else ends were recorded without the code, which goes on only now
            assert not cold.execution.replay.pending, "history lacks a command that was given"
        live = world.live
        if live is not None and live.execution.started_at is not None:
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
            assert state(cold) == state(live)
            cold.discard()

        return after

    world.before_turn = compare
    schedule.run()


@every_shape
@laws
@given(choices)
def test_facts_may_be_fed_in_any_portions(shape: Shape, choices: list[int]) -> None:
    """Semantics §1.5, protocols §1 (3): all at once, one at a time or from any prefix on, the code gives the same
    commands in the same order, sees the same values, and comes to the recorded end."""
    schedule = Schedule(shape, choices)
    prefixes: list[int] = []
    before: list[Fact] = []
    for world in schedule.rounds():
        history = world.history()
        assert history[: len(before)] == before, "history was rewritten"
        prefixes.append(len(history))
        before = history
    end = next(i for i, fact in enumerate(before) if isinstance(fact, Ended))
    facts = before[:end]  # what follows the end was done to the steps, not by the code
    at_once = fed(world, facts)
    expected = state(at_once)
    assert state_after(world, facts, *range(1, len(facts))) == expected
    for prefix in {*prefixes[:: max(1, len(prefixes) // 4)], len(facts) // 2}:
        assert state_after(world, facts, min(prefix, len(facts))) == expected
    pending = list(at_once.execution.replay.pending)
    if world.output is not None:
        assert pending == [Complete(world.output)]
    elif world.error is not None:
        (command,) = pending
        assert isinstance(command, Fail)
        assert command.error == world.error
    else:
        assert world.status is Status.TERMINATED
    if world.live is not None:
        assert world.live.seen == at_once.seen
    whole = world.cold()
    assert whole.execution.replay.ended
    assert not whole.execution.replay.pending
    assert whole.seen == at_once.seen
    at_once.discard()


@every_shape
@laws
@given(choices)
def test_every_fact_has_its_own_seq_and_every_step_one_end(shape: Shape, choices: list[int]) -> None:
    """Protocols §3, §11: seq never goes back, no two facts share one, starts are numbered in order, each step comes
    to exactly one end, and nothing stays open in a finished instance."""
    schedule = Schedule(shape, choices)
    ends: Counter[str] = Counter()
    final: dict[str, Any] = {}
    last = 0
    for world in schedule.rounds():
        assert world.seq >= last
        last = world.seq
        for key, row in world.rows.items():
            if row.status in FINAL and key not in final:
                ends[key] += 1
                final[key] = (row.finished_seq, row.output, row.error)
            assert key not in final or final[key] == (row.finished_seq, row.output, row.error)
    rows = world.rows.values()
    numbers = [row.started_seq for row in rows]
    numbers += [row.finished_seq for row in rows if row.finished_seq is not None]
    numbers += [attempt.seq for attempt in world.attempts]
    numbers += [transition.seq for transition in world.transitions]
    numbers += [world.ended_seq] if world.ended_seq is not None else []
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) <= world.seq
    assert all(ends[key] == 1 for key in world.rows)
    assert not world.live or not world.live.execution.open
    fences = Counter((offer.key, offer.fence) for offer in world.offered)
    assert set(fences.values()) <= {1}, "one hand-out was offered twice without need"


@every_shape
def test_a_whole_run_is_possible_from_each_of_its_moments(shape: Shape) -> None:
    """Protocols §1: an execution that was evicted after each turn goes on as if it had not been."""
    kept, evicted = Schedule(shape, ()), Schedule(shape, ())
    kept.run()
    for world in evicted.rounds():
        world.evict()
    assert evicted.world.rows == kept.world.rows
    assert evicted.world.output == kept.world.output
    assert evicted.world.error == kept.world.error


# -- other processes ---------------------------------------------------------------------------------------------

CHOICES = [5, 1, 2, 700, 3, 11, 6, 2, 44, 8, 1, 0, 9, 3, 17, 2, 31, 5, 4, 3, 29, 1, 26, 8] * 4


def digest(world: World) -> str:
    """What a run came to: starts in order, ends, what the code saw in a replay of it all."""
    starts = [fact.key for fact in world.history() if isinstance(fact, Started)]
    ends = [(row.key, row.status, row.finished_seq, row.output, row.error) for row in world.rows.values()]
    found = repr((starts, ends, world.output, world.error, world.cold().seen))
    return hashlib.sha256(found.encode()).hexdigest()


def digests() -> dict[str, list[str]]:
    return {
        name: [digest(driven(shape, choices)) for choices in ((), CHOICES, CHOICES[::-1])]
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_another_process_comes_to_the_same(hash_seed: str) -> None:
    """Semantics §1.6: nothing that differs between processes (hashes of strings, addresses) decides an order."""
    code = "import json; from tests.laws.test_replay_laws import digests; print(json.dumps(digests()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests()


def test_the_corpus_is_large_and_varied() -> None:
    """The laws are worth what the corpus is: over thirty shapes, all named, with every kind of end among them."""
    assert len(SHAPES) >= 30
    ends = {driven(shape, ()).status.value for shape in SHAPES.values()}
    assert ends == {"complete", "errored"}
    assert isinstance(SHAPES["nothing"].world().replay(), Replay)
