"""The bench of the control plane runs from end to end, in small sizes: what may never be broken is not, however slow
the machine is; nothing is asserted about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.control import notes
from bench.control.notes import Note
from bench.control.verdicts import Findings
from orchestrator.dev import servers as embedded

ROOT = Path(__file__).resolve().parents[2]
NEVER = {
    "rate": ["most in any second, account", "most in any second, one workflow", "in all, beyond rate × time + burst",
             "created and not there, or there and not told"],
    "awaiting": ["bodies at once", "bodies that ran twice"],
}  # fmt: skip
"""Promises that hold on any machine."""


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_measurements_run_and_what_may_never_break_does_not(tmp_path: Path) -> None:
    """semantics §6: creation limits hold over processes; nothing runs twice; few are not kept waiting by many."""
    if not embedded.installed():
        pytest.skip("needs the embedded servers: pip install 'orchestrator-celery[dev]'")
    command = [
        sys.executable,
        "-m",
        "bench.control",
        "rate",
        "awaiting",
        "queued",
        "--quick",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=560)
    (written,) = tmp_path.glob("*.json")
    found = json.loads(written.read_text())["found"]
    assert list(found) == ["rate", "awaiting", "queued"], done.stdout + done.stderr
    for name, promises in NEVER.items():
        kept = {each["what"]: each["is_kept"] for each in found[name]["verdicts"]}
        assert {what: kept[what] for what in promises} == dict.fromkeys(promises, True), done.stdout
    assert found["rate"]["figures"]["created"] > 0
    assert set(found["queued"]["figures"]) == {"2,000 queued", "10,000 queued"}
    everything = [each["is_kept"] for one in found.values() for each in one["verdicts"]]
    assert done.returncode == (0 if all(everything) else 1), "a promise that is not kept is an exit status"


def test_an_unknown_measurement_is_named() -> None:
    from bench.control.__main__ import parse

    assert parse(["--quick"]).names == ["rate", "slots", "awaiting", "queued", "takeover", "reshard"]
    with pytest.raises(SystemExit):
        parse(["nothing"])


def test_bodies_of_a_killed_process_end_with_it() -> None:
    """What its notes leave open is closed at its death; an attempt that begins twice is found."""
    told = [
        Note("began", 1.0, "a", "s", 1, 10), Note("began", 2.0, "b", "s", 1, 10), Note("ended", 2.5, "a", "s", 1, 10),
        Note("began", 4.0, "b", "s", 2, 20), Note("began", 5.0, "c", "s", 1, 20),
    ]  # fmt: skip
    assert notes.most_at_once(told, {}) == 3
    assert notes.most_at_once(told, {10: 3.0}) == 2
    assert notes.again(told) == 0
    assert notes.again([*told, Note("began", 6.0, "c", "s", 1, 30)]) == 1


def test_a_promise_is_a_ceiling_or_a_floor() -> None:
    found = Findings()
    found.most("a", 1.0, 1.0)
    found.least("b", 1.0, 1.0)
    assert found.are_kept
    found.least("c", 0.9, 1.0)
    assert [each.is_kept for each in found.verdicts] == [True, True, False]
