"""What the parent of a prefork worker makes of its children's notices, with processes that stand for children."""

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, ParamSpec
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.forking.children import Child, Children
from orchestrator.engine.forking.notices import Notice, Wire, Word
from orchestrator.engine.running.threads import Threads
from orchestrator.ports import monotonic
from orchestrator.store.steps import Claim

LEASE = 15.0


P = ParamSpec("P")


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Office:
    """Takes down what is asked of the parent's engine. ``kept``: seconds since it renewed its children's rows."""

    def __init__(self) -> None:
        self.kept = 0.0
        self.buried: list[tuple[UUID, Claim | None, bool]] = []
        self.held_for: list[Claim] = []
        self.seen: list[tuple[str, float]] = []

    def kept_at(self) -> float:
        return monotonic() - self.kept

    def handed(self, queue: str, handed_at: float) -> None:
        self.seen.append((queue, handed_at))

    async def held(self, worker: UUID, claim: Claim) -> None:
        self.held_for.append(claim)

    def bury(self, worker: UUID, claim: Claim | None, *, is_unclaimed: bool) -> None:
        self.buried.append((worker, claim, is_unclaimed))


class Scene:
    """The children's keeper, one child process, and what that says."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.office: Any = Office()
        self.wire = Wire()
        self.worker, self.claim = uuid4(), Claim(uuid4(), "do:a:1", 3)
        self.process = process
        settings: Any = SimpleNamespace(max_payload_bytes=1000, lease=LEASE)
        threads = Threads(1, asyncio.get_running_loop())
        self.children = Children(self.office, threads, settings, self.wire, lambda pid, seconds: None)

    def says(self, *words: Word, ago: float = 0.0, alive: float | None = 0.0) -> None:
        """``ago``, ``alive``: seconds since it said so, and since it renewed its row (``None``: never)."""
        now = monotonic()
        for word in words:
            alive_at = now - alive if alive is not None else 0.0
            claim = self.claim if word != "up" else None
            self.wire.tell(
                Notice(self.process.pid, self.worker, word, claim, now - ago, 3600.0, alive_at, "cpu", 7.5)
            )
        self.children.hear()

    @property
    def child(self) -> Child:
        (one,) = self.children._children.values()
        return one

    async def buried(self) -> tuple[UUID, Claim | None, bool]:
        self.process.wait(10)
        async with asyncio.timeout(10):
            while not self.office.buried:
                self.children.look()
                await asyncio.sleep(0)
        (found,) = self.office.buried
        return found


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as one:
        yield one
        one.kill()


@in_a_loop
async def test_only_bodies_whose_own_lease_ran_out_are_lost(process: "subprocess.Popen[bytes]") -> None:
    """protocols §6: a parent that is cut off says so every second; whoever is well meanwhile goes on."""
    scene = Scene(process)
    scene.office.kept = LEASE + 60
    scene.says("got", "took", "began", alive=LEASE - 5)  # it came to Postgres after its parent
    scene.children.cancel_all("lost")
    assert scene.child.why is None
    scene.office.kept = 1.0  # only its parent's turns are stuck
    scene.says("began", alive=LEASE + 60)
    scene.children.cancel_all("lost")
    assert scene.child.why is None
    assert process.poll() is None
    scene.office.kept = LEASE + 1
    scene.children.cancel_all("lost")
    assert scene.child.why == "lost"
    assert await scene.buried() == (scene.worker, scene.claim, False)


@in_a_loop
async def test_who_waits_for_postgres_with_a_message_is_not_stuck(process: "subprocess.Popen[bytes]") -> None:
    scene = Scene(process)
    scene.says("got", ago=LEASE + 60, alive=None)
    assert scene.children.lives() == set(), "its row is not there yet"
    assert scene.children._doubtful() == []
    scene.says("up", "took", ago=LEASE + 1)
    assert scene.children.lives() == {scene.worker}
    assert scene.children._doubtful() == [(scene.worker, scene.claim)]
    scene.children.cancel(scene.claim)
    assert await scene.buried() == (scene.worker, scene.claim, True)


@pytest.mark.parametrize("late", [False, True])
@in_a_loop
async def test_at_a_shutdown_a_message_is_work(process: "subprocess.Popen[bytes]", late: bool) -> None:
    """A child that has a message and no claim is waited for; then it is killed, and so is one that gets its message
    later. Nobody claims that in its name: it is offered again."""
    scene = Scene(process)
    scene.says("up")
    if not late:
        scene.says("got")
        assert not await scene.children.settled(0.0)
    scene.children.leave()
    if late:
        assert scene.child.why is None
        scene.says("got")
    assert scene.child.why == "handed_back"
    assert await scene.buried() == (scene.worker, scene.claim, True)
    assert await scene.children.settled(10)
    assert scene.office.held_for == []


@pytest.mark.parametrize("words", [("got", "took"), ("got", "took", "began", "ended")])
@pytest.mark.parametrize("how", ["leave", "terminated"])
@in_a_loop
async def test_outside_of_the_body_a_kill_is_no_loss(
    process: "subprocess.Popen[bytes]", how: str, words: tuple[Word, ...]
) -> None:
    """What was done on purpose is recorded as such, before the body and after it."""
    scene = Scene(process)
    scene.says(*words)
    if how == "leave":
        scene.children.leave()
    else:
        scene.children.terminated(process.pid, "terminated")
        process.kill()
    assert await scene.buried() == (scene.worker, scene.claim, "began" not in words)
    assert scene.office.held_for == [scene.claim]


@in_a_loop
async def test_the_parent_hears_what_was_claimed(process: "subprocess.Popen[bytes]") -> None:
    """protocols §7: the queue and the age of what its children run tell it which messages were overtaken."""
    scene = Scene(process)
    scene.says("got", "took", "began")
    assert scene.office.seen == [("cpu", 7.5)]
