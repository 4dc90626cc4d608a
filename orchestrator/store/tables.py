"""The schema, as SQLAlchemy metadata: what alembic compares the database with.

Owns: tables, columns, indexes, storage settings. Does not own: how they are used (the verbs beside it).

Values (params, outputs, errors, payloads) are the codec's JSON text, never ``jsonb``. There are no foreign keys
on hot tables. ``fillfactor`` leaves room for HOT updates; an index never holds a column that changes each turn.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

metadata = MetaData()

_instant = DateTime(timezone=True)
_hot = {
    "fillfactor": "70",
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_analyze_scale_factor": "0.02",
}

instances = Table(
    "orchestrator_instances",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("name_id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("run", Integer, nullable=False, server_default="0"),
    Column("seed", Integer, nullable=False, server_default="0", comment="the run that began at the top"),
    Column("status", Text, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("alarm_at", _instant, nullable=False, comment="timer, retry clock and recovery at once"),
    Column("shard", SmallInteger, nullable=False, server_default="0"),
    Column("awoken", Boolean, nullable=False, server_default="false"),
    Column("queued_at", _instant),
    Column("state_bytes", BigInteger, nullable=False, server_default="0"),
    Column("created_at", _instant, nullable=False),
    Column("started_at", _instant),
    Column("ended_at", _instant),
    Column("expires_at", _instant),
    Column("began_seq", BigInteger, comment="the fact at which the code began"),
    Column("ended_seq", BigInteger, comment="the fact at which the code ended"),
    Column("ending", Text, comment="errored or terminated, while compensation goes on"),
    Column("blocked", Text, comment="why it cannot go on, as JSON of name and message"),
    Column("rollback", Text, comment="how compensation ended, as JSON"),
    Column("success_retention_s", Double, nullable=False),
    Column("error_retention_s", Double, nullable=False),
    Column("schedule", Text, comment="the cron expression that created it"),
    Column("scheduled_at", _instant, comment="the moment it was created for"),
    Column("parent_id", Uuid, comment="the instance that started it by step.invoke"),
    Column("parent_key", Text, comment="the step of the parent that awaits it"),
    postgresql_with=_hot,
)
Index(
    "orchestrator_instances_name", *(instances.c[n] for n in ("account", "workflow", "name_id")), unique=True
)
Index(
    "orchestrator_instances_alarm",
    *(instances.c[n] for n in ("account", "workflow", "version", "alarm_at")),
    postgresql_where=text("alarm_at < 'infinity'::timestamptz"),
)
Index(
    "orchestrator_instances_queue",
    *(instances.c[n] for n in ("account", "workflow", "shard", "version")),
    instances.c.awoken.desc(),
    instances.c.queued_at,
    postgresql_where=text("status = 'queued'"),
)
# Always true, and said again where the list is meant: without it, until the table is analyzed, one instance is looked
# for by reading all of its workflow, since this index is a level lower than that of the names.
Index(
    "orchestrator_instances_list",
    *(instances.c[n] for n in ("account", "workflow", "status", "id")),
    postgresql_where=text("created_at > '-infinity'::timestamptz"),
)
Index(
    "orchestrator_instances_expiry",
    instances.c.account,
    instances.c.expires_at,
    postgresql_where=text("expires_at IS NOT NULL"),
)

Index(
    "orchestrator_instances_parent",
    instances.c.parent_id,
    postgresql_where=text("parent_id IS NOT NULL"),
)
# Children at work, in the order in which orphans are searched for.
Index(
    "orchestrator_instances_children",
    *(instances.c[n] for n in ("account", "parent_id", "id")),
    postgresql_where=text("parent_id IS NOT NULL AND ended_at IS NULL"),
)

payloads = Table(
    "orchestrator_payloads",
    metadata,
    Column("instance_id", Uuid, primary_key=True),
    Column("params", Text, nullable=False),
    Column("output", Text),
    Column("error", Text),
)

steps = Table(
    "orchestrator_steps",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("key", Text, nullable=False, comment="kind:name:count, and :rollback for its compensation"),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_seq", BigInteger, nullable=False),
    Column("started_at", _instant, nullable=False),
    Column("finished_seq", BigInteger),
    Column("finished_at", _instant),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("losses", SmallInteger, nullable=False, server_default="0"),
    Column("uncounted", SmallInteger, nullable=False, server_default="0"),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("config", Text),
    Column("label", Text, nullable=False, server_default=""),
    Column("output", Text),
    Column("error", Text),
    Column("has_rollback", Boolean, nullable=False, server_default="false"),
    Column("worker", Uuid, comment="the incarnation that claimed it"),
    Column("due_at", _instant),
    Column("line", Integer),
    Column("handed_at", _instant),
    Column("claimed_at", _instant),
    Column("run", Integer, nullable=False, server_default="0", comment="the run it was started in"),
    PrimaryKeyConstraint("instance_id", "key"),
    postgresql_with=_hot,
)
# Always true, and said again where the index is meant: without it, a plan made while the table is small would look up
# a step by its key through this index and then read the whole instance.
Index(
    "orchestrator_steps_order",
    steps.c.instance_id,
    steps.c.started_seq,
    postgresql_where=text("started_seq > 0"),
)

attempts = Table(
    "orchestrator_attempts",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    Column("traceback", Text, nullable=False, server_default=""),
    Column("handed_at", _instant),
    Column("claimed_at", _instant),
    Column("ended_at", _instant, nullable=False),
    Column("retry_delay_s", Double),
    PrimaryKeyConstraint("instance_id", "seq"),
    comment="failed attempts only",
)

transitions = Table(
    "orchestrator_transitions",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("at", _instant, nullable=False),
    PrimaryKeyConstraint("instance_id", "seq"),
)

inbox = Table(
    "orchestrator_inbox",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("received_at", _instant, nullable=False),
    PrimaryKeyConstraint("instance_id", "number"),
    comment="events that were received and not yet consumed",
)

audit = Table(
    "orchestrator_audit",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("verb", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("by", Text, nullable=False, comment="user@host of the process that asked for it"),
    Column("at", _instant, nullable=False),
    Column("past", Text, comment="a failed rollback that it took up again"),
    PrimaryKeyConstraint("instance_id", "seq"),
    comment="what operators did to instances",
)

reports = Table(
    "orchestrator_reports",
    metadata,
    Column("instance_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("output", Text),
    Column("error", Text),
    Column("traceback", Text, nullable=False, server_default=""),
    Column("is_final", Boolean, nullable=False, server_default="false"),
    Column("loss", Text),
    Column("dice", Double, nullable=False),
    Column("reported_at", _instant, nullable=False),
    PrimaryKeyConstraint("instance_id", "key", "fence"),
    comment="how attempts of an application's own tasks ended, until a turn takes it",
)

workers = Table(
    "orchestrator_workers",
    metadata,
    Column("id", Uuid, primary_key=True, comment="one incarnation of one process"),
    Column("account", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("known", ARRAY(Text), nullable=False, comment="workflow@version"),
    Column("started_at", _instant, nullable=False),
    Column("heartbeat_at", _instant, nullable=False),
    Column("dead_at", _instant),
    Column("shards_until", _instant, comment="until then the shards it owns are its own"),
    Column("totals", Text, comment="what it has counted of its work, as JSON by series"),
)

totals = Table(
    "orchestrator_totals",
    metadata,
    Column("account", Text, nullable=False),
    Column("series", Text, nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("account", "series"),
    comment="what workers that are gone had counted of their work",
)

workflows = Table(
    "orchestrator_workflows",
    metadata,
    Column("account", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("source_hash", Text, nullable=False),
    Column("graph", Text),
    Column("options", Text, nullable=False),
    Column("registered_at", _instant, nullable=False),
    PrimaryKeyConstraint("account", "name", "version"),
)

accounts = Table(
    "orchestrator_accounts",
    metadata,
    Column("account", Text, primary_key=True),
    Column("coordinators", Text, nullable=False, server_default="many", comment="one (V1) or many (V2)"),
    Column("changed_at", _instant, nullable=False),
)

layouts = Table(
    "orchestrator_layouts",
    metadata,
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("first", SmallInteger, nullable=False, comment="the number of its first shard"),
    Column("shards", SmallInteger, nullable=False, comment="how many there are"),
    Column("created_at", _instant, nullable=False),
    PrimaryKeyConstraint("account", "workflow", "generation"),
    comment="how the queue of a workflow is cut: new instances use the last generation, those before drain",
)

shards = Table(
    "orchestrator_shards",
    metadata,
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("shard", SmallInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("owner", Uuid, comment="a worker, as long as its shards_until has not passed"),
    Column("taken_at", _instant),
    PrimaryKeyConstraint("account", "workflow", "shard"),
    comment="which worker looks after which part of a queue",
)

limits = Table(
    "orchestrator_limits",
    metadata,
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False, comment="empty: of the whole account"),
    Column("concurrency", Integer),
    Column("creation_rate", Double),
    Column("creation_burst", Double),
    Column("max_queued", Integer),
    Column("changed_at", _instant, nullable=False),
    Column("changed_by", Text, nullable=False),
    PrimaryKeyConstraint("account", "workflow"),
    comment="what operators set at run time; it wins over settings and definitions",
)

counts = Table(
    "orchestrator_counts",
    metadata,
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("counts", Text, nullable=False, comment="instances by status, as JSON"),
    Column("counted_at", _instant, nullable=False),
    Column("took_s", Double, nullable=False),
    PrimaryKeyConstraint("account", "workflow"),
    comment="how many instances there were when they were counted last",
)

schedules = Table(
    "orchestrator_schedules",
    metadata,
    Column("account", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("cron", Text, nullable=False),
    Column("tz", Text, nullable=False),
    Column("version", Text, nullable=False, comment="of the instances it creates"),
    Column("params", Text, nullable=False),
    Column("is_paused", Boolean, nullable=False, server_default="false"),
    Column("next_at", _instant, nullable=False),
    Column("last_at", _instant, comment="the moment it fired for last"),
    PrimaryKeyConstraint("account", "workflow", "cron", "tz"),
    comment="one row per schedule of a registered workflow",
)
