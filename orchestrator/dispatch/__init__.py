"""Celery, in both directions: how work travels to the workers, and how they run it.

Owns: the Celery app, the registered tasks, the publisher of hints, the broker transport, the pool and the
bootsteps. Does not own: what a turn or an attempt does (``engine``), nor who may run (``control``).
"""
