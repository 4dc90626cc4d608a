"""This repository's deployment: ``celery -A workers worker`` and ``celery -A workers flower``.

Owns: nothing but the name under which Celery finds the app. Not part of the wheel; who has only that
says ``-A orchestrator.worker``.
"""

from workers.app import app

__all__ = ["app"]
