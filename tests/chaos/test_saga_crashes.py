"""SIGKILL in both phases of a saga that moves money, and the books afterwards.

Two workers for each way of delivery. A run kills two: one while transfers go forward, one while they are undone; each
at a named place and a visit drawn by lot, or at any moment. Workers live on from run to run, so one that did not come
to its place may die of it in the next. ``ORCHESTRATOR_SEED=<seed>`` repeats a run; timing is not seeded.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.demo.ledger import Ledger
from orchestrator.dev import servers as embedded
from tests.chaos import harness, transfers
from tests.chaos.harness import FIGURES, SOAK, Cluster, Worker, seeds

ANYWHERE = "anywhere"
# (place, highest visit)
FORWARD = [
    ("money.booked", 12),
    (ANYWHERE, 1),
    ("turn.before_commit", 6),
    ("claim.after_commit", 6),
    ("money.before", 12),
    ("turn.after_commit", 8),
    ("attempt.after_body", 12),
    (ANYWHERE, 1),
    ("turn.before_write", 8),
    ("courier.before_publish", 5),
    ("claim.before_commit", 5),
]
ROLLBACK = [
    ("money.unbooked", 6),
    ("turn.after_commit", 5),
    (ANYWHERE, 1),
    ("money.unbefore", 6),
    ("turn.before_write", 5),
    ("attempt.after_body", 6),
    (ANYWHERE, 1),
    ("claim.after_commit", 4),
    ("turn.before_commit", 3),
    ("courier.after_publish", 3),
]
# By the rest of the seed. What is lost on its way through the broker is looked for later and later where its queue is
# busy, so those runs take several times as long.
DELIVERIES = ("in_place", "broker", "in_place")
TRANSFERS = 10


class Bank:
    """Two workers of one way of delivery, and the ledger that all share."""

    def __init__(self, cluster: Cluster, folder: Path, delivery: str) -> None:
        self.cluster = cluster
        self.ledger = Ledger(cluster.pair.database_url)
        self.ledger.create()
        self._folder = folder
        modules = "tests.chaos.flows,tests.chaos.transfers"
        self.workers = [
            cluster.worker(
                name,
                wait=False,
                ORCHESTRATOR_WORKFLOWS=modules,
                CHAOS_ARM_FILE=str(folder / name),
                ORCHESTRATOR_DELIVERY=delivery,
            )
            for name in ("w0", "w1")
        ]

    def lay_out(self, worker: Worker, phase: str, place: str, visit: int) -> None:
        """Have a worker arm itself the next time it runs a body of that phase."""
        written = self._folder / f"{worker.name}.new"
        written.write_text(f"{place}:{visit}")
        written.rename(self._folder / f"{worker.name}.{phase}")

    def clear(self) -> None:
        for phase in ("forward", "rollback"):
            for worker in self.workers:
                (self._folder / f"{worker.name}.{phase}").unlink(missing_ok=True)

    def is_undoing(self, names: list[str]) -> bool:
        """Whether a handler of one of these has started, or there will be none any more."""
        query = "SELECT 1 FROM orchestrator_steps WHERE instance_id = ANY(%s) AND kind = 'rollback' LIMIT 1"
        ids = [self.cluster.ids[name] for name in names]
        return bool(self.cluster.rows(query, ids)) or self.cluster.finished(names)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Bank]]:
    """The bank of a seed; that of each way of delivery is started once."""
    banks: dict[str, Bank] = {}
    with ExitStack() as stack:
        pair: embedded.Servers = stack.enter_context(harness.pair(fsync=SOAK))

        def found(seed: int) -> Bank:
            way = DELIVERIES[seed % len(DELIVERIES)]
            if way not in banks:
                folder = tmp_path_factory.mktemp("bank")
                cluster = stack.enter_context(Cluster(pair, folder))
                banks[way] = Bank(cluster, folder, way)
            return banks[way]

        yield found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", seeds(10, 30))
def test_whoever_dies_the_money_is_there(seed: int, bank: Callable[[int], Bank]) -> None:
    """semantics §2.1, §5.2, §5.3: workers are killed going forward and undoing; each transfer is complete, or is
    errored and undone; each key has booked once, each reversal is of a booking and after it, and all the money is
    there."""
    here, dice = bank(seed), random.Random(seed)
    first, second = dice.sample(here.workers, 2)
    plan = {
        "forward": (first, *FORWARD[seed % len(FORWARD)]),
        "rollback": (second, *ROLLBACK[seed % len(ROLLBACK)]),
    }
    print(
        f"repeat with ORCHESTRATOR_SEED={seed}: {[(p, w.name, place) for p, (w, place, _) in plan.items()]}"
    )
    cluster = here.cluster
    for worker in here.workers:
        harness.until(f"{worker.name} is up", worker.registered)
    deaths = {worker.name: len(worker.deaths) for worker in here.workers}
    for phase, (worker, place, most) in plan.items():
        if place != ANYWHERE:
            here.lay_out(worker, phase, place, dice.randint(1, most))
    asked = transfers.orders(dice, TRANSFERS)
    names = [f"money-{cluster.account}-{seed}-{n}" for n in range(TRANSFERS)]
    batch = [{"id": name, "params": order} for name, order in zip(names, asked, strict=True)]
    began = time.monotonic()
    try:
        cluster.create(transfers.transfer, batch)
        strike(here, plan, names, dice)
        harness.until("all transfers have ended", lambda: cluster.finished(names))
        judge(here, names, asked)
    except BaseException:
        print(cluster.report())
        raise
    here.clear()
    note(seed, here, plan, deaths, names, began)


def strike(here: Bank, plan: dict[str, Any], names: list[str], dice: random.Random) -> None:
    """Kill those that die at any moment: soon after the beginning, soon after the first handler."""
    for phase, (worker, place, _) in plan.items():
        if place == ANYWHERE:
            if phase == "rollback":
                harness.until("something is undone", lambda: here.is_undoing(names))
            time.sleep(dice.random() * (0.5 if phase == "forward" else 0.1))
            worker.process.kill()


def judge(here: Bank, names: list[str], asked: list[dict[str, Any]]) -> None:
    cluster = here.cluster
    cluster.judge(names)
    assert transfers.misbooked(here.ledger) == []
    bookings = here.ledger.bookings()
    for name, order in zip(names, asked, strict=True):
        instance = transfers.transfer.get(name, orchestrator=cluster.client)
        status, way = instance.status(), order["way"]
        assert transfers.misbooked_by(cluster.ids[name], bookings, way) == [], (name, way)
        told = list(instance.subscribe(types=["rollback_step_completed"]))
        undone = [(event.step_name, event.count) for event in told]
        assert len(set(undone)) == len(undone), f"{name}: a handler is recorded twice: {undone}"
        if way not in transfers.FAILS:
            assert (status.status, status.output, status.rollback, undone) == ("complete", "done", None, [])
            continue
        assert (status.status, status.error and status.error.name) == ("errored", transfers.FAILS[way]), (
            status
        )
        assert status.rollback is not None and status.rollback.outcome == "complete", (name, status)
        assert undone[-1] == ("debit", 1), undone
        assert in_reverse(cluster, name), cluster.steps(name)


def in_reverse(cluster: Cluster, name: str) -> bool:
    """Whether handlers ran in reverse start order, each after the end of the one before."""
    query = (
        "SELECT f.started_seq, r.started_seq, r.finished_seq FROM orchestrator_steps r JOIN orchestrator_steps f "
        "ON f.instance_id = r.instance_id AND r.key = f.key || ':rollback' WHERE r.instance_id = %s "
        "ORDER BY f.started_seq DESC"
    )
    ends = [
        seq for _, started, finished in cluster.rows(query, cluster.ids[name]) for seq in (started, finished)
    ]
    return ends == sorted(ends)


def note(
    seed: int, here: Bank, plan: dict[str, Any], deaths: dict[str, int], names: list[str], began: float
) -> None:
    """Enter this run in the figures. Only a kill may end a process."""
    FIGURES.runs += 1
    FIGURES.seeds.append(seed)
    FIGURES.lost += here.cluster.attempts(names, "WorkerLost")
    FIGURES.longest_recovery_s = max(FIGURES.longest_recovery_s, time.monotonic() - began)
    for phase, (worker, place, _) in plan.items():
        where = FIGURES.kills if len(worker.deaths) > deaths[worker.name] else FIGURES.missed
        named = f"{place} ({phase})"
        where[named] = where.get(named, 0) + 1
    assert {death.code for worker in here.workers for death in worker.deaths} <= {-9}
