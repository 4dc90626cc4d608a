"""``python -m bench.peers``: our system and its peers on the same work, in turns; a table of ratios, JSON, Markdown.

A peer that cannot be installed, or fails, is left out with a reason. The exit code is 1 only if ours fails,
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.peers import ours, report, rounds
from bench.peers.celery import Celery
from bench.peers.dbos import Dbos
from bench.peers.restate import Restate
from bench.peers.system import System, Workload

RESULTS = Path(__file__).parent.parent / "results"
WIDTH = 200
INTERRUPTED = 130

FULL = (
    Workload("lone", 100), Workload("w1", 2000), Workload("w2", 1000), Workload("w2", 5000), Workload("w3", 500),
    Workload("w3", 5000), Workload("w4", 2000), Workload("w4", 10_000),
)  # fmt: skip
QUICK = (
    Workload("lone", 20), Workload("w1", 400), Workload("w2", 300), Workload("w3", 200), Workload("w4", 500),
)  # fmt: skip

PEERS: dict[str, Callable[[Path], System]] = {
    "restate-granian": lambda folder: Restate(folder, "granian"),
    "restate-hypercorn": lambda folder: Restate(folder, "hypercorn"),
    "dbos-async": lambda folder: Dbos(folder, "async"),
    "dbos-async-2": lambda folder: Dbos(folder, "async", 2),
    "dbos-sync": lambda folder: Dbos(folder, "sync"),
    "celery-redis": lambda folder: Celery(folder, "redis"),
    "celery-postgres": lambda folder: Celery(folder, "postgres"),
    "celery-bare-prefork": lambda folder: Celery(folder, "none"),
    "celery-bare-threads": lambda folder: Celery(folder, "none", "threads"),
}
KINDS = ("lone", "w1", "w2", "w3", "w4")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, help="turns of each system per workload (default 5; quick: 1)")
    names = ", ".join(PEERS)
    parser.add_argument(
        "--only", default="", help=f"peers, by comma, in whole or by their first word: {names}"
    )
    parser.add_argument("--workloads", default="", help=f"kinds, by comma: {', '.join(KINDS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: some minutes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for JSON and Markdown")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds if options.rounds is not None else 1 if options.quick else 5
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.only, options.workloads = _words(options.only), _words(options.workloads)
    for word in options.only:
        if not _meant(word):
            parser.error(f"--only: there is no peer {word!r}; there are {names}")
    for word in options.workloads:
        if word not in KINDS:
            parser.error(f"--workloads: there is no {word!r}; there are {', '.join(KINDS)}")
    return options


def main() -> int:
    options = parse()
    console = Console(width=WIDTH, highlight=False)
    say: Callable[[str], None] = lambda text: console.print(text, markup=False)  # noqa: E731
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where a shell had it ignored
        signal.signal(number, _interrupt)
    _room_for_connections()
    work = [
        w for w in (QUICK if options.quick else FULL) if not options.workloads or w.kind in options.workloads
    ]
    chosen = [
        name for name in PEERS if not options.only or any(name in _meant(word) for word in options.only)
    ]
    record = rounds.Record()
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder, ExitStack() as stack:
        made = stack.enter_context(ours.servers(Path(folder) / "ours"))
        systems: list[System] = [ours.Ours(made, "in_place"), ours.Ours(made, "broker")]
        systems += [PEERS[name](Path(folder) / name) for name in chosen]
        for system in systems:
            stack.callback(system.stop)
        try:
            started = rounds.start(systems, record, say)
            rounds.compare(started, work, options.rounds, record, say)
        except KeyboardInterrupt:
            say("interrupted: what was measured so far")
            interrupted = True
        if record.runs:
            report.show(record, console)
            told = {name: str(value) for name, value in vars(options).items() if name != "results"}
            report.write(options.results, told, systems, record, console)
    return INTERRUPTED if interrupted else 1 if report.OURS in record.absent else 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _meant(word: str) -> list[str]:
    """The peers that ``word`` names."""
    return [word] if word in PEERS else [name for name in PEERS if name.startswith(f"{word}-")]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _room_for_connections() -> None:
    """W4 has a connection per instance; children inherit what is allowed here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
