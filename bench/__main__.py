"""``python -m bench``: W1 with one and two workers, a lone instance, W2; prints a table, writes JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import workloads
from bench.cluster import Cluster, cluster
from bench.workloads import Figures

RESULTS = Path(__file__).parent / "results"


def measure(made: Cluster, options: argparse.Namespace, console: Console) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for workers in (1, 2):
        made.start_worker()
        workloads.warm_up(made)
        name = f"{workers} worker" + "s" * (workers > 1)
        console.print(f"{name}: a lone instance …")
        figures[f"lone, {name}"] = workloads.lone(made, options.lone)
        console.print(f"{name}: {options.instances} instances …")
        figures[f"W1, {name}"] = workloads.repeated(
            lambda: workloads.throughput(made, options.instances), options.repeat, "steps_per_s"
        )
        console.print(f"{name}: one instance of {options.steps} steps …")
        figures[f"W2, {name}"] = workloads.sequence(made, options.steps)
    return figures


def show(figures: dict[str, Figures], console: Console) -> None:
    table = Table("workload", "steps/s", "ms/step", "p50 ms", "p99 ms", "end/beginning", title="bench")
    for role in ("client", "worker", "postgres", "valkey"):
        table.add_column(f"{role} µs/step", justify="right")
    for name, one in figures.items():
        cpu = one.get("cpu_us_per_step", {})
        cells = [one.get("steps_per_s"), one.get("steps_per_s") and 1000 / one["steps_per_s"]]
        cells += [one.get("p50_ms"), one.get("p99_ms"), one.get("growth"), *(cpu.get(r) for r in
                  ("client", "worker", "postgres", "valkey"))]  # fmt: skip
        table.add_row(name, *("" if c is None else f"{c:,.2f}" if c < 100 else f"{c:,.0f}" for c in cells))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lone", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as made:
        figures = measure(made, options, console)
    show(figures, console)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    path.write_text(json.dumps({"options": vars(options), "figures": figures}, indent=2))
    console.print(f"written to {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
