"""The demo: played whole, interrupted in the middle, and its checks on evidence that is wrong in one place each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.client.records import Attempt, InstanceStatus, StepRecord
from orchestrator.demo import __main__ as entry
from orchestrator.demo import acts, checks, play
from orchestrator.demo.checks import Check, Evidence
from orchestrator.demo.ledger import OPENING, Booking, Call
from orchestrator.demo.workflows import Receipt
from orchestrator.dev import servers, up
from orchestrator.errors import ErrorInfo, RollbackStatus, ServiceUnavailable
from orchestrator.workflow.status import Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)

real = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        not servers.installed() and not os.environ.get("CI"),
        reason="needs the embedded servers (extra `dev`)",
    ),
]


# -- with real processes -------------------------------------------------------------------------------------


class Demo:
    """``python -m orchestrator.demo`` in a folder of its own; everything it starts can be told by that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "orchestrator.demo"],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), "ORCHESTRATOR_ACCOUNT": "not{for}the{demo}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"it ended without {text!r}:\n{read}")

    def remains(self) -> list[str]:
        """The processes that work in the folder, or were started from there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = [*process.cmdline(), process.environ().get("TMPDIR", "")]
                if process.pid != os.getpid() and any(str(self.folder) in each for each in told):
                    found.append(f"{process.pid} {process.cmdline()}")
        return found


@pytest.fixture
def demo() -> Iterator[Demo]:
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-test-demo-", dir="/tmp"))
    folder.chmod(0o711)
    made = Demo(folder)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


class TestPlayed:
    pytestmark = real

    def test_every_check_passes_and_nothing_is_left(self, demo: Demo) -> None:
        out, _ = demo.process.communicate(timeout=90)
        assert demo.process.returncode == 0, out
        assert "✗" not in out
        assert out.count("✓") == 13, out
        assert "all checks passed" in out
        for shown in (
            r"debit-bank-a +1 +done +worker-\d \(\d+\)",
            r"credit-bank-b +3 +done .*BankUnavailable, BankUnavailable",
            r"undo debit-bank-a +1 +done",
            r"kill -9 (\d+) \((worker-\d)\)",
            r"credit-bank-b +2 +done +worker-\d \(\d+\) → worker-\d \(\d+\) +WorkerLost",
            r"Flower shows .* http://127.0.0.1:\d+",
            r"sum .* 1,850.00 .* 1,850.00 ",
        ):
            assert re.search(shown, out), (shown, out)
        assert demo.remains() == []
        assert list(demo.folder.iterdir()) == []

    def test_interrupted_in_the_middle_of_a_step_it_leaves_nothing(self, demo: Demo) -> None:
        demo.read_until("credit-bank-b")
        demo.process.send_signal(signal.SIGINT)
        out, _ = demo.process.communicate(timeout=30)
        assert demo.process.returncode == 130, out
        assert "nothing is left running" in out
        assert demo.remains() == []


# -- the exit status -----------------------------------------------------------------------------------------


@pytest.fixture
def without_servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Replaces the play: ``stage(what)`` has it return these checks, or raise this error."""

    def stage(what: Any) -> None:
        def perform(*_: Any) -> list[Check]:
            if isinstance(what, BaseException):
                raise what
            return what  # type: ignore[no-any-return]

        monkeypatch.setattr(up, "running", lambda plan: contextlib.nullcontext(up.Stack(plan)))
        monkeypatch.setattr(play, "perform", perform)

    return stage


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ([Check("a", True), Check("b", None)], 0),
        ([Check("a", True), Check("b", False)], 1),
        (ServiceUnavailable("no Postgres"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status(
    without_servers: Callable[[Any], None], capsys: pytest.CaptureFixture[str], what: Any, status: int
) -> None:
    without_servers(what)
    assert entry.main() == status
    assert entry.main(as_json=True) == status
    if isinstance(what, list):
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] == (status == 0)


def test_nothing_of_the_users_settings_reaches_the_demo() -> None:
    environ = play.plan(
        {"ORCHESTRATOR_BROKER_URL": "x", "FLOWER_PORT": "1", "CELERY_APP": "x", "HOME": "h"}
    ).environ
    assert environ == {"HOME": "h", "ORCHESTRATOR_LEASE": "3", "FLOWER_UNAUTHENTICATED_API": "true"}


# -- the checks ----------------------------------------------------------------------------------------------


def step(key: str, status: str = "done", errors: tuple[str, ...] = (), kind: str = "do") -> StepRecord:
    attempts = [Attempt(n, ErrorInfo(e, ""), NOW, NOW) for n, e in enumerate(errors, 1)]
    if status == "done":
        attempts.append(Attempt(len(attempts) + 1, None, NOW, NOW))
    return StepRecord(key, kind, key.split(":")[1], 1, status, None, None, attempts, {}, NOW, NOW)


def good() -> Evidence:
    """What a play leaves in which all went as it should."""
    debit, credit, notify = "do:debit-bank-a:1", acts.CREDIT, "do:notify:1"
    undo = [step(f"{key}:rollback", kind="rollback") for key in (credit, debit)]
    complete = InstanceStatus(Status.COMPLETE, Receipt("d", "c", acts.APPROVER))
    errored = InstanceStatus(
        Status.ERRORED, error=ErrorInfo("LetterRefused", "no"), rollback=RollbackStatus("complete")
    )
    told = {
        acts.APPROVED: (complete, [step(debit), step(credit), step(notify)]),
        acts.FLAKY: (complete, [step(debit), step(credit, errors=("BankUnavailable",) * 2), step(notify)]),
        acts.REFUSED: (
            errored,
            [step(debit), step(credit), step(notify, "failed", ("LetterRefused",)), *undo],
        ),
        acts.KILLED: (complete, [step(debit), step(credit, errors=("WorkerLost",)), step(notify)]),
    }
    outcomes = {
        act.name: acts.Outcome(act, f"id-{act.name}", status, steps, 7 if act.kills else None)
        for act, (status, steps) in told.items()
    }
    bookings, after = [], dict(OPENING)
    for act in acts.ACTS:
        sides = [("bank-a", act.order.source, -1, debit), ("bank-b", act.order.target, 1, credit)]
        if act is acts.REFUSED:
            sides += [(bank, who, -sign, f"{key}:rollback") for bank, who, sign, key in reversed(sides)]
        for bank, who, sign, key in sides:
            bookings.append(Booking(f"id-{act.name}:0:{key}", bank, who, sign * act.order.amount))
            after[bank, who] += sign * act.order.amount
    calls = [Call(f"id-flaky:0:{credit}", "bank-b", pid) for pid in (7, 8, 7)]
    calls += [Call(f"id-killed:0:{credit}", "bank-b", pid) for pid in (7, 8)]
    tasks = [
        {"name": checks.task_name(each), "args": f"('{outcome.id}', '{each.key}', 3)"}
        for outcome in outcomes.values()
        for each in outcome.steps
    ]
    return Evidence(outcomes, dict(OPENING), after, bookings, calls, tasks)


def failed(evidence: Evidence) -> list[str]:
    made = checks.examine(evidence)
    assert checks.passed(made) == all(check.ok is not False for check in made)
    return [check.text for check in made if check.ok is False]


def with_outcome(evidence: Evidence, act: acts.Act, **changes: Any) -> Evidence:
    outcome = replace(evidence.outcomes[act.name], **changes)
    return replace(evidence, outcomes={**evidence.outcomes, act.name: outcome})


def test_good_evidence_passes() -> None:
    assert failed(good()) == []


def test_a_wrong_balance_fails() -> None:
    evidence = good()
    lost = {**evidence.after, ("bank-b", "bob"): evidence.after["bank-b", "bob"] - 1}
    assert [text.partition(",")[0] for text in failed(replace(evidence, after=lost))] == [
        "ledger: the sum of all balances is unchanged",
        "ledger: three transfers moved their amount",
        "ledger: balances are the sum of the bookings",
    ]


def test_money_that_went_to_somebody_else_fails() -> None:
    evidence = good()
    bob, dave = evidence.after["bank-b", "bob"], evidence.after["bank-b", "dave"]
    swapped = {**evidence.after, ("bank-b", "bob"): bob - 100, ("bank-b", "dave"): dave + 100}
    assert len(failed(replace(evidence, after=swapped))) == 2


def test_a_double_booking_fails() -> None:
    evidence = good()
    twice = next(b for b in evidence.bookings if b.key == f"id-killed:0:{acts.CREDIT}")
    assert len(failed(replace(evidence, bookings=[*evidence.bookings, twice]))) == 2


def test_a_worker_that_was_not_replaced_fails() -> None:
    evidence = good()
    same = [replace(call, pid=7) for call in evidence.calls]
    (text,) = failed(replace(evidence, calls=same))
    assert "another one took over" in text
    assert len(failed(replace(evidence, calls=evidence.calls[:-1]))) == 2


@pytest.mark.parametrize("act", acts.ACTS, ids=lambda act: act.name)
def test_an_act_that_does_not_end_fails(act: acts.Act) -> None:
    stuck = with_outcome(good(), act, status=InstanceStatus(Status.RUNNING), steps=[])
    assert any(text.startswith(act.name) for text in failed(stuck))


def test_compensations_in_the_wrong_order_fail() -> None:
    evidence = good()
    steps = list(evidence.outcomes["refused"].steps)
    (text,) = failed(with_outcome(evidence, acts.REFUSED, steps=[*steps[:3], steps[4], steps[3]]))
    assert "reverse order" in text


def test_a_task_that_flower_does_not_show_by_name_fails() -> None:
    evidence = good()
    assert evidence.tasks is not None
    first = {**evidence.tasks[0], "name": "orchestrator.step"}
    assert len(failed(replace(evidence, tasks=[first, *evidence.tasks[1:]]))) == 1
    other = {**evidence.tasks[0], "args": "()"}
    assert len(failed(replace(evidence, tasks=[other, *evidence.tasks[1:]]))) == 1


def test_without_flower_that_check_is_left_out() -> None:
    made = checks.examine(replace(good(), tasks=None))
    assert [check.ok for check in made].count(None) == 1
    assert checks.passed(made)
