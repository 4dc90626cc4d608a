"""A worker is killed with 5,000 instances in hand: when each of them has gone on elsewhere.

The other worker comes up once the first has all of them: on the first one their bodies would take half an hour. The
lease is the default one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.completion import Crowd
from bench.control import notes
from bench.control.flows import FOLDER, held
from bench.control.verdicts import Findings, Stage, percentile

STAY_S = 1800.0
_IN_HAND = """
SELECT count(*) FROM orchestrator_steps WHERE instance_id > %s AND kind = 'do' AND status = 'running'
"""
_LOST = """
SELECT count(*), count(DISTINCT instance_id) FROM orchestrator_attempts WHERE instance_id > %s
  AND error::json ->> 'name' = 'WorkerLost'
"""


def takeover(stage: Stage) -> Findings:
    """5,000 in hand (``--quick``: 200)."""
    instances = stage.size(5000, 200)
    cluster = stage.cluster
    environment = {
        "ORCHESTRATOR_WORKFLOWS": "bench.control.flows",
        "ORCHESTRATOR_CONCURRENCY": str(2 * instances),
        FOLDER: str(stage.folder),
    }
    cluster.staff(1, environment)
    cluster.ready()
    crowd = Crowd(cluster, held)
    for start in range(0, instances, 1000):
        many = min(1000, instances - start)
        held.create_batch(count=many, params=STAY_S, orchestrator=cluster.orchestrator)
    _until(lambda: cluster.sql(_IN_HAND, (crowd.mark,))[0][0] == instances)
    cluster.start_worker(environment)
    cluster.ready()
    cluster.kill_worker(0)
    killed_at = time.monotonic()
    crowd.wait(0, 180)
    crowd.check(instances)

    seen = [note for note in notes.read(stage.folder) if note.at > killed_at and note.word == "began"]
    went_on = [note.at - killed_at for note in seen]
    losses, of_instances = cluster.sql(_LOST, (crowd.mark,))[0]
    findings = Findings()
    findings.most("seconds until all of them go on", max(went_on), 30.0, "s")
    findings.least("of them that went on", len({note.instance for note in seen}), instances)
    findings.most("bodies that ran twice", notes.again(seen), 0)
    findings.most("attempts recorded as lost, beyond one each", losses - of_instances, 0)
    findings.figures |= {
        "in hand": instances,
        "seconds until the first goes on": min(went_on),
        "seconds until half of them go on": percentile(went_on, 0.5),
    }
    return findings


def _until(fact: Callable[[], bool], patience_s: float = 300.0) -> None:
    deadline = time.monotonic() + patience_s
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the worker did not get all of them in hand within {patience_s:g} s")
        time.sleep(0.1)
