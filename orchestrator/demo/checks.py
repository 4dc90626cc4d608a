"""What must be true when the four acts are over. Pure: evidence in, checks out.

Owns: every claim the demo makes, and its judgement. Does not own where the evidence comes from (``play``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.client.records import StepRecord
from orchestrator.demo import acts
from orchestrator.demo.acts import Outcome
from orchestrator.demo.ledger import Account, Booking, Call
from orchestrator.demo.workflows import Receipt, transfer


@dataclass(frozen=True)
class Check:
    """One claim. ``ok`` is ``None`` where it could not be looked at; ``detail`` says what was found instead."""

    text: str
    ok: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that the acts left. ``outcomes`` are by name of the act; ``tasks`` what Flower lists, if there is one."""

    outcomes: Mapping[str, Outcome]
    before: Mapping[Account, int]
    after: Mapping[Account, int]
    bookings: Sequence[Booking]
    calls: Sequence[Call]
    tasks: Sequence[Mapping[str, Any]] | None


def examine(evidence: Evidence) -> list[Check]:
    """Every check, in the order it is shown."""
    return [
        *_approved(evidence.outcomes[acts.APPROVED.name]),
        *_flaky(evidence.outcomes[acts.FLAKY.name], evidence),
        *_refused(evidence.outcomes[acts.REFUSED.name], evidence),
        *_killed(evidence.outcomes[acts.KILLED.name], evidence),
        *_balances(evidence),
        _flower(evidence),
    ]


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.ok is not False for check in checks)


def _approved(outcome: Outcome) -> Iterator[Check]:
    output, status = outcome.status.output, outcome.status.status
    approver = output.approved_by if isinstance(output, Receipt) else None
    yield Check(
        f"approved: complete, approved by {acts.APPROVER}",
        status == "complete" and approver == acts.APPROVER,
        f"{status}, approved by {approver}",
    )
    tries = [len(step.attempts) for step in outcome.steps if step.kind == "do"]
    yield Check("approved: three steps, one attempt each", tries == [1, 1, 1], f"attempts {tries}")


def _flaky(outcome: Outcome, evidence: Evidence) -> Iterator[Check]:
    errors = _errors(outcome.step(acts.CREDIT))
    yield Check(
        "flaky: complete at the third attempt, after two times BankUnavailable",
        outcome.status.status == "complete" and errors == ["BankUnavailable", "BankUnavailable", None],
        f"{outcome.status.status}, attempts {errors}",
    )
    yield _booked_once("flaky", outcome, evidence)


def _refused(outcome: Outcome, evidence: Evidence) -> Iterator[Check]:
    status, error, rollback = outcome.status.status, outcome.status.error, outcome.status.rollback
    yield Check(
        "refused: errored with LetterRefused, rollback complete",
        status == "errored"
        and error is not None
        and error.name == "LetterRefused"
        and rollback is not None
        and rollback.outcome == "complete",
        f"{status}, {error}, rollback {rollback and rollback.outcome}",
    )
    undone = [f"{step.name} {step.status}" for step in outcome.steps if step.kind == "rollback"]
    booked = [b.bank for b in evidence.bookings if b.key.startswith(outcome.id)]
    yield Check(
        "refused: compensated in reverse order, credit first, then debit",
        undone == ["credit-bank-b done", "debit-bank-a done"]
        and booked == ["bank-a", "bank-b", "bank-b", "bank-a"],
        f"{undone}, bookings at {booked}",
    )


def _killed(outcome: Outcome, evidence: Evidence) -> Iterator[Check]:
    errors = _errors(outcome.step(acts.CREDIT))
    yield Check(
        "killed: complete, the attempt of the dead worker recorded as WorkerLost",
        outcome.status.status == "complete" and errors == ["WorkerLost", None],
        f"{outcome.status.status}, attempts {errors}",
    )
    key = outcome.idempotency_key(acts.CREDIT)
    pids = [call.pid for call in evidence.calls if call.key == key]
    yield Check(
        f"killed: process {outcome.killed_pid} died in the body, another one took over",
        len(pids) == 2 and pids[0] == outcome.killed_pid and pids[1] != outcome.killed_pid,
        f"called by {pids}",
    )
    yield _booked_once("killed", outcome, evidence)


def _booked_once(name: str, outcome: Outcome, evidence: Evidence) -> Check:
    """The credit was called several times under one key, and booked once."""
    key = outcome.idempotency_key(acts.CREDIT)
    calls = sum(call.key == key for call in evidence.calls)
    amounts = [booking.amount for booking in evidence.bookings if booking.key == key]
    return Check(
        f"{name}: bank B was called {calls} times, and booked once",
        calls > 1 and amounts == [outcome.act.order.amount],
        f"{calls} calls, booked {amounts}",
    )


def _balances(evidence: Evidence) -> Iterator[Check]:
    before, after = sum(evidence.before.values()), sum(evidence.after.values())
    yield Check(
        "ledger: the sum of all balances is unchanged", before == after, f"{before} before, {after} after"
    )
    wanted = Counter(evidence.before)
    for outcome in evidence.outcomes.values():
        order = outcome.act.order
        if outcome.act.name != acts.REFUSED.name:
            wanted["bank-a", order.source] -= order.amount
            wanted["bank-b", order.target] += order.amount
    wrong = {k: (n, evidence.after.get(k)) for k, n in wanted.items() if n != evidence.after.get(k)}
    yield Check(
        "ledger: three transfers moved their amount, the fourth nothing",
        not wrong,
        "; ".join(f"{bank} {who}: wanted {n}, is {found}" for (bank, who), (n, found) in wrong.items()),
    )
    booked = Counter(evidence.before)
    for booking in evidence.bookings:
        booked[booking.bank, booking.holder] += booking.amount
    yield Check(
        "ledger: balances are the sum of the bookings, no key twice",
        booked == Counter(evidence.after)
        and len({b.key for b in evidence.bookings}) == len(evidence.bookings),
        f"bookings give {dict(booked)}, balances are {dict(evidence.after)}",
    )


def _flower(evidence: Evidence) -> Check:
    text = "Flower: every step task is listed as <workflow>.<step>, with instance and step in its arguments"
    if evidence.tasks is None:
        return Check(text, None, "Flower is not installed")
    missing = missing_tasks(evidence.outcomes.values(), evidence.tasks)
    strange = sorted({str(t.get("name")) for t in evidence.tasks} & {"orchestrator.step", "None"})
    return Check(text, not missing and not strange, f"missing {missing}, under another name {strange}")


def missing_tasks(outcomes: Iterable[Outcome], tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The steps and compensations of which Flower shows no task of their name with their instance and key."""
    shown = [(str(task.get("name")), str(task.get("args"))) for task in tasks]
    return [
        f"{task_name(step)} of {outcome.id}"
        for outcome in outcomes
        for step in outcome.steps
        if step.kind in ("do", "rollback")
        and not any(
            name == task_name(step) and repr(outcome.id) in args and repr(step.key) in args
            for name, args in shown
        )
    ]


def task_name(step: StepRecord) -> str:
    """The name Flower shows for the tasks of a step."""
    return f"{transfer.name}.{step.name}" + (".rollback" if step.kind == "rollback" else "")


def _errors(step: StepRecord | None) -> list[str | None]:
    """The error of each attempt, by name; ``None`` for one that had none."""
    return [] if step is None else [None if a.error is None else a.error.name for a in step.attempts]
