"""Runs instances: turns in batches, live replays, attempts, liveness.

Owns: everything between a hint and a committed turn. Does not own: how hints travel (``dispatch``), who may run
(``control``), SQL (``store``), nor what a workflow means (``workflow``).
"""
