"""An application's own Celery app with workflows: ``Orchestrator(settings, celery=app)``.

Owns: what is added to such an app (two tasks, one bootstep), and what each of its workers holds: the guard of its
tasks, their reports, its presence, and the engine if it serves the queue of the workflows. Does not own: any setting of
the app. Its pool, transport, serializer, acknowledgement and events stay as they are.

The engine runs on an event loop in a thread of the worker's main process, whatever the pool: our messages never enter
the application's pool, so no child gets an engine, and no body of ours takes a place of its tasks (ADR 13).
"""

from __future__ import annotations

import logging
import os
from dataclasses import fields, replace
from typing import Any

from celery import Celery, bootsteps, signals

from orchestrator.dispatch import tasks
from orchestrator.dispatch.bootsteps import Worker
from orchestrator.dispatch.celery_app import SETTINGS, load
from orchestrator.dispatch.foreign.guard import Guard
from orchestrator.dispatch.foreign.presence import Presence
from orchestrator.dispatch.foreign.reports import Reports
from orchestrator.dispatch.native import NativeTask
from orchestrator.dispatch.pool import TaskPool
from orchestrator.dispatch.publisher import Publisher
from orchestrator.errors import InvalidConfig
from orchestrator.settings import Settings
from orchestrator.store.steps import Claim
from orchestrator.workflow.language.definition import Registry

logger = logging.getLogger(__name__)

_ADOPTED = "_orchestrator_adoption"
_SERVERS = frozenset({"database_url", "redis_url"})


def adopt(app: Celery, settings: Settings, registry: Registry) -> None:
    """Have every worker of ``app`` report its tasks that are steps, and those that serve ``settings.queue`` run
    workflows. Reads no configuration of the app, which may come later.

    Raises ``InvalidConfig`` if the app serves another account, or other servers, already. Of any other setting the
    first one counts, and that is said.
    """
    known: Adoption | None = getattr(app, _ADOPTED, None)
    adopted = replace(settings, pool="asyncio")
    if known is None:
        setattr(app, _ADOPTED, Adoption(app, adopted, registry))
        setattr(app, SETTINGS, adopted)
        return
    if (known.settings.account, known.settings.queue) != (settings.account, settings.queue):
        raise InvalidConfig(
            f"The Celery app {app.main!r} serves the account {known.settings.account!r} (queue "
            f"{known.settings.queue!r}) already, and cannot serve {settings.account!r} (queue {settings.queue!r}) "
            "as well: give each account an app of its own."
        )
    different = [
        each.name
        for each in fields(adopted)
        if getattr(adopted, each.name) != getattr(known.settings, each.name)
    ]
    if not _SERVERS.isdisjoint(different):  # their passwords are not shown
        raise InvalidConfig(
            f"The Celery app {app.main!r} was given to an Orchestrator with another {' and '.join(different)} before, "
            "and its workers would go on with that: give it to one Orchestrator."
        )
    if different:
        logger.warning(
            "The workers of the Celery app %r keep the settings of the Orchestrator that it was given to first: %s of "
            "another one are not theirs.",
            app.main,
            ", ".join(different),
        )


def is_adopted(app: Celery) -> bool:
    """Whether ``app`` is an application's own, given to an ``Orchestrator``."""
    return hasattr(app, _ADOPTED)


class Adoption:
    """What is added to one app."""

    def __init__(self, app: Celery, settings: Settings, registry: Registry) -> None:
        self.app = app
        self.settings = settings
        self.worker = Worker(app, settings, registry)
        adoption = self

        class AdoptedTask(NativeTask):
            abstract = True

            def own_pool(self) -> TaskPool | None:
                return adoption.worker.pool

        class EngineStep(bootsteps.StartStopStep):  # type: ignore[misc, unused-ignore]
            """What a worker of the application holds of ours."""

            requires = ("celery.worker.components:Pool",)

            def create(self, parent: Any) -> Any:
                self._resident = Resident(adoption, parent)
                return self._resident

            def register_with_event_loop(self, parent: Any, hub: Any) -> None:
                self._resident.register_with_event_loop(hub)

        tasks.register(app, self.worker, AdoptedTask)
        app.steps["worker"].add(EngineStep)


class Resident:
    """What one worker of the application holds: a Celery bootstep's object, made in its main process before the pool
    forks."""

    def __init__(self, adoption: Adoption, parent: Any) -> None:
        self._app, self._settings, self._worker = adoption.app, adoption.settings, adoption.worker
        for module in self._settings.workflows:
            load(module)
        _check(self._app)
        served = set(self._app.amqp.queues.consume_from)
        self._hints = Hints(self._app, self._settings, self._worker)
        self._presence = Presence(self._settings, sorted(served - {self._settings.queue}))
        signals.worker_process_init.connect(self._forked, weak=False)
        signals.worker_shutdown.connect(self._ended, weak=False)
        self._reports = Reports(self._app, self._presence, self._settings.max_payload_bytes, self._hints.turn)
        self._reports.listen()
        guard = Guard(self._presence, self._reports, self._settings)
        for task in self._app.tasks.values():
            guard.wrap(task)
        self._side = self._engine(parent) if self._settings.queue in served else None
        if self._settings.queue not in served:
            logger.info(
                "This worker reports its tasks that are steps, and runs no workflows: it does not serve their queue, "
                "%r (-Q).",
                self._settings.queue,
            )

    def _engine(self, parent: Any) -> TaskPool | None:
        """Attach the engine: to the worker's pool if that is ours, else to one beside it, which is returned."""
        if isinstance(parent.pool, TaskPool):
            self._worker.attach(parent, parent.pool)
            return None
        side = TaskPool(limit=self._settings.concurrency, app=self._app)
        self._worker.attach(parent, side, is_beside=True)
        return side

    def register_with_event_loop(self, hub: Any) -> None:
        if self._side is not None:
            self._side.register_with_event_loop(hub)

    def start(self) -> None:
        self._presence.start()
        if self._side is not None:
            self._side.start()

    def stop(self) -> None:
        """Celery fetches nothing any more. The application's own tasks go on until its pool has stopped, and are
        reported until then."""
        if self._side is not None:
            self._side.close()
            self._side.stop()

    def terminate(self) -> None:
        """A cold shutdown: our bodies are put back, and Celery kills what its pool runs and sends no signal of its
        end."""
        self._worker.hurry()
        self.stop()
        self._ended()

    def _forked(self, **_: Any) -> None:
        self._presence.forked()

    def _ended(self, **_: Any) -> None:
        self._presence.stop()
        self._reports.close()
        signals.worker_process_init.disconnect(self._forked)
        signals.worker_shutdown.disconnect(self._ended)


class Hints:
    """Asks for turns: of the engine in this process, if there is one, else by a message."""

    def __init__(self, app: Celery, settings: Settings, worker: Worker) -> None:
        self._app = app
        self._settings = settings
        self._worker = worker
        self._pid = os.getpid()
        self._publisher: Publisher | None = None
        self._publisher_pid = 0

    def turn(self, claim: Claim) -> None:
        if self._pid == os.getpid() and self._worker.is_running:
            self._worker.engine.coordinate((claim.instance,))
            return
        if self._publisher is None or self._publisher_pid != os.getpid():
            self._publisher, self._publisher_pid = Publisher(self._app, self._settings), os.getpid()
        self._publisher.coordinate((claim.instance,))


def _check(app: Celery) -> None:
    accepted = set(app.conf.accept_content or ())
    if not accepted & {"json", "application/json"}:
        raise InvalidConfig(
            f"The Celery app {app.main!r} does not accept JSON (accept_content={sorted(accepted)}), which the messages "
            'of workflows are written in: add "json" to accept_content. Your own tasks may keep their serializer.'
        )
