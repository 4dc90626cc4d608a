"""``python -m orchestrator.demo [--json]``: the play, its exit status, and nothing left running.

Owns: the outermost frame. Does not own the play itself (``play``).
"""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import asdict

from rich.console import Console

from orchestrator.errors import OrchestratorError, ServiceUnavailable

FAILED, AWAY, INTERRUPTED = 1, 3, 130


def main(*, as_json: bool = False) -> int:
    """Play the demo; returns 0 if every check passed, 1 if one failed, 3 if a service did not come up, 130 if it
    was interrupted. ``as_json`` prints one JSON document at the end, and nothing else."""
    from orchestrator.demo import play
    from orchestrator.demo.checks import passed
    from orchestrator.dev import up

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ shall not end the play
    console = Console(highlight=False, quiet=as_json)
    began = time.monotonic()
    console.print("Starting Postgres, Valkey, two workers and Flower …")
    try:
        with up.running(play.plan()) as stack:
            console.print(f"up after {time.monotonic() - began:.1f} s", style="dim")
            made = play.perform(stack, console)
            if not passed(made):
                for program in stack.programs:
                    console.print(program.failure("was there when a check failed"), markup=False)
    except KeyboardInterrupt:
        console.print("interrupted: nothing is left running")
        return INTERRUPTED
    except OrchestratorError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return AWAY if isinstance(error, ServiceUnavailable) else FAILED
    took_s = time.monotonic() - began
    if as_json:
        print(
            json.dumps(
                {"passed": passed(made), "seconds": round(took_s, 1), "checks": list(map(asdict, made))}
            )
        )
    failed = sum(check.ok is False for check in made)
    console.print(f"\n{f'{failed} checks failed' if failed else 'all checks passed'}, {took_s:.1f} s")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv[1:]))
