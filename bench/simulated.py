"""Pictures of the simulated policy.

Owns: how they look. Does not own: what they show (``simulate``). Needs matplotlib (``pip install '.[bench]'``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib import ticker

FAIR, FIRST, SMALL = "#2563eb", "#d97706", "#16a34a"
PLAIN = ticker.FuncFormatter(lambda value, _: f"{value:g}")
Seen = Sequence[tuple[float, Mapping[str, int]]]


def draw(
    folder: Path,
    waits: Sequence[Mapping[str, Any]],
    shares: Sequence[Mapping[str, Any]],
    fair: Seen,
    first: Seen,
) -> None:
    """Write the pictures of a run to ``folder``."""
    mpl.use("svg")
    mpl.rcParams.update(
        {
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "policy",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    _held(folder / "flood.svg", fair, first)
    _waits(folder / "waiting.svg", waits)
    _shares(folder / "shares.svg", shares)


def _held(path: Path, fair: Seen, first: Seen) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
    for axis, seen, title in ((axes[0], first, "first come, first served"), (axes[1], fair, "max-min")):
        times = [when for when, _ in seen]
        flood = [held["flood"] for _, held in seen]
        small = [sum(count for name, count in held.items() if name != "flood") for _, held in seen]
        axis.stackplot(times, small, flood, colors=(SMALL, FIRST), alpha=0.85, linewidth=0)
        axis.set(title=title, xlabel="seconds", ylim=(0, 210))
        axis.margins(x=0)
    axes[0].set_ylabel("slots held (of 200)")
    axes[1].text(6, 10, "nine small ones", color="white")
    axes[1].text(6, 120, "the flood", color="white")
    _save(figure, path)


def _waits(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    figure, axis = plt.subplots(figsize=(5.2, 2.8))
    for policy, colour in (("first come", FIRST), ("max-min", FAIR)):
        rows = [row for row in table if row["policy"] == policy]
        chefs = [row["chefs"] for row in rows]
        axis.plot(chefs, [row["p99"] for row in rows], "o-", color=colour, label=f"{policy}, p99")
        axis.plot(chefs, [row["p50"] for row in rows], "o--", color=colour, label=f"{policy}, p50", alpha=0.6)
    axis.set(
        xscale="log", yscale="log", ylim=(0.005, 20), xlabel="SousChefs", ylabel="wait of the small ones, s"
    )
    axis.xaxis.set_major_formatter(PLAIN)
    axis.yaxis.set_major_formatter(PLAIN)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def _shares(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    figure, axis = plt.subplots(figsize=(5.2, 2.8))
    chefs = [row["chefs"] for row in table]
    for key, label, colour in (
        ("between_workflows", "Jain, between workflows", FAIR),
        ("between_shards", "Jain, between SousChefs", SMALL),
        ("used", "slots in use", FIRST),
    ):
        axis.plot(chefs, [row[key] for row in table], "o-", color=colour, label=label)
    axis.set(xscale="log", ylim=(0.8, 1.01), xlabel="SousChefs")
    axis.xaxis.set_major_formatter(PLAIN)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
