"""The peers' bench: our system and its peers on the same work, in one session, turn by turn. ``make bench-peers``.

Owns: what is installed for it, who runs when, and the ratios. Does not own: our own workloads (``bench.workloads``).
Absolute figures are one machine's on one day; the ratios of one session are what counts.
"""
