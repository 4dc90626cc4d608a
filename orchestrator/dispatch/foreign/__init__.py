"""An application's own Celery app: its tasks as steps, its workers as ours.

Owns: sending signatures, what their workers claim and report, and the engine in a worker whose pool is the
application's. Does not own: our own app and pools (``dispatch``), nor what an outcome does (``workflow``).
"""
