"""The demo's workflow: money goes from an account at one bank to an account at another, or comes back.

Owns: the transfer. Does not own: what the banks do (``banks``). Copy from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import Retries, WorkflowEvent, WorkflowStep, workflow
from orchestrator.demo.banks import bank_a, bank_b, send_letter


@dataclass(frozen=True)
class Transfer:
    """What is asked for. ``amount`` is in cents."""

    source: str
    """An account holder at bank A."""
    target: str
    """An account holder at bank B."""
    amount: int


@dataclass(frozen=True)
class Receipt:
    """What comes out."""

    debit: str
    credit: str
    approved_by: str


@workflow
async def transfer(event: WorkflowEvent[Transfer], step: WorkflowStep) -> Receipt:
    """Debit at bank A, wait for an approval, credit at bank B, tell the receiver; undo all of it if one fails.

    A compensation knows under which key its step booked, and reverses that booking if there was one: the step
    may have failed before it, or after it.
    """
    order = event.payload
    patient = Retries(limit=5, delay="1 second", backoff="constant")

    debit = await step.do(
        "debit-bank-a", bank_a.debit, order.source, order.amount, retries=patient, timeout="1 minute",
        rollback=lambda r: bank_a.reverse(r.step.idempotency_key, r.idempotency_key),
    )  # fmt: skip
    approval = await step.wait_for_event("approval", type="approval", timeout="24 hours")
    credit = await step.do(
        "credit-bank-b", bank_b.credit, order.target, order.amount, retries=patient, timeout="1 minute",
        rollback=lambda r: bank_b.reverse(r.step.idempotency_key, r.idempotency_key),
    )  # fmt: skip
    await step.do("notify", send_letter, order.target, f"{order.amount} cents from {order.source}")
    return Receipt(debit.key, credit.key, approved_by=approval.payload["by"])
