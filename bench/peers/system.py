"""What a system under comparison is, and what it is asked to do.

Owns: the words that the runner and the systems share. Does not own: any system, nor the order of their turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

Figures = dict[str, Any]
Kind = Literal["lone", "w1", "w2", "w3", "w4"]

STEPS = 5
OUTSTANDING = 1000
AWAIT_S = 2.0
WARM_INSTANCES = 50


class Unavailable(Exception):
    """The system cannot take part here; the message says why, and what would help."""


class Failed(Exception):
    """A turn did not end as it should have; the message has the end of the logs."""


@dataclass(frozen=True)
class Workload:
    """One kind of work in one size: instances for lone, W1 and W4, steps for W2 and W3."""

    kind: Kind
    size: int

    @property
    def title(self) -> str:
        return {
            "lone": "lone instance",
            "w1": f"W1 {self.size:,} × {STEPS} steps",
            "w2": f"W2 {self.size:,} steps",
            "w3": f"W3 {self.size:,} parallel",
            "w4": f"W4 {self.size:,} × {AWAIT_S:g} s",
        }[self.kind]

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.size * STEPS if self.kind in {"lone", "w1"} else self.size

    @property
    def unit(self) -> str:
        return {"lone": "ms p50", "w1": "steps/s", "w2": "ms/step", "w3": "s", "w4": "s"}[self.kind]

    @property
    def more_is_better(self) -> bool:
        return self.kind == "w1"

    @property
    def patience_s(self) -> float:
        """After so long a turn has failed: several times what the slowest peer needs."""
        return 120.0 + self.steps * 0.06

    def value(self, figures: Figures) -> float:
        """The one number that is compared, in ``unit``."""
        wall = float(figures["wall_s"])
        return {
            "lone": lambda: float(figures["p50_ms"]),
            "w1": lambda: self.steps / wall,
            "w2": lambda: wall / self.steps * 1000,
            "w3": lambda: wall,
            "w4": lambda: wall,
        }[self.kind]()

    def times_as_fast(self, ours: Figures, theirs: Figures) -> float:
        """How many times as fast ``ours`` was: above 1 where it won."""
        one, other = self.value(ours), self.value(theirs)
        return one / other if self.more_is_better else other / one


class System(ABC):
    """One system in one configuration. The runner calls ``start``, then turns, then ``stop`` in any case."""

    name: str
    configuration: str
    """In a sentence, for the report."""
    guarantees: str
    """What survives which crash, in a few words."""

    def unfit(self, workload: Workload) -> str | None:
        """Why this system does not do this work; None if it does."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Install and start everything. Raises ``Unavailable``."""

    @abstractmethod
    def wake(self, workload: Workload) -> None:
        """Get ready for one run of ``workload``, and warm up."""

    @abstractmethod
    def run(self, workload: Workload) -> Figures:
        """Do it once: ``wall_s``, ``cpu_us_per_step`` and ``peak_mib`` by process, for lone also ``p50_ms``.

        Raises ``Failed``.
        """

    @abstractmethod
    def rest(self) -> None:
        """Use no CPU until the next ``wake``."""

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started; may be called at any point, and more than once."""
