"""Benchmarks: workloads on the embedded servers, with fsync on. ``make bench`` runs them all.

Owns: nothing that the product needs. Absolute figures vary from run to run: compare ratios within one.
"""
