"""Connections to Postgres, and what their failures mean.

Owns: engines and their settings, and the translation of driver errors. Does not own: transactions (callers
open them) nor SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from orchestrator.errors import InvalidConfig, SchemaNotMigrated, ServiceUnavailable

_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# A stuck or partitioned worker must lose its locks, not stop the system (protocols §1.9). Every statement here
# joins short lists with tables by index; a plan made while a table was small must not turn into a scan.
_TURNS = (
    "-c idle_in_transaction_session_timeout=2s -c lock_timeout=2s -c enable_seqscan=off "
    "-c enable_hashjoin=off -c enable_mergejoin=off -c jit=off"
)


__all__ = [
    "Connection",
    "Engine",
    "Lane",
    "connect",
    "explained",
    "join",
    "rows",
    "transaction",
    "translated",
]


def connect(database_url: str, *, pool_size: int = 10, turns: bool = False) -> Engine:
    """An engine with a pool. ``turns`` gives it the settings of connections that write turns."""
    arguments: dict[str, Any] = dict(_KEEPALIVE, application_name="orchestrator")
    if turns:
        arguments["options"] = _TURNS
    return create_engine(
        database_url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        pool_pre_ping=not turns,
        connect_args=arguments,
    )


@contextmanager
def explained(kept: str = "Nothing was written.") -> Iterator[None]:
    """Turn a driver's error into ours: ``ServiceUnavailable`` when Postgres is away, ``SchemaNotMigrated``
    when its tables are missing; ``kept`` says what became of the caller's data."""
    try:
        yield
    except (DBAPIError, OperationalError, ProgrammingError) as error:
        raise translated(error, kept) from error


def translated(error: Exception, kept: str) -> Exception:
    """Our error for a driver's, or the driver's own if it means neither of the two."""
    if is_missing_schema(error):
        return SchemaNotMigrated(
            "The database has no (or older) orchestrator tables: run `orchestrator migrate` against it first."
        )
    if is_away(error):
        cause = str(getattr(error, "orig", error)).strip().splitlines()
        return ServiceUnavailable(
            f"Postgres does not answer ({cause[0] if cause else error}). {kept}", "postgres"
        )
    return error


def is_missing_schema(error: BaseException) -> bool:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state in ("42P01", "42703", "3F000")  # undefined table, column, schema


def is_away(error: BaseException) -> bool:
    """Whether the outcome of the statement is unknown, or the server cannot be reached."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state is None:
        return isinstance(error, OperationalError) or error.connection_invalidated
    # connection exceptions, operator intervention (shutdown, recovery), idle-in-transaction, resources
    return state[:2] in ("08", "57", "53") or state == "25P03"


def is_contention(error: BaseException) -> bool:
    """Whether locks, not data, made the statement fail: repeat it."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state in ("55P03", "40P01", "40001")


def rows(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run one statement through the driver's own cursor: half the CPU of SQLAlchemy's result, for hot verbs.

    Errors come as SQLAlchemy's ``DBAPIError``, and a broken connection leaves the pool, as with its own methods.
    """
    driver: psycopg.Connection[Any] | None = None
    try:
        driver = connection.connection.driver_connection
        cursor = psycopg.Cursor(driver)  # type: ignore[arg-type]
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description is not None else []
    except psycopg.Error as error:
        is_broken = driver is None or driver.broken or driver.closed
        if is_broken:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement[:80],
            None,
            error,
            psycopg.Error,
            connection_invalidated=is_broken,
            dialect=connection.dialect,
        ) from error


class Lane:
    """One connection kept by one thread, in autocommit: a statement is a transaction, and one round trip."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection; after any error the next call opens another."""
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            yield self._connection
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@contextmanager
def transaction(engine: Engine, kept: str = "Nothing was written.") -> Iterator[Connection]:
    """A transaction of its own, with errors explained."""
    with explained(kept), engine.begin() as connection:
        yield connection


def join(connection: Any, committed: Callable[[], None]) -> Connection:
    """The ``Connection`` of a caller's own transaction: given itself, or as a ``Session``, whose commit then calls
    ``committed``. Raises ``InvalidConfig`` for anything else."""
    if isinstance(connection, Session):
        event.listen(connection, "after_commit", lambda session: committed(), once=True)
        return connection.connection()
    if isinstance(connection, Connection):
        return connection
    raise InvalidConfig(
        "connection= takes a SQLAlchemy Connection or Session (with acreate: AsyncConnection or AsyncSession) on the "
        f"database of the orchestrator, not {type(connection).__name__}."
    )
