"""What the tests of the engine share: a migrated database, a site of their own each, empty databases.

Every test has its own account, so that tests do not see each other; those that change the database itself, or stop
it, have a database of their own.
"""

from collections.abc import Iterator
from uuid import uuid4

import hypothesis  # noqa: F401  -- pytest's summary would: what crashed workers leave must not be collected amid that
import psycopg
import pytest
from sqlalchemy import make_url

from orchestrator.settings import Settings
from orchestrator.store import migrate
from tests.integration.harness import Site


@pytest.fixture(scope="session")
def migrated(postgres_url: str) -> str:
    """The URL of the session's database, with the tables of this release."""
    migrate.upgrade(settings_of(postgres_url, "redis://nowhere").database_url)
    return postgres_url


@pytest.fixture
def settings(migrated: str, redis_url: str) -> Settings:
    """Settings with an account and a queue of this test's own."""
    return settings_of(migrated, redis_url)


@pytest.fixture
def site(settings: Settings) -> Iterator[Site]:
    with Site(settings) as one:
        yield one


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    """The URL of a new database without any table, dropped at the end."""
    name = f"test_{uuid4().hex[:12]}"
    plain = make_url(postgres_url).set(drivername="postgresql")
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield plain.set(database=name).render_as_string(hide_password=False)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def own_site(empty_database: str, redis_url: str) -> Iterator[Site]:
    """A site in a database of its own."""
    settings = settings_of(empty_database, redis_url)
    migrate.upgrade(settings.database_url)
    with Site(settings) as one:
        yield one


def settings_of(database_url: str, redis_url: str, **more: object) -> Settings:
    name = f"t{uuid4().hex[:10]}"
    more.setdefault("creation_rate", 1e6)  # so are the limits
    more.setdefault("workflow_creation_rate", 1e6)
    more.setdefault("delivery", "broker")  # every hand-out is seen by the test; in place has tests of its own
    return Settings(database_url=database_url, redis_url=redis_url, account=name, queue=name, **more)  # type: ignore[arg-type]
