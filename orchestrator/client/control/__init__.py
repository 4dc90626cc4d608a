"""What operators see of the control plane, and change at run time: limits, layouts, how all of it stands.

Owns: these verbs and their records. Does not own: the control plane itself (``control``), nor how it is printed
(``cli.control``). They need no code of a workflow, only Postgres and Redis.
"""
