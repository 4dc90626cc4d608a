"""Composition root: the settings of the environment, and the Celery app made from them.

Owns: where this deployment's configuration comes from. Which workflows it serves stands in
``ORCHESTRATOR_WORKFLOWS``. Does not own: tasks, queues, pool, heartbeats (``orchestrator.dispatch``).
"""

from orchestrator.dispatch.celery_app import create_app
from orchestrator.settings import Settings

app = create_app(Settings.from_env())
