"""``orchestrator control …``: the control plane as an operator sees and changes it.

Owns: the commands (``commands``) and their tables (``tables``). Does not own what they do (``client.control``). They
need no code of a workflow, only Postgres and Redis.
"""
