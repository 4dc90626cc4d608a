"""The Celery app for those who installed the wheel: ``celery -A orchestrator.worker worker``.

Owns: nothing but the app, made from the environment (``ORCHESTRATOR_DATABASE_URL``, ``ORCHESTRATOR_REDIS_URL``,
``ORCHESTRATOR_WORKFLOWS``). Importing it loads Celery; nothing else in the package imports it.
"""

from orchestrator.dispatch.celery_app import create_app
from orchestrator.settings import Settings

app = create_app(Settings.from_env())
