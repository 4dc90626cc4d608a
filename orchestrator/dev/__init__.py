"""What a developer runs on one machine, and production never does.

Owns: the embedded servers (:mod:`orchestrator.dev.servers`) and ``orchestrator dev``. Does not own anything that
an application or a worker imports: this room may be deleted, and the floors below still pass their tests.
"""
