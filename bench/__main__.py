"""``python -m bench``: run workloads on embedded servers, print a table, write JSON and a picture.

It fails if an instance does not end as it should; it asserts nothing about speed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from bench import report
from bench.cluster import cluster
from bench.completion import Incomplete
from bench.figures import Figures
from bench.suites import DEFAULT, QUICK, SCALE, Session, Sizes, Suite, chosen
from orchestrator import OrchestratorError

RESULTS = Path(__file__).parent / "results"
WIDTH = 190


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Suite], Sizes]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = f"{', '.join(DEFAULT)}; {', '.join(SCALE)}; or the groups default, scale, all"
    parser.add_argument("--only", default="default", help=f"workloads, by comma: {names}")
    parser.add_argument("--quick", action="store_true", help="small sizes: about one minute")
    parser.add_argument("--factor", type=float, default=1.0, help="so many times the size of everything")
    parser.add_argument(
        "--repeat", type=int, default=1, help="run each workload so often and take the median"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON and picture")
    options = parser.parse_args(arguments)
    try:
        suites = chosen([name.strip() for name in options.only.split(",") if name.strip()])
    except ValueError as error:
        parser.error(str(error))
    if options.factor <= 0 or options.repeat < 1:
        parser.error("--factor must be above 0, --repeat at least 1")
    return options, suites, (QUICK if options.quick else Sizes()).times(options.factor)


def measure(
    session: Session, suites: dict[str, Suite], figures: dict[str, Figures], console: Console
) -> str | None:
    """Run the suites and add what they give; what went wrong, if something did."""
    for name, suite in suites.items():
        began = time.perf_counter()
        try:
            for title, one in suite(session):
                figures[title] = one
                console.print(f"  {title}: {one['steps_per_s']:,.0f} steps/s, {one['wall_s']:,.1f} s")
        except (Incomplete, AssertionError, OrchestratorError, RuntimeError, TimeoutError) as error:
            return f"{name} failed: {type(error).__name__}: {error}"
        console.print(f"{name}: {time.perf_counter() - began:.1f} s")
    return None


def main() -> int:
    options, suites, sizes = parse()
    console = Console(width=WIDTH, highlight=False)
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as made:
        session = Session(made, sizes, options.repeat, console.print)
        failure = measure(session, suites, figures, console)
    if figures:
        report.show(figures, console)
        told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "results"}
        report.write(options.results, told, figures, console)
    if failure is not None:
        console.print(failure, markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
