"""runs of steps, schedules, parents

Revision: 0002
Replaces: 0001
Created: 2026-11-24 12:40:00
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_instant = sa.DateTime(timezone=True)


def _expiry(*columns: str) -> None:
    """Each account deletes what is its own: its workers must not read through what others have expired."""
    op.drop_index("orchestrator_instances_expiry", "orchestrator_instances")
    op.create_index(
        "orchestrator_instances_expiry",
        "orchestrator_instances",
        columns,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def upgrade() -> None:
    _expiry("account", "expires_at")
    op.add_column(
        "orchestrator_instances",
        sa.Column(
            "seed", sa.Integer(), server_default="0", nullable=False, comment="the run that began at the top"
        ),
    )
    for column in (
        sa.Column("began_seq", sa.BigInteger(), comment="the fact at which the code began"),
        sa.Column("schedule", sa.Text(), comment="the cron expression that created it"),
        sa.Column("scheduled_at", _instant, comment="the moment it was created for"),
        sa.Column("parent_id", sa.Uuid(), comment="the instance that started it by step.invoke"),
        sa.Column("parent_key", sa.Text(), comment="the step of the parent that awaits it"),
    ):
        op.add_column("orchestrator_instances", column)
    op.create_index(
        "orchestrator_instances_parent",
        "orchestrator_instances",
        ["parent_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "orchestrator_instances_children",
        "orchestrator_instances",
        ["account", "parent_id", "id"],
        postgresql_where=sa.text("parent_id IS NOT NULL AND ended_at IS NULL"),
    )
    op.add_column(
        "orchestrator_steps",
        sa.Column(
            "run", sa.Integer(), server_default="0", nullable=False, comment="the run it was started in"
        ),
    )
    op.create_table(
        "orchestrator_schedules",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False, comment="of the instances it creates"),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("is_paused", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("next_at", _instant, nullable=False),
        sa.Column("last_at", _instant, comment="the moment it fired for last"),
        sa.PrimaryKeyConstraint("account", "workflow", "cron", "tz"),
        comment="one row per schedule of a registered workflow",
    )
    op.create_table(
        "orchestrator_audit",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False, comment="user@host of the process that asked for it"),
        sa.Column("at", _instant, nullable=False),
        sa.Column("past", sa.Text(), comment="a failed rollback that it took up again"),
        sa.PrimaryKeyConstraint("instance_id", "seq"),
        comment="what operators did to instances",
    )
    op.create_table(
        "orchestrator_reports",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("traceback", sa.Text(), server_default="", nullable=False),
        sa.Column("is_final", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("loss", sa.Text()),
        sa.Column("dice", sa.Double(), nullable=False),
        sa.Column("reported_at", _instant, nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "key", "fence"),
        comment="how attempts of an application's own tasks ended, until a turn takes it",
    )


def downgrade() -> None:
    op.drop_table("orchestrator_reports")
    op.drop_table("orchestrator_audit")
    op.drop_table("orchestrator_schedules")
    op.drop_column("orchestrator_steps", "run")
    op.drop_index("orchestrator_instances_children", "orchestrator_instances")
    op.drop_index("orchestrator_instances_parent", "orchestrator_instances")
    for name in ("parent_key", "parent_id", "scheduled_at", "schedule", "began_seq", "seed"):
        op.drop_column("orchestrator_instances", name)
    _expiry("expires_at")
