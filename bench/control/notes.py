"""What bodies wrote down: how many ran at once, and whether any ran twice.

Owns: reading the notes of ``flows.note``. Instants are this machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """A body began or ended."""

    word: str
    at: float
    instance: str
    step: str
    attempt: int
    pid: int


def read(folder: Path) -> list[Note]:
    """All notes, in the order of time."""
    found = []
    for path in folder.glob("*.notes"):
        for line in path.read_text().splitlines():
            word, at, instance, step, attempt = line.split(" ")
            found.append(Note(word, float(at), instance, step, int(attempt), int(path.stem)))
    return sorted(found, key=lambda note: note.at)


def most_at_once(notes: Iterable[Note], deaths: Mapping[int, float]) -> int:
    """How many bodies ran at one moment at most; those of a killed process ended when it died (``deaths``, by pid)."""
    edges: list[tuple[float, int]] = []
    open_: Counter[int] = Counter()
    for note in notes:
        change = 1 if note.word == "began" else -1
        edges.append((note.at, change))
        open_[note.pid] += change
    for pid, died_at in deaths.items():
        edges += [(died_at, -1)] * open_[pid]
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


def again(notes: Iterable[Note]) -> int:
    """How many bodies began though the same attempt of the same step of the same instance had begun before."""
    begun = Counter((note.instance, note.step, note.attempt) for note in notes if note.word == "began")
    return sum(count - 1 for count in begun.values())
