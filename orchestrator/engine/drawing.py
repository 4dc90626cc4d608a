"""The graphs of the workflows that this worker knows: drawn once, beside its work, and kept for who shows instances.

Owns: the thread that draws. Does not own graphs (``diagrams``), their sources (``sources``), nor where they are kept
(``store.workers``). Nothing here may keep a worker from working: what cannot be drawn has no graph.
"""

from __future__ import annotations

import json
import logging
import threading

from orchestrator.errors import InvalidConfig
from orchestrator.store import session, workers
from orchestrator.store.session import Engine
from orchestrator.workflow.language.definition import Definition, Registry

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
"""How long to wait for a Postgres that is away."""
TRIES = 10
STOP_S = 5.0


class Drawing:
    """Draws each known workflow once and stores its graph; a worker process does it once, after it is entered."""

    def __init__(self, engine: Engine, account: str, registry: Registry) -> None:
        self._engine = engine
        self._account = account
        self._registry = registry
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; called again, it does nothing: the code of a process does not change."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="orchestrator-drawing", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Give up what is not drawn yet: another worker does it, or the next."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    # -- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        drawn: list[workers.Drawn] = []
        for name, version in self._registry.known():
            if self._stopped.is_set():
                return
            definition = self._registry.get(name, version)
            drawn.append(workers.Drawn(name, version, definition.source_hash, graph_text(definition)))
        while not self._stopped.is_set():
            try:
                with self._engine.begin() as connection:
                    workers.keep_graphs(connection, self._account, drawn)
                return
            except Exception as error:
                if not session.is_away(error):
                    logger.warning("The graphs of the workflows could not be stored.", exc_info=True)
                    return
            self._stopped.wait(AGAIN_S)


def graph_text(definition: Definition) -> str | None:
    """The graph of a workflow as JSON text; ``None``, and a line in the log, if it cannot be drawn."""
    from orchestrator.engine import sources  # the parser is nothing that a worker needs to start

    for _ in range(TRIES):
        try:
            return json.dumps(sources.diagram(definition), separators=(",", ":"))
        except (
            SystemError
        ):  # CPython 3.11 loses count of its depth where another thread builds a tree meanwhile
            continue
        except InvalidConfig as error:
            logger.info("No diagram: %s", error)
            return None
        except Exception:
            logger.warning("Workflow %r runs, but cannot be drawn.", definition.name, exc_info=True)
            return None
    return None
