"""One client process that creates as fast as it is allowed: ``python -m bench.control.hammer SECONDS``.

Owns: the loop. It connects, prints a line, and begins when it is told to by a line. It goes over the workflows in turn,
asks again at once when it is refused, and prints what it came to as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

from bench.control.flows import hammered
from orchestrator import RateLimited


def main(seconds: float) -> None:
    """Hammer, and print ``{"created": {workflow: n}, "refused": n}``."""
    created: Counter[str] = Counter()
    refused = 0
    workflows = list(hammered.values())
    workflows[0].count()
    print("ready", flush=True)
    sys.stdin.readline()
    turn, end_at = 0, time.monotonic() + seconds
    while time.monotonic() < end_at:
        workflow = workflows[turn % len(workflows)]
        turn += 1
        try:
            workflow.create()
            created[workflow.name] += 1
        except RateLimited:
            refused += 1
    print(json.dumps({"created": created, "refused": refused}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
