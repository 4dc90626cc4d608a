"""Bringing the database to this release's schema: alembic, run from wherever the migrations are.

Owns: finding them and running them. Does not own: the migrations (``alembic/`` in the checkout, shipped as
``orchestrator/migrations`` in the wheel).
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from orchestrator.errors import InvalidConfig
from orchestrator.store.session import connect, explained

VERSION_TABLE = "orchestrator_schema"


def location() -> Path:
    """The folder with ``env.py``: packaged first, then the checkout's."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise InvalidConfig(f"No migrations beside {package}: the wheel is incomplete; install it again.")


def configuration(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(location()).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def upgrade(database_url: str) -> tuple[str | None, str | None]:
    """Migrate to the newest revision; returns the revision before and after. Safe to run twice, and at once."""
    engine = connect(database_url, pool_size=1)
    try:
        with explained():
            before = revision(engine)
            command.upgrade(configuration(database_url), "head")
            return before, revision(engine)
    finally:
        engine.dispose()


def revision(engine: Engine) -> str | None:
    """The revision the database is at, ``None`` if it has none."""
    with engine.connect() as connection:
        return MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE}
        ).get_current_revision()


def head() -> str | None:
    """The revision this release needs."""
    config = Config()
    config.set_main_option("script_location", str(location()).replace("%", "%%"))
    return ScriptDirectory.from_config(config).get_current_head()
