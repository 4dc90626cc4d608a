"""What the pages and the JSON API show, as JSON-able documents: one plain function for each.

Owns: reading and shaping. Does not own: HTTP, pages, or changing anything. Every function takes the ``Orchestrator``
first, asks Postgres (so it belongs into a thread) and needs no code of any workflow: names, versions, graphs and
options are read as workers registered them. Instants are ISO 8601 in UTC, durations seconds. Values of sensitive
steps read ``[REDACTED]``.
"""
