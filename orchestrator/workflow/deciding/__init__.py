"""Deciding what an instance does next, and what operators' verbs do to it. Pure.

Owns: turns, outcomes, waits, ends, holds and verbs. Does not own: replaying code (``replay``), or storage.
"""
