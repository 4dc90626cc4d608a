"""Two banks and a letter box: what the steps of the demo's workflow call.

Owns: what a bank does with a call, and the trouble it makes when the ledger says so. Does not own: accounts and
bookings (``ledger``). Every call passes an idempotency key on, so that a call made twice books once.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.demo.ledger import Booking, Ledger
from orchestrator.errors import NonRetryableError
from orchestrator.workflow.language.config import StepContext

SLOW_S = 45.0
"""How long a slow bank takes to answer; its worker is killed long before."""


class BankUnavailable(Exception):
    """The bank does not answer; it may later."""


class LetterRefused(NonRetryableError):
    """Nobody takes letters at this address, now or later."""


@dataclass(frozen=True)
class Bank:
    """A bank by name. ``amount`` is in cents."""

    name: str

    def debit(self, holder: str, amount: int, ctx: StepContext) -> Booking:
        """Take money from an account. Raises ``BankUnavailable``, and ``NonRetryableError`` if it is not there."""
        return self._book(holder, -amount, ctx)

    def credit(self, holder: str, amount: int, ctx: StepContext) -> Booking:
        """Put money on an account. Raises ``BankUnavailable``, and ``NonRetryableError`` if there is no account."""
        return self._book(holder, amount, ctx)

    def reverse(self, booked: str, key: str) -> Booking | None:
        """Undo what was booked under the key ``booked``, once; ``None`` if nothing was."""
        ledger = Ledger.here()
        ledger.note_call(key, self.name)
        return ledger.reverse(booked, key)

    def _book(self, holder: str, amount: int, ctx: StepContext) -> Booking:
        ledger = Ledger.here()
        ledger.note_call(ctx.idempotency_key, self.name)
        trouble = ledger.trouble(self.name, holder)
        if trouble == "unavailable":
            raise BankUnavailable(f"{self.name} does not answer")
        booking = ledger.book(ctx.idempotency_key, self.name, holder, amount)
        if trouble == "slow":
            ctx.cancelled.wait(SLOW_S)
        return booking


def send_letter(holder: str, text: str, ctx: StepContext) -> str:
    """Tell somebody; returns the text. Raises ``LetterRefused``."""
    ledger = Ledger.here()
    ledger.note_call(ctx.idempotency_key, "letters")
    if ledger.trouble("letters", holder) == "refused":
        raise LetterRefused(f"{holder} takes no letters")
    return text


bank_a = Bank("bank-a")
bank_b = Bank("bank-b")
