"""When is read, and what a scrape is given.

Owns: the thread that reads, how long a reading is told, and the registration with prometheus_client, whose registry
Flower's ``/metrics`` writes out. Does not own: what is read.

Flower collects on its event loop, which must not wait for Postgres: so a scrape is given the latest reading, which is
made every ``EVERY_S`` seconds. Scraping more often, or by many, costs Postgres nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import OrchestratorError
from orchestrator.monitoring.metrics.families import families, health
from orchestrator.monitoring.metrics.reading import Reading, read
from orchestrator.ports import monotonic

logger = logging.getLogger(__name__)

EVERY_S = 5.0
STALE_S = 60.0
"""An older reading is told no more: figures that stand still are worse than none."""


class AccountCollector(Collector):
    """Tells of one account. ``start`` has it read from then on."""

    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._read = reading
        self._latest: Reading | None = None
        self._is_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator-metrics", daemon=True)

    def collect(self) -> Iterator[Metric]:
        """What the latest reading says. Asks nobody."""
        latest = self._latest
        age = None if latest is None else monotonic() - latest.read_at
        yield from health(self._is_up, age, None if latest is None else latest.took_s)
        if latest is not None and age is not None and age < STALE_S:
            yield from families(latest)

    def describe(self) -> list[Metric]:
        """Nothing beforehand: it would be asked for on registration, before anything is read."""
        return []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a reading under way is not waited for."""
        self._stop.set()

    def look(self) -> None:
        """Read now. A failure is told as ``orchestrator_up 0``."""
        try:
            self._latest = self._read()
            self._is_up = True
        except OrchestratorError as error:
            if self._is_up:
                logger.warning("Metrics cannot be read: %s", error)
            self._is_up = False
        except Exception:
            logger.exception("Metrics cannot be read.")
            self._is_up = False

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(EVERY_S)


def expose(where: Orchestrator, registry: CollectorRegistry = REGISTRY) -> AccountCollector:
    """Have the metrics of the account of ``where`` on ``/metrics`` of this process."""
    collector = AccountCollector(lambda: read(where))
    registry.register(collector)
    collector.start()
    return collector
