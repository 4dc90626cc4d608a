"""Metrics of the account on Flower's ``/metrics``, for Prometheus.

Owns: what is measured (``reading``), as which series (``families``), and when (``collector``). ``/metrics`` answers
without a password: nothing secret, no id and no value of a workflow is in it.
"""
