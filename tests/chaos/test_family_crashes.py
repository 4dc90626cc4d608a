"""SIGKILL where parents and children hear of each other: every hint may be lost, and none of them with it.

Built like ``test_crashes``: two workers, each armed at a place of its own; ``ORCHESTRATOR_SEED`` repeats a run.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers as embedded
from tests.chaos import families, harness
from tests.chaos.harness import SOAK, Cluster, seeds

# (place, highest visit, while compensating)
PLACES = [
    ("turn.after_commit", 15, False),
    ("lineage.before_commit", 3, False),
    ("courier.before_publish", 10, False),
    ("lineage.after_commit", 3, False),
    ("turn.before_write", 15, False),
    ("turn.after_commit", 10, True),
    ("turn.before_commit", 4, False),
    ("body.undo", 6, True),
    ("courier.after_publish", 10, True),
    ("souschef.after_take", 2, False),
]
PARENTS = 8


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=SOAK) as found:
        yield found


def arms(seed: int) -> list[dict[str, str]]:
    dice = random.Random(seed)
    chosen = []
    for place, most, late in (PLACES[2 * seed % len(PLACES)], PLACES[(2 * seed + 1) % len(PLACES)]):
        variable = "CHAOS_ARM_LATE" if late else "ORCHESTRATOR_FAILPOINT"
        chosen.append({variable: f"{place}:{dice.randint(1, most)}"})
    return chosen


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", seeds(3, 60))
def test_killed_anywhere_no_child_is_lost_or_left(seed: int, pair: embedded.Servers, tmp_path: Path) -> None:
    """protocols §15, semantics §5.8: parents get the outputs of their children or undo them, and nothing is left
    running, whoever dies before whichever hint."""
    armed = arms(seed)
    print(f"repeat with ORCHESTRATOR_SEED={seed}: {armed}")
    with Cluster(pair, tmp_path) as cluster:
        for n, environ in enumerate(armed):
            cluster.worker(
                f"w{n}",
                wait=False,
                ORCHESTRATOR_WORKFLOWS="tests.chaos.flows,tests.chaos.families",
                **environ,
            )
        names = [f"family-{seed}-{n}" for n in range(PARENTS)]
        batch = [{"id": name, "params": {"n": n, "fails": n % 2 == 1}} for n, name in enumerate(names)]
        cluster.create(families.parent, batch)
        harness.until("all parents are finished", lambda: cluster.finished(names), 150)
        harness.until("nothing is left running", lambda: not unfinished(cluster), 60)
        for n, name in enumerate(names):
            judge(cluster, n, name)
        children = cluster.rows(
            "SELECT name_id, id FROM orchestrator_instances WHERE account = %s AND parent_id IS NOT NULL",
            cluster.account,
        )
        cluster.ids.update(children)
        cluster.judge([*names, *(name for name, _ in children)])


def unfinished(cluster: Cluster) -> int:
    query = "SELECT count(*) FROM orchestrator_instances WHERE account = %s AND ended_at IS NULL"
    return int(cluster.rows(query, cluster.account)[0][0])


def judge(cluster: Cluster, n: int, name: str) -> None:
    status = families.parent.get(name, orchestrator=cluster.client).status()
    children = cluster.rows(
        "SELECT status, rollback::json ->> 'outcome' FROM orchestrator_instances WHERE parent_id = %s ORDER BY id",
        cluster.ids[name],
    )
    keys = dict(cluster.steps(name))
    if n % 2 == 0:
        assert (status.status, status.output, status.rollback) == ("complete", families.outputs(n), None), (
            status
        )
        assert children == [("complete", None)] * families.CHILDREN
        assert set(keys.values()) == {"done"}
        return
    assert status.status == "errored" and status.rollback is not None, status
    assert (status.error.name, status.rollback.outcome) == ("ValueError", "complete"), status
    assert len(children) == families.CHILDREN + 1
    assert {ended for ended, _ in children} == {"terminated"}, children
    assert {outcome for _, outcome in children} <= {"complete", None}, children
    assert [outcome for _, outcome in children].count(None) <= 1  # the waiting one, if it had not begun
    undone = [key for key in keys if key.endswith(":rollback")]
    assert {keys[key] for key in undone} == {"done"}
    assert undone[0] == "do:after:1:rollback" and undone[-1] == "do:before:1:rollback", undone
