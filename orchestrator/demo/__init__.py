"""A bank transfer as a saga, played on this machine: ``python -m orchestrator.demo``.

Owns: the workflow that users copy from (:mod:`~orchestrator.demo.workflows`), two banks and their ledger, and the
play: four transfers, one of which loses its worker, and the checks of what came of them. Does not own servers or
processes (``dev``). Importing this package, or its workflows, loads no server library.
"""
