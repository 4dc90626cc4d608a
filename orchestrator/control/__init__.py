"""Decides who may run, and brings back what is due.

Owns: SousChefs (and, later, limits and slots). Does not own: running anything (``engine``), the rows (``store``).
"""
