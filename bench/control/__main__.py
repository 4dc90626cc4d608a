"""``python -m bench.control [NAME …]``: measure the control plane against what is promised of it.

Each measurement has servers and workers of its own. The full sizes want a quiet machine; ``--quick`` is for tests. Exit
status 1 if a promise is not kept, or an instance does not end as it should.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench.cluster import Cluster, cluster
from bench.completion import Incomplete
from bench.control.awaiting import awaiting
from bench.control.queued import queued
from bench.control.rate import rate
from bench.control.reshard import resharding
from bench.control.slots import slots
from bench.control.takeover import takeover
from bench.control.verdicts import Findings, Stage, show, write
from orchestrator import OrchestratorError

MEASUREMENTS: dict[str, Callable[[Stage], Findings]] = {
    "rate": rate,
    "slots": slots,
    "awaiting": awaiting,
    "queued": queued,
    "takeover": takeover,
    "reshard": resharding,
}
RESULTS = Path(__file__).parent.parent / "results"
WIDTH = 150


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MEASUREMENTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON document")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"there is no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    options.names = options.names or list(MEASUREMENTS)
    return options


def measured(name: str, is_quick: bool, console: Console) -> Findings:
    """Run one measurement on servers of its own."""
    with ExitStack() as stack:

        def connect() -> Cluster:
            return stack.enter_context(cluster(Path(stack.enter_context(tempfile.TemporaryDirectory()))))

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return MEASUREMENTS[name](Stage(connect(), folder, is_quick, console.print, connect))


def main() -> int:
    options = parse()
    console = Console(width=WIDTH, highlight=False)
    found: dict[str, Findings] = {}
    failures = 0
    for name in options.names:
        began = time.perf_counter()
        try:
            found[name] = measured(name, options.quick, console)
        except (Incomplete, AssertionError, OrchestratorError, RuntimeError, TimeoutError) as error:
            failures += 1
            console.print(f"{name} failed: {type(error).__name__}: {error}", markup=False)
            continue
        show(name, found[name], console)
        failures += not found[name].are_kept
        console.print(f"      ({time.perf_counter() - began:.0f} s)\n")
    if found:
        write(options.results, {"names": options.names, "quick": options.quick}, found, console)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
