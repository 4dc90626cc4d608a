"""The Celery app of a deployment: configuration, tasks, bootsteps.

Owns: what Celery is told. Does not own: which workflows there are (modules named in ``Settings.workflows``).
"""

from __future__ import annotations

import importlib
from typing import Any

from celery import Celery
from kombu.entity import Queue

from orchestrator.dispatch import bootsteps, tasks
from orchestrator.errors import InvalidConfig
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Registry
from orchestrator.workflow.language.definition import registry as default_registry

POOL = "orchestrator.dispatch.pool:TaskPool"
AMQP = {"batched": "orchestrator.dispatch.transport:AMQP", "stock": None}
"""What connects an app to its broker, by ``Settings.transport``. It makes a difference on Redis only."""
SETTINGS = "_orchestrator_settings"
"""The attribute of an app whose workers run workflows."""


def create_app(settings: Settings, registry: Registry = default_registry) -> Celery:
    """A Celery app that serves the workflows of ``registry``, after importing ``settings.workflows``."""
    app = Celery(
        "orchestrator", broker=settings.broker_url, amqp=AMQP[settings.transport], set_as_current=False
    )
    app.conf.update(configuration(settings))
    for module in settings.workflows:
        load(module)
    worker = bootsteps.Worker(app, settings, registry)
    tasks.register(app, worker)
    bootsteps.install(app, worker)
    setattr(app, SETTINGS, settings)
    return app


def settings_of(app: Celery) -> Settings | None:
    """The settings of the workflows that ``app`` serves, made here or adopted; ``None`` if it serves none."""
    return getattr(app, SETTINGS, None)


def create_client(settings: Settings) -> Celery:
    """A Celery app that only publishes: for processes that create instances."""
    app = Celery(
        "orchestrator-client", broker=settings.broker_url, amqp=AMQP[settings.transport], set_as_current=False
    )
    app.conf.update(configuration(settings))
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings. Messages are hints: JSON only, no results, no acknowledgement emulated on Redis."""
    options: dict[str, Any] = {
        **_pool(settings),
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": True,
        "task_default_queue": settings.queue,
        "task_queues": [Queue(settings.queue)],
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_backend": None,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
    }
    if is_redis(settings.broker_url):
        options["broker_transport_options"] = {
            "ack_emulation": False,
            "priority_steps": [0],
            "socket_timeout": 10.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
        }
    return options


def _pool(settings: Settings) -> dict[str, Any]:
    """Prefork is what Celery starts by itself; a ``worker_pool`` in the configuration would win over ``-P prefork``."""
    if settings.pool == "prefork":
        return {"worker_concurrency": settings.processes or None}
    return {"worker_pool": POOL, "worker_concurrency": settings.concurrency}


def is_redis(url: str) -> bool:
    return url.split("://", maxsplit=1)[0] in ("redis", "rediss", "sentinel", "unix", "redis+socket")


def load(module: str) -> None:
    """Import a module with workflows."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise InvalidConfig(
            f"ORCHESTRATOR_WORKFLOWS names the module {module!r}, which cannot be imported: {error}. It must be "
            "importable from where the worker is started."
        ) from error
