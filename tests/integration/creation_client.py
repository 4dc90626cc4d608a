"""A client process that creates as fast as it is let: ``python -m tests.integration.creation_client <seconds>``, with
the ids of workflows and a line to begin on its input. It prints when each creation that was admitted began and ended
(monotonic: one clock for all processes of a machine), by workflow, and when the hammering did."""

import json
import sys
import time

from orchestrator import Orchestrator, RateLimited, Settings, workflow
from orchestrator.client.workflow import Workflow


async def nothing(event, step):
    return None


def flows(names: list[str]) -> list[Workflow]:
    return [workflow(name=name)(nothing) for name in names]


def hammer(where: Orchestrator, targets: list[Workflow], seconds: float) -> dict[str, object]:
    admitted: list[tuple[str, float, float]] = []
    refused = 0
    began = now = time.monotonic()
    while now < began + seconds:
        for target in targets:
            now = time.monotonic()
            try:
                target.create(orchestrator=where)
            except RateLimited:
                refused += 1
            else:
                admitted.append((target.name, now, time.monotonic()))
    return {"admitted": admitted, "refused": refused, "began": began, "ended": now}


if __name__ == "__main__":
    with Orchestrator(Settings.from_env()) as one:
        mine = flows(sys.argv[2:])
        flows(["warm_up"])[0].create(wait=60, orchestrator=one)  # opens the connections, loads everything
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(hammer(one, mine, float(sys.argv[1]))), flush=True)
