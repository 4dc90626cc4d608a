"""SIGKILL at every place of the crash matrix in a child of a prefork worker, or in its parent, under load.

Each run has a prefork worker that serves the account's queue with two children, and beside it a worker of the other
pool. Both are armed, each at a place of its own: what is inherited by a fork is armed in every child anew, and a parent
whose children all die goes on. A run is repeated with ``ORCHESTRATOR_SEED=<seed>``.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers as embedded
from tests.chaos import harness
from tests.chaos.harness import FIGURES, SOAK, Cluster, Worker, seeds

PLACES = [
    ("claim.before_commit", 6),
    ("claim.after_commit", 6),
    ("attempt.before_body", 10),
    ("body.middle", 10),
    ("attempt.after_body", 10),
    ("turn.before_write", 10),
    ("turn.after_commit", 10),
    ("courier.before_publish", 6),
    ("courier.after_publish", 6),
    ("body.undo", 4),
]
INSTANCES, WAVES = (16, 3) if SOAK else (10, 2)
PARENT = "the parent"


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=SOAK) as found:
        yield found


def prefork(cluster: Cluster, place: str) -> Worker:
    environ = {"ORCHESTRATOR_PROCESSES": "2", "ORCHESTRATOR_FAILPOINT": place}
    return cluster.worker("prefork", ORCHESTRATOR_POOL="prefork", **environ)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", seeds(5, 50))
def test_kills_in_children(seed: int, pair: embedded.Servers, tmp_path: Path) -> None:
    """Every instance comes to its right end, and every record fits what the bodies told the witness."""
    dice = random.Random(seed)
    place, most = PLACES[seed * 3 % len(PLACES)]
    armed = f"{place}:{dice.randint(2, most)}"
    other, visit = PLACES[(seed * 3 + 1) % len(PLACES)]
    fails: Callable[[int], bool] = (lambda n: n % 4 == 3) if seed % 2 == 0 else (lambda n: n % 3 == 1)
    with Cluster(pair, tmp_path) as cluster:
        heavy = prefork(cluster, armed)
        light = cluster.worker("asyncio", ORCHESTRATOR_FAILPOINT=f"{other}:{dice.randint(1, visit)}")
        waves: list[list[str]] = []
        for wave in range(WAVES):
            now = [f"{seed}-{wave}-{n}" for n in range(INSTANCES)]
            waves.append(now)
            cluster.orders(now, fails=fails)
            if seed % 2 and wave == 0:  # the children are cut off in the middle of it
                harness.until("bodies run", lambda: len(cluster.bodies("do:reserve:1")) > 4)
                heavy.process.kill()
            began = time.monotonic()
            cluster.settle(now)
            FIGURES.longest_recovery_s = max(FIGURES.longest_recovery_s, time.monotonic() - began)
        for wave in waves:
            cluster.judge_orders(wave, fails=fails)
        note(seed, cluster, heavy, light, place, other, [name for wave in waves for name in wave])


def note(
    seed: int, cluster: Cluster, heavy: Worker, light: Worker, place: str, other: str, names: list[str]
) -> None:
    """Enter this run in the figures. Only a kill may end a process."""
    FIGURES.runs += 1
    FIGURES.seeds.append(seed)
    FIGURES.lost += cluster.attempts(names, "WorkerLost")
    killed = heavy.log.read_text(errors="replace").count("signal 9 (SIGKILL)")
    FIGURES.kills[f"child {place}"] = FIGURES.kills.get(f"child {place}", 0) + killed
    for what, worker in ((PARENT, heavy), (other, light)):
        assert {death.code for death in worker.deaths} <= {-9}, worker.deaths
        FIGURES.kills[what] = FIGURES.kills.get(what, 0) + len(worker.deaths)
