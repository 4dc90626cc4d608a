"""Two million queued instances, before any worker has run.

Owns: making them. The first are created by ``create_batch``, which is measured; the others are copies of one of these
in SQL, which have what it has, but for ids, instants, and the shard, which is drawn as for a new instance.
"""

from __future__ import annotations

import time
from typing import NamedTuple
from uuid import UUID

from bench.cluster import Cluster
from bench.completion import Crowd
from bench.control.flows import flood
from orchestrator.store import tables

BATCH = 1000
CHUNK = 100_000
_ID = """('{begin}' || substr(md5(n::text), 1, 3) || '-8' || substr(md5(n::text), 4, 3) || '-'
  || substr(md5(n::text), 7, 12))::uuid"""
_INSTANT = "t.{} + n * interval '1 microsecond'"
_COPY = """
INSERT INTO {table} ({columns}) SELECT {values} FROM {table} AS t, generate_series({low}::bigint, {high}::bigint) AS n
WHERE t.{key} = '{model}'::uuid
"""


class Filled(NamedTuple):
    """How it went: rows a second, created as applications do, and copied."""

    created_per_s: float
    copied_per_s: float
    bytes: int
    """Of the database."""


def fill(cluster: Cluster, instances: int, created: int) -> Filled:
    """Have so many instances of ``flood`` queue, of which so many are created by ``create_batch``."""
    crowd = Crowd(cluster, flood)
    began = time.perf_counter()
    for start in range(0, created, BATCH):
        flood.create_batch(count=min(BATCH, created - start), orchestrator=cluster.orchestrator)
    created_s = time.perf_counter() - began
    latest = (
        "SELECT id FROM orchestrator_instances WHERE id > %s AND status = 'queued' ORDER BY id DESC LIMIT 1"
    )
    model = cluster.sql(latest, (crowd.mark,))[0][0]
    copies, began = instances - created, time.perf_counter()
    for low in range(1, copies + 1, CHUNK):
        for table, key in (("instances", "id"), ("payloads", "instance_id")):
            cluster.sql(_statement(table, key, model, low, min(copies, low + CHUNK - 1), cluster))
    copied_s = time.perf_counter() - began
    for table in ("instances", "payloads"):
        cluster.sql(f"VACUUM (ANALYZE) orchestrator_{table}")
    size = cluster.sql("SELECT pg_database_size(current_database())")[0][0]
    return Filled(created / created_s, copies / copied_s if copies else 0.0, size)


def _statement(table: str, key: str, model: UUID, low: int, high: int, cluster: Cluster) -> str:
    fresh = _ID.format(begin=str(model)[:15])
    own = {
        key: fresh,
        "name_id": f"({fresh})::text",
        "created_at": _INSTANT.format("created_at"),
        "queued_at": _INSTANT.format("queued_at"),
        "shard": f"floor(random() * {cluster.orchestrator.settings.shards})::int2",
    }
    names = [column.name for column in getattr(tables, table).columns]
    return _COPY.format(
        table=f"orchestrator_{table}", columns=", ".join(names),
        values=", ".join(own.get(name, f"t.{name}") for name in names), key=key, model=model, low=low, high=high,
    )  # fmt: skip
