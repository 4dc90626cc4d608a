"""SIGKILL at every place of the crash matrix, under load, and what the records say afterwards.

Each run arms two workers, each at a place of its own and a visit drawn by lot, and goes on until both are dead and
every instance has come to its end. A run is repeated with ``ORCHESTRATOR_SEED=<seed>``; timing is not seeded, so a
rare failure may need several tries.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers as embedded
from tests.chaos import harness
from tests.chaos.harness import FIGURES, SOAK, Cluster, Worker, seeds

# (place, highest visit, while compensating)
PLACES = [
    ("claim.before", 8, False),
    ("claim.before_commit", 8, False),
    ("claim.after_commit", 8, False),
    ("attempt.before_body", 30, False),
    ("body.middle", 30, False),
    ("attempt.after_body", 30, False),
    ("turn.before_write", 12, False),
    ("turn.before_commit", 12, False),
    ("turn.after_commit", 12, False),
    ("courier.before_publish", 8, False),
    ("courier.after_publish", 8, False),
    ("souschef.after_take", 2, False),
    ("claim.before", 4, True),
    ("claim.after_commit", 4, True),
    ("attempt.before_body", 15, True),
    ("body.undo", 15, True),
    ("attempt.after_body", 15, True),
    ("turn.before_write", 6, True),
    ("turn.before_commit", 6, True),
    ("turn.after_commit", 6, True),
    ("courier.before_publish", 4, True),
]
# How steps travel; the ways take turns with the seeds.
IN_PLACE = {"ORCHESTRATOR_DELIVERY": "in_place"}
BATCHED = {"ORCHESTRATOR_DELIVERY": "broker", "ORCHESTRATOR_TRANSPORT": "batched"}
STOCK = {"ORCHESTRATOR_DELIVERY": "broker", "ORCHESTRATOR_TRANSPORT": "stock"}
WAYS = [IN_PLACE, BATCHED, IN_PLACE, BATCHED, STOCK]
INSTANCES, WAVES = 20, 4


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=SOAK) as found:
        yield found


def arms(seed: int) -> list[tuple[str, dict[str, str]]]:
    """For each worker: the name of its place, and the environment that arms it. The places take turns."""
    dice = random.Random(seed)
    chosen = []
    for place, most, late in (PLACES[2 * seed % len(PLACES)], PLACES[(2 * seed + 1) % len(PLACES)]):
        visit = dice.randint(1, most)
        variable = "CHAOS_ARM_LATE" if late else "ORCHESTRATOR_FAILPOINT"
        chosen.append((place + (" in rollback" if late else ""), {variable: f"{place}:{visit}"}))
    return chosen


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", seeds(10, 200))
def test_killed_anywhere_nothing_is_lost_and_nothing_is_done_twice(
    seed: int, pair: embedded.Servers, tmp_path: Path
) -> None:
    armed, way = arms(seed), WAYS[seed % len(WAYS)]
    is_late = any("rollback" in name for name, _ in armed)
    print(f"repeat with ORCHESTRATOR_SEED={seed}: {armed} {way}")

    def fails(n: int) -> bool:
        return n % 4 == 3 or is_late

    with Cluster(pair, tmp_path) as cluster:
        workers = [
            cluster.worker(f"w{n}", wait=False, **way, **environ) for n, (_, environ) in enumerate(armed)
        ]
        for worker in workers:
            harness.until(f"{worker.name} is up", lambda w=worker: w.deaths or w.registered())
        waves: list[list[str]] = []
        while len(waves) < WAVES and not all(worker.deaths for worker in workers):
            waves.append([f"{seed}-{len(waves)}-{n}" for n in range(INSTANCES)])
            cluster.orders(waves[-1], fails=fails)
            cluster.settle(waves[-1])
            ended = time.monotonic()
            at = [worker.deaths[0].at for worker in workers if worker.deaths]
            if at:
                FIGURES.longest_recovery_s = max(FIGURES.longest_recovery_s, ended - max(at))
        for names in waves:
            cluster.judge_orders(names, fails=fails)
        note(seed, cluster, workers, armed, [name for names in waves for name in names])


def note(
    seed: int,
    cluster: Cluster,
    workers: list[Worker],
    armed: list[tuple[str, dict[str, str]]],
    names: list[str],
) -> None:
    """Enter this run in the figures; a worker may die of what it was armed with, and of nothing else."""
    FIGURES.runs += 1
    FIGURES.seeds.append(seed)
    FIGURES.lost += cluster.attempts(names, "WorkerLost")
    for worker, (place, _) in zip(workers, armed, strict=True):
        assert [death.code for death in worker.deaths] in ([], [-9]), worker.deaths
        where = FIGURES.kills if worker.deaths else FIGURES.missed
        where[place] = where.get(place, 0) + 1
