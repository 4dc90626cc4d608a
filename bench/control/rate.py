"""How many instances are created when clients try all the time: never more than is allowed, and hardly less.

Four processes hammer four workflows with the limits of a fresh deployment (300 a second for the account, 100 for each
workflow), no worker beside them. What counts are the rows that there are then, by the second in which they were made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_left
from typing import Any

from bench.control.flows import HAMMERED
from bench.control.verdicts import Findings, Stage
from orchestrator import Settings

CLIENTS = 4
_MADE = "SELECT extract(epoch FROM created_at)::float8 FROM orchestrator_instances WHERE workflow = %s"


def rate(stage: Stage) -> Findings:
    """20 s (``--quick``: 4 s) of hammering."""
    seconds = float(stage.size(20, 4))
    limits = Settings(database_url="postgresql://-", redis_url="redis://-")
    told = _hammered(stage, seconds)
    made = {name: sorted(row[0] for row in stage.cluster.sql(_MADE, (name,))) for name in HAMMERED}
    total = sum(map(len, made.values()))
    account, each = limits.creation_rate, limits.workflow_creation_rate

    findings = Findings()
    everything = sorted(at for instants in made.values() for at in instants)
    findings.most("most in any second, account", _most_in_a_second(everything), 2 * account)
    busiest = max(_most_in_a_second(instants) for instants in made.values())
    findings.most("most in any second, one workflow", busiest, 2 * each)
    allowed = min(account, each * len(HAMMERED)) * seconds
    findings.least("of what is allowed in all", total / allowed, 0.97)
    findings.most("in all, beyond rate × time + burst", max(0.0, total - allowed - account), 0)
    answered = sum(sum(one["created"].values()) for one in told)
    findings.most("created and not there, or there and not told", abs(answered - total), 0)
    findings.figures |= {
        "created": total,
        "refused": sum(one["refused"] for one in told),
        "by workflow": {name: len(instants) for name, instants in made.items()},
        "seconds": seconds,
    }
    return findings


def _hammered(stage: Stage, seconds: float) -> list[dict[str, Any]]:
    """Start the clients, let them loose at one moment, and have what each of them came to."""
    command = [sys.executable, "-m", "bench.control.hammer", repr(seconds)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    clients = [subprocess.Popen(command, env=stage.cluster.environment, **pipes) for _ in range(CLIENTS)]
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    return [json.loads(client.communicate(timeout=seconds + 120)[0]) for client in clients]


def _most_in_a_second(instants: list[float]) -> int:
    """How many of these (sorted) lie within one second, at most."""
    return max((bisect_left(instants, at + 1.0) - place for place, at in enumerate(instants)), default=0)
