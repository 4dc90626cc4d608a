"""What is remembered: verbs over Postgres that take lists and the current time.

Owns: the schema, the SQL and the connections. Does not own: any decision; rows come from ``workflow`` and go
back to it. Every verb takes a SQLAlchemy ``Connection``, so a caller may run it in a transaction of its own.
"""
