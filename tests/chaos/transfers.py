"""Transfers between the accounts of the demo's ledger, whose bodies may die before, while and after they book.

Owns: the workflow that the workers of ``test_saga_crashes`` run, when they arm themselves, and what the ledger must
hold afterwards. Does not own the ledger (``orchestrator.demo.ledger``). Imported by workers and by the test.
"""

import asyncio
import os
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from orchestrator import RollbackContext, StepContext, failpoints, workflow
from orchestrator.demo import ledger as books
from orchestrator.demo.ledger import OPENING, Booking, Ledger
from tests.chaos.flows import QUICK, TWICE, witness
from tests.chaos.witness import libpq

HOUSE = ("bank-b", "dave")
"""Who gets the fee, one cent of each transfer."""
WAYS = ("well", "flaky", "late", "beside", "code")
"""How a transfer goes: well, well at the second try, or it fails at its end, beside bodies that book, in its code."""
FAILS = {"late": "ValueError", "beside": "ValueError", "code": "RuntimeError"}


def orders(dice: random.Random, count: int) -> list[dict[str, Any]]:
    """What ``count`` transfers are asked to do. Every way comes up where there are five."""
    return [
        {
            "source": dice.choice(["alice", "carol"]),
            "amount": dice.randint(2, 9),
            "way": WAYS[n % len(WAYS)],
            "pace": dice.random() * 0.04,
        }
        for n in range(count)
    ]


def arm(phase: str) -> None:
    """Arm what the test has laid out for this worker in that phase, once."""
    laid_out = Path(f"{os.environ['CHAOS_ARM_FILE']}.{phase}")
    try:
        text = laid_out.read_text()
        laid_out.unlink()
    except FileNotFoundError:
        return
    failpoints._armed.clear()
    failpoints._armed.update(failpoints.parse(text))


# -- bodies: a sync one goes to the ledger in its thread, an async one on the loop ------------------------------------


def book(ctx: StepContext, bank: str, holder: str, amount: int) -> str:
    with witness.body(ctx.idempotency_key, ctx.attempt):
        arm("forward")
        failpoints.reach("money.before")
        booking = Ledger.here().book(ctx.idempotency_key, bank, holder, amount)
        failpoints.reach("money.booked")
        return booking.key


async def abook(ctx: StepContext, bank: str, holder: str, amount: int, pace: float, is_flaky: bool) -> str:
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        arm("forward")
        await asyncio.sleep(pace)
        failpoints.reach("money.before")
        entry = {"key": ctx.idempotency_key, "bank": bank, "holder": holder, "amount": amount}
        async with await psycopg.AsyncConnection.connect(_url(), autocommit=True) as connection:
            await connection.execute(books._BOOK, entry)
        failpoints.reach("money.booked")
        if is_flaky and ctx.attempt == 1:
            raise ConnectionError("the bank booked, and its answer was lost")
        return ctx.idempotency_key


async def refuse(ctx: StepContext, pace: float) -> None:
    async with witness.abody(ctx.idempotency_key, ctx.attempt):
        arm("rollback")
        await asyncio.sleep(pace)
        raise ValueError("refused")


def reverse(r: RollbackContext) -> None:
    with witness.body(r.idempotency_key, r.attempt):
        arm("rollback")
        failpoints.reach("money.unbefore")
        Ledger.here().reverse(r.step.idempotency_key, r.idempotency_key)
        failpoints.reach("money.unbooked")


async def areverse(r: RollbackContext) -> None:
    async with witness.abody(r.idempotency_key, r.attempt):
        arm("rollback")
        failpoints.reach("money.unbefore")
        await asyncio.to_thread(Ledger.here().reverse, r.step.idempotency_key, r.idempotency_key)
        failpoints.reach("money.unbooked")


@cache
def _url() -> str:
    return libpq(os.environ["ORCHESTRATOR_DATABASE_URL"])


@workflow(name="money-transfer")
async def transfer(event: Any, step: Any) -> str:
    """Debit, then credit and fee side by side; what has started is undone by reversing what it booked."""
    asked = event.payload
    way, amount, pace = asked["way"], asked["amount"], asked["pace"]
    await step.do("debit", book, "bank-a", asked["source"], -amount, retries=QUICK, rollback=reverse)
    both = [
        step.do("credit", abook, "bank-b", "bob", amount - 1, pace, way == "flaky", retries=QUICK, rollback=areverse),
        step.do("fee", book, *HOUSE, 1, retries=QUICK, rollback=reverse),
    ]  # fmt: skip
    if way == "beside":
        both.append(step.do("refuse", refuse, pace, retries=TWICE))
    await asyncio.gather(*both)
    if way == "late":
        await step.do("refuse", refuse, 0.0, retries=TWICE)
    if way == "code":
        raise RuntimeError("the code has changed its mind")
    return "done"


# -- what the ledger must hold ----------------------------------------------------------------------------------------


def misbooked(ledger: Ledger) -> list[str]:
    """What is wrong with the accounts: money made or lost, a balance that its bookings do not give."""
    balances, bookings = ledger.balances(), ledger.bookings()
    expected = dict(OPENING)
    for booking in bookings:
        expected[booking.bank, booking.holder] += booking.amount
    wrong = [f"{account}: {balances[account]}, booked {expected[account]}" for account in OPENING
             if balances[account] != expected[account]]  # fmt: skip
    if sum(balances.values()) != sum(OPENING.values()):
        wrong.append(f"all the money: {sum(balances.values())}, at first {sum(OPENING.values())}")
    return wrong


def misbooked_by(instance: Any, bookings: Iterable[Booking], way: str) -> list[str]:
    """What is wrong with the bookings of one finished transfer, given in their order."""
    own = [(n, booking) for n, booking in enumerate(bookings) if booking.key.startswith(f"{instance}:")]
    at = {booking.key.split(":", 2)[2]: (n, booking.amount) for n, booking in own}
    forward = {key: entry for key, entry in at.items() if not key.endswith(":rollback")}
    undone = {key.removesuffix(":rollback"): entry for key, entry in at.items() if key not in forward}
    wrong = [] if len(at) == len(own) else [f"one key twice: {own}"]
    if way not in FAILS:
        whole = {"do:debit:1", "do:credit:1", "do:fee:1"}
        return wrong if set(forward) == whole and not undone else [*wrong, f"not what was ordered: {at}"]
    for key in forward.keys() | undone.keys():
        if key not in forward or key not in undone:
            wrong.append(f"{key}: booked or reversed, not both: {at}")
        elif undone[key][0] < forward[key][0] or undone[key][1] != -forward[key][1]:
            wrong.append(f"{key}: reversed before, or by another amount: {at}")
    return wrong
