"""Turns: every system does each workload once a round, one after the other, while all others stand still.

Owns: the order, and what is left of the comparison when a system fails. Does not own: systems, figures, tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.peers.system import Failed, Figures, System, Unavailable, Workload

Say = Callable[[str], None]


@dataclass
class Record:
    """What was measured: for each workload and system a list with one entry per round, None where there was none."""

    runs: dict[Workload, dict[str, list[Figures | None]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Systems that did not take part, or not to the end, and why."""
    unfit: dict[Workload, dict[str, str]] = field(default_factory=dict)


def start(systems: Sequence[System], record: Record, say: Say) -> list[System]:
    """Start and suspend each; those that could."""
    started = []
    for system in systems:
        say(f"starting {system.name}: {system.configuration}")
        try:
            system.start()
            system.rest()
        except (Unavailable, Failed) as error:
            system.stop()
            record.absent[system.name] = str(error)
            say(f"{system.name} is left out: {error}")
        else:
            started.append(system)
    return started


def compare(
    systems: Sequence[System], workloads: Sequence[Workload], rounds: int, record: Record, say: Say
) -> None:
    """Fill ``record``. The round begins with another system each time, so that none always follows the same."""
    present = list(systems)
    for workload in workloads:
        runs = record.runs[workload] = {}
        for one in range(rounds):
            for system in _turned(present, one):
                reason = system.unfit(workload)
                if reason is not None:
                    record.unfit.setdefault(workload, {})[system.name] = reason
                    continue
                mine = runs.setdefault(system.name, [None] * rounds)
                try:
                    mine[one] = turn(system, workload)
                except Failed as error:
                    present.remove(system)
                    system.stop()
                    record.absent[system.name] = f"failed in {workload.title}: {error}"
                    say(f"{system.name} goes no further: {error}")
                else:
                    value = workload.value(mine[one] or {})
                    say(f"  {workload.title}, round {one + 1}: {system.name} {value:,.2f} {workload.unit}")


def turn(system: System, workload: Workload) -> Figures:
    """Wake it, run, suspend it. Raises ``Failed``."""
    began = time.perf_counter()
    system.wake(workload)
    awake = time.perf_counter() - began
    try:
        return system.run(workload) | {"wake_s": awake}
    finally:
        system.rest()


def _turned(systems: Sequence[System], by: int) -> list[System]:
    by %= max(1, len(systems))
    return [*systems[by:], *systems[:by]]
