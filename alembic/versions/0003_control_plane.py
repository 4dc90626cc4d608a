"""shards in generations, limits at run time, counts

Revision: 0003
Replaces: 0002
Created: 2026-11-24 16:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_instant = sa.DateTime(timezone=True)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _replace_indexes(queue: list[object], alarm: list[str]) -> None:
    op.drop_index("orchestrator_instances_queue", "orchestrator_instances")
    op.create_index(
        "orchestrator_instances_queue",
        "orchestrator_instances",
        queue,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.drop_index("orchestrator_instances_alarm", "orchestrator_instances")
    op.create_index(
        "orchestrator_instances_alarm",
        "orchestrator_instances",
        alarm,
        postgresql_where=sa.text("alarm_at < 'infinity'::timestamptz"),
    )


def upgrade() -> None:
    _replace_indexes(
        ["account", "workflow", "shard", "version", sa.text("awoken DESC"), "queued_at"],
        ["account", "workflow", "version", "alarm_at"],
    )
    op.add_column(
        "orchestrator_workers",
        sa.Column("shards_until", _instant, comment="until then the shards it owns are its own"),
    )
    op.add_column(
        "orchestrator_workers",
        sa.Column("totals", sa.Text(), comment="what it has counted of its work, as JSON by series"),
    )
    op.create_table(
        "orchestrator_totals",
        _text("account"),
        _text("series"),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("account", "series"),
        comment="what workers that are gone had counted of their work",
    )
    op.create_table(
        "orchestrator_accounts",
        sa.Column("account", sa.Text(), primary_key=True),
        sa.Column(
            "coordinators",
            sa.Text(),
            nullable=False,
            server_default="many",
            comment="one (V1) or many (V2)",
        ),
        sa.Column("changed_at", _instant, nullable=False),
    )
    op.create_table(
        "orchestrator_layouts",
        _text("account"),
        _text("workflow"),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("first", sa.SmallInteger(), nullable=False, comment="the number of its first shard"),
        sa.Column("shards", sa.SmallInteger(), nullable=False, comment="how many there are"),
        sa.Column("created_at", _instant, nullable=False),
        sa.PrimaryKeyConstraint("account", "workflow", "generation"),
        comment="how the queue of a workflow is cut: new instances use the last generation, those before drain",
    )
    op.drop_table("orchestrator_shards")
    op.create_table(
        "orchestrator_shards",
        _text("account"),
        _text("workflow"),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Uuid(), comment="a worker, as long as its shards_until has not passed"),
        sa.Column("taken_at", _instant),
        sa.PrimaryKeyConstraint("account", "workflow", "shard"),
        comment="which worker looks after which part of a queue",
    )
    op.create_table(
        "orchestrator_limits",
        _text("account"),
        sa.Column("workflow", sa.Text(), nullable=False, comment="empty: of the whole account"),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("creation_rate", sa.Double()),
        sa.Column("creation_burst", sa.Double()),
        sa.Column("max_queued", sa.Integer()),
        sa.Column("changed_at", _instant, nullable=False),
        _text("changed_by"),
        sa.PrimaryKeyConstraint("account", "workflow"),
        comment="what operators set at run time; it wins over settings and definitions",
    )
    op.create_table(
        "orchestrator_counts",
        _text("account"),
        _text("workflow"),
        sa.Column("counts", sa.Text(), nullable=False, comment="instances by status, as JSON"),
        sa.Column("counted_at", _instant, nullable=False),
        sa.Column("took_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("account", "workflow"),
        comment="how many instances there were when they were counted last",
    )


def downgrade() -> None:
    for table in ("counts", "limits", "shards", "layouts", "accounts", "totals"):
        op.drop_table(f"orchestrator_{table}")
    op.create_table(
        "orchestrator_shards",
        _text("account"),
        _text("workflow"),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("owner", sa.Uuid()),
        sa.Column("lease_until", _instant),
        sa.PrimaryKeyConstraint("account", "workflow", "shard"),
    )
    op.drop_column("orchestrator_workers", "shards_until")
    op.drop_column("orchestrator_workers", "totals")
    _replace_indexes(["account", "workflow", "shard", "awoken", "queued_at"], ["account", "alarm_at"])
