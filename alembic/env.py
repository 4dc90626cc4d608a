"""How alembic runs our migrations: online only, one transaction, serialised by an advisory lock."""

from alembic import context
from sqlalchemy import text

from orchestrator.store.migrate import VERSION_TABLE
from orchestrator.store.session import connect
from orchestrator.store.tables import metadata

LOCK = 7_210_559_003  # any fixed number: two migrations at once take turns


def ours(obj: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Leave the tables of the application that shares this database alone."""
    return kind != "table" or ((name or "").startswith("orchestrator_") and name != VERSION_TABLE)


def url() -> str:
    configured = context.config.get_main_option("sqlalchemy.url")
    if configured:
        return configured
    from orchestrator.settings import Settings

    return Settings.from_env().database_url


engine = connect(url(), pool_size=1)
with engine.begin() as connection:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_object=ours,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
