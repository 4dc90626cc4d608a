"""Instances in memory: what the engine does with Postgres and Celery, done with a dictionary and plain calls.

Owns: storage, turns, bodies, and how far they go. Does not own: what a test sees of it (``testing.environment``), nor
any decision (``orchestrator.workflow``).
"""
