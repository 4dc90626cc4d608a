"""The demo's ledger: a Postgres schema of its own, in which one idempotency key books once.

Owns: the schema ``demo_ledger`` (accounts, bookings, calls, the trouble that is arranged) and the SQL on it. Does
not own: what a bank makes of it (``banks``). Amounts are whole cents. A connection per call: a demo is no bank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.errors import NonRetryableError

if TYPE_CHECKING:
    from psycopg import Connection

Account = tuple[str, str]
"""Bank and holder."""

OPENING: dict[Account, int] = {
    ("bank-a", "alice"): 100_000,
    ("bank-a", "carol"): 80_000,
    ("bank-b", "bob"): 5_000,
    ("bank-b", "dave"): 0,
}

_LOCK = 7_210_559_011  # any fixed number: two processes that create the schema take turns
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS demo_ledger;
CREATE TABLE IF NOT EXISTS demo_ledger.accounts (
    bank text, holder text, balance bigint NOT NULL CHECK (balance >= 0), PRIMARY KEY (bank, holder));
CREATE TABLE IF NOT EXISTS demo_ledger.bookings (
    key text PRIMARY KEY, bank text NOT NULL, holder text NOT NULL, amount bigint NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    FOREIGN KEY (bank, holder) REFERENCES demo_ledger.accounts);
CREATE TABLE IF NOT EXISTS demo_ledger.calls (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL, place text NOT NULL, pid int NOT NULL);
CREATE TABLE IF NOT EXISTS demo_ledger.troubles (
    place text, holder text, kind text NOT NULL, remaining int NOT NULL, PRIMARY KEY (place, holder));
"""
_BOOK = """
WITH booked AS (
    INSERT INTO demo_ledger.bookings (key, bank, holder, amount) VALUES (%(key)s, %(bank)s, %(holder)s, %(amount)s)
    ON CONFLICT (key) DO NOTHING RETURNING bank, holder, amount)
UPDATE demo_ledger.accounts a SET balance = a.balance + b.amount
FROM booked b WHERE (a.bank, a.holder) = (b.bank, b.holder)
"""
_FIND = "SELECT key, bank, holder, amount FROM demo_ledger.bookings WHERE key = %s"


@dataclass(frozen=True)
class Booking:
    """One entry of the ledger."""

    key: str
    bank: str
    holder: str
    amount: int


@dataclass(frozen=True)
class Call:
    """One call of a body that reached a bank or the letter box, and the process it ran in."""

    key: str
    place: str
    pid: int


class Ledger:
    """The ledger in the database of that URL."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url.replace("+psycopg", "", 1)

    @staticmethod
    @cache
    def here() -> Ledger:
        """That of this process's ``ORCHESTRATOR_DATABASE_URL``, created if it is missing."""
        from orchestrator.settings import Settings

        ledger = Ledger(Settings.from_env().database_url)
        ledger.create()
        return ledger

    def create(self) -> None:
        """Create the schema, and open the accounts with :data:`OPENING`. Does nothing where they exist."""
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(_SCHEMA)
            for (bank, holder), balance in OPENING.items():
                connection.execute(
                    "INSERT INTO demo_ledger.accounts VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (bank, holder, balance),
                )

    # -- what banks do ---------------------------------------------------------------------------------------

    def book(self, key: str, bank: str, holder: str, amount: int) -> Booking:
        """Add ``amount`` to the account, once per key; returns the booking under that key.

        Raises ``NonRetryableError`` if there is no such account, or not enough on it.
        """
        from psycopg.errors import CheckViolation, ForeignKeyViolation

        try:
            with self._transaction() as connection:
                connection.execute(_BOOK, {"key": key, "bank": bank, "holder": holder, "amount": amount})
                row = connection.execute(_FIND, (key,)).fetchone()
        except ForeignKeyViolation:
            raise NonRetryableError(f"{bank} has no account of {holder!r}") from None
        except CheckViolation:
            raise NonRetryableError(f"{holder!r} has less than {-amount} cents at {bank}") from None
        assert row is not None
        return Booking(*row)

    def reverse(self, booked: str, key: str) -> Booking | None:
        """Book the opposite of the booking ``booked``, once per key; ``None`` if there is none."""
        with self._transaction() as connection:
            row = connection.execute(_FIND, (booked,)).fetchone()
        if row is None:
            return None
        forward = Booking(*row)
        return self.book(key, forward.bank, forward.holder, -forward.amount)

    def note_call(self, key: str, place: str) -> None:
        """Write down that this process is about to do something under that key."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO demo_ledger.calls (key, place, pid) VALUES (%s, %s, %s)",
                (key, place, os.getpid()),
            )

    def trouble(self, place: str, holder: str) -> str | None:
        """The kind of trouble that is due at this call, if one was arranged; it is used up by asking."""
        with self._transaction() as connection:
            row = connection.execute(
                "UPDATE demo_ledger.troubles SET remaining = remaining - 1 "
                "WHERE (place, holder) = (%s, %s) AND remaining > 0 RETURNING kind",
                (place, holder),
            ).fetchone()
        return None if row is None else str(row[0])

    # -- what the play needs ---------------------------------------------------------------------------------

    def arrange(self, place: str, holder: str, kind: str, times: int = 1) -> None:
        """Have the next calls at ``place`` for ``holder`` meet trouble: ``unavailable``, ``slow`` or ``refused``."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO demo_ledger.troubles VALUES (%s, %s, %s, %s) ON CONFLICT (place, holder) "
                "DO UPDATE SET kind = excluded.kind, remaining = excluded.remaining",
                (place, holder, kind, times),
            )

    def balances(self) -> dict[Account, int]:
        """What is on every account."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT bank, holder, balance FROM demo_ledger.accounts ORDER BY 1, 2")
            return {(bank, holder): balance for bank, holder, balance in rows}

    def bookings(self) -> list[Booking]:
        """Every booking, in order."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT key, bank, holder, amount FROM demo_ledger.bookings ORDER BY number"
            )
            return [Booking(*row) for row in rows]

    def calls(self) -> list[Call]:
        """Every call, in order."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT key, place, pid FROM demo_ledger.calls ORDER BY number")
            return [Call(*row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        import psycopg

        with psycopg.connect(self._url, connect_timeout=5, application_name="demo-ledger") as connection:
            yield connection
