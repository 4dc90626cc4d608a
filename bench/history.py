"""A past for an empty database: finished instances like those that W1 leaves behind.

Owns: copying one real finished instance many times, in SQL. Every column has what the real one has, but for ids and
instants, which lie in the past.
"""

from __future__ import annotations

import time

from bench.cluster import Cluster
from bench.completion import Crowd
from bench.flows import five_steps
from orchestrator.store import tables

CHUNK = 50_000
APART_MS = 10
"""One instance was created this long after the one before it."""

_ID = """(lpad(to_hex({first} + n * {apart}), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
  || substr(md5(n::text), 4, 15))::uuid"""
_COPY = """
INSERT INTO {table} ({columns})
SELECT {values} FROM {table} AS t, generate_series({low}::bigint, {high}::bigint) AS n
WHERE t.{key} = '{model}'::uuid
"""


def fill(cluster: Cluster, instances: int) -> float:
    """Add ``instances`` finished ones to the tables; needs a running worker, which makes the model. Seconds taken."""
    began = time.perf_counter()
    crowd = Crowd(cluster, five_steps)
    five_steps.create(orchestrator=cluster.orchestrator).result(60)
    (model,) = cluster.sql("SELECT id FROM orchestrator_instances WHERE id > %s", (crowd.mark,))[0]
    first = int(model.hex[:12], 16) - (instances + 1) * APART_MS
    for low in range(1, instances + 1, CHUNK):
        for table, key in (
            ("instances", "id"),
            *((t, "instance_id") for t in ("payloads", "steps", "transitions")),
        ):
            cluster.sql(_statement(table, key, str(model), first, low, min(instances, low + CHUNK - 1)))
    for table in ("instances", "payloads", "steps", "transitions"):
        cluster.sql(f"VACUUM (ANALYZE) orchestrator_{table}")
    return time.perf_counter() - began


def _statement(table: str, key: str, model: str, first: int, low: int, high: int) -> str:
    uuid = _ID.format(first=first, apart=APART_MS)
    model_ms = int(model.replace("-", "")[:12], 16)
    back = f"interval '1 ms' * ({first - model_ms} + n * {APART_MS})"
    values, names = [], []
    for column in getattr(tables, table).columns:
        names.append(column.name)
        if column.name == key:
            values.append(uuid)
        elif column.name == "name_id":
            values.append(f"({uuid})::text")
        elif column.name == "expires_at":  # nobody shall clear it away while it is measured
            values.append(f"t.{column.name}")
        elif column.name == "at" or (column.name.endswith("_at") and column.name != "alarm_at"):
            values.append(f"t.{column.name} + {back}")
        else:
            values.append(f"t.{column.name}")
    return _COPY.format(
        table=f"orchestrator_{table}", columns=", ".join(names), values=", ".join(values), key=key, model=model,
        low=low, high=high,
    )  # fmt: skip
