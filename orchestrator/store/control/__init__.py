"""What the control plane reads and writes in Postgres, by noun: queues, shards, layouts, limits, counts, holders.

Owns: these verbs. Does not own: policy (``control``).
"""
