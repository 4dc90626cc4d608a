"""Turns in this process: reading, deciding, writing, for many instances at once.

Owns: the coordinator and what it needs. Does not own: the thread it runs in (``engine.batch``), nor bodies
(``running``).
"""
