"""Connections to Postgres, and what their failures mean.

Owns: engines and their settings, the translation of driver errors, and joining a caller's own transaction. Does not
own: when transactions begin (callers open them) nor SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import QueuePool

from orchestrator.errors import InvalidConfig, SchemaNotMigrated, ServiceUnavailable
from orchestrator.ports import monotonic

_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# A stuck or partitioned worker must lose its locks, not stop the system (protocols §1.9). Every statement here
# joins short lists with tables by index; a plan made while a table was small must not turn into a scan. Since nothing
# else is left to choose, planning anew for each list would be lost time: a seventh of a turn of one instance.
_TURNS = (
    "-c idle_in_transaction_session_timeout=2s -c lock_timeout=2s -c enable_seqscan=off "
    "-c enable_hashjoin=off -c enable_mergejoin=off -c jit=off -c plan_cache_mode=force_generic_plan"
)
# So must an application; but it waits longer for others, since nobody repeats its call.
_CLIENT = "-c idle_in_transaction_session_timeout=10s -c lock_timeout=10s"

Hint = Callable[[Iterable[UUID]], None]
_PENDING = "orchestrator.pending"
"""Where a caller's ``Session`` keeps what to hint at when it commits: ids by hint."""

__all__ = [
    "Connection",
    "Engine",
    "Lane",
    "after_commit",
    "connect",
    "explained",
    "join",
    "rows",
    "transaction",
    "translated",
]


def connect(database_url: str, *, pool_size: int = 10, turns: bool = False, client: bool = False) -> Engine:
    """An engine with a pool. ``turns`` gives it the settings of connections that write turns, ``client`` those of an
    application's verbs; without either it waits for any lock (migrations do)."""
    arguments: dict[str, Any] = dict(_KEEPALIVE, application_name="orchestrator")
    url = _read(database_url)
    if turns or client:
        theirs = url.query.get("options", ())
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        arguments["options"] = " ".join((*theirs, _TURNS if turns else _CLIENT))
    if turns:
        arguments["prepare_threshold"] = None  # only a ``Lane`` prepares: it looks after its plans
    return create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        pool_pre_ping=not turns,
        connect_args=arguments,
    )


def _read(database_url: str) -> URL:
    with suppress(ArgumentError, ValueError):  # which may quote the password
        url = make_url(database_url)
        if "@" not in (url.host or ""):  # the rest of a password
            return url
    raise InvalidConfig(
        "ORCHESTRATOR_DATABASE_URL cannot be read: it is postgresql://user:password@host:port/database, where what is "
        "special in the password is percent-encoded."
    )


@contextmanager
def explained(kept: str = "Nothing was written.") -> Iterator[None]:
    """Turn a driver's error into ours: ``ServiceUnavailable`` when Postgres is away or a lock was not got,
    ``SchemaNotMigrated`` when its tables are missing; ``kept`` says what became of the caller's data."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise translated(error, kept) from error


def translated(error: Exception, kept: str) -> Exception:
    """Our error for a driver's, or the driver's own if it means none of these."""
    if isinstance(error, PoolTimeout):
        return ServiceUnavailable(
            f"No connection to Postgres became free in time ({error}). {kept}", "postgres"
        )
    if is_missing_schema(error):
        return SchemaNotMigrated(
            "The database has no (or older) orchestrator tables: run `orchestrator migrate` against it first."
        )
    if is_away(error) or is_contention(error):
        lines = str(getattr(error, "orig", error)).strip().splitlines()
        what = "Postgres does not answer" if is_away(error) else "Others hold what is needed in Postgres"
        return ServiceUnavailable(f"{what} ({lines[0] if lines else error}). {kept}", "postgres")
    return error


def is_missing_schema(error: BaseException) -> bool:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state in ("42P01", "42703", "3F000")  # undefined table, column, schema


def is_away(error: BaseException) -> bool:
    """Whether the outcome of the statement is unknown, or the server cannot be reached."""
    if isinstance(error, PoolTimeout):
        return True  # every connection is taken by somebody who waits for an answer
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
    """Run one statement, with parameters as ``%(name)s``, through the driver's own cursor: half the CPU of
    SQLAlchemy's result, for hot verbs.

    Errors come as SQLAlchemy's ``DBAPIError``, and a broken connection leaves the pool, as with its own methods.
    """
    driver: psycopg.Connection[Any] | None = None
    try:
        driver = connection.connection.driver_connection
        numbered, names = _numbered(statement)
        cursor = psycopg.RawCursor(driver)  # type: ignore[arg-type]
        cursor.execute(numbered, [parameters[name] for name in names])
        return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []
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


@lru_cache(1024)
def _numbered(statement: str) -> tuple[bytes, tuple[str, ...]]:
    """``statement`` with ``$1``, ``$2`` …, and the names in their order. The driver does this anew on every call for
    statements over 4,096 characters: half of the price of a turn of one instance."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match[1], len(names) + 1)}"

    text = re.sub(r"%\((\w+)\)s", number, statement)
    return text.replace("%%", "%").encode(), tuple(names)


PREPARE_AFTER = 5
PLANS_S = 1.0


class Lane:
    """One connection kept by one thread, in autocommit: a statement is a transaction, and one round trip."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._planned_at = 0.0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection; after any error the next call opens another."""
        connection = self._usable()
        try:
            yield connection
        except BaseException:
            self.close()
            raise

    def _usable(self) -> Connection:
        """The connection, or a new one if it died since it was used last: nothing was sent, so nothing is uncertain."""
        if self._connection is not None:
            try:
                self._plan_anew()
            except psycopg.Error as error:
                self._connection.invalidate(error)
                self.close()
        if self._connection is None:
            self._connection = self._engine.connect()
            self._driver.prepare_threshold = PREPARE_AFTER
            self._planned_at = monotonic()
        return self._connection

    @property
    def _driver(self) -> Any:
        assert self._connection is not None
        return self._connection.connection.driver_connection

    def _plan_anew(self) -> None:
        """A plan made while a table was nearly empty reads all of it later, and stays until the next ANALYZE: let none
        live longer than ``PLANS_S``."""
        if monotonic() - self._planned_at > PLANS_S:
            self._planned_at = monotonic()
            self._driver.execute("DISCARD PLANS", prepare=False)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@contextmanager
def transaction(
    engine: Engine, kept: str = "Nothing was written.", unknown: str | None = None
) -> Iterator[Connection]:
    """A transaction of its own, with errors explained: with ``kept``, or with ``unknown`` once the commit was sent,
    because an answer that got lost may have been a yes."""
    outcome = kept
    try:
        with engine.begin() as connection:
            yield connection
            outcome = unknown or kept
    except (DBAPIError, PoolTimeout) as error:
        raise translated(error, kept if is_contention(error) else outcome) from error


def join(connection: Any) -> Connection:
    """The ``Connection`` of a caller's own transaction, given itself or as a ``Session``. Raises ``InvalidConfig`` for
    anything else, and for one through another driver than ours."""
    joined = connection.connection() if isinstance(connection, Session) else connection
    if not isinstance(joined, Connection):
        raise InvalidConfig(
            "connection= takes a SQLAlchemy Connection or Session (with acreate: AsyncConnection or AsyncSession) on "
            f"the database of the orchestrator, not {type(connection).__name__}."
        )
    dialect = joined.dialect
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg"):
        raise InvalidConfig(
            "connection= takes a connection through psycopg 3 (a URL that begins with postgresql+psycopg://), not "
            f"through {dialect.name}+{dialect.driver}."
        )
    return joined


def after_commit(connection: Any, hint: Hint, ids: Iterable[UUID]) -> None:
    """Have ``hint`` called with these once the caller's ``Session`` commits. A ``Connection`` does not tell."""
    if not isinstance(connection, Session):
        return
    if not event.contains(connection, "after_commit", _committed):
        event.listen(connection, "after_commit", _committed)
        event.listen(connection, "after_transaction_end", _ended)
    connection.info.setdefault(_PENDING, {}).setdefault(hint, []).extend(ids)


def _committed(session: Session) -> None:
    if session.in_nested_transaction():
        return  # only a savepoint
    pending: dict[Hint, list[UUID]] = session.info.pop(_PENDING, {})
    for hint, ids in pending.items():
        hint(ids)


def _ended(session: Session, ended: SessionTransaction) -> None:
    if ended.parent is None:
        session.info.pop(_PENDING, None)
