"""50,000 instances at once, each in a step that awaits 60 seconds: when all of them run, what they hold meanwhile.

One worker, the account's default limit. All of them run as soon as each has begun and none has ended.
"""

from __future__ import annotations

import time

from bench.completion import Crowd
from bench.control import notes
from bench.control.flows import FOLDER, brief
from bench.control.verdicts import Findings, Stage
from bench.figures import MIB, Meter


def awaiting(stage: Stage) -> Findings:
    """50,000 that stay 60 s (``--quick``: 500 that stay 5 s)."""
    instances, stay_s = stage.size(50_000, 500), float(stage.size(60, 5))
    within_s = 30.0
    cluster = stage.cluster
    cluster.staff(
        1,
        {
            "ORCHESTRATOR_WORKFLOWS": "bench.control.flows",
            "ORCHESTRATOR_CONCURRENCY": str(instances),
            "ORCHESTRATOR_CACHED_REPLAYS": str(instances),
            FOLDER: str(stage.folder),
        },
    )
    cluster.ready()
    brief.create(0.0, orchestrator=cluster.orchestrator).result(60)
    crowd, idle, meter = Crowd(cluster, brief), cluster.resident(), Meter(cluster)
    began = time.monotonic()
    for start in range(0, instances, 1000):
        many = min(1000, instances - start)
        brief.create_batch(count=many, params=stay_s, orchestrator=cluster.orchestrator)
    created_s = meter.elapsed()
    crowd.wait(0, 300 + stay_s)
    figures = meter.read(instances)
    crowd.check(instances)

    seen = [note for note in notes.read(stage.folder) if note.at > began]
    starts = [note.at for note in seen if note.word == "began"]
    findings = Findings()
    findings.most("seconds until all of them run", max(starts) - began, within_s, "s")
    findings.least("bodies at once", notes.most_at_once(seen, {}), instances)
    findings.most("bodies that ran twice", notes.again(seen), 0)
    findings.figures |= {
        "instances": instances,
        "seconds to create them": created_s,
        "seconds from the first to the last": figures["wall_s"],
        "KiB of the worker per instance": (cluster.peak() - idle) / instances / 1024,
        "MiB of the worker": cluster.peak() / MIB,
        "CPU ms per instance": {role: us / 1000 for role, us in figures["cpu_us_per_step"].items()},
        "processors that others used": figures["other_cpus"],
    }
    return findings
