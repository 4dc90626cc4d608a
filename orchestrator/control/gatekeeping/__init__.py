"""The Gatekeeper: who may be created, and who may run, kept in Redis.

Owns: token buckets and slot leases, their scripts, their keys. Does not own: what is true (rows in Postgres: all of
this may be wiped at any time), who asks when (``souschef``, the turns of ``engine``, ``client``).
"""
